"""Normalizes images for a network and reverses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.image_io import center_crop


class Normalizer:
    """Turns uint8 images (N×C×H×W) into a network's input: float, scaled to 0..1, less `mean`, over `std`.

    With `size`, images of another size are brought to size×size first: of stored pictures of `working`×`working` the
    size×size centre is cut out, all others are resized (bilinear, antialiased). One channel serves for all where there
    are several means.
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
        """What of the images (N×C×H×W) a network is shown when it is judged: values of 0..255, not normalised."""
        height, width = images.shape[-2:]
        if self.size is None or height == width == self.size:
            return images
        if height == width == self.working:
            return center_crop(images, self.size)
        size = (self.size, self.size)
        return F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)

    def crop_source(self, images: Tensor) -> Tensor:
        """What a random crop is taken from: all that is stored, but the view of what is larger than meant to be.

        The crop is read without antialiasing, so it must not come from pixels much finer than its own.
        """
        height, width = images.shape[-2:]
        stored = self.size is None or height == width == self.working or max(height, width) <= self.size
        return images if stored else self.center_view(images)

    def pixels(self, images: Tensor | ImageArray) -> int:
        """How many pixels an image has when it goes into the network."""
        height, width = images.shape[-2:]
        return self.size**2 if self.size is not None else height * width

    def denormalize(self, images: Tensor) -> Tensor:
        """The reverse of normalising: uint8 images, N×C'×H×W."""
        return ((images - self.offset) / self.scale).round().clamp(0, 255).to(torch.uint8)


class ImageArray(Protocol):
    """Images (uint8, N×C×H×W) or activations (N×...) that are read when they are asked for."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor: ...
