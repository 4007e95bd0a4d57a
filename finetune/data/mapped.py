"""Images too many for memory: they stay in a file, and only those asked for are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CHUNK = 64 << 20  # bytes of pixels read at once by what goes over all of them


class MappedImages:
    """uint8 images N×C×H×W of which the pixels are read when they are indexed; otherwise much as such a tensor.

    pixels: a memory-mapped array M×C×H×W that nobody writes. rows: which of its images these are, and in which order.
    Indexing with a slice or a tensor of integers gives a tensor on `device`.
    """

    dtype = torch.uint8

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8],
        rows: npt.NDArray[np.int64] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        assert pixels.ndim == 4 and pixels.dtype == np.uint8
        self.pixels, self.device = pixels, torch.device(device)
        self.rows = np.arange(len(pixels), dtype=np.int64) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self.rows), *self.pixels.shape[1:]])

    def dim(self) -> int:
        return 4

    def numel(self) -> int:
        return self.shape.numel()

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        chosen = self.rows[index if isinstance(index, slice) else index.cpu().numpy()]
        return torch.from_numpy(self.pixels[chosen]).to(self.device)

    def take(self, index: Tensor) -> MappedImages:
        """These images in this order, without reading any."""
        return MappedImages(self.pixels, self.rows[index.cpu().numpy()], self.device)

    def to(self, device: torch.device | str) -> MappedImages:
        """The same file; what is read goes to `device`."""
        return MappedImages(self.pixels, self.rows, device)

    def cpu(self) -> MappedImages:
        return self.to("cpu")


Images: TypeAlias = Tensor | MappedImages


def take(images: Images, index: Tensor) -> Images:
    """The images at these places, still in their file where they are in one."""
    return images.take(index) if isinstance(images, MappedImages) else images[index]


def chunks(images: Images) -> Iterator[npt.NDArray[np.uint8]]:
    """All images in order as contiguous arrays, so many at once as CHUNK bytes hold; at least one array."""
    size = max(1, images.shape[1:].numel())
    step = max(1, CHUNK // size) if isinstance(images, MappedImages) else max(1, len(images))
    for start in range(0, max(1, len(images)), step):
        yield np.ascontiguousarray(images[start : start + step].cpu().numpy())
