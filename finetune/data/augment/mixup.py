"""Mixup and CutMix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.augment.affine import Augment

STAYS, CUT, BOX_X, BOX_Y = range(4)


def sample_mix(count: int, augment: Augment, generator: torch.Generator) -> Tensor:
    """Samples how each image is mixed in one epoch: float32, N×4: STAYS (its share), CUT (1 for cutmix), BOX_X, BOX_Y.

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
    images: Tensor, others: Tensor, targets: tuple[Tensor, Tensor], sampled: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Mixes images with `others` (float, N×C×H×W each); returns them and their targets (float32, N×classes, sum 1).

    `targets` are the labels (int64, N) of both; `sampled` are the rows of `sample_mix` for `images`. The share of an
    image mixed by cutmix is that of its pixels, so a box that is cut at the border counts less.
    """
    cut = sampled[:, CUT] > 0
    boxes = _boxes(sampled, *images.shape[-2:]) & cut[:, None, None]
    stays = torch.where(cut, 1 - boxes.float().mean((1, 2)), sampled[:, STAYS])
    weights = torch.where(cut[:, None, None], (~boxes).float(), stays[:, None, None])
    found = torch.lerp(others, images, weights[:, None])
    first, second = (F.one_hot(part, classes).float() for part in targets)
    return found, first * stays[:, None] + second * (1 - stays)[:, None]


def _boxes(sampled: Tensor, height: int, width: int) -> Tensor:
    """The pixels that cutmix takes from the other image: bool, N×H×W; a box of the image's shape, cut at the border."""
    side = (1 - sampled[:, STAYS]).sqrt()
    inside = []
    for size, middle in ((height, sampled[:, BOX_Y]), (width, sampled[:, BOX_X])):
        steps = torch.arange(size, device=sampled.device) + 0.5
        inside.append((steps - (middle * size)[:, None]).abs() < (side * size / 2)[:, None])
    return inside[0][:, :, None] & inside[1][:, None, :]
