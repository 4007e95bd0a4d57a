"""Opens regular files only: no pipes, devices or endless files."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO, cast

# Neither lets the opening of a pipe wait for its other end, nor Windows change line ends.
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (_FLAGS & ~os.O_RDONLY)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def is_file(path: str | Path) -> bool:
    """Whether a regular file is there; False also for what can be no file's name, of which Path.is_file raises."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # longer than a file's name may be, or with a zero byte
        return False


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there; False also for what can be no folder's name."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading. OSError, whose strerror says why, for anything else and for no file name."""
    handle, _ = _open_descriptor(path)
    return os.fdopen(handle, "rb")


def open_to_append(path: str | Path) -> BinaryIO:
    """Opens a regular file, or a new one, to write at its end. OSError for anything else, such as a pipe."""
    refuse_special(Path(path))  # first, since a pipe without a reader has an error of its own
    handle = os.open(path, _APPEND, 0o644)
    try:
        _refuse_others(path, os.fstat(handle).st_mode)
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "ab", buffering=0)


def read_regular(path: str | Path, most: int) -> bytes:
    """Reads a regular file of at most `most` bytes. OSError as in `open_regular`, and for a larger one.

    A file of size 0 is not read: so are files of the system sized that never end or wait for something.
    """
    handle, size = _open_descriptor(path)
    try:
        if size > most:
            raise OSError(errno.EFBIG, f"{size:,} bytes, and at most {most:,} are read")
        content = os.read(handle, size)
        if len(content) < size:  # a signal came, or it is larger than one read gives
            with os.fdopen(handle, "rb", closefd=False) as file:
                content += file.read(size - len(content))
        return content
    finally:
        os.close(handle)


def _open_descriptor(path: str | Path) -> tuple[int, int]:
    """Opens a regular file; returns its descriptor and size."""
    try:
        _refuse_others(path, Path(path).stat().st_mode)  # first, since some devices act on being opened
        handle = os.open(path, _FLAGS)
    except ValueError:  # a zero byte, or characters that no file's name can have
        raise OSError(errno.EINVAL, "this is no file name") from None
    try:
        found = os.fstat(handle)
        _refuse_others(path, found.st_mode)  # another file may have that name by now
    except BaseException:
        os.close(handle)
        raise
    return handle, found.st_size


def _refuse_others(path: str | Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if (kind := kind_of(mode)) is not None:
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))


def refuse_special(path: Path) -> None:
    """OSError where something is at this path that is no regular file, or a link to such a thing."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    _refuse_others(path, mode)


def kind_of(mode: int) -> str | None:
    """What a file of this mode (`st_mode`) is, in words; None for a regular one."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "something else")


def sha256_of(content: bytes | Path) -> str:
    """The sha256 (hex) of bytes or of a file's content. OSError when the file cannot be read."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open_regular(content) as file:
        return hashlib.file_digest(cast("io.BufferedReader", file), "sha256").hexdigest()
