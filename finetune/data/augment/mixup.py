"""Mixup and CutMix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.augment.affine import Augment

STAYS, CUT, BOX_X, BOX_Y = range(4)


def sample_mix(count: int, augment: Augment, generator: torch.Generator) -> Tensor:
    """How each image is mixed in one epoch: float32, N×4: the share that stays, whether it is cutmix, the box's middle.

    The share is Beta(alpha, alpha) by inverting its distribution, so that it is a function of one number per image.
    """
    from scipy.special import betaincinv

    numbers = torch.rand(count, 4, dtype=torch.float64, generator=generator)
    cut = numbers[:, CUT] < (0.5 if augment.mixup and augment.cutmix else 1.0 if augment.cutmix else 0.0)
    alphas = torch.where(cut, augment.cutmix, augment.mixup).numpy()
    numbers[:, STAYS] = torch.from_numpy(betaincinv(alphas, alphas, numbers[:, STAYS].numpy()))
    numbers[:, CUT] = cut.double()
    return numbers.float()


def apply_mix(
    images: Tensor, others: Tensor, targets: tuple[Tensor, Tensor], drawn: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Images mixed with `others` (float, N×C×H×W each), and their targets: float32, N×classes, each with a sum of 1.

    `targets` are the labels (int64, N) of both; `drawn` are the rows that belong to `images`. What a box of cutmix
    leaves of an image counts by its pixels, so a box that is cut at the border counts less.
    """
    cut = drawn[:, CUT] > 0
    boxes = _boxes(drawn, *images.shape[-2:]) & cut[:, None, None]
    stays = torch.where(cut, 1 - boxes.float().mean((1, 2)), drawn[:, STAYS])
    weights = torch.where(cut[:, None, None], (~boxes).float(), stays[:, None, None])
    found = torch.lerp(others, images, weights[:, None])
    first, second = (F.one_hot(part, classes).float() for part in targets)
    return found, first * stays[:, None] + second * (1 - stays)[:, None]


def _boxes(drawn: Tensor, height: int, width: int) -> Tensor:
    """Which pixels cutmix takes from the other image: bool, N×H×W; a box of the image's shape, cut at the border."""
    side = (1 - drawn[:, STAYS]).sqrt()
    inside = []
    for size, middle in ((height, drawn[:, BOX_Y]), (width, drawn[:, BOX_X])):
        steps = torch.arange(size, device=drawn.device) + 0.5
        inside.append((steps - (middle * size)[:, None]).abs() < (side * size / 2)[:, None])
    return inside[0][:, :, None] & inside[1][:, None, :]
