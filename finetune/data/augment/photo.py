"""Augmentation of photographs: random crops, flips, colour changes, erasing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.augment.affine import (
    PHOTO_NUMBERS,
    Augment,
    affine,
    affine_grid,
    elastic_displacement,
    erase_square,
    shift_images,
)

AREA, ASPECT, LEFT, TOP, FLIP, BRIGHTNESS, CONTRAST, SATURATION = range(8)
ERASING, ERASING_AREA, ERASING_ASPECT, ERASING_LEFT, ERASING_TOP = range(8, PHOTO_NUMBERS)
CROP_ASPECT = 4 / 3  # a crop is at most this much wider than high, or higher than wide
ERASING_AREAS = (0.02, 0.33)
ERASING_MAX_ASPECT = 1 / 0.3
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in brightness (ITU-R BT.601)
CHUNK = 4  # images augmented at a time on a CPU, so that they stay in its cache from one operation to the next


def augment_photo(
    pixels: Tensor, numbers: Tensor, augment: Augment, size: tuple[int, int], scale: Tensor, offset: Tensor
) -> Tensor:
    """Augments and normalizes `pixels` (uint8 or float of 0..255) to float N×C'×H×W with `size` = (H, W).

    `numbers` (random, float in 0..1, N×augment.numbers) decide how. Without a crop `pixels` are N×C×H×W already; with
    one they are larger or smaller, the crop is taken out of them and resized, and a rotation or shift fills in the
    image's mirror image instead of black. The value v of a pixel becomes v·scale + offset (C'×1×1 each), so that 0 is
    the mean colour. An image's result does not depend on the others.
    """
    step = CHUNK if pixels.device.type == "cpu" else max(len(pixels), 1)
    parts = [
        _chunk(pixels[i : i + step].float(), numbers[i : i + step], augment, size, scale, offset)
        for i in range(0, len(pixels), step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _chunk(
    pixels: Tensor, numbers: Tensor, augment: Augment, size: tuple[int, int], scale: Tensor, offset: Tensor
) -> Tensor:
    own = numbers[:, augment.first_photo_number :]
    pixels = _move_chunk(pixels, numbers, own, augment, size)
    if augment.colour:
        pixels = color_jitter(pixels, own, augment.colour)
    images = torch.addcmul(offset, pixels, scale)
    if augment.erase:
        images = erase_square(images, numbers, augment.erase, offset)
    if augment.erasing:
        images.masked_fill_(erase_masks(own, augment.erasing, *size)[:, None], 0.0)
    return images


def _move_chunk(pixels: Tensor, numbers: Tensor, own: Tensor, augment: Augment, size: tuple[int, int]) -> Tensor:
    """Crops, flips, warps and shifts. Moves by whole pixels are exact."""
    black = pixels.new_zeros(pixels.shape[1], 1, 1)
    flipped = own[:, FLIP] < 0.5
    if not (augment.crop or augment.warps):
        if augment.flip:
            pixels = torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)
        return shift_images(pixels, numbers, augment.shift, black) if augment.shift else pixels
    matrix = affine(numbers, augment, *size)
    if augment.flip:
        matrix[:, :, 0] *= torch.where(flipped, -1.0, 1.0)[:, None]
    half = None
    if augment.crop:
        centre, half = random_crops(own, augment.crop)
        matrix = matrix * half[:, :, None]
        matrix[:, :, 2] += centre
    grid = affine_grid(matrix, *size)
    if augment.elastic:
        field = elastic_displacement(numbers, augment, *size)
        grid += field if half is None else field * half[:, None, None, :]
    padding = "reflection" if augment.crop else "zeros"
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def random_crops(own: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Samples the centre and half extent of each image's crop, N×2 (x, y) each, in an image from -1 to 1.

    The area is uniform in `smallest`..1 of the image's, the logarithm of the aspect ratio uniform among those that fit
    into the image, and the position uniform where the crop is inside.
    """
    area = 1 - (1 - smallest) * own[:, AREA]
    aspect = _aspect(own[:, ASPECT], area, CROP_ASPECT)
    half = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(max=1)
    return (own[:, [LEFT, TOP]] * 2 - 1) * (1 - half), half


def _aspect(number: Tensor, area: Tensor, max_aspect: float) -> Tensor:
    """Samples width over height of a rectangle of `area` that fits into a unit square, at most `max_aspect` to 1."""
    limit = torch.clamp(-area.log(), max=math.log(max_aspect))
    return torch.exp((number * 2 - 1) * limit)


def color_jitter(pixels: Tensor, own: Tensor, limit: float) -> Tensor:
    """Changes brightness, contrast and saturation of `pixels` (float, N×C×H×W, 0..255), in this order, in range.

    Contrast moves all values away from or towards the image's mean grey, saturation a pixel's colours from or to its
    grey. All three are computed as one linear map. A single channel has no saturation.
    """
    bright, contrast, saturation = (1 + (own[:, BRIGHTNESS : SATURATION + 1] * 2 - 1) * limit).T[:, :, None, None, None]
    channels = pixels.shape[1]
    if channels == 1:
        grey, saturation = pixels, torch.ones_like(saturation)
    else:
        red, green, blue = LUMA if channels == 3 else (1 / channels,) * 3
        grey = (pixels[:, 0:1] * red).add_(pixels[:, 1:2], alpha=green)
        for channel in range(2, channels):
            grey.add_(pixels[:, channel : channel + 1], alpha=blue)
    factor = bright * contrast
    mean = grey.mean(3, keepdim=True).mean(2, keepdim=True)  # by rows first: then no threads share one image's sum
    shift = mean * (bright * (1 - contrast))
    base = torch.addcmul(shift, grey, factor * (1 - saturation))
    return torch.addcmul(base, pixels, factor * saturation).clamp_(0, 255)


def erase_masks(own: Tensor, often: float, height: int, width: int) -> Tensor:
    """Samples the pixels that random erasing paints: bool, N×H×W, one rectangle inside the image or none."""
    area = ERASING_AREAS[0] + (ERASING_AREAS[1] - ERASING_AREAS[0]) * own[:, ERASING_AREA]
    aspect = _aspect(own[:, ERASING_ASPECT], area, ERASING_MAX_ASPECT)
    inside = []
    for size, share, position in (
        (height, (area / aspect).sqrt(), own[:, ERASING_TOP]),
        (width, (area * aspect).sqrt(), own[:, ERASING_LEFT]),
    ):
        length = (share * size).round().clamp(1, size)
        first = (position * (size - length + 1)).floor()
        steps = torch.arange(size, device=own.device)
        inside.append((steps >= first[:, None]) & (steps < (first + length)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :] & (own[:, ERASING] < often)[:, None, None]
