"""The kinds of image sources, and which one a name stands for: a table, shards, or a folder.

A new kind is one module that makes a `Manifest` with its own `ImageRecord`, and one row of OPENERS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from finetune.data.csv_manifest import read_csv
from finetune.data.image_folder import list_folder
from finetune.data.manifest import ImageRecord, Manifest
from finetune.data.parquet_shards import read_parquet, unlabelled_parquet
from finetune.data.registry import ALIASES, DATASETS
from finetune.data.shards import PARQUET, TAR, shard_kind, shard_suffix
from finetune.data.spec import HUB_DATA
from finetune.data.table_columns import ColumnNames
from finetune.data.tar_shards import read_tar, unlabelled_tar
from finetune.errors import DataError
from finetune.io.safe_open import is_folder
from finetune.io.text_path import shown_path, to_path, unicode_text


class Opener(NamedTuple):
    """One kind of image source."""

    accepts: Callable[[str], bool]  # whether a name stands for such a source; it need not exist
    read: Callable[[str], Manifest]  # DataError where it does not exist or cannot be read
    suffix: str = ""  # of its file names, in small letters; left out of the short name
    read_columns: Callable[[str, ColumnNames], Manifest] | None = None  # `read`, where the columns have other names


def _table(suffix: str) -> Opener:
    """A table of paths and labels, whatever divides its cells."""
    return Opener(lambda name: name.lower().endswith(suffix) and not _is_dir(name), read_csv, suffix, read_csv)


def _is_shards(kind: str) -> Callable[[str], bool]:
    """Whether a name stands for such a file, or for a folder of them."""
    return lambda name: (shard_kind(Path(name)) if _is_dir(name) else shard_suffix(name)) == kind


def _is_folder(name: str) -> bool:
    return any(separator in name for separator in {os.sep, os.altsep or os.sep, "/"}) or _is_dir(name)


def _is_dir(name: str) -> bool:
    return bool(name) and is_folder(name)


# The first that accepts a name opens it. Folders are last, as they accept whatever looks like a path.
OPENERS: dict[str, Opener] = {
    "csv": _table(".csv"),
    "tsv": _table(".tsv"),
    "txt": _table(".txt"),
    "parquet": Opener(_is_shards(PARQUET), read_parquet, PARQUET, read_parquet),
    "tar": Opener(_is_shards(TAR), read_tar, TAR),
    "folder": Opener(_is_folder, list_folder),
}


def is_hub_data(name: str) -> bool:
    """Whether a name stands for a data set on the Hub: `hub-data:OWNER/NAME[@REVISION]`."""
    return name.startswith(HUB_DATA)


def is_image_path(name: str) -> bool:
    """Whether a name stands for a person's own images, or the Hub's, rather than a registered data set.

    The names of registered data sets come first.
    """
    if name in DATASETS or name in ALIASES:
        return False
    return is_hub_data(name) or any(opener.accepts(name) for opener in OPENERS.values())


def check_images_name(name: str) -> None:
    """DataError for the name of images that is empty, can be no path, or is no UTF-8, which no recipe can hold."""
    if not name:
        raise DataError("an empty text names no images; the current folder is .")
    if is_hub_data(name):
        return
    to_path(name, DataError)
    if unicode_text(name) != name:
        raise DataError(f"{shown_path(name)}: not UTF-8, so that no recipe can hold this name; rename it or link to it")


def read_manifest(name: str, columns: ColumnNames | None = None, folder: Path | None = None) -> Manifest:
    """Lists the images that a name stands for, without opening them. DataError where there are none.

    columns: what the columns of a table are called, where not by the usual names. folder: where the Parquet files of a
    data set on the Hub were put.
    """
    if folder is not None:
        return read_parquet(name, columns, folder)
    to_path(name, DataError)
    accepting = (opener for opener in OPENERS.values() if opener.accepts(name))
    opener = next(accepting, OPENERS["folder"])
    if columns is None or not columns.names:
        return opener.read(name)
    if opener.read_columns is not None:
        return opener.read_columns(name, columns)
    if columns.required:
        raise DataError(f"{name}: data.columns names the columns of a table, and this is none; leave it out")
    return opener.read(name)


def unlabelled_records(name: str, folder: Path | None = None) -> Sequence[ImageRecord] | None:
    """All images of shards, which need no labels, to be classified; None where `name` is something else. DataError."""
    if folder is not None:
        return unlabelled_parquet(name, folder)
    for kind, read in (("parquet", unlabelled_parquet), ("tar", unlabelled_tar)):
        if OPENERS[kind].accepts(name):
            to_path(name, DataError)
            return read(name)
    return None


def short_name(name: str) -> str:
    """What reports and file names call a source of images: the last part of its path, without `suffix`.

    NAME of a data set on the Hub.
    """
    if is_hub_data(name):
        return name.removeprefix(HUB_DATA).partition("@")[0].rpartition("/")[2]
    path, endings = to_path(name, DataError).resolve(), {opener.suffix for opener in OPENERS.values()}
    return unicode_text(path.stem if path.suffix.lower() in endings else path.name)
