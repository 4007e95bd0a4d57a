"""Atomic writes: a file or folder is written whole or not at all, and synced to disk.

`write_atomic` for content at hand, `open_atomic` for content that comes in pieces, `prepared_files` for several files
that change together, `new_folder` for a folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import OutputError
from finetune.io.safe_open import open_to_append, read_regular, refuse_special
from finetune.io.text_path import fitting_name

CHUNK = 4 * 1024**2  # bytes handed to one write
MODE = 0o644
MAX_TEMPORARY_STEM = 100  # bytes of the name that a temporary's begins with, however few a file system allows
TEMPORARY_MARK = r"\.[0-9a-f]{8}\.part"  # the end of a temporary's name
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_HINTS = {
    errno.EFBIG: "its disk, or `ulimit -f`, does not allow a file of this size; name another place or raise the limit",
    errno.EIO: "the disk or the way to it fails; name another place",
}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES}
Piece = bytes | bytearray | memoryview  # flat bytes


@dataclass(frozen=True)
class TemporaryFile:
    """A new file beside `path`, open for writing, under the name `temporary`."""

    path: Path
    temporary: Path
    descriptor: int

    def write(self, piece: Piece) -> int:
        """Appends the bytes and returns their number, as a file object does. OSError."""
        return write_all(self.descriptor, piece)


@contextmanager
def temporary_file(path: Path) -> Iterator[TemporaryFile]:
    """A new empty file beside `path`, deleted when the block ends unless it was renamed; makes the folder. OSError.

    It is locked: that is how a sweep tells it from one whose process died.
    """
    temporary, descriptor = None, None
    try:
        refuse_special(path)
        make_folder(path.parent)
        _sweep_files(path)
        while descriptor is None:
            temporary = temporary_path(path)
            descriptor = os.open(temporary, _NEW, MODE)
            if lock_file(descriptor) is False or not os.fstat(descriptor).st_nlink:
                os.close(descriptor)  # another process swept between the two calls
                descriptor = None
        assert temporary is not None
        os.fchmod(descriptor, MODE)  # whatever the umask
        yield TemporaryFile(path, temporary, descriptor)
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # after a rename there is none
                temporary.unlink()
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def open_atomic(path: Path) -> Iterator[TemporaryFile]:
    """A file to write that replaces `path`, synced, when the block ends well; else `path` is as it was. OSError."""
    with temporary_file(path) as file:
        yield file
        os.fsync(file.descriptor)  # a rename must not outrun what was written
        file.temporary.replace(path)
        sync_folder(path.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that its name never shows half of it. OutputError when it cannot; the old one is as it was."""
    with raises_output_error(path, len(content)), open_atomic(path) as file:
        file.write(content)


@contextmanager
def prepared_files(contents: Mapping[Path, bytes]) -> Iterator[None]:
    """Writes several files under temporary names; each replaces its own when the block ends well. OutputError.

    Thus a full disk is found before anything changes, and what has to happen to the old files happens in the block.
    """
    with ExitStack() as stack:
        files = []
        for path, content in contents.items():
            with raises_output_error(path, len(content)):
                file = stack.enter_context(temporary_file(path))
                file.write(content)
                os.fsync(file.descriptor)
            files.append(file)
        yield
        for file in files:
            with raises_output_error(file.path):
                file.temporary.replace(file.path)
        for folder in dict.fromkeys(path.parent for path in contents):
            with raises_output_error(folder):
                sync_folder(folder)


def append_line(path: Path, content: bytes) -> None:
    """Adds to the end of a file, all or nothing where the process lives on. It is not synced. OutputError."""
    with raises_output_error(path, len(content)), open_to_append(path) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            write_all(file.fileno(), content)
        except BaseException:
            os.ftruncate(file.fileno(), before)
            raise


def link_aside(path: Path, aside: Path) -> None:
    """Gives a file a second name, `aside`, which must be free; a copy where there are no hard links. OutputError."""
    with raises_output_error(aside):
        try:
            os.link(path, aside)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            write_atomic(aside, read_regular(path, sys.maxsize))
        sync_folder(aside.parent)


