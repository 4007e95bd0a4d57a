"""What Parquet and tar shards have in common: which files there are, their splits, class names and the manifest."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from finetune.data.image_io import IMAGE_SUFFIXES
from finetune.data.manifest import ImageRecord, Manifest, alike_classes, class_name, list_some, with_test_split
from finetune.data.split_names import SPLIT_NAMES, SplitName, is_evaluation
from finetune.errors import DataError
from finetune.io.safe_open import read_regular
from finetune.io.sanitize import printable
from finetune.text import listed, name_hint

PARQUET, TAR = ".parquet", ".tar"
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
CLASS_LIST = "classes.txt"  # beside the shards: one class name a line, in the order of the numbers
MAX_SHARDS = 10_000
MAX_ROWS = 10_000_000  # of all shards together, as many as lines of a CSV
MAX_DEPTH = 4  # of folders below the one named
MAX_CLASS_LIST = 15_000_000  # bytes
MAX_INNER_NAME = 500  # characters of a picture's own name inside a shard
_PIECE = re.compile(r"(.*?)(\d{1,6})-of-(\d{1,6})(?!\d)(.*)", re.DOTALL)
Label = int | str | None


class Shard(NamedTuple):
    """One file of a sharded data set. name: relative to the folder, as messages have it."""

    path: Path
    name: str
    split: SplitName


def shard_kind(folder: Path, depth: int = 0) -> str | None:
    """PARQUET or TAR for a folder of such shards, "" for one of pictures, None where neither is found.

    The first that is met decides: shards in the folder itself, else what its subfolders have, by their names. The
    pictures of a class are not listed to the end.
    """
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name.lower()
                if name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif suffix := shard_suffix(name):
                    return suffix
                elif depth and Path(name).suffix in IMAGE_SUFFIXES:
                    return ""
    except OSError:  # whoever opens the folder gives the reason
        return None
    kinds = (shard_kind(folder / name, depth + 1) for name in sorted(folders)) if depth < MAX_DEPTH else ()
    return next((kind for kind in kinds if kind is not None), None)


def shard_suffix(name: str) -> str | None:
    """PARQUET or TAR for the name of such a file, compressed tars among them, else None."""
    lower = name.lower()
    if lower.endswith((TAR, *COMPRESSED_TARS)):
        return TAR
    return PARQUET if lower.endswith(PARQUET) else None


def find_shards(place: Path, suffix: str, title: str) -> tuple[list[Shard], list[str]]:
    """Lists the shards of a folder, or the one file that `place` is, by name; and notes on what is left out.

    Links to files are followed, as the Hub's cache is made of them; links to folders are not. `title` is what messages
    call the data set. DataError where there is none, where some of a numbered set are missing, where two folders are
    two versions of the data, or where a name says two splits.
    """
    if not place.exists():
        near = [p.name for p in sorted(place.parent.glob(f"*{suffix}"))] if place.parent.is_dir() else []
        raise DataError(f"{title}: there is no such file{name_hint(place.name, near, f'shards in {place.parent}')}")
    paths = sorted(_files(place, suffix, title)) if place.is_dir() else [place]
    root = place if place.is_dir() else place.parent
    splits = {path: shard_split(path.relative_to(root).as_posix(), title) for path in paths}
    # `eval` is the test split unless another is.
    eval_too = any(split == "test" and not is_evaluation(str(path.relative_to(root))) for path, split in splits.items())
    shards = []
    for path, split in splits.items():
        name = path.relative_to(root).as_posix()
        validates = split == "test" and eval_too and is_evaluation(name)
        shards.append(Shard(path, name, "validation" if validates else split or "train"))
    if not shards:
        raise DataError(f"{title}: expected files that end with {suffix}, found none")
    notes = []
    if unnamed := [shard.name for shard in shards if splits[shard.path] is None and any(splits.values())]:
        notes.append(f"{title}: not read, as their names say no part, unlike the others': {list_some(unnamed)}")
        shards = [shard for shard in shards if splits[shard.path] is not None]
    if place.is_dir():
        _refuse_missing(shards, title)
        _refuse_versions(shards, title)
    if partial := [shard.name for shard in shards if "partial" in _words(shard.name)]:
        notes.append(f"{title}: these hold the first pictures of a larger set only: {list_some(partial)}")
    return shards, notes


def _files(folder: Path, suffix: str, title: str) -> Iterator[Path]:
    count = 0
    for name, folders, files in os.walk(folder):
        parent = Path(name)
        deep = len(parent.relative_to(folder).parts) >= MAX_DEPTH
        folders[:] = [] if deep else [f for f in folders if not f.startswith(".") and not (parent / f).is_symlink()]
        for file in files:
            if shard_suffix(file) == suffix and not file.startswith("."):
                count += 1
                if count > MAX_SHARDS:
                    raise DataError(f"{title}: over {MAX_SHARDS:,} files that end with {suffix}; join some of them")
                yield parent / file


def shard_split(name: str, title: str) -> SplitName | None:
    """The split that a shard's name says, as in train-00000-of-00002.parquet, or else its nearest folder's."""
    for part in reversed(PurePosixPath(name).parts):
        found = {SPLIT_NAMES[word] for word in _words(part) if word in SPLIT_NAMES}
        if len(found) > 1:
            raise DataError(f"{title}: the name {printable(part)} says {listed(sorted(found))}; expected one part")
        if found:
            return found.pop()
    return None


def _words(text: str) -> list[str]:
    return re.split(r"[^a-z]+", text.lower())


def _refuse_missing(shards: Sequence[Shard], title: str) -> None:
    """DataError where a set numbered like train-00000-of-00002 is not all there, as after a copy that was stopped."""
    found: dict[tuple[str, int, str], set[int]] = defaultdict(set)
    for shard in shards:
        if match := _PIECE.fullmatch(shard.name):
            found[match[1], int(match[3]), match[4]].add(int(match[2]))
    for (start, count, end), numbers in found.items():
        if len(numbers) < count:
            first = next(number for number in range(count) if number not in numbers)
            raise DataError(
                f"{title}: expected {count:,} files {printable(start)}...-of-{count:05d}{printable(end)}, found "
                f"{len(numbers):,}; number {first:,} is missing: copy or download them all"
            )


def shard_folders(names: Sequence[str]) -> list[str]:
    """The folders of shards, without those parts of their paths that say a split; several are several versions."""

    def folder(name: str) -> str:
        return "/".join(part for part in PurePosixPath(name).parts[:-1] if not set(_words(part)) & SPLIT_NAMES.keys())

    return sorted({folder(name) for name in names})


def _refuse_versions(shards: Sequence[Shard], title: str) -> None:
    """DataError where shards lie in several folders that are no splits, such as a Hub data set's configurations."""
    versions = shard_folders([shard.name for shard in shards])
    if len(versions) > 1:
        raise DataError(
            f"{title}: expected shards in one folder, or one for each part; found them in "
            f"{list_some([v or '.' for v in versions])}, which may be versions of the same pictures; name one of these"
        )


