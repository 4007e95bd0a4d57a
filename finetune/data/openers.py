"""The kinds of image sources, and which one a name stands for: a folder or a table so far.

A new kind is one module that makes a `Manifest` with its own `ImageRecord`, and one row of OPENERS.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from finetune.data.csv_manifest import read_csv
from finetune.data.image_folder import list_folder
from finetune.data.manifest import Manifest
from finetune.data.registry import ALIASES, DATASETS
from finetune.data.table_columns import ColumnNames
from finetune.errors import DataError
from finetune.io.safe_open import is_folder


class Opener(NamedTuple):
    """One kind of image source."""

    accepts: Callable[[str], bool]  # whether a name stands for such a source; it need not exist
    read: Callable[[str], Manifest]  # DataError where it does not exist or cannot be read
    suffix: str = ""  # of its file names, in small letters; left out of the short name
    read_columns: Callable[[str, ColumnNames], Manifest] | None = None  # `read`, where the columns have other names


def _table(suffix: str) -> Opener:
    """A table of paths and labels, whatever divides its cells."""
    return Opener(lambda name: name.lower().endswith(suffix) and not _is_dir(name), read_csv, suffix, read_csv)


def _is_folder(name: str) -> bool:
    return any(separator in name for separator in {os.sep, os.altsep or os.sep, "/"}) or _is_dir(name)


def _is_dir(name: str) -> bool:
    return bool(name) and is_folder(name)


# The first that accepts a name opens it. Folders are last, as they accept whatever looks like a path.
OPENERS: dict[str, Opener] = {
    "csv": _table(".csv"),
    "tsv": _table(".tsv"),
    "txt": _table(".txt"),
    "folder": Opener(_is_folder, list_folder),
}


def is_image_path(name: str) -> bool:
    """Whether a name stands for a person's own images rather than a registered data set, whose names come first."""
    return name not in DATASETS and name not in ALIASES and any(opener.accepts(name) for opener in OPENERS.values())


def read_manifest(name: str, columns: ColumnNames | None = None) -> Manifest:
    """Lists the images that a name stands for, without opening them. DataError where there are none.

    columns: what the columns of a table are called, where not by the usual names.
    """
    accepting = (opener for opener in OPENERS.values() if opener.accepts(name))
    opener = next(accepting, OPENERS["folder"])
    if columns is None or not columns.names:
        return opener.read(name)
    if opener.read_columns is not None:
        return opener.read_columns(name, columns)
    if columns.required:
        raise DataError(f"{name}: data.columns names the columns of a table, and this is none; leave it out")
    return opener.read(name)


def short_name(name: str) -> str:
    """What reports and file names call a source of images: the last part of its path, without `suffix`."""
    path = Path(name).resolve()
    return path.stem if path.suffix.lower() in {opener.suffix for opener in OPENERS.values()} else path.name
