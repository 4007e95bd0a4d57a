"""The article's experiment as a plain torch script: what `recipes/mnist-article.yaml` and all speeds are held against.

    python benchmarks/article.py DATA_ROOT [SEED]

One image at a time through ToTensor and Normalize, a DataLoader without workers, SGD 0.01 with momentum 0.9, batches of
64, 10 epochs, test accuracy after each: written the way introductions write it.
"""

from __future__ import annotations

import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 64 * 7 * 7)
        return self.fc2(F.relu(self.fc1(x)))


def test(model, loader):
    model.eval()
    right = 0
    with torch.no_grad():
        for images, labels in loader:
            right += (model(images).argmax(1) == labels).sum().item()
    return right


def main():
    root, seed = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    started = time.perf_counter()
    torch.manual_seed(seed)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train = DataLoader(datasets.MNIST(root, train=True, transform=transform), batch_size=64, shuffle=True)
    held = DataLoader(datasets.MNIST(root, train=False, transform=transform), batch_size=64)
    model = Net()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(10):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        print(f"Epoch [{epoch + 1}/10], Accuracy: [{test(model, held)}/{len(held.dataset)}]", flush=True)
    print(f"{time.perf_counter() - started:.1f} s after the imports")


if __name__ == "__main__":
    main()
