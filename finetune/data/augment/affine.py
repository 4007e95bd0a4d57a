"""Augmentation settings and affine augmentation: shift, rotate, scale, shear, elastic, erase."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROTATE, SHEAR, WIDTH, HEIGHT, SHIFT_X, SHIFT_Y, ERASE_X, ERASE_Y = range(8)
PHOTO_NUMBERS = 13  # see finetune.data.augment.photo


@dataclass(frozen=True)
class Augment:
    """The limits of each random change of an image; 0 leaves a change out. Amounts are uniform in -limit..limit.

    shift: pixels, per axis. rotate, shear: degrees. scale: a fraction of the size, per axis. elastic: pixels the
    `elastic_grid`² nodes of a random field are moved per axis; between them the field is bicubic and may go up to 1.4
    times as far (in the spirit of Simard et al. 2003). erase: side in pixels of one square painted with the background
    (DeVries and Taylor 2017).

    For photographs (`augment.photo`): crop: the smallest part of the area that a random crop keeps, at an aspect
    ratio of 3/4 to 4/3, resized to the network's size (Szegedy et al. 2015). flip: left to right, half of the time.
    colour: brightness, contrast and saturation are each multiplied by 1-colour..1+colour. erasing: how often one
    rectangle of 2 % to 33 % of the area is painted with the mean colour (Zhong et al. 2017).

    For pairs of images (`augment.mixup`): mixup (Zhang et al. 2018), cutmix (Yun et al. 2019): the alpha of the
    Beta(alpha, alpha) that says how much of an image stays; with both, a coin decides for each image.
    """

    shift: int = 0
    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0
    elastic_grid: int = 4
    erase: int = 0
    crop: float = 0.0
    flip: bool = False
    colour: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def numbers(self) -> int:
        """How many random numbers in 0..1 one image needs per epoch; 0 when no image is changed by itself.

        The photo augmentations' come last, so that the others do not depend on them.
        """
        if not (self.shift or self.warps or self.erase or self.is_photo):
            return 0
        return self.first_photo_number + (PHOTO_NUMBERS if self.is_photo else 0)

    @property
    def first_photo_number(self) -> int:
        """The column of the first number for crop, flip, colour and erasing."""
        return 8 + (2 * self.elastic_grid**2 if self.elastic else 0)

    @property
    def changes(self) -> bool:
        """Whether images are changed at all, by themselves or mixed."""
        return bool(self.numbers) or self.mixes

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs, so that a target is a share of each class instead of one class."""
        return bool(self.mixup or self.cutmix)

    @property
    def is_photo(self) -> bool:
        """Whether any augmentation of `finetune.data.augment.photo` is asked for."""
        return bool(self.crop or self.flip or self.colour or self.erasing)

    @property
    def warps(self) -> bool:
        """Whether pixels are interpolated, rather than only moved by whole pixels."""
        return any((self.rotate, self.scale, self.shear, self.elastic))


def augment_affine(images: Tensor, numbers: Tensor, augment: Augment, background: Tensor) -> Tensor:
    """Augments normalized images (float, N×C×H×W) by `numbers` (random, float in 0..1, N×augment.numbers).

    `background` (float, C×1×1) is normalized black, which fills what comes in from outside.
    """
    if augment.warps:
        images = _warp(images, numbers, augment, background)
    elif augment.shift:
        images = shift_images(images, numbers, augment.shift, background)
    if augment.erase:
        images = erase_square(images, numbers, augment.erase, background)
    return images


def shift_images(images: Tensor, numbers: Tensor, limit: int, background: Tensor) -> Tensor:
    """Moves each image by whole pixels, up to `limit` each way."""
    count, channels, height, width = images.shape
    padded = background.expand(count, channels, height + 2 * limit, width + 2 * limit).clone()
    padded[:, :, limit : limit + height, limit : limit + width] = images
    top = (numbers[:, SHIFT_Y] * (2 * limit + 1)).long()
    left = (numbers[:, SHIFT_X] * (2 * limit + 1)).long()
    windows = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)  # N×top×left×C×H×W, a view
    return windows[torch.arange(count, device=images.device), top, left]


def _warp(images: Tensor, numbers: Tensor, augment: Augment, background: Tensor) -> Tensor:
    size = (images.shape[-2], images.shape[-1])
    grid = affine_grid(affine(numbers, augment, *size), *size)
    if augment.elastic:
        grid = grid + elastic_displacement(numbers, augment, *size)
    return F.grid_sample(images - background, grid, mode="bilinear", align_corners=False) + background


def affine(numbers: Tensor, augment: Augment, height: int, width: int) -> Tensor:
    """Combines rotation, shear, scale and shift to N×2×3 matrices in the units of `grid_sample` (-1..1 over the image).

    They map a position in the result to where its value comes from; `height` and `width` are the result's, in pixels.
    """
    signed = numbers * 2 - 1
    angle = signed[:, ROTATE] * math.radians(augment.rotate)
    shear = signed[:, SHEAR] * math.tan(math.radians(augment.shear))
    wide, high = 1 + signed[:, WIDTH] * augment.scale, 1 + signed[:, HEIGHT] * augment.scale
    right, down = signed[:, SHIFT_X] * (augment.shift * 2 / width), signed[:, SHIFT_Y] * (augment.shift * 2 / height)
    cos, sin = torch.cos(angle), torch.sin(angle)
    across = torch.stack([cos * wide, (cos * shear - sin) * high, right], 1)
    along = torch.stack([sin * wide, (cos + sin * shear) * high, down], 1)
    return torch.stack([across, along], 1)


def affine_grid(matrix: Tensor, height: int, width: int) -> Tensor:
    """Computes `F.affine_grid` (N×H×W×2, x before y) a few times faster, without a matrix product.

    In memory all x come before all y, as `grid_sample` reads them fastest.
    """
    across = (torch.arange(width, device=matrix.device) * 2 + 1) / width - 1
    along = (torch.arange(height, device=matrix.device) * 2 + 1) / height - 1
    rows = matrix[:, :, 1, None] * along + matrix[:, :, 2, None]  # N×2×H
    columns = matrix[:, :, 0, None] * across  # N×2×W
    return (rows[..., None] + columns[:, :, None]).permute(0, 2, 3, 1)


def elastic_displacement(numbers: Tensor, augment: Augment, height: int, width: int) -> Tensor:
    """Computes by how much elastic distortion moves each pixel's source: N×H×W×2 (x, y), in `grid_sample`'s units."""
    count, nodes = len(numbers), augment.elastic_grid
    limits = torch.tensor([augment.elastic * 2 / width, augment.elastic * 2 / height], device=numbers.device)
    field = (numbers * 2 - 1)[:, 8 : 8 + 2 * nodes**2].reshape(count, 2, nodes, nodes) * limits[:, None, None]
    return F.interpolate(field, size=(height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def erase_square(images: Tensor, numbers: Tensor, side: int, background: Tensor) -> Tensor:
    """Paints a square of `side` pixels, whose centre may be anywhere in the image, with the background."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[None, :, None] + 0.5
    columns = torch.arange(width, device=images.device)[None, None, :] + 0.5
    inside_y = (rows - (numbers[:, ERASE_Y] * height)[:, None, None]).abs() < side / 2
    inside_x = (columns - (numbers[:, ERASE_X] * width)[:, None, None]).abs() < side / 2
    return torch.where((inside_y & inside_x)[:, None], background, images)