def remove_file(path: Path) -> None:
    """Deletes a file if it is there. OutputError."""
    with raises_output_error(path):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder and what is missing above it, synced. OSError."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder outlive a power cut, where the file system can. OSError when it fails."""
    try:
        with _open(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def lock_file(descriptor: int) -> bool | None:
    """Takes the lock of an open file: True, or False while another has it, or None where files have no locks.

    The kernel gives it back when the last copy of the descriptor is closed, however its process ends.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


@contextmanager
def raises_output_error(path: Path, size: int | None = None) -> Iterator[None]:
    """Turns an OSError in the block into an OutputError that names `path`; `size` is the bytes to be written there."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); {_hint(error, size)}") from None


def _hint(error: OSError, size: int | None) -> str:
    if error.errno in _FULL:
        room = "room" if size is None else f"room for {size:,} bytes"
        return f"make {room} there and run the same command again, or name another place"
    return _HINTS.get(error.errno or 0, "name another place or put this one right")


@contextmanager
def _open(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, MODE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _leftovers(folder: Path, name: str = ".+") -> list[Path]:
    """The temporaries in a folder of what has this name, a regular expression; none where it cannot be listed."""
    with contextlib.suppress(OSError):
        return [entry for entry in folder.iterdir() if re.fullmatch(rf"\.{name}{TEMPORARY_MARK}", entry.name)]
    return []


def _sweep_files(path: Path) -> None:
    """Deletes the temporary files of `path` that no process holds, as far as it goes."""
    for entry in _leftovers(path.parent, re.escape(_temporary_stem(path))):
        with contextlib.suppress(OSError), _open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as descriptor:
            if lock_file(descriptor):
                entry.unlink()


def temporary_path(path: Path) -> Path:
    """A name for a temporary that becomes, or was, `path`: never longer than a name that the file system takes."""
    return path.parent / f".{_temporary_stem(path)}.{secrets.token_hex(4)}.part"


def _temporary_stem(path: Path) -> str:
    return fitting_name(path.name, "", MAX_TEMPORARY_STEM)


def write_all(descriptor: int, piece: Piece) -> int:
    """Writes every byte, however few one call takes, and returns their number. OSError."""
    whole = rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest[:CHUNK]) :]
    return len(whole)


@dataclass(frozen=True)
class WrittenFile:
    """What a file became: its bytes and their sha256 (hex)."""

    size: int
    sha256: str


@dataclass(frozen=True)
class FolderWriter:
    """Writes the files of a folder that still has its temporary name."""

    temporary: Path
    final: Path

    def write(self, name: str, pieces: Iterable[Piece]) -> WrittenFile:
        """Writes a new file of these pieces in order, hashed and synced. OutputError."""
        digest, size = hashlib.sha256(), 0
        with raises_output_error(self.final / name), _open(self.temporary / name, _NEW) as descriptor:
            os.fchmod(descriptor, MODE)  # whatever the umask
            for piece in pieces:
                size += write_all(descriptor, piece)
                digest.update(piece)
            os.fsync(descriptor)
        return WrittenFile(size, digest.hexdigest())


@contextmanager
def new_folder(path: Path) -> Iterator[FolderWriter]:
    """A folder to fill that gets its name, `path`, synced, when the block ends well. OutputError."""
    temporary = temporary_path(path)
    try:
        with raises_output_error(path):
            make_folder(path.parent)
            temporary.mkdir()
        yield FolderWriter(temporary, path)
        with raises_output_error(path):
            sync_folder(temporary)
            temporary.rename(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Deletes a folder; it is renamed first, so that its name never shows a part of it. OutputError."""
    doomed = temporary_path(path)
    with raises_output_error(path):
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # what is left is swept later


def sweep_folders(folder: Path) -> None:
    """Deletes the temporary folders in `folder`, as far as it goes. Only where nobody else can be writing now."""
    for entry in _leftovers(folder):
        shutil.rmtree(entry, ignore_errors=True)
