"""Opens an image folder or CSV as a data set: train, validation and test images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch

from finetune.data.image_dataset import Images, ImageSet, MemmapImages
from finetune.data.image_io import CropSpec
from finetune.data.manifest import MAX_SHOWN, ImageRecord, Manifest, list_some
from finetune.data.split import choose_test
from finetune.errors import DataError
from finetune.io.sanitize import printable
from finetune.paths import CACHE_VARIABLE, cache_folder
from finetune.system import CONTAINER, available_memory, local_processes

if TYPE_CHECKING:
    from finetune.data.decode_cache import DecodedImages
    from finetune.data.image_dataset import ImageSet


Hashes = npt.NDArray[np.uint64]

Rows = npt.NDArray[np.int64]

MEMORY_LIMIT = CONTAINER


def memory_budget() -> int:
    """How many bytes of pixels are held in memory: of all processes together a quarter of what the machine, or the
    container, has.
    """
    return available_memory(MEMORY_LIMIT) // 4 // local_processes()


def split_parts(
    listing: Manifest, pixels: npt.NDArray[np.uint8], rows: Rows
) -> tuple[ImageSet, ImageSet | None, ImageSet]:
    """(train, validation, test) of the files, of which `rows` are the rows of `pixels` (uint8 M×C×R×R)."""
    mapped = isinstance(pixels, np.memmap) and len(rows) * pixels[0].size > memory_budget()
    label_of = {name: label for label, name in enumerate(listing.class_names)}
    short = Path(listing.name).resolve().name

    def part(which: str) -> ImageSet:
        places = [place for place, file in enumerate(listing.files) if file.part == which]
        own = rows[places]
        images: Images = MemmapImages(pixels, own) if mapped else torch.from_numpy(np.asarray(pixels)[own])
        files = [listing.files[place] for place in places]
        labels = torch.tensor([label_of[file.label] for file in files], dtype=torch.int64)
        return ImageSet(images, labels, listing.class_names, f"{short} {which}", tuple(file.name for file in files))

    validation = part("validation")
    return part("train"), validation if len(validation) else None, part("test")


def split_off_test(listing: Manifest, digests: Sequence[str], hashes: Hashes, fraction: float) -> Manifest:
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


def shared_images(files: Sequence[ImageRecord], hashes: Hashes) -> tuple[tuple[str, str], ...]:
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


TEST_FRACTION = 0.2  # of each class, where a data set has no test part of its own

FEW = 5  # images to learn from; a class with fewer is mentioned


@dataclass(frozen=True)
class ImageParts:
    """The parts of a data set. `notes` are for the person, a line each.

    shared: (training or validation file, test file) whose pixels are the same.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    notes: tuple[str, ...]
    shared: tuple[tuple[str, str], ...]


