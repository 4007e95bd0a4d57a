"""Makes decoded pictures a network's input inside an exported file: Pillow's resizing, bit for bit, in torch."""

from __future__ import annotations

from collections.abc import Callable

import PIL
import torch
from torch import Tensor, nn

from finetune.models.spec import InputSpec

PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])
# From this version on Pillow shrinks rows first where the height shrinks by more than twice what the width does
# (python-pillow/Pillow#9549); between the two passes pixels are rounded, so that the order matters.
TALL_FIRST = (13, 0)
PRECISION = 22  # bits of Pillow's weights after the point, where pixels have 8 bits
_GREY = (19595, 38470, 7471)  # of 65536: red, green and blue as Pillow makes them grey (ITU-R 601-2)


class PictureInput(nn.Module):
    """Takes pictures (uint8, N×H×W×3, red, green, blue, any H and W), gives the network's input: float, N×C×size×size.

    What `Classifier.preprocess` makes of a decoded picture: grey where the network is, resized in two passes with
    weights of 22 bits and whole numbers between them, as Pillow does, the centre cut out, normalized. Of a picture more
    than 16 times as long as wide a pixel may differ by rounding.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).reshape(-1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        pixels = _grey(pictures) if self.spec.channels == 1 else pictures
        height, width = pixels.shape[1:3]
        turned = pixels.permute(0, 2, 1, 3)
        square = self._across(self._across(turned, height).permute(0, 2, 1, 3), width)
        if PILLOW >= TALL_FIRST:
            shrunk = height - self._resized(height, width), width - self._resized(width, height)
            tall = (shrunk[0] > 0) & (shrunk[0] > 2 * shrunk[1])
            other = self._across(self._across(pixels, width).permute(0, 2, 1, 3), height).permute(0, 2, 1, 3)
            square = torch.where(tall, other, square)
        return (square.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def _across(self, pixels: Tensor, other: int) -> Tensor:
        """Resamples the second axis of N×L×K×C to the input's size; `other` is the picture's other side before."""
        count, length, lines, channels = pixels.shape
        flat = pixels.reshape(count, length, lines * channels)
        return _resample(flat, self._weights(length, other)).reshape(count, self.spec.size, lines, channels)

    def _resized(self, length: int, other: int) -> Tensor:
        """What a side of `length` pixels becomes before the centre is cut out: one number, float64."""
        resized = torch.scalar_tensor(self.spec.working, dtype=torch.float64)
        if self.spec.resize == "shorter_side":
            longer = torch.scalar_tensor(self.spec.working * length, dtype=torch.float64) / other
            resized = torch.maximum(resized, longer.floor())
        return resized

    def _weights(self, length: int, other: int) -> Tensor:
        """Of each of `length` pixels of a side in each pixel of the input: float64, size×length."""
        resized = self._resized(length, other)
        start = ((resized - self.spec.size) / 2).round()  # halves go to the even number, as in `center_crop`
        scale = torch.scalar_tensor(length, dtype=torch.float64) / resized
        centres = (torch.arange(self.spec.size, dtype=torch.float64) + start + 0.5) * scale
        return pillow_weights(centres[:, None], scale, length, self.spec.interpolation)


def pillow_weights(centres: Tensor, scale: Tensor, length: int, interpolation: str) -> Tensor:
    """Pillow's resampling weights (float64, M×length) of `length` pixels for new ones, `scale` old ones apart.

    centres: of the new pixels, in old ones, M×1. As in `precompute_coeffs` of Pillow's Resample.c: the filter is as
    wide as a new pixel, weights add up to 1 and are then rounded to 22 bits.
    """
    places = torch.arange(length, dtype=torch.float64)
    if interpolation == "nearest":
        return (places == centres.floor()).double()
    kernel, support = _KERNELS[interpolation]
    width = scale.clamp_min(1.0)
    first, end = ((centres + side * support * width + 0.5).trunc() for side in (-1, 1))
    weights = torch.where((places >= first) & (places < end), kernel((places - centres + 0.5) / width), 0.0)
    weights = weights / weights.sum(1, keepdim=True) * (1 << PRECISION)
    return (weights + torch.where(weights < 0, -0.5, 0.5)).trunc() / (1 << PRECISION)


def _resample(pixels: Tensor, weights: Tensor) -> Tensor:
    """New pixels (float64, N×M×K, whole numbers) of old ones (N×L×K) by weights (M×L); sums are exact in float64."""
    return (torch.matmul(weights, pixels.double()) + 0.5).floor().clamp(0, 255)


def _grey(pictures: Tensor) -> Tensor:
    parts = (pictures[..., channel : channel + 1].int() * part for channel, part in enumerate(_GREY))
    red, green, blue = parts
    grey: Tensor = (red + green + blue + 0x8000) // 0x10000
    return grey.to(torch.uint8)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_min(0)


def _cubic(x: Tensor) -> Tensor:
    """Keys's cubic convolution with a = -0.5 (1981)."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, _sinc(x) * _sinc(x / 3), 0.0)


def _sinc(x: Tensor) -> Tensor:
    turned = torch.where(x == 0, 1.0, x * torch.pi)
    return torch.where(x == 0, 1.0, turned.sin() / turned)


# Each filter and how far it reaches, in pixels of the larger scale.
_KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "bilinear": (_triangle, 1),
    "bicubic": (_cubic, 2),
    "lanczos": (_lanczos, 3),
}
