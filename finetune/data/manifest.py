"""Image records: the name, label and split of each image of a data set, and how to read its bytes."""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from finetune.checkpoint.limits import MAX_CLASS_NAME_LEN, check_classes
from finetune.data.image_io import read_image_bytes
from finetune.errors import DataError
from finetune.io.sanitize import printable
from finetune.text import listed, name_hint

SplitName = Literal["train", "validation", "test"]

# What a folder or a CSV may call each split. A class with one of these names needs a CSV.
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}

MAX_CLASS_TEXT = 4_000  # characters; a longer text is no class name and not normalized
MAX_SHOWN = 20  # files named in one message or note


@dataclass(frozen=True)
class ImageRecord(ABC):
    """One labelled image of a data set, wherever its bytes are. A source of images defines how to `open` it.

    `name` tells it from the others in messages and reports: its path relative to the folder, CSV or archive. Images of
    the same `group`, such as those of one patient or one camera track, are never in two splits; "" is a group alone.
    """

    name: str
    label: str
    split: SplitName
    group: str = field(default="", kw_only=True)

    @property
    def where(self) -> str:
        """What a message calls the image so that a person finds it."""
        return self.name

    @abstractmethod
    def open(self) -> bytes:
        """Reads the encoded image, at most `image_io.MAX_BYTES`. Called from several threads at once.

        DataError, which need not name the image, where it cannot be read.
        """

    @abstractmethod
    def size(self) -> int | None:
        """The number of encoded bytes, if it is cheap to know: it decides whether threads pay."""


@dataclass(frozen=True)
class FileRecord(ImageRecord):
    """An image that is a file of its own."""

    path: Path

    def open(self) -> bytes:
        return read_image_bytes(self.path)

    def size(self) -> int | None:
        try:
            return self.path.stat().st_size
        except (OSError, ValueError):  # `open` gives the reason
            return None


@dataclass(frozen=True)
class Manifest:
    """The image records of a data set, none of them opened yet.

    name: of the data set, in messages. class_names: sorted, those of all splits together. bad: (name, reason) for each
    image that cannot or must not be opened. notes: what was left out, for people. Without a record of the split "test",
    that split is still to be taken from "train". DataError for class names that no checkpoint could hold.
    """

    name: str
    records: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    bad: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            check_classes(self.class_names)  # now, not when a long run saves its checkpoint
        except ValueError as error:
            raise DataError(f"{self.name}: {error}") from None

    def with_classes(self, names: Sequence[str] | None) -> Manifest:
        """Keeps only these classes, in this order; None keeps all. DataError for a wrong name."""
        if names is None:
            return self
        check_class_choice(self.name, names, self.class_names)
        kept = tuple(record for record in self.records if record.label in names)
        return replace(self, records=kept, class_names=tuple(names))

    def counts(self, split: SplitName) -> dict[str, int]:
        """The number of images of each class in a split."""
        found = Counter(record.label for record in self.records if record.split == split)
        return {name: found[name] for name in self.class_names}


def check_class_choice(origin: str, names: Sequence[str], known: Sequence[str]) -> None:
    """DataError where the classes asked for are none, unknown, or not each given once."""
    for name in names:
        if name not in known:
            raise DataError(f"{origin}: unknown class {name!r}{name_hint(name, known, 'classes')}")
    if not names or len(set(names)) < len(names):
        found = ", ".join(names) or "none"
        raise DataError(f"{origin}: expected classes, each once, found {found}; classes are {listed(known)}")


def with_test_split(records: Iterable[ImageRecord]) -> tuple[ImageRecord, ...]:
    """Makes the validation split the test split where there is no other test split."""
    every = tuple(records)
    if any(record.split == "test" for record in every):
        return every
    return tuple(replace(record, split="test") if record.split == "validation" else record for record in every)


def class_name(text: str) -> str | None:
    """A class's name from a folder's name or a cell, normalized (NFC) so that it is the same from every system.

    None for a name that cannot be shown and saved: not printable, not UTF-8, or over 255 characters.
    """
    if len(text) > MAX_CLASS_TEXT:
        return None
    name = unicodedata.normalize("NFC", text.strip())
    return name if name and name.isprintable() and len(name) <= MAX_CLASS_NAME_LEN else None


def list_some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return listed(map(printable, names[:MAX_SHOWN])) + and_more(len(names))


def and_more(count: int) -> str:
    """The words " and N more" where `count` exceeds MAX_SHOWN, else nothing."""
    return f" and {count - MAX_SHOWN:,} more" if count > MAX_SHOWN else ""
