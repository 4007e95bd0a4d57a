"""Labelled images in memory or memory-mapped from disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.data.image_io import EXACT, Decoding
from finetune.data.manifest import check_class_choice
from finetune.errors import DataError
from finetune.text import listed, places_of

CHUNK = 64 << 20  # bytes of pixels read at once where all are read


class MemmapImages:
    """Images (uint8 N×C×H×W) whose pixels are read when they are indexed; otherwise much like a tensor.

    pixels: a memory-mapped array M×C×H×W that nobody writes. rows: which of its images these are, in this order.
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

    def take(self, index: Tensor) -> MemmapImages:
        """Selects these images in this order, without reading any."""
        return MemmapImages(self.pixels, self.rows[index.cpu().numpy()], self.device)

    def to(self, device: torch.device | str) -> MemmapImages:
        """The same file; what is read goes to `device`."""
        return MemmapImages(self.pixels, self.rows, device)

    def cpu(self) -> MemmapImages:
        return self.to("cpu")


Images: TypeAlias = Tensor | MemmapImages


def take(images: Images, index: Tensor) -> Images:
    """Selects the images at these indices, without reading memory-mapped ones."""
    return images.take(index) if isinstance(images, MemmapImages) else images[index]


def concatenate(parts: Sequence[Images]) -> Images:
    """All images one after the other; memory-mapped ones of one file stay there."""
    mapped = [part for part in parts if isinstance(part, MemmapImages)]
    if len(mapped) == len(parts) and all(part.pixels is mapped[0].pixels for part in mapped):
        return MemmapImages(mapped[0].pixels, np.concatenate([part.rows for part in mapped]), mapped[0].device)
    return torch.cat([part[:] for part in parts])


