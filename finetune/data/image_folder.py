"""Lists the images of a folder with one subfolder per class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from finetune.data.image_io import IMAGE_SUFFIXES
from finetune.data.manifest import SPLIT_NAMES, ImageRecord, Manifest, SplitName, class_name, list_some, one_test_split
from finetune.errors import DataError
from finetune.io.sanitize import printable
from finetune.text import name_hint

LAYOUT = "expected {0}/CLASS/picture.jpg, or {0}/train/CLASS/picture.jpg and the same under val or test"


def list_folder(name: str | Path) -> Manifest:
    """The pictures of a folder by class and part, in the order of their names; nothing is opened.

    Class folders are walked to any depth, hidden names skipped. With train/ and only one of val/ (or valid,
    validation) and test/, that one is the test part. Without either, or without train/, no file is of the test part.
    Raises DataError for a folder that is not there or has not at least two classes.
    """
    root = Path(name)
    if not root.is_dir():
        raise DataError(_not_there(root))
    found = _Found(root)
    folders = _folders(root, found)
    parts = {folder: SPLIT_NAMES[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_NAMES}
    if "train" in parts.values():
        _read_parts(root, folders, parts, found)
    elif folders and len(parts) == len(folders):
        raise DataError(f"{root}: found {', '.join(sorted(f.name for f in parts))} but no train; {LAYOUT.format(root)}")
    else:
        for folder in folders:
            found.read_class(folder, "train")
    return found.listing()


def _read_parts(root: Path, folders: list[Path], parts: dict[Path, SplitName], found: _Found) -> None:
    taken: dict[SplitName, Path] = {}
    for folder, part in parts.items():
        if part in taken:
            raise DataError(
                f"{root}: found both {taken[part].name} and {folder.name}, two names of one part; keep one of them"
            )
        taken[part] = folder
        for inner in _folders(folder, found):
            found.read_class(inner, part)
    if beside := [folder.name for folder in folders if folder not in parts]:
        found.notes.append(f"{root}: not read, as they lie beside train: {list_some(beside)}")


class _Found:
    """What a walk has met so far."""

    def __init__(self, root: Path) -> None:
        self.root, self.inside = root, root.resolve()
        self.files: list[ImageRecord] = []
        self.classes: set[str] = set()
        self.bad: list[tuple[str, str]] = []
        self.ignored: list[str] = []
        self.notes: list[str] = []

    def name_of(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def read_class(self, folder: Path, part: SplitName) -> None:
        label = class_name(folder.name)
        if label is None:
            raise DataError(
                f"{self.root}: the class folder {printable(folder.name)!r} has a name that cannot be shown; rename it"
            )
        self.classes.add(label)
        for path, name in self._walk(folder):
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                self.ignored.append(name)
            elif reason := self.leaves(path):
                self.bad.append((name, reason))
            else:
                self.files.append(ImageRecord(path, name, label, part))

    def _walk(self, folder: Path) -> Iterator[tuple[Path, str]]:
        """Every file in a class folder that is not hidden, to any depth, and its name, in the order of their names."""

        def note(error: OSError) -> None:
            self.bad.append((self.name_of(Path(os.fsdecode(error.filename))), error.strerror or str(error)))

        for name, folders, files in os.walk(folder, onerror=note):
            place = Path(name)
            folders[:] = sorted(f for f in folders if not _hidden(f))
            for linked in [f for f in folders if (place / f).is_symlink()]:
                folders.remove(linked)
                self.linked(place / linked)
            before = self.name_of(place)
            yield from ((place / file, f"{before}/{file}") for file in sorted(files) if not _hidden(file))

    def linked(self, folder: Path) -> None:
        """A linked folder is never entered: it leads out, or its pictures are met where they lie."""
        reason = self.leaves(folder)
        if reason:
            self.bad.append((self.name_of(folder), reason))
        else:
            self.notes.append(
                f"{self.root}: {printable(self.name_of(folder))} is a link to a folder and was not entered"
            )

    def leaves(self, path: Path) -> str | None:
        """Why a link is not followed; None for what is no link, or one to a file inside the folder."""
        if not path.is_symlink():
            return None
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: links in a ring, before Python 3.13
            return "a link that leads nowhere"
        if target.is_relative_to(self.inside):
            return None
        return f"a link that leads out of the folder, to {printable(target)}; put the picture there or name it in a CSV"

    def listing(self) -> Manifest:
        if not self.classes:
            raise DataError(f"{self.root}: found no class folder{self._instead()}; {LAYOUT.format(self.root)}")
        if len(self.classes) == 1:
            raise DataError(
                f"{self.root}: found one class only, {next(iter(self.classes))!r}; a classifier needs at least two "
                f"class folders; {LAYOUT.format(self.root)}"
            )
        if self.ignored:
            self.notes.append(
                f"{self.root}: {len(self.ignored):,} files whose names do not end like a picture's were left out: "
                + list_some(sorted(self.ignored))
            )
        files = one_test_split(sorted(self.files, key=lambda file: file.name))
        return Manifest(str(self.root), files, tuple(sorted(self.classes)), tuple(sorted(self.bad)), tuple(self.notes))

    def _instead(self) -> str:
        if self.bad:
            return " that may be read (" + "; ".join(f"{printable(name)}: {why}" for name, why in self.bad[:3]) + ")"
        pictures = [n for n in self.ignored if Path(n).suffix.lower() in IMAGE_SUFFIXES]
        return f", but {len(pictures):,} pictures outside of one" if pictures else ""


def _folders(place: Path, found: _Found) -> list[Path]:
    """The folders directly in `place`, by name; files beside them are noted as left out."""
    try:
        inside = sorted(path for path in place.iterdir() if not _hidden(path.name))
    except OSError as error:
        raise DataError(f"{place}: the folder cannot be read ({error.strerror})") from None
    folders = []
    for path in inside:
        if path.is_dir() and path.is_symlink():
            found.linked(path)
        elif path.is_dir():
            folders.append(path)
        elif path.is_symlink() and not path.exists():
            found.bad.append((found.name_of(path), "a link that leads nowhere"))
        else:
            found.ignored.append(found.name_of(path))
    return folders


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # what macOS puts beside the files of a zip


def _not_there(root: Path) -> str:
    if root.exists():
        return f"{root}: expected a folder of pictures or a file that ends with .csv"
    try:
        near = [path.name for path in sorted(root.parent.iterdir()) if path.is_dir() and not _hidden(path.name)]
    except OSError:
        return f"{root}: there is no such folder, and no {root.parent} either"
    return f"{root}: there is no such folder{name_hint(root.name, near, f'folders in {root.parent}')}"
