"""What a folder or a table names: picture files, each with its class and its part, before any of them is opened."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from finetune.bounds import LONGEST_CLASS, check_classes
from finetune.errors import DataError, listed, name_hint
from finetune.strangers.printable import printable

Part = Literal["train", "validation", "test"]

# How each part may be called, and by what name it is listed. A class called like one of these needs a table.
PART_NAMES: dict[str, Part] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
MOST_TEXT = 4_000  # characters that a class's name is looked for in
MOST_SHOWN = 20  # files named in one message or note


@dataclass(frozen=True)
class PictureFile:
    """One file: where it is, what it is called in messages (relative to its folder or table), its class and part."""

    path: Path
    name: str
    label: str
    part: Part


@dataclass(frozen=True)
class Listing:
    """The files of a data set. `bad` has (name, reason) for those that are there but must not or cannot be opened.

    `class_names` are sorted over all parts together. Without any file of the part "test", that part is still to be
    split off "train". `notes` say what was left out, for the person.
    """

    name: str
    files: tuple[PictureFile, ...]
    class_names: tuple[str, ...]
    bad: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            check_classes(self.class_names)  # before a long run, whose checkpoint could not say them
        except ValueError as error:
            raise DataError(f"{self.name}: {error}") from None

    def with_classes(self, names: Sequence[str] | None) -> Listing:
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


def one_test_part(files: Iterable[PictureFile]) -> tuple[PictureFile, ...]:
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
    if len(text) > MOST_TEXT:  # to be composed it would be gone through several times
        return None
    name = unicodedata.normalize("NFC", text.strip())
    return name if name and name.isprintable() and len(name) <= LONGEST_CLASS else None


def shown_list(names: Sequence[str]) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - MOST_SHOWN:,} more" if len(names) > MOST_SHOWN else ""
    return listed(map(printable, names[:MOST_SHOWN])) + more