def read_class_list(place: Path, title: str) -> tuple[str, ...] | None:
    """The class names that classes.txt beside the shards gives to the numbers 0, 1, ...; None without such a file."""
    path = (place if place.is_dir() else place.parent) / CLASS_LIST
    if not path.exists():
        return None
    try:
        lines = read_regular(path, MAX_CLASS_LIST).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{title}: {CLASS_LIST}: expected UTF-8, found other bytes; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{title}: {CLASS_LIST}: cannot be read ({error.strerror or error})") from None
    while lines and not lines[-1].strip():
        lines.pop()
    return check_class_list(lines, f"{title}: {CLASS_LIST}")


def check_class_list(names: Sequence[object], where: str) -> tuple[str, ...]:
    """The class names of the numbers 0, 1, ..., normalized. DataError for one that is none, or is there twice."""
    found: dict[str, int] = {}
    for number, given in enumerate(names):
        name = class_name(given) if isinstance(given, str) else None
        if name is None:
            raise DataError(f"{where}: expected the name of class {number}, found one that is empty or cannot be shown")
        if name in found:
            raise DataError(f"{where}: {name!r} is the name of class {found[name]} and of class {number}")
        found[name] = number
    return tuple(found)


def label_class(label: Label, names: Sequence[str] | None) -> str | None:
    """The class name of a label: a number's by `names`, without these its digits; None for no label (none, "" or -1).

    ValueError, which says why, for a number that has no name and for a text that is no class name.
    """
    if label is None or label == -1 or label == "":
        return None
    if isinstance(label, str) and names is not None and label.isascii() and label.isdecimal() and label not in names:
        label = int(label) if len(label) < 10 else -2
    if isinstance(label, int) and names is not None:
        if not 0 <= label < len(names):
            raise ValueError(f"the label {label}, and there are {len(names):,} class names, from 0")
        return names[label]
    found = class_name(str(label))
    if found is None:
        raise ValueError("a label that cannot be shown")
    return found


def choose_names(inner: Sequence[str], places: Sequence[str]) -> Sequence[str]:
    """What to call the pictures: by their own names inside the shards where these tell all apart, else by `places`."""
    if len(set(inner)) == len(inner) and all(map(_is_plain, inner)):
        return inner
    return places


def _is_plain(name: str) -> bool:
    parts = re.split(r"[\\/]", name)
    whole = 0 < len(name) <= MAX_INNER_NAME and name.isprintable()
    return whole and not {"", "..", "."} & set(parts) and ":" not in parts[0]


def make_manifest(
    title: str,
    records: Sequence[ImageRecord],
    notes: Sequence[str],
    unlabelled: Sequence[str] = (),
    spellings: Mapping[str, Iterable[str]] | None = None,
) -> Manifest:
    """The manifest of all records. DataError where none has a label.

    unlabelled: pictures without a label, left out. spellings: by class name, what labels called it.
    """
    said = [*notes, *alike_classes(title, spellings or {})]
    if unlabelled:
        said.append(f"{title}: {len(unlabelled):,} pictures without a label left out: {list_some(unlabelled)}")
    classes = tuple(sorted({record.label for record in records}))
    if not classes:
        raise DataError("; ".join([f"{title}: found no picture with a label", *said]))
    return Manifest(title, with_test_split(records), classes, notes=tuple(said))
