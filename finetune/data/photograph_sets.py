"""Decoded photographs become image sets: in memory where they fit, else read from their file as needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from finetune.data.images import ImageSet
from finetune.data.listing import Listing, PictureFile
from finetune.data.mapped import Images, MappedImages
from finetune.data.split import choose_test
from finetune.errors import DataError
from finetune.machine import CONTAINER, memory, processes

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]

MEMORY_LIMIT = CONTAINER


def memory_budget() -> int:
    """How many bytes of pixels are held in memory: of all processes together a quarter of what the machine, or the
    container, has.
    """
    return memory(MEMORY_LIMIT) // 4 // processes()


def as_sets(listing: Listing, pixels: npt.NDArray[np.uint8], rows: Rows) -> tuple[ImageSet, ImageSet | None, ImageSet]:
    """(train, validation, test) of the files, of which `rows` are the rows of `pixels` (uint8 M×C×R×R)."""
    mapped = isinstance(pixels, np.memmap) and len(rows) * pixels[0].size > memory_budget()
    label_of = {name: label for label, name in enumerate(listing.class_names)}
    short = Path(listing.name).resolve().name

    def part(which: str) -> ImageSet:
        places = [place for place, file in enumerate(listing.files) if file.part == which]
        own = rows[places]
        images: Images = MappedImages(pixels, own) if mapped else torch.from_numpy(np.asarray(pixels)[own])
        files = [listing.files[place] for place in places]
        labels = torch.tensor([label_of[file.label] for file in files], dtype=torch.int64)
        return ImageSet(images, labels, listing.class_names, f"{short} {which}", tuple(file.name for file in files))

    validation = part("validation")
    return part("train"), validation if len(validation) else None, part("test")


def split_off_test(listing: Listing, digests: Sequence[str], hashes: Hashes, fraction: float) -> Listing:
    """Makes `fraction` of the training files of each class the test part.

    Chosen by the digests of the files, not by the pixels kept, so that it is the same for every model's size of input.
    Files of equal pixels stay together. DataError where no class has two pictures that differ.
    """
    train = np.array([place for place, file in enumerate(listing.files) if file.part == "train"], dtype=np.int64)
    first = np.array([int(digests[place][:16], 16) for place in train], dtype=np.uint64)
    _, group = np.unique(hashes[train], return_inverse=True)
    keys = np.full(int(group.max()) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(keys, group, first)
    label_of = {name: label for label, name in enumerate(listing.class_names)}
    labels = np.array([label_of[listing.files[place].label] for place in train], dtype=np.int64)
    held = set(train[choose_test(keys[group], labels, len(label_of), fraction)].tolist())
    if not held:
        raise DataError(
            f"{listing.name}: no class has two pictures that differ, so none can be kept for the test; add pictures"
        )
    files = [replace(file, part="test") if place in held else file for place, file in enumerate(listing.files)]
    return replace(listing, files=tuple(files))


def equal_in_both(files: Sequence[PictureFile], hashes: Hashes) -> tuple[tuple[str, str], ...]:
    """(training or validation file, test file) for each pair with the same pixels."""
    learnt: dict[int, list[str]] = defaultdict(list)
    for file, value in zip(files, hashes.tolist(), strict=True):
        if file.part != "test":
            learnt[value].append(file.name)
    return tuple(
        (name, file.name)
        for file, value in zip(files, hashes.tolist(), strict=True)
        if file.part == "test"
        for name in learnt[value]
    )
