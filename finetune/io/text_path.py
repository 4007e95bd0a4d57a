"""Turns texts that people, recipes and files give into paths about which the file system can be asked."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from finetune.errors import SettingError
from finetune.io.sanitize import printable

MAX_NAME_BYTES = 255  # of a file's name, on nearly every file system
MAX_SHOWN = 120  # characters of a path in a message about it


def to_path(text: str | os.PathLike[str], error: Callable[[str], Exception] = SettingError) -> Path:
    """The path that a text names: exists, is_file, is_dir, stat and resolve of it raise nothing, as far as it is there.

    Nothing need be there. Raises `error`, made of one message, for what can be no path (an empty text, a zero byte, a
    name too long for the file system) and for what may not be asked about (a folder on the way that may not be entered,
    links in a ring, a disk that fails).
    """
    if not isinstance(text, (str, os.PathLike)):
        raise error(f"expected a path or its text, found {type(text).__name__}")
    if not os.fspath(text):
        raise error("an empty text names no file; the current folder is .")
    path = Path(text)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except ValueError:
        raise error(f"{shown_path(path)}: no file can have this name: it has a zero byte or half a character") from None
    except OSError as found:
        raise error(f"{shown_path(path)}: {_reason(path, found)}") from None
    return path


def _reason(path: Path, error: OSError) -> str:
    """What keeps the file system from answering, and what to do."""
    if error.errno == errno.ENAMETOOLONG:
        longest = max(len(os.fsencode(part)) for part in path.parts)
        found = f"a name of {longest:,} bytes" if longest > MAX_NAME_BYTES else f"{len(os.fsencode(path)):,} bytes"
        return f"too long for a file's name ({found}); name a shorter one"
    if isinstance(error, PermissionError):
        closed = next((folder for folder in reversed(path.parents) if not _may_enter(folder)), path.parent)
        return f"the folder {shown_path(closed)} may not be entered; allow it (chmod +x), or name another place"
    if error.errno == errno.ELOOP:
        return "links that lead to each other in a ring; name the file itself"
    return f"cannot be looked at ({error.strerror or error}); name another place or put this one right"


def _may_enter(folder: Path) -> bool:
    try:
        (folder / ".").stat()
    except OSError:
        return False
    return True


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path for a message: what cannot be shown as `�`, a long one with its middle left out."""
    text = printable(path)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN // 2]}…{text[-MAX_SHOWN // 3 :]}"


def unicode_text(text: str | os.PathLike[str]) -> str:
    """A file's name as Unicode, which JSON and a checkpoint can hold: bytes that are no UTF-8 become `\\xNN`."""
    whole = os.fspath(text)
    try:
        return whole.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character that stands for no byte
        return whole.encode("utf-8", "backslashreplace").decode()


def fitting_name(stem: str, ending: str, most: int = MAX_NAME_BYTES) -> str:
    """The name STEM+ENDING, at most `most` bytes: of a longer one the stem is cut and ends in `~` and its hash."""
    room = most - len(os.fsencode(ending))
    if len(os.fsencode(stem)) <= room:
        return stem + ending
    mark = f"~{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"
    cut = stem[: room - len(mark)]
    while len(os.fsencode(cut)) > room - len(mark):
        cut = cut[:-1]
    return cut + mark + ending
