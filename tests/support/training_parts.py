"""A tiny network, images, and a phase for tests of the training loop."""

import torch
from networks import NormNet

from finetune.data.normalize import Normalizer
from finetune.train.device import seeded
from finetune.train.loop import PhaseConfig
from finetune.train.optim import make_schedule

CPU = torch.device("cpu")


NORMALISE = Normalizer((0.5,), (0.25,), CPU)


SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}


def images(count=60, classes=3, seed=0):
    """Noise with a bright column whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 120, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(count), 0, :, labels * 2] = 255
    return pixels, labels


def net(seed=0):
    with seeded(seed):
        return NormNet()


def phase(stages=NormNet.stages, **changes):
    values = {"name": "p", "stages": stages, "steps": 12, "optimizer": "sgd", "arguments": SGD}
    return PhaseConfig(**{**values, "schedule": make_schedule("constant"), **changes})
