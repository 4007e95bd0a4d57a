"""Lists the images of a folder with one subfolder per class."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.data.file_kinds import describe_kinds, is_system_name
from finetune.data.folder_walk import BROKEN_LINK, walk_tree, why_link_is_not_followed
from finetune.data.image_io import IMAGE_SUFFIXES
from finetune.data.manifest import FileRecord, Manifest, alike_classes, class_name, list_some, with_test_split
from finetune.data.split_names import FILLERS, SplitName, affixed_split, find_splits, split_of
from finetune.errors import DataError
from finetune.io.safe_open import is_file, is_folder
from finetune.io.sanitize import printable
from finetune.text import name_hint

LAYOUT = "expected {0}/CLASS/picture.jpg, or {0}/train/CLASS/picture.jpg and the same under val or test"
MANY_ENTRIES = 20_000  # of a folder, after which pictures should have been among them
MIN_PICTURES = 0.01  # of all entries by then
_NUMBER = re.compile(r"[\d\W_]*\d[\d\W_]*")


def list_folder(name: str | Path) -> Manifest:
    """Lists the images of a folder by split and class, in the order of their names; opens none.

    Folders with a usual name of a split (see `split_names`) hold the class folders of that split. With train and only
    one of validation and test, that one is the test split; without any of them, no image is of the test split. Class
    folders are walked to any depth, and what systems leave in them is skipped.

    The manifest has a question where the folders can be read in two ways. Raises DataError for a folder that does not
    exist or has no class folder.
    """
    root = Path(name)
    if not is_folder(root):
        raise DataError(_not_found(root))
    scan = _FolderScan(root)
    folders = scan.subfolders(root)
    splits = scan.find_splits(folders)
    if splits and ("train" in splits.values() or len(splits) == len(folders)):
        others = [folder for folder in folders if folder not in splits]
        if not others or any(split == "train" and scan.has_folders(folder) for folder, split in splits.items()):
            scan.add_splits(splits, others)
            return scan.manifest()
    for folder in folders:
        scan.add_class(folder, "train")
    if splits:
        scan.ask_about_parts(folders, splits)
    return scan.manifest()


class _FolderScan:
    """Collects the images of a folder, and what is left out of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.resolved_root = root, root.resolve()
        self.records: list[FileRecord] = []
        self.spellings: dict[str, set[str]] = defaultdict(set)  # by class name, the names of its folders
        self.bad: list[tuple[str, str]] = []
        self.ignored: dict[str, list[str]] = defaultdict(list)  # by class name, files that are no pictures by name
        self.loose: list[str] = []  # files outside of class folders
        self.system: Counter[str] = Counter()  # names of what systems left behind
        self.below: dict[tuple[SplitName, str], tuple[str, ...]] = {}  # by split and class folder, the folders in it
        self.notes: list[str] = []
        self.unlabelled: list[str] = []  # what to say of parts without class folders
        self.question: str | None = None
        self.entries_seen = 0

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def subfolders(self, parent: Path) -> list[Path]:
        """The folders directly in `parent`, by name; the files beside them are left out."""
        folders = []
        for path in self.entries(parent):
            if is_system_name(path.name):
                self.system[path.name] += 1
            elif path.is_dir() and path.is_symlink():
                self.skip_linked_folder(path)
            elif path.is_dir():
                folders.append(path)
            elif path.is_symlink() and not path.exists():
                self.bad.append((self.relative(path), BROKEN_LINK))
            else:
                self.loose.append(self.relative(path))
        return folders

    def entries(self, parent: Path) -> list[Path]:
        try:
            return sorted(parent.iterdir())
        except OSError as error:
            raise DataError(f"{parent}: the folder cannot be read ({error.strerror})") from None

    def has_folders(self, folder: Path) -> bool:
        """Whether a folder has others in it that may be classes."""
        entries = self.entries(folder)
        return any(path.is_dir() and not path.is_symlink() and not is_system_name(path.name) for path in entries)

    def find_splits(self, folders: Sequence[Path]) -> dict[Path, SplitName]:
        """Which folders mean a split by their names. A lone `seg_test` is one where class folders are in it."""
        splits = find_splits(folder.name for folder in folders)
        if len(folders) == 1 and not splits and (pair := affixed_split(folders[0].name)):
            inside = self.entries(folders[0])
            if self.has_folders(folders[0]) and not any(path.suffix.lower() in IMAGE_SUFFIXES for path in inside):
                splits = {folders[0].name: pair[1]}
        return {folder: splits[folder.name] for folder in folders if folder.name in splits}

    def add_splits(self, splits: dict[Path, SplitName], others: Sequence[Path]) -> None:
        """Adds the classes of each split's folder. DataError where two folders are the same split."""
        seen: dict[SplitName, Path] = {}
        for folder, split in splits.items():
            if split in seen:
                raise DataError(
                    f"{self.root}: found both {seen[split].name} and {folder.name}, two names of one part; "
                    "keep one of them"
                )
            seen[split] = folder
            before = len(self.loose)
            class_folders = self.read_through(folder, self.subfolders(folder))
            for class_folder in class_folders:
                self.add_class(class_folder, split)
            if not class_folders:
                self.note_unlabelled(folder, split, before)
        if others:
            names = list_some([folder.name for folder in others])
            self.notes.append(
                f"{self.root}: not read, as they lie beside train: {names} (parts are called train, val, test)"
            )
        self.notes += self.unlabelled
        if "train" not in seen and self.spellings:
            found = ", ".join(sorted(folder.name for folder in splits))
            self.question = f"{self.root}: found {found} but no train; {LAYOUT.format(self.root)}"

    def read_through(self, folder: Path, inside: list[Path]) -> list[Path]:
        """The class folders of a part; those of its only folder where that repeats the part's name, or is `images`."""
        while len(inside) == 1:
            (only,) = inside
            repeats = only.name.casefold() == folder.name.casefold() or split_of(only.name) == split_of(folder.name)
            if not (repeats or only.name.casefold() in FILLERS) or not self.has_folders(only):
                break
            folder, inside = only, self.subfolders(only)
        return inside

    def note_unlabelled(self, folder: Path, split: SplitName, before: int) -> None:
        """Says that a part has pictures without class folders: those that `loose` has from index `before`."""
        pictures, found = self.pictures(self.loose[before:]), self.relative(folder)
        del self.loose[before:]
        if not pictures:
            self.notes.append(f"{self.root}: {found}/ has no class folder and no picture")
            return
        said = f"{self.root}: {found}/ has {len(pictures):,} pictures without class folders, so they have no labels"
        if split == "train":
            tables = sorted(path.name for path in self.root.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
            table = f"; is {tables[0]} their table? Give {self.root / tables[0]}" if tables else ""
            self.question = f"{said}; put them into {found}/CLASS/, or name path,label in a CSV{table}"
        self.unlabelled.append(f"{said} and are not used; `finetune predict CHECKPOINT {folder}` answers them")

    def ask_about_parts(self, folders: Sequence[Path], splits: dict[Path, SplitName]) -> None:
        """Asks whether folders called like parts, beside others that are not, are parts or classes."""
        parts, every = list_some([folder.name for folder in splits]), [folder.name for folder in folders]
        named = "is a part" if len(splits) == 1 else "are parts"
        others = list_some([folder.name for folder in folders if folder not in splits])
        self.question = (
            f"{self.root}: {parts} {named} by name, beside {others}: a part, "
            f"or a class? If a part, put the others into {self.root}/train/; if a class, name all classes: "
            f"{_setting(every)}"
        )

    def add_class(self, folder: Path, split: SplitName) -> None:
        """Adds every image under a class's folder. DataError for a name that no class can have."""
        label = class_name(folder.name)
        if label is None:
            raise DataError(
                f"{self.root}: the class folder {printable(folder.name)!r} has a name that cannot be shown; rename it"
            )
        self.spellings[label].add(folder.name)
        for path, name in self.walk(folder, (split, folder.name)):
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                self.ignored[label].append(name)
            elif reason := self.why_link_is_not_followed(path):
                self.bad.append((name, reason))
            else:
                self.records.append(FileRecord(name, label, split, path))

    def walk(self, folder: Path, place: tuple[SplitName, str]) -> Iterator[tuple[Path, str]]:
        """Yields every file under a class's folder that is not hidden, with its relative name, in order of names."""

        def add_unreadable(error: OSError) -> None:
            self.bad.append((self.relative(Path(os.fsdecode(error.filename))), error.strerror or str(error)))

        for name, folders, files in walk_tree(folder, add_unreadable):
            parent = Path(name)
            self.refuse_other_things(len(folders) + len(files))
            self.system.update(entry for entry in (*folders, *files) if is_system_name(entry))
            visible = sorted(folder for folder in folders if not is_system_name(folder))
            folders[:] = [folder for folder in visible if not (parent / folder).is_symlink()]
            for linked in sorted(set(visible) - set(folders)):
                self.skip_linked_folder(parent / linked)
            own = sorted(file for file in files if not is_system_name(file))
            if len(folders) != 1 or self.pictures(own):  # else what is in the one folder
                self.below.setdefault(place, () if self.pictures(own) else tuple(folders))
            prefix = self.relative(parent)
            yield from ((parent / file, f"{prefix}/{file}") for file in own)

    def refuse_other_things(self, more: int) -> None:
        """DataError where after many entries hardly any is a picture, as where a whole disk was named."""
        self.entries_seen += more
        if self.entries_seen > MANY_ENTRIES and len(self.records) < MIN_PICTURES * self.entries_seen:
            raise DataError(
                f"{self.root}: of the first {self.entries_seen:,} files and folders in it only {len(self.records):,} "
                "are pictures; name the folder that holds the pictures"
            )

    @staticmethod
    def pictures(names: Sequence[str]) -> list[str]:
        return [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]

    def skip_linked_folder(self, folder: Path) -> None:
        """Notes a linked folder, which is never entered: it leads out, or its images are met where they lie."""
        name = self.relative(folder)
        if reason := self.why_link_is_not_followed(folder):
            self.bad.append((name, reason))
        else:
            self.notes.append(f"{self.root}: {printable(name)} is a link to a folder and was not entered")

    def why_link_is_not_followed(self, path: Path) -> str | None:
        """The reason, for a link that is broken or leads out of the folder; None for all else."""
        reason = why_link_is_not_followed(path, self.resolved_root)
        return f"{reason}; put the picture there or name it in a CSV" if reason not in (None, BROKEN_LINK) else reason

    def manifest(self) -> Manifest:
        """The manifest of all that was added. DataError without a class folder."""
        if not self.spellings:
            layout = LAYOUT.format(self.root)
            nothing = f"{self.root}: found no class folder{self._found_instead()}; {layout}"
            raise DataError(self.question or next(iter(self.unlabelled), nothing))
        if self.question is None:
            self.question = self._nested_question()
        self._note_left_out()
        records = with_test_split(sorted(self.records, key=lambda record: record.name))
        return Manifest(
            str(self.root),
            records,
            tuple(sorted(self.spellings)),
            tuple(sorted(self.bad)),
            (*self.notes, *alike_classes(str(self.root), self.spellings)),
            self.question,
            {label: describe_kinds(names) for label, names in self.ignored.items()},
        )

    def _note_left_out(self) -> None:
        """Notes what was left out: what systems left behind, pictures of no class, and files that are no pictures."""
        if self.system:
            names = [name if count == 1 else f"{name} ({count:,})" for name, count in sorted(self.system.items())]
            self.notes.append(
                f"{self.root}: {self.system.total():,} hidden or system files and folders left out: {list_some(names)}"
            )
        if outside := self.pictures(self.loose):
            self.notes.append(
                f"{self.root}: {len(outside):,} pictures outside of class folders were left out: {list_some(outside)}"
            )
        others = [name for names in self.ignored.values() for name in names]
        if others := sorted({*others, *self.loose} - set(outside)):
            self.notes.append(f"{self.root}: left out, as no pictures that are read: {describe_kinds(others)}")

    def _nested_question(self) -> str | None:
        """Asks what is the class, or the data set, where the folders below class folders look like one or the other."""
        tops = {top: names for (_, top), names in self.below.items()}
        for top, names in sorted(tops.items()):
            if "train" in (splits := find_splits(names)).values() and len(splits) > 1:
                return (
                    f"{self.root}: {printable(top)} holds parts, {list_some(sorted(splits))}: if it is a data set, "
                    f"give {printable(self.root / top)}; if it is a class, put the parts above the classes, as in "
                    f"train/{printable(top)}/"
                )
        if len(tops) == 1 and len(names := next(iter(tops.values()))) > 1:
            (top,) = tops
            return (
                f"{self.root}: found one class only, {printable(top)!r}, which holds {list_some(names)}: if these are "
                f"the classes, give {printable(self.root / top)}"
            )
        splits_there = dict.fromkeys(split for split, _ in self.below)
        for split in splits_there:
            own = {top: names for (part, top), names in self.below.items() if part == split}
            if question := self._repeated_names(own):
                return question
        return None

    def _repeated_names(self, tops: dict[str, tuple[str, ...]]) -> str | None:
        """Asks which are the classes where folders repeat the names of their subfolders: SITE/cat, SITE/dog.

        tops: the class folders of one split, each with the folders in it. Numbered subfolders, such as the tracks of
        CLASS/00001, repeat their names in honest class folders: a note.
        """
        nested = {top: names for top, names in tops.items() if names}
        count = Counter(name for names in nested.values() for name in names)
        shared = sorted(name for name, number in count.items() if 2 * number > len(nested))
        if len(nested) < 2 or 2 * len(nested) <= len(tops) or len(shared) < 2 or 2 * len(shared) < len(count):
            return None
        above, names = list_some(sorted(nested)), list_some(shared)
        said = f"{self.root}: {above} each hold folders called {names}"
        if len({_NUMBER.sub("#", name) for name in shared}) == 1 and _NUMBER.search(shared[0]):
            self.notes.append(f"{said}, which are read as parts of one class; data.group=folder keeps each whole")
            return None
        return (
            f"{said}: which are the classes? If {above} are, say so with {_setting(sorted(tops))}; if {names} are, and "
            "the folders above are parts, call these train, val and test; if they say where pictures are from, name "
            "path,label,group in a CSV"
        )

    def _found_instead(self) -> str:
        if self.bad:
            return " that may be read (" + "; ".join(f"{printable(name)}: {why}" for name, why in self.bad[:3]) + ")"
        images = len(self.pictures(self.loose))
        return f", but {images:,} pictures outside of one" if images else ""


def _setting(classes: Sequence[str]) -> str:
    """The setting that names these classes, the first ten of them."""
    return f"--set data.classes=[{', '.join(map(printable, classes[:10]))}{', ...' * (len(classes) > 10)}]"


def _not_found(root: Path) -> str:
    if is_file(root):
        return f"{root}: expected a folder of pictures or a table that ends with .csv, .tsv or .txt"
    try:
        near = [path.name for path in sorted(root.parent.iterdir()) if path.is_dir() and not is_system_name(path.name)]
    except (OSError, ValueError):
        return f"{root}: there is no such folder, and no {root.parent} either"
    return f"{root}: there is no such folder{name_hint(root.name, near, f'folders in {root.parent}')}"
