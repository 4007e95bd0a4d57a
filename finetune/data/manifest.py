"""Image records: file, label and split of each image of a data set."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune.checkpoint.limits import MAX_CLASS_NAME_LEN, check_classes
from finetune.errors import DataError
from finetune.io.sanitize import printable
from finetune.text import listed, name_hint

if TYPE_CHECKING:
    pass


SplitName = Literal["train", "validation", "test"]

# How each part may be called, and by what name it is listed. A class called like one of these needs a table.
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}

MAX_TEXT = 4_000  # characters that a class's name is looked for in

MAX_SHOWN = 20  # files named in one message or note


@dataclass(frozen=True)
class ImageRecord:
    """One file: where it is, what it is called in messages (relative to its folder or table), its class and part."""

    path: Path
    name: str
    label: str
    part: SplitName


@dataclass(frozen=True)
class Manifest:
    """The files of a data set. `bad` has (name, reason) for those that are there but must not or cannot be opened.

    `class_names` are sorted over all parts together. Without any file of the part "test", that part is still to be
    split off "train". `notes` say what was left out, for the person.
    """

    name: str
    files: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    bad: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            check_classes(self.class_names)  # before a long run, whose checkpoint could not say them
        except ValueError as error:
            raise DataError(f"{self.name}: {error}") from None

    def with_classes(self, names: Sequence[str] | None) -> Manifest:
        """Only the files of these classes, which become the class names in this order; DataError for a wrong name."""
        if names is None:
            return self
        for name in names:
            if name not in self.class_names:
                raise DataError(f"{self.name}: unknown class {name!r}{name_hint(name, self.class_names, 'classes')}")
        if not names or len(set(names)) < len(names):
            raise DataError(f"{self.name}: expected classes, each once, found {', '.join(names) or 'none'}")
        kept = tuple(file for file in self.files if file.label in names)
        return replace(self, files=kept, class_names=tuple(names))

    def without_picture_to_learn_from(self) -> list[str]:
        """The classes that no file of the training part shows."""
        counts = Counter(file.label for file in self.files if file.part == "train")
        return [name for name in self.class_names if not counts[name]]


def one_test_split(files: Iterable[ImageRecord]) -> tuple[ImageRecord, ...]:
    """The same files; where there is a validation part but no test part, the validation part is the test part."""
    every = tuple(files)
    parts = {file.part for file in every}
    if "validation" not in parts or "test" in parts:
        return every
    return tuple(replace(file, part="test") if file.part == "validation" else file for file in every)


def class_name(text: str) -> str | None:
    """A class's name from a folder's or a table's text, composed (NFC), so that every system writes it the same.

    None for what could not be shown and saved: characters that are not printable, bytes that are not UTF-8, or a name
    of more than 255 characters.
    """
    if len(text) > MAX_TEXT:  # to be composed it would be gone through several times
        return None
    name = unicodedata.normalize("NFC", text.strip())
    return name if name and name.isprintable() and len(name) <= MAX_CLASS_NAME_LEN else None


def list_some(names: Sequence[str]) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - MAX_SHOWN:,} more" if len(names) > MAX_SHOWN else ""
    return listed(map(printable, names[:MAX_SHOWN])) + more


def is_image_path(name: str) -> bool:
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
