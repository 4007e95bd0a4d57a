"""Image records: the name, label and split of each image of a data set, and how to read its bytes."""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.checkpoint.limits import MAX_CLASS_NAME_LEN, check_classes
from finetune.data.image_io import read_image_bytes
from finetune.data.split_names import SplitName
from finetune.errors import DataError
from finetune.io.sanitize import printable
from finetune.text import listed, name_hint

FOLDER = "folder"  # the `data.group` of images that belong with the others in their folder
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
    image that cannot or must not be opened. notes: what was left out, for people. question: why it cannot be trained on
    as it is, such as two ways to read it; naming the classes answers that. unread: by class, what its files are that
    were not taken for images. Without a record of the split "test", that split is still to be taken from "train".
    DataError for class names that no checkpoint could hold.
    """

    name: str
    records: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    bad: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    question: str | None = None
    unread: Mapping[str, str] = field(default_factory=dict)

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
        chosen = set(names)
        kept = tuple(record for record in self.records if record.label in chosen)
        return replace(self, records=kept, class_names=tuple(names), question=None)

    def with_groups(self, pattern: str | None) -> Manifest:
        """Groups the images by what `pattern` finds in their paths: see `data.group` of recipes. None changes nothing.

        A path begins with the folder of the image's class, if it has one. Images in whose path nothing is found stand
        alone. DataError for a pattern that finds nothing, or only one group, or that groups which are known already.
        """
        if pattern is None:
            return self
        if known := next((record for record in self.records if record.group), None):
            raise DataError(
                f"{self.name}: data.group is {pattern!r}, but {printable(known.name)} is of group "
                f"{printable(known.group)!r} already; leave data.group out"
            )
        paths = [path_in_class(record.name, record.label) for record in self.records]
        groups = [find_group(pattern, path) for path in paths]
        found = Counter(group for group in groups if group)
        example = (
            f"such as {printable(path_in_class(self.records[0].name, self.records[0].label))!r}"
            if self.records
            else "as there are none"
        )
        what = "the folder" if pattern == FOLDER else f"the pattern {pattern!r}"
        if not found:
            raise DataError(f"{self.name}: data.group: {what} matches none of the {len(groups):,} paths, {example}")
        if len(found) == 1 and len(groups) > 1:
            raise DataError(
                f"{self.name}: data.group: {what} finds one group only, {next(iter(found))!r}, in paths {example}; "
                "a group is never in two parts, so there would be nothing to test"
            )
        records = tuple(replace(record, group=group) for record, group in zip(self.records, groups, strict=True))
        return replace(self, records=records, notes=(*self.notes, *_group_notes(self.name, records, found)))

    def counts(self, split: SplitName) -> dict[str, int]:
        """The number of images of each class in a split."""
        found = Counter(record.label for record in self.records if record.split == split)
        return {name: found[name] for name in self.class_names}

    def check_trainable(self) -> None:
        """DataError unless there are two classes, each with an image to learn from, and no question is open."""
        if self.question:
            raise DataError(self.question)
        if len(self.class_names) == 1:
            raise DataError(
                f"{self.name}: found one class only, {self.class_names[0]!r}; a classifier needs at least two to learn "
                "from"
            )
        empty = [name for name, count in self.counts("train").items() if not count]
        if not empty:
            return
        bad = [f"{len(self.bad):,} files could not be used: {self.bad[0][1]}"] if self.bad else []
        why = [f"{name}: {self.unread[name]}" for name in empty[:MAX_SHOWN] if name in self.unread]
        raise DataError(
            "; ".join([f"{self.name}: no picture to learn from of {list_some(empty)}", *bad, *why])
            + "; add some, or leave the class out with data.classes"
        )

    def check_groups(self) -> None:
        """DataError that names each group with images in two splits, where these are given and not yet to be taken."""
        first: dict[str, ImageRecord] = {}
        shared: dict[str, str] = {}
        for record in self.records:
            other = first.setdefault(record.group, record)
            if record.group and other.split != record.split and record.group not in shared:
                shared[record.group] = (
                    f"{printable(record.group)} ({printable(other.name)} in {other.split}, {printable(record.name)} in "
                    f"{record.split})"
                )
        if shared:
            groups = "group is" if len(shared) == 1 else "groups are"
            raise DataError(
                f"{self.name}: {len(shared):,} {groups} in two parts: {'; '.join(list(shared.values())[:MAX_SHOWN])}"
                f"{and_more(len(shared))}; pictures that belong together must be in one part: move them, or leave the "
                "parts out so that they are taken by group"
            )


def path_in_class(name: str, label: str) -> str:
    """An image's path from the folder of its class on, or all of it where no folder is called like its class."""
    parts = name.split("/")
    classes = [class_name(part) for part in parts[:-1]]
    return "/".join(parts[classes.index(label) :]) if label in classes else name


def find_group(pattern: str, path: str) -> str:
    """What the pattern's parentheses find, or all of the match without any; "" where nothing matches."""
    if pattern == FOLDER:
        return path.rpartition("/")[0]
    match = re.search(pattern, path)
    return "" if match is None else "/".join(found for found in match.groups() if found) or match[0]


def _group_notes(name: str, records: Sequence[ImageRecord], found: Mapping[str, int]) -> Iterator[str]:
    """What people should know about how the images were grouped."""
    mixed: dict[str, set[str]] = {}
    for record in records:
        mixed.setdefault(record.group, set()).add(record.label)
    several = sum(len(labels) > 1 for group, labels in mixed.items() if group)
    note = f"{name}: {len(found):,} groups of {min(found.values()):,} to {max(found.values()):,} pictures"
    if several:
        note += (
            f"; {several:,} of them are in several classes (where they are not one thing, take the class's folder into "
            r"the pattern, as in '(.+)_\d+')"
        )
    yield note
    if alone := len(records) - sum(found.values()):
        yield f"{name}: {alone:,} pictures are of no group and stand alone"


def check_class_choice(origin: str, names: Sequence[str], known: Sequence[str]) -> None:
    """DataError where the classes asked for are none, unknown, or not each given once."""
    there = set(known)
    for name in names:
        if name not in there:
            raise DataError(f"{origin}: unknown class {name!r}{name_hint(name, known, 'classes')}")
    if not names or len(set(names)) < len(names):
        found = listed(names) or "none"
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


def alike_classes(origin: str, spellings: Mapping[str, Iterable[str]]) -> list[str]:
    """Notes on class names that people may not see to be two, or one.

    spellings: by class name, what folders or cells called it, before they were normalized.
    """
    notes = []
    for name, written in sorted(spellings.items()):
        if len(every := sorted(set(written))) > 1:
            notes.append(f"{origin}: {listed(map(ascii, every))} are taken for one class, {name!r}")
    folded: dict[str, list[str]] = {}
    for name in sorted(spellings):
        folded.setdefault(name.casefold(), []).append(name)
    notes += [
        f"{origin}: the classes {' and '.join(map(repr, names))} differ in capitals only; if they are one, rename them"
        for names in folded.values()
        if len(names) > 1
    ]
    more = len(notes) - MAX_SHOWN
    return [*notes[:MAX_SHOWN], *([f"{origin}: so it is with {more:,} more classes"] if more > 0 else [])]


def list_some(names: Sequence[str], most: int = MAX_SHOWN) -> str:
    """The first names, and how many more there are."""
    return listed(map(printable, names[:most])) + and_more(len(names), most)


def and_more(count: int, most: int = MAX_SHOWN) -> str:
    """The words " and N more" where `count` exceeds `most`, else nothing."""
    return f" and {count - most:,} more" if count > most else ""
