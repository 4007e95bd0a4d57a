"""A small staged network with normalisation and dropout, for what the article's CNN does not have; and a cache."""

from pathlib import Path

import torch
from torch import nn

from finetune.models.staged import StagedNetwork
from finetune.train.activation_cache import FILE, MEMORY, TRAIN, ActivationCache, ActivationKey, CachePart


def opened_cache(pixels, normalize, runtime, folder=Path("nowhere"), room=(10**9, 10**9), warn=None, **parts):
    """A cache of these images to learn from, and of other `parts` to judge."""
    every = {TRAIN: CachePart(pixels, training=True), **{name: CachePart(images) for name, images in parts.items()}}
    return ActivationCache(
        every, normalize, runtime, dict(zip((MEMORY, FILE), room, strict=True)), folder, warn or refuse
    )


def refuse(said):
    raise AssertionError(f"nobody should have to hear this: {said}")


def activations(network, pixels, normalize, cut, runtime):
    """What is kept of these images in front of stage number `cut`."""
    cache, key = opened_cache(pixels, normalize, runtime), ActivationKey(TRAIN, cut)
    assert cache.keep(network, {key: MEMORY})
    return cache.kept[key].rows


class NormNet(StagedNetwork):
    """stem (convolution, BatchNorm), body (convolution, BatchNorm, dropout), head; takes N×1×8×8."""

    stages = ("stem", "body", "head")

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        convolution = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.body = nn.Sequential(convolution, nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(6, classes)

    def run_stage(self, stage: str, x: torch.Tensor) -> torch.Tensor:
        if stage == "head":
            return self.head(x.mean((2, 3)))
        return self.get_submodule(stage)(x)
