"""Normalizes images for a network and reverses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.image_io import center_crop


class Normalizer:
    """Converts uint8 images (N×C×H×W) to a network's input: float, scaled to 0..1, less `mean`, over `std`.

    With `size`, images of another size become size×size first: stored images of `working`×`working` are cropped to
    their centre, all others are resized (bilinear, antialiased). One channel is repeated where there are several means.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        *,
        size: int | None = None,
        working: int | None = None,
    ) -> None:
        assert working is None or (size is not None and working >= size), "working is what size is cut out of"
        self.scale = (1 / (255 * torch.tensor(std, dtype=torch.float32))).reshape(-1, 1, 1).to(device)
        self.offset = (-torch.tensor(mean) / torch.tensor(std)).reshape(-1, 1, 1).to(device)
        self.size, self.working = size, working

    def __call__(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.offset, self.center_view(images).float(), self.scale)

    def center_view(self, images: Tensor) -> Tensor:
        """The part of the images (N×C×H×W) used for evaluation: values of 0..255, not normalized."""
        height, width = images.shape[-2:]
        if self.size is None or height == width == self.size:
            return images
        if height == width == self.working:
            return center_crop(images, self.size)
        size = (self.size, self.size)
        return F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)

    def crop_source(self, images: Tensor) -> Tensor:
        """The pixels that a random crop is taken from: all that are stored, or the centre view of unusually large ones.

        The crop is read without antialiasing, so it must not come from pixels much finer than its own.
        """
        height, width = images.shape[-2:]
        stored = self.size is None or height == width == self.working or max(height, width) <= self.size
        return images if stored else self.center_view(images)

    def pixels(self, images: Tensor | ImageArray) -> int:
        """The number of pixels of one image at the network's input."""
        height, width = images.shape[-2:]
        return self.size**2 if self.size is not None else height * width

    def denormalize(self, images: Tensor) -> Tensor:
        """Reverses the normalization: uint8 images, N×C'×H×W."""
        return ((images - self.offset) / self.scale).round().clamp(0, 255).to(torch.uint8)


class ImageArray(Protocol):
    """Images (uint8, N×C×H×W) or activations (N×...) that are read when they are indexed."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...