def open_image_folder(
    name: str,
    frame: CropSpec,
    *,
    classes: Sequence[str] | None = None,
    on_bad_image: Literal["fail", "skip"] = "fail",
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageParts:
    """The photographs of a folder (see `list_folder`) or a CSV (see `read_table`), squares of the frame's working side.

    classes: only these, in this order. cache: where decoded pictures are kept, by default `cache_folder()`. progress:
    called with (done, all) while pictures are decoded; not at all where none has to be.

    Without a test part, TEST_FRACTION of each class become one, by the files' content: the same whenever it is opened.
    Raises DataError for what is not there, a class without a picture to learn from, and for bad images, all in one
    message; with on_bad_image "skip" these are left out instead, and noted.
    """
    from finetune.data.decode_cache import decode_files

    listing = _list_images(name).with_classes(classes)
    _refuse_empty(listing)
    decoded = decode_files([file.path for file in listing.files], frame, cache_folder(cache), progress)
    bad = sorted([*listing.bad, *((listing.files[place].name, reason) for place, reason in decoded.bad)])
    if bad and on_bad_image == "fail":
        raise DataError(_bad_images(listing.name, bad))
    notes = list(listing.notes)
    if bad:
        lines = "; ".join(f"{printable(file)}: {reason}" for file, reason in bad[:MAX_SHOWN])
        notes.append(f"{listing.name}: {len(bad):,} bad images left out: {lines}{_more(len(bad))}")
    if decoded.fault:
        notes.append(
            f"decoded pictures cannot be kept in {decoded.fault}, so they are decoded each time; "
            f"name another folder in {CACHE_VARIABLE}"
        )
    return _parts(listing, decoded, notes)


def _list_images(name: str) -> Manifest:
    if name.lower().endswith(".csv") and not Path(name).is_dir():
        from finetune.data.csv_manifest import read_table

        return read_table(name)
    from finetune.data.image_folder import list_folder

    return list_folder(name)


def _refuse_empty(listing: Manifest) -> None:
    if empty := listing.without_picture_to_learn_from():
        bad = f"; {len(listing.bad):,} files could not be used: {listing.bad[0][1]}" if listing.bad else ""
        raise DataError(
            f"{listing.name}: no picture to learn from of {list_some(empty)}{bad}; add some, or leave the class out "
            "with data.classes"
        )


def _bad_images(name: str, bad: Sequence[tuple[str, str]]) -> str:
    lines = [f"  {printable(file)}: {reason}" for file, reason in bad[:MAX_SHOWN]]
    more = [f"  {_more(len(bad)).strip()}"] if len(bad) > MAX_SHOWN else []
    images = "image" if len(bad) == 1 else "images"
    cure = (
        "Mend or remove them, or go on without them with data.on_bad_image: skip in the recipe "
        "(--set data.on_bad_image=skip), which lists them in the report."
    )
    return "\n".join([f"{name}: {len(bad):,} bad {images}", *lines, *more, cure])


def _more(count: int) -> str:
    return f" and {count - MAX_SHOWN:,} more" if count > MAX_SHOWN else ""


def _parts(listing: Manifest, decoded: DecodedImages, notes: list[str]) -> ImageParts:
    """The decoded files as image sets, and what is to be said of them."""

    good = [place for place in range(len(listing.files)) if decoded.rows[place] >= 0]
    listing = replace(listing, files=tuple(listing.files[place] for place in good))
    _refuse_empty(listing)
    rows, digests = decoded.rows[good], [decoded.digests[place] for place in good]
    hashes = decoded.pack.hashes[rows]
    if not any(file.part == "test" for file in listing.files):
        listing = split_off_test(listing, digests, hashes, TEST_FRACTION)
        notes.append(
            f"{listing.name}: no test part of its own, so {_count_notes(listing.files, 'test'):,} of "
            f"{len(listing.files):,} pictures are kept for the test, chosen by their content"
        )
    shared = shared_images(listing.files, hashes)
    if shared:
        pairs = [f"{a} = {b}" for a, b in shared]
        tested = len({b for _, b in shared})
        notes.append(
            f"{listing.name}: {tested:,} test {'picture is' if tested == 1 else 'pictures are'} also in train: "
            f"{list_some(pairs)}; accuracy on them flatters"
        )
    notes.extend(_small_classes(listing))
    train, validation, test = split_parts(listing, decoded.pack.pixels, rows)
    return ImageParts(train, validation, test, tuple(notes), shared)


def _count_notes(files: Sequence[ImageRecord], part: str) -> int:
    return sum(file.part == part for file in files)


def _small_classes(listing: Manifest) -> list[str]:
    notes = []
    for_training = Counter(file.label for file in listing.files if file.part == "train")
    for_test = Counter(file.label for file in listing.files if file.part == "test")
    few = [f"{name} ({for_training[name]})" for name in listing.class_names if for_training[name] < FEW]
    untested = [name for name in listing.class_names if not for_test[name]]
    if few:
        notes.append(f"{listing.name}: fewer than {FEW} images to learn from: {list_some(few)}")
    if untested:
        notes.append(f"{listing.name}: no test picture of {list_some(untested)}")
    return notes
