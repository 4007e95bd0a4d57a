"""Finds the picture that a cell of a table means, also where the cell spells its name in another way."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from pathlib import Path

from finetune.data.file_kinds import is_system_name
from finetune.data.image_io import IMAGE_SUFFIXES
from finetune.io.safe_open import is_file, is_folder

MAX_SUBFOLDERS = 200  # of a table's folder, in which names without a folder are looked for
MAX_LISTINGS = 256  # folders whose names are kept
MAX_TRIED = 4_000  # characters; no path is longer


class FileFinder:
    """Finds pictures below `folder`, or wherever an absolute path leads.

    A name that is no file's is looked for in another Unicode form or case, with / for \\, with a picture's ending where
    it has none, and, where it has no folder, in the folders directly below.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.respelled = 0  # names found in another spelling
        self.example = ""  # one of them, and what it was found as
        self._listings: dict[Path, dict[str, list[str]]] = {}
        self._subfolders: list[Path] | None = None

    def find(self, name: str) -> list[Path]:
        """The file that a name means: none where there is none, several where it is not clear which."""
        if is_file(path := self.folder / name):
            return [path]
        if not name or len(name) > MAX_TRIED or "\0" in name:
            return []
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        found = self._below(Path("/") if name.startswith("/") else self.folder, parts)
        if not found and len(parts) == 1:
            found = [file for folder in self._folders() for file in self._below(folder, parts)]
        if len(found) == 1:
            self.respelled += 1
            self.example = self.example or self._respelling(name, found[0])
        return found

    def name_of(self, path: Path) -> str:
        """A file's path from the table's folder, or the whole of it where it lies elsewhere."""
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)

    def _respelling(self, name: str, path: Path) -> str:
        written, there = (unicodedata.normalize("NFC", text) for text in (name, self.name_of(path)))
        return f"{written} as {there}" if written != there else f"{written}, whose accents are of another Unicode form"

    def _below(self, folder: Path, parts: list[str]) -> list[Path]:
        """The files below `folder` that these folders and last name may mean; of folders alike the first."""
        for part in parts[:-1]:
            exact = folder / part
            if not is_folder(exact):
                exact = next((folder / name for name in self._alike(folder, part) if is_folder(folder / name)), exact)
            folder = exact
        if not parts:
            return []
        for suffixes in (("",), sorted(IMAGE_SUFFIXES)):
            names = [name for suffix in suffixes for name in self._alike(folder, parts[-1], suffix)]
            if files := [folder / name for name in names if is_file(folder / name)]:
                return files
        return []

    def _alike(self, folder: Path, name: str, suffix: str = "") -> list[str]:
        """The names in a folder that are this one with `suffix` in another Unicode form; else in another case too."""
        whole = unicodedata.normalize("NFC", name + suffix)
        alike = self._listing(folder).get(whole.casefold(), [])
        return [one for one in alike if unicodedata.normalize("NFC", one) == whole] or alike

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        """The names in a folder by their composed form without case; none where it cannot be read."""
        if folder not in self._listings:
            found: dict[str, list[str]] = defaultdict(list)
            for name in _names(folder):
                found[unicodedata.normalize("NFC", name).casefold()].append(name)
            if len(self._listings) >= MAX_LISTINGS:
                self._listings.clear()
            self._listings[folder] = dict(found)
        return self._listings[folder]

    def _folders(self) -> list[Path]:
        """The folders directly below the table's; none where there are over MAX_SUBFOLDERS."""
        if self._subfolders is None:
            paths = [self.folder / name for name in _names(self.folder) if not is_system_name(name)]
            found = [path for path in paths if is_folder(path)]
            self._subfolders = found if len(found) <= MAX_SUBFOLDERS else []
        return self._subfolders


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError):
        return []
