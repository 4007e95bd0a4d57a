"""Folders that are there whole or not at all, as `files` says it of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune.files import MARK, MODE, Piece, beside, make_folder, sync_folder, told, write_all


@dataclass(frozen=True)
class Written:
    """What a file became: its bytes and their sha256 (hex)."""

    size: int
    sha256: str


class FolderWriter:
    """Writes the files of a folder that has not got its name yet."""

    def __init__(self, temporary: Path, final: Path) -> None:
        self.temporary, self.final = temporary, final

    def write(self, name: str, pieces: Iterable[Piece]) -> Written:
        """A new file of these pieces, one after the other, synced; hashed on the way. OutputError."""
        digest = hashlib.sha256()
        with told(self.final / name):
            descriptor = os.open(self.temporary / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
            try:
                os.fchmod(descriptor, MODE)  # whatever the umask
                size = write_all(descriptor, pieces, digest.update)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return Written(size, digest.hexdigest())


@contextmanager
def new_folder(path: Path) -> Iterator[FolderWriter]:
    """A folder that gets its name, `path`, when the block ends well and all in it is synced. OutputError."""
    temporary = beside(path)
    try:
        with told(path):
            make_folder(path.parent)
            temporary.mkdir()
        yield FolderWriter(temporary, path)
        with told(path):
            sync_folder(temporary)
            temporary.rename(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Deletes a folder, of which no part is seen under its name from the first moment on. OutputError."""
    doomed = beside(path)
    with told(path):
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # what is left is swept later


def sweep_folders(folder: Path) -> None:
    """Deletes the temporary folders in `folder`, as far as it goes. Only where nobody else can be writing now."""
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            if re.fullmatch(rf"\..+{MARK}", entry.name):
                shutil.rmtree(entry, ignore_errors=True)
