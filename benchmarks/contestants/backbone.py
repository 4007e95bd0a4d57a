"""The resnet18 of the races with photographs as the torch peers make it, and photographs as tensors."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from contract import MEAN, STD
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

FEATURES = 512
TRANSFORM = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def resnet18(work: Path) -> nn.Module:
    """timm's network without a classifier (N×3×H×W to N×512), with the weights that all start from."""
    network = timm.create_model("resnet18", pretrained=False, num_classes=0)
    network.load_state_dict(load_file(work / "resnet18.safetensors"))
    return network.to(memory_format=torch.channels_last)


def photographs(work: Path, part: str) -> ImageFolder:
    """The photographs of a part (train or val), decoded when they are asked for."""
    return ImageFolder(work / "photographs" / part, TRANSFORM)


def in_memory(work: Path, part: str) -> tuple[Tensor, Tensor]:
    """All photographs of a part, decoded and normalised: float N×3×64×64, channels last, and labels."""
    images, labels = zip(*photographs(work, part), strict=True)
    return torch.stack(images).to(memory_format=torch.channels_last), torch.tensor(labels)
