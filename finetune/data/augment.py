"""Augmentation of a batch in a few vectorised operations, driven by numbers drawn for the whole epoch beforehand.

An image's numbers are looked up by its index, so that batch size, workers and processes change nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROTATE, SHEAR, WIDTH, HEIGHT, SHIFT_X, SHIFT_Y, ERASE_X, ERASE_Y = range(8)


@dataclass(frozen=True)
class Augment:
    """How far an image may be changed; 0 leaves a change out. Amounts are drawn evenly from -limit..limit.

    shift: pixels, per axis. rotate, shear: degrees. scale: a fraction of the size, per axis. elastic: pixels the
    `elastic_grid`² nodes of a random field are moved per axis; between them the field is bicubic and may go up to 1.4
    times as far (in the spirit of Simard et al. 2003). erase: side in
    pixels of one square painted with the background (DeVries and Taylor 2017).
    """

    shift: int = 0
    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0
    elastic_grid: int = 4
    erase: int = 0

    @property
    def numbers(self) -> int:
        """How many numbers in 0..1 one image needs an epoch; 0 when nothing is changed."""
        if not (self.shift or self.warps or self.erase):
            return 0
        return 8 + (2 * self.elastic_grid**2 if self.elastic else 0)

    @property
    def warps(self) -> bool:
        """Whether pixels are interpolated, rather than only moved by whole pixels."""
        return any((self.rotate, self.scale, self.shear, self.elastic))


def augmented(images: Tensor, numbers: Tensor, augment: Augment, background: Tensor) -> Tensor:
    """Changes normalised images (float, N×C×H×W) by `numbers` (float in 0..1, N×augment.numbers).

    `background` (float, C×1×1) is what black became when it was normalised; it fills what comes in from outside.
    """
    if augment.warps:
        images = _warped(images, numbers, augment, background)
    elif augment.shift:
        images = _shifted(images, numbers, augment.shift, background)
    if augment.erase:
        images = _erased(images, numbers, augment.erase, background)
    return images


def _shifted(images: Tensor, numbers: Tensor, limit: int, background: Tensor) -> Tensor:
    count, channels, height, width = images.shape
    padded = background.expand(count, channels, height + 2 * limit, width + 2 * limit).clone()
    padded[:, :, limit : limit + height, limit : limit + width] = images
    top = (numbers[:, SHIFT_Y] * (2 * limit + 1)).long()
    left = (numbers[:, SHIFT_X] * (2 * limit + 1)).long()
    rows = (top[:, None] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width, device=images.device))[:, None, None, :]
    each = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[each, channel, rows, columns]


def _warped(images: Tensor, numbers: Tensor, augment: Augment, background: Tensor) -> Tensor:
    count, channels, height, width = images.shape
    signed = numbers * 2 - 1
    angle = signed[:, ROTATE] * math.radians(augment.rotate)
    shear = signed[:, SHEAR] * math.tan(math.radians(augment.shear))
    wide, high = 1 + signed[:, WIDTH] * augment.scale, 1 + signed[:, HEIGHT] * augment.scale
    right, down = signed[:, SHIFT_X] * (augment.shift * 2 / width), signed[:, SHIFT_Y] * (augment.shift * 2 / height)
    cos, sin = torch.cos(angle), torch.sin(angle)
    across = torch.stack([cos * wide, (cos * shear - sin) * high, right], 1)
    along = torch.stack([sin * wide, (cos + sin * shear) * high, down], 1)
    grid = F.affine_grid(torch.stack([across, along], 1), [count, channels, height, width], align_corners=False)
    if augment.elastic:
        nodes = augment.elastic_grid
        limits = torch.tensor([augment.elastic * 2 / width, augment.elastic * 2 / height], device=images.device)
        field = signed[:, 8:].reshape(count, 2, nodes, nodes) * limits[:, None, None]
        field = F.interpolate(field, size=(height, width), mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1)
    return F.grid_sample(images - background, grid, mode="bilinear", align_corners=False) + background


def _erased(images: Tensor, numbers: Tensor, side: int, background: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[None, :, None] + 0.5
    columns = torch.arange(width, device=images.device)[None, None, :] + 0.5
    inside_y = (rows - (numbers[:, ERASE_Y] * height)[:, None, None]).abs() < side / 2
    inside_x = (columns - (numbers[:, ERASE_X] * width)[:, None, None]).abs() < side / 2
    return torch.where((inside_y & inside_x)[:, None], background, images)
