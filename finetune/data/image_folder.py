"""Lists the images of a folder with one subfolder per class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from finetune.data.image_io import IMAGE_SUFFIXES
from finetune.data.manifest import SPLIT_NAMES, FileRecord, Manifest, SplitName, class_name, list_some, with_test_split
from finetune.errors import DataError
from finetune.io.sanitize import printable
from finetune.text import name_hint

LAYOUT = "expected {0}/CLASS/picture.jpg, or {0}/train/CLASS/picture.jpg and the same under val or test"
BROKEN_LINK = "a link that leads nowhere"


def list_folder(name: str | Path) -> Manifest:
    """Lists the images of a folder by split and class, in the order of their names; opens none.

    Class folders are walked to any depth, hidden names skipped. With train/ and only one of val/ (or valid,
    validation) and test/, that one is the test split. Without either, or without train/, no image is of the test split.
    Raises DataError for a folder that does not exist or has fewer than two classes.
    """
    root = Path(name)
    if not root.is_dir():
        raise DataError(_not_found(root))
    scan = _FolderScan(root)
    folders = scan.subfolders(root)
    splits = {folder: SPLIT_NAMES[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_NAMES}
    if "train" in splits.values():
        scan.add_splits(folders, splits)
    elif folders and len(splits) == len(folders):
        raise DataError(
            f"{root}: found {', '.join(sorted(f.name for f in splits))} but no train; {LAYOUT.format(root)}"
        )
    else:
        for folder in folders:
            scan.add_class(folder, "train")
    return scan.manifest()


class _FolderScan:
    """Collects the images of a folder, and what is left out of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.resolved_root = root, root.resolve()
        self.records: list[FileRecord] = []
        self.classes: set[str] = set()
        self.bad: list[tuple[str, str]] = []
        self.ignored: list[str] = []
        self.notes: list[str] = []

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def subfolders(self, parent: Path) -> list[Path]:
        """The folders directly in `parent`, by name; the files beside them are left out."""
        try:
            entries = sorted(path for path in parent.iterdir() if not _is_hidden(path.name))
        except OSError as error:
            raise DataError(f"{parent}: the folder cannot be read ({error.strerror})") from None
        folders = []
        for path in entries:
            if path.is_dir() and path.is_symlink():
                self.skip_linked_folder(path)
            elif path.is_dir():
                folders.append(path)
            elif path.is_symlink() and not path.exists():
                self.bad.append((self.relative(path), BROKEN_LINK))
            else:
                self.ignored.append(self.relative(path))
        return folders

    def add_splits(self, folders: list[Path], splits: dict[Path, SplitName]) -> None:
        """Adds the classes of each split's folder. DataError where two folders are the same split."""
        seen: dict[SplitName, Path] = {}
        for folder, split in splits.items():
            if split in seen:
                raise DataError(
                    f"{self.root}: found both {seen[split].name} and {folder.name}, two names of one part; "
                    "keep one of them"
                )
            seen[split] = folder
            for class_folder in self.subfolders(folder):
                self.add_class(class_folder, split)
        if others := [folder.name for folder in folders if folder not in splits]:
            self.notes.append(f"{self.root}: not read, as they lie beside train: {list_some(others)}")

    def add_class(self, folder: Path, split: SplitName) -> None:
        """Adds every image under a class's folder. DataError for a name that no class can have."""
        label = class_name(folder.name)
        if label is None:
            raise DataError(
                f"{self.root}: the class folder {printable(folder.name)!r} has a name that cannot be shown; rename it"
            )
        self.classes.add(label)
        for path, name in self.walk(folder):
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                self.ignored.append(name)
            elif reason := self.why_link_is_not_followed(path):
                self.bad.append((name, reason))
            else:
                self.records.append(FileRecord(name, label, split, path))

    def walk(self, folder: Path) -> Iterator[tuple[Path, str]]:
        """Yields every file under a class's folder that is not hidden, with its relative name, in order of names."""

        def add_unreadable(error: OSError) -> None:
            self.bad.append((self.relative(Path(os.fsdecode(error.filename))), error.strerror or str(error)))

        for name, folders, files in os.walk(folder, onerror=add_unreadable):
            parent = Path(name)
            visible = sorted(folder for folder in folders if not _is_hidden(folder))
            folders[:] = [folder for folder in visible if not (parent / folder).is_symlink()]
            for linked in sorted(set(visible) - set(folders)):
                self.skip_linked_folder(parent / linked)
            prefix = self.relative(parent)
            yield from ((parent / file, f"{prefix}/{file}") for file in sorted(files) if not _is_hidden(file))

    def skip_linked_folder(self, folder: Path) -> None:
        """Notes a linked folder, which is never entered: it leads out, or its images are met where they lie."""
        name = self.relative(folder)
        if reason := self.why_link_is_not_followed(folder):
            self.bad.append((name, reason))
        else:
            self.notes.append(f"{self.root}: {printable(name)} is a link to a folder and was not entered")

    def why_link_is_not_followed(self, path: Path) -> str | None:
        """The reason, for a link that is broken or leads out of the folder; None for all else."""
        if not path.is_symlink():
            return None
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: links in a ring, before Python 3.13
            return BROKEN_LINK
        if target.is_relative_to(self.resolved_root):
            return None
        return f"a link that leads out of the folder, to {printable(target)}; put the picture there or name it in a CSV"

    def manifest(self) -> Manifest:
        """The manifest of all that was added. DataError for fewer than two classes."""
        layout = LAYOUT.format(self.root)
        if not self.classes:
            raise DataError(f"{self.root}: found no class folder{self._found_instead()}; {layout}")
        if len(self.classes) == 1:
            raise DataError(
                f"{self.root}: found one class only, {next(iter(self.classes))!r}; a classifier needs at least two "
                f"class folders; {layout}"
            )
        if self.ignored:
            self.notes.append(
                f"{self.root}: {len(self.ignored):,} files whose names do not end like a picture's were left out: "
                + list_some(sorted(self.ignored))
            )
        records = with_test_split(sorted(self.records, key=lambda record: record.name))
        return Manifest(
            str(self.root), records, tuple(sorted(self.classes)), tuple(sorted(self.bad)), tuple(self.notes)
        )

    def _found_instead(self) -> str:
        if self.bad:
            return " that may be read (" + "; ".join(f"{printable(name)}: {why}" for name, why in self.bad[:3]) + ")"
        images = sum(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in self.ignored)
        return f", but {images:,} pictures outside of one" if images else ""


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # what macOS puts beside the files of a zip


def _not_found(root: Path) -> str:
    if root.exists():
        return f"{root}: expected a folder of pictures or a file that ends with .csv"
    try:
        near = [path.name for path in sorted(root.parent.iterdir()) if path.is_dir() and not _is_hidden(path.name)]
    except OSError:
        return f"{root}: there is no such folder, and no {root.parent} either"
    return f"{root}: there is no such folder{name_hint(root.name, near, f'folders in {root.parent}')}"
