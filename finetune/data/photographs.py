"""A person's own photographs, from a folder or a CSV, as image sets: decoded once, checked, with what to know of them.

Importing this needs no torch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune.data.listing import MOST_SHOWN, Listing, PictureFile, shown_list
from finetune.data.root import CACHE_VARIABLE, cache_folder
from finetune.errors import DataError
from finetune.strangers.printable import printable

if TYPE_CHECKING:
    from finetune.data.decoded import Decoded
    from finetune.data.images import ImageSet

TEST_FRACTION = 0.2  # of each class, where a data set has no test part of its own
FEW = 5  # images to learn from; a class with fewer is mentioned


@dataclass(frozen=True)
class Frame:
    """What is kept of a picture: see `finetune.pictures.framed`. channels None: 1 if every picture is grey, else 3."""

    channels: int | None
    size: int
    crop: float
    resize: str
    interpolation: str


@dataclass(frozen=True)
class Photographs:
    """The parts of a data set. `notes` are for the person, a line each.

    shared: (training or validation file, test file) whose pixels are the same.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    notes: tuple[str, ...]
    shared: tuple[tuple[str, str], ...]


def is_photographs(name: str) -> bool:
    """Whether a name means a folder or a CSV rather than a registered data set."""
    if name.lower().endswith(".csv") or any(separator in name for separator in {os.sep, os.altsep or os.sep, "/"}):
        return True
    try:
        return bool(name) and Path(name).is_dir()
    except OSError:  # a name longer than a file's may be
        return False


def short_name(name: str) -> str:
    """What to call a folder or a CSV in reports and file names: its last part, without .csv."""
    path = Path(name).resolve()
    return path.stem if path.suffix.lower() == ".csv" else path.name


def open_photographs(
    name: str,
    frame: Frame,
    *,
    classes: Sequence[str] | None = None,
    on_bad_image: Literal["fail", "skip"] = "fail",
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Photographs:
    """The photographs of a folder (see `list_folder`) or a CSV (see `read_table`), squares of the frame's working side.

    classes: only these, in this order. cache: where decoded pictures are kept, by default `cache_folder()`. progress:
    called with (done, all) while pictures are decoded; not at all where none has to be.

    Without a test part, TEST_FRACTION of each class become one, by the files' content: the same whenever it is opened.
    Raises DataError for what is not there, a class without a picture to learn from, and for bad images, all in one
    message; with on_bad_image "skip" these are left out instead, and noted.
    """
    from finetune.data.decoded import decode_files

    listing = _listed(name).with_classes(classes)
    _refuse_empty(listing)
    decoded = decode_files([file.path for file in listing.files], frame, cache_folder(cache), progress)
    bad = sorted([*listing.bad, *((listing.files[place].name, reason) for place, reason in decoded.bad)])
    if bad and on_bad_image == "fail":
        raise DataError(_bad_images(listing.name, bad))
    notes = list(listing.notes)
    if bad:
        lines = "; ".join(f"{printable(file)}: {reason}" for file, reason in bad[:MOST_SHOWN])
        notes.append(f"{listing.name}: {len(bad):,} bad images left out: {lines}{_more(len(bad))}")
    if decoded.fault:
        notes.append(
            f"decoded pictures cannot be kept in {decoded.fault}, so they are decoded each time; "
            f"name another folder in {CACHE_VARIABLE}"
        )
    return _parts(listing, decoded, notes)


def _listed(name: str) -> Listing:
    if name.lower().endswith(".csv") and not Path(name).is_dir():
        from finetune.data.table import read_table

        return read_table(name)
    from finetune.data.folder import list_folder

    return list_folder(name)


def _refuse_empty(listing: Listing) -> None:
    if empty := listing.without_picture_to_learn_from():
        bad = f"; {len(listing.bad):,} files could not be used: {listing.bad[0][1]}" if listing.bad else ""
        raise DataError(
            f"{listing.name}: no picture to learn from of {shown_list(empty)}{bad}; add some, or leave the class out "
            "with data.classes"
        )


def _bad_images(name: str, bad: Sequence[tuple[str, str]]) -> str:
    lines = [f"  {printable(file)}: {reason}" for file, reason in bad[:MOST_SHOWN]]
    more = [f"  {_more(len(bad)).strip()}"] if len(bad) > MOST_SHOWN else []
    images = "image" if len(bad) == 1 else "images"
    cure = (
        "Mend or remove them, or go on without them with data.on_bad_image: skip in the recipe "
        "(--set data.on_bad_image=skip), which lists them in the report."
    )
    return "\n".join([f"{name}: {len(bad):,} bad {images}", *lines, *more, cure])


def _more(count: int) -> str:
    return f" and {count - MOST_SHOWN:,} more" if count > MOST_SHOWN else ""


def _parts(listing: Listing, decoded: Decoded, notes: list[str]) -> Photographs:
    """The decoded files as image sets, and what is to be said of them."""
    from finetune.data.photograph_sets import as_sets, equal_in_both, split_off_test

    good = [place for place in range(len(listing.files)) if decoded.rows[place] >= 0]
    listing = replace(listing, files=tuple(listing.files[place] for place in good))
    _refuse_empty(listing)
    rows, digests = decoded.rows[good], [decoded.digests[place] for place in good]
    hashes = decoded.pack.hashes[rows]
    if not any(file.part == "test" for file in listing.files):
        listing = split_off_test(listing, digests, hashes, TEST_FRACTION)
        notes.append(
            f"{listing.name}: no test part of its own, so {_count(listing.files, 'test'):,} of "
            f"{len(listing.files):,} pictures are kept for the test, chosen by their content"
        )
    shared = equal_in_both(listing.files, hashes)
    if shared:
        pairs = [f"{a} = {b}" for a, b in shared]
        tested = len({b for _, b in shared})
        notes.append(
            f"{listing.name}: {tested:,} test {'picture is' if tested == 1 else 'pictures are'} also in train: "
            f"{shown_list(pairs)}; accuracy on them flatters"
        )
    notes.extend(_small_classes(listing))
    train, validation, test = as_sets(listing, decoded.pack.pixels, rows)
    return Photographs(train, validation, test, tuple(notes), shared)


def _count(files: Sequence[PictureFile], part: str) -> int:
    return sum(file.part == part for file in files)


def _small_classes(listing: Listing) -> list[str]:
    notes = []
    for_training = Counter(file.label for file in listing.files if file.part == "train")
    for_test = Counter(file.label for file in listing.files if file.part == "test")
    few = [f"{name} ({for_training[name]})" for name in listing.class_names if for_training[name] < FEW]
    untested = [name for name in listing.class_names if not for_test[name]]
    if few:
        notes.append(f"{listing.name}: fewer than {FEW} images to learn from: {shown_list(few)}")
    if untested:
        notes.append(f"{listing.name}: no test picture of {shown_list(untested)}")
    return notes
