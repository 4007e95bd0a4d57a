"""Atomic writes: a file or folder is written whole or not at all, and synced to disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import OutputError

CHUNK = 4 * 1024**2  # bytes handed to one write

MODE = 0o644

PART_SUFFIX = ".part"

TEMPORARY_MARK = r"\.[0-9a-f]{8}\.part"  # the end of a temporary's name

_FULL = {errno.ENOSPC, errno.EDQUOT}

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}

_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES}

Piece = bytes | bytearray | memoryview  # flat bytes


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that its name never shows half of it. OutputError when it cannot; the old one is as it was."""
    with prepared_files({path: content}):
        pass


@contextmanager
def prepared_files(contents: Mapping[Path, bytes]) -> Iterator[None]:
    """Writes several files under temporary names beside their own; each gets its name when the block ends well.

    Thus a full disk is found before anything changes, and what has to happen to the old files happens in the block.
    """
    with ExitStack() as stack:
        temporaries = {path: stack.enter_context(_temporary(path, content)) for path, content in contents.items()}
        yield
        for path, temporary in temporaries.items():
            with raises_output_error(path):
                temporary.replace(path)
        for folder in dict.fromkeys(path.parent for path in contents):
            with raises_output_error(folder):
                sync_folder(folder)


def append_line(path: Path, content: bytes) -> None:
    """Adds to the end of a file, all or nothing where the process lives on. It is not synced. OutputError."""
    with raises_output_error(path, len(content)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, MODE)
        try:
            before = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, [content])
            except BaseException:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


def link_aside(path: Path, aside: Path) -> None:
    """Gives a file a second name, `aside`, which must be free; a copy where there are no hard links. OutputError."""
    with raises_output_error(aside):
        try:
            os.link(path, aside)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            write_atomic(aside, path.read_bytes())
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
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
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
    """Turns a failed write in the block into an OutputError that names `path`; `size` is what had to go there."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); {_cure(error, size)}") from None


def _cure(error: OSError, size: int | None) -> str:
    if error.errno in _FULL:
        room = "room" if size is None else f"room for {size:,} bytes"
        return f"make {room} there and run the same command again, or name another place"
    if error.errno == errno.EFBIG:
        return "its disk, or `ulimit -f`, does not allow a file of this size; name another place or raise the limit"
    if error.errno == errno.EIO:
        return "the disk or the way to it fails; name another place"
    return "name another place or put this one right"


@contextmanager
def _temporary(path: Path, content: bytes) -> Iterator[Path]:
    """A synced file beside `path` with this content, for the time of the block. OutputError when it cannot be written.

    Its lock is held meanwhile: that is how a sweep tells it from one whose process died.
    """
    temporary, descriptor = None, None
    try:
        with raises_output_error(path, len(content)):
            make_folder(path.parent)
            _sweep_files(path)
            while descriptor is None:
                temporary = temporary_path(path)
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
                if lock_file(descriptor) is False or not os.fstat(descriptor).st_nlink:
                    os.close(descriptor)  # another process swept between the two calls
                    descriptor = None
            os.fchmod(descriptor, MODE)  # whatever the umask
            write_all(descriptor, [content])
            os.fsync(descriptor)
        assert temporary is not None
        yield temporary
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # it has its name, and this one is gone, unless something failed
                temporary.unlink()
        if descriptor is not None:
            os.close(descriptor)


def _sweep_files(path: Path) -> None:
    """Deletes the temporary files of `path` that no process holds, as far as it goes."""
    with contextlib.suppress(OSError):
        for entry in list(path.parent.iterdir()):
            if re.fullmatch(rf"\.{re.escape(path.name)}{TEMPORARY_MARK}", entry.name):
                with contextlib.suppress(OSError):
                    descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                    try:
                        if lock_file(descriptor):
                            entry.unlink()
                    finally:
                        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """A name for a temporary that becomes, or was, `path`."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}{PART_SUFFIX}"


def write_all(descriptor: int, pieces: Iterable[Piece], seen: Callable[[memoryview], object] | None = None) -> int:
    """Every byte, however few one call takes; `seen` gets each part that is written. Returns their number. OSError."""
    size = 0
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            done = os.write(descriptor, rest[:CHUNK])
            if seen:
                seen(rest[:done])
            size, rest = size + done, rest[done:]
    return size


@dataclass(frozen=True)
class WrittenFile:
    """What a file became: its bytes and their sha256 (hex)."""

    size: int
    sha256: str


class FolderWriter:
    """Writes the files of a folder that has not got its name yet."""

    def __init__(self, temporary: Path, final: Path) -> None:
        self.temporary, self.final = temporary, final

    def write(self, name: str, pieces: Iterable[Piece]) -> WrittenFile:
        """A new file of these pieces, one after the other, synced; hashed on the way. OutputError."""
        digest = hashlib.sha256()
        with raises_output_error(self.final / name):
            descriptor = os.open(self.temporary / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
            try:
                os.fchmod(descriptor, MODE)  # whatever the umask
                size = write_all(descriptor, pieces, digest.update)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return WrittenFile(size, digest.hexdigest())


@contextmanager
def new_folder(path: Path) -> Iterator[FolderWriter]:
    """A folder that gets its name, `path`, when the block ends well and all in it is synced. OutputError."""
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
    """Deletes a folder, of which no part is seen under its name from the first moment on. OutputError."""
    doomed = temporary_path(path)
    with raises_output_error(path):
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # what is left is swept later


def sweep_folders(folder: Path) -> None:
    """Deletes the temporary folders in `folder`, as far as it goes. Only where nobody else can be writing now."""
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            if re.fullmatch(rf"\..+{TEMPORARY_MARK}", entry.name):
                shutil.rmtree(entry, ignore_errors=True)


class PartFile:
    """A new file under a temporary name, written piece by piece; see `part_file`."""

    def __init__(self, path: Path, mode: int) -> None:
        self.path = temporary_path(path)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def write(self, pieces: Iterable[Piece], seen: Callable[[memoryview], object] | None = None) -> int:
        """Writes every byte at the file's position; `seen` gets each part. Returns their number. OSError."""
        return write_all(self.descriptor, pieces, seen)

    def commit(self, path: Path) -> None:
        """Syncs the file and gives it its name, in the folder where it is. OSError."""
        os.fsync(self.descriptor)
        self.path.replace(path)
        sync_folder(path.parent)


@contextmanager
def part_file(path: Path, mode: int = 0o666) -> Iterator[PartFile]:
    """A new file beside `path` to be written in pieces; after the block it is gone unless `commit` named it. OSError.

    mode: of the file, less the umask.
    """
    part = PartFile(path, mode)
    try:
        yield part
    finally:
        os.close(part.descriptor)
        with contextlib.suppress(OSError):
            part.path.unlink(missing_ok=True)