def chunks(images: Images) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields all images in order as contiguous arrays of about CHUNK bytes; at least one array."""
    size = max(1, images.shape[1:].numel())
    step = max(1, CHUNK // size) if isinstance(images, MemmapImages) else max(1, len(images))
    for start in range(0, max(1, len(images)), step):
        yield np.ascontiguousarray(images[start : start + step].cpu().numpy())


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size, checked when made; nothing in it is ever changed.

    images: uint8, N×C×H×W, 0 to 255. labels: int64, N, each from 0 to len(class_names) - 1, its class's place in
    class_names. origin: where the images came from, for messages and reports, such as "mnist train". N may be 0, and a
    class may have no image. Raises DataError where any of this does not hold. Two sets are the same when their
    fingerprints are; == asks only whether they are one object.

    Sets too large for memory have `MemmapImages` instead of a tensor. files: the name of each image's record, if any.
    groups: the name of each image's group, "" for an image that stands alone (see `group_indices`); () where all do.
    """

    images: Images
    labels: Tensor
    class_names: tuple[str, ...]
    origin: str
    files: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4:
            self._refuse(f"expected images uint8 N×C×H×W, found {_describe(images)}")
        if labels.dtype != torch.int64 or labels.dim() != 1:
            self._refuse(f"expected labels int64 N, found {_describe(labels)}")
        if len(images) != len(labels):
            self._refuse(f"expected one label an image, found {len(images):,} images and {len(labels):,} labels")
        if self.files and len(self.files) != len(labels):
            self._refuse(f"expected one file name an image, found {len(self.files):,} for {len(images):,} images")
        if self.groups and len(self.groups) != len(labels):
            self._refuse(f"expected one group an image, found {len(self.groups):,} for {len(images):,} images")
        if not self.class_names or len(set(self.class_names)) < len(self.class_names):
            self._refuse(f"expected class names, each once, found {listed(self.class_names) or 'none'}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
            last = len(self.class_names) - 1
            self._refuse(f"expected labels from 0 to {last}, found {int(labels.min())} to {int(labels.max())}")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> ImageSet:
        """The images at `indices` (integers from 0 to N - 1, in any order, repeats allowed), in that order.

        Raises DataError for an index outside the set and for what is not integers, such as a mask of booleans.
        """
        chosen = torch.as_tensor(np.array(indices) if isinstance(indices, np.ndarray) else indices)
        if chosen.numel() == 0:
            chosen = torch.empty(0, dtype=torch.int64)
        if chosen.dim() != 1 or chosen.is_floating_point() or chosen.dtype == torch.bool:
            self._refuse(f"expected a list of integer indices, found {_describe(chosen)}")
        chosen = chosen.to(self.labels.device, torch.int64)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self):
            found = f"{int(chosen.min())} to {int(chosen.max())}"
            self._refuse(f"expected indices from 0 to {len(self) - 1}, found {found}")
        files = tuple(self.files[i] for i in chosen.tolist()) if self.files else ()
        groups = tuple(self.groups[i] for i in chosen.tolist()) if self.groups else ()
        images = take(self.images, chosen)
        return replace(self, images=images, labels=self.labels[chosen], files=files, groups=groups)

    def with_classes(self, names: Sequence[str], *, empty: bool = False) -> ImageSet:
        """Keeps only the images of these classes, in their present order, with labels in the order of `names`.

        Raises DataError for a name that is unknown or given twice, for no name, and, unless `empty`, for a class
        without an image.
        """
        check_class_choice(self.origin, names, self.class_names)
        counts = self.counts()
        if (without := [name for name in names if counts[name] == 0]) and not empty:
            self._refuse(f"no image of class {listed(without)}; leave it out of the classes asked for")
        new_label = torch.full((len(self.class_names),), -1, dtype=torch.int64, device=self.labels.device)
        new_label[places_of(names, self.class_names)] = torch.arange(len(names), device=new_label.device)
        kept = self.subset(torch.nonzero(new_label[self.labels] >= 0).flatten())
        return replace(kept, labels=new_label[kept.labels], class_names=tuple(names))

    def counts(self) -> dict[str, int]:
        """The number of images of each class, in the order of class_names."""
        tally = torch.bincount(self.labels, minlength=len(self.class_names)).tolist()
        return dict(zip(self.class_names, tally, strict=True))

    def group_indices(self) -> npt.NDArray[np.int64] | None:
        """The number of each image's group (int64, N), from 0 in the order of first images; None without groups."""
        return group_indices(self.groups)

    def fingerprint(self) -> str:
        """SHA-256 (hex) over shape, pixels, labels and class names, in their order; nothing else has a part in it."""
        head = json.dumps({"shape": list(self.images.shape), "class_names": self.class_names}, sort_keys=True)
        digest = hashlib.sha256(head.encode() + b"\n")
        for pixels in chunks(self.images):
            digest.update(pixels.data if pixels.size else b"")
        digest.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def _refuse(self, fault: str) -> NoReturn:
        raise DataError(f"{self.origin}: {fault}")


def join(sets: Sequence[ImageSet], origin: str) -> ImageSet:
    """The images of several sets, at least one, which name the same classes, one after the other."""
    images = concatenate([own.images for own in sets])
    files = tuple(file for own in sets for file in own.files)
    known = any(own.groups for own in sets)
    groups = tuple(group for own in sets for group in own.groups or ("",) * len(own)) if known else ()
    return ImageSet(images, torch.cat([own.labels for own in sets]), sets[0].class_names, origin, files, groups)


def group_indices(groups: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """The number of each image's group (int64, N), each "" counting as one of its own; None where all are ""."""
    if not any(groups):
        return None
    number: dict[str | int, int] = {}
    names = (name or index for index, name in enumerate(groups))
    return np.array([number.setdefault(name, len(number)) for name in names], dtype=np.int64)


@dataclass(frozen=True)
class DataSplits:
    """The splits of a data set, which name the same classes. validation None: to be held out of train.

    notes: what people should know about their images, a line each; split_notes are those of them that are about this
    division into splits. held_out: whether the test images were taken from train's, as the data set has no test split.
    decoding: how files became pixels, where they did.
    """

    train: ImageSet
    test: ImageSet
    validation: ImageSet | None = None
    notes: tuple[str, ...] = ()
    held_out: bool = False
    decoding: Decoding = EXACT
    split_notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.train.class_names != self.test.class_names:
            raise DataError(f"{self.train.origin} and {self.test.origin} do not name the same classes in one order")


def _describe(tensor: Images) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {'×'.join(map(str, tensor.shape)) or 'one number'}"
