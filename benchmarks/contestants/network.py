"""The article's network as the torch peers write it: any memory format, otherwise the same layers."""

from __future__ import annotations

from pathlib import Path

import torch
from contract import MNIST_MEAN, MNIST_STD
from torch import Tensor, nn
from torchvision.datasets import MNIST


def article_network() -> nn.Sequential:
    """Takes float images N×1×28×28, gives logits N×10."""
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def mnist_tensors(root: Path, *, train: bool, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Normalised images, float N×1×28×28, and labels, in memory."""
    found = MNIST(root, train=train)
    images = found.data[:limit, None].float().div(255).sub(MNIST_MEAN).div(MNIST_STD)
    return images, found.targets[:limit]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of right answers, in batches of 500."""
    model.eval()
    parts = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in parts) / len(labels)
