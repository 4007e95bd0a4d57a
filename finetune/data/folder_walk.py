"""Walks a folder: every file beneath it by name, without a link that leads out and without holding more than names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from finetune.data.file_kinds import is_system_name
from finetune.io.safe_open import is_folder
from finetune.io.sanitize import printable

BROKEN_LINK = "a link that leads nowhere"


class WalkedFile(NamedTuple):
    """A file's path, the folder's own path included; `fault` says why it, or a folder, may not or cannot be read."""

    path: str
    fault: str | None = None


def walk_files(folder: str) -> Iterator[WalkedFile]:
    """Yields every file beneath a folder, in the order of names, without what is hidden or a system's.

    Links that lead out of the folder are not followed, and those to folders in it are not entered, since their files
    are met where they lie. However deep the folders are, only the names of those on the way are held. OSError where the
    folder itself cannot be listed; of one beneath it that is a fault.
    """
    root = Path(folder).resolve()
    waiting = [_paths(folder)]
    while waiting:
        path = next(waiting[-1], None)
        if path is None:
            waiting.pop()
        elif Path(path).is_symlink():
            fault = why_link_is_not_followed(Path(path), root)
            if fault is not None or not is_folder(path):
                yield WalkedFile(path, fault)
        elif is_folder(path):
            try:
                waiting.append(_paths(path))
            except OSError as error:
                yield WalkedFile(path, f"the folder cannot be read ({error.strerror or error})")
        else:
            yield WalkedFile(path)


def walk_tree(folder: str | Path, onerror: Callable[[OSError], object]) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk` from the top, of folders however deep: that of Python before 3.12 calls itself for each level.

    Folders that are removed from the list are not entered; links to folders have to be removed.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        name = waiting.pop()
        try:
            with os.scandir(name) as entries:
                found = [(entry.name, _is_folder(entry)) for entry in entries]
        except OSError as error:
            onerror(error)
            continue
        folders, files = ([own for own, is_one in found if is_one is wanted] for wanted in (True, False))
        yield name, folders, files
        waiting += [f"{name.rstrip(os.sep)}{os.sep}{own}" for own in reversed(folders)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _paths(folder: str) -> Iterator[str]:
    """What is visible in a folder, by name. OSError at once where it cannot be listed."""
    names = sorted(path.name for path in Path(folder).iterdir() if not is_system_name(path.name))
    return (str(Path(folder) / name) for name in names)


def why_link_is_not_followed(path: Path, root: Path) -> str | None:
    """The reason, for a link that is broken or leads out of the resolved folder `root`; None for all else."""
    if not path.is_symlink():
        return None
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a ring, before Python 3.13
        return BROKEN_LINK
    return None if target.is_relative_to(root) else f"a link that leads out of the folder, to {printable(target)}"
