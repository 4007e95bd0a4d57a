"""The kinds of image sources, and which one a name stands for: a CSV, shards, or a folder.

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
from finetune.data.shards import PARQUET, TAR, shard_kind, shard_suffix
from finetune.data.tar_shards import read_tar, unlabelled_tar

HUB_DATA = "hub-data:"  # before OWNER/NAME[@REVISION] of a data set on the Hub, whose files are fetched before


class Opener(NamedTuple):
    """One kind of image source."""

    accepts: Callable[[str], bool]  # whether a name stands for such a source; it need not exist
    read: Callable[[str], Manifest]  # DataError where it does not exist or cannot be read
    suffix: str = ""  # of its file names, in small letters; left out of the short name


def _is_csv(name: str) -> bool:
    return name.lower().endswith(".csv") and not _is_dir(name)


def _is_shards(kind: str) -> Callable[[str], bool]:
    """Whether a name stands for such a file, or for a folder of them."""
    return lambda name: (shard_kind(Path(name)) if _is_dir(name) else shard_suffix(name)) == kind


def _is_folder(name: str) -> bool:
    return any(separator in name for separator in {os.sep, os.altsep or os.sep, "/"}) or _is_dir(name)


def _is_dir(name: str) -> bool:
    try:
        return bool(name) and Path(name).is_dir()
    except (OSError, ValueError):  # longer than a file name may be, or with a zero byte
        return False


# The first that accepts a name opens it. Folders are last, as they accept whatever looks like a path.
OPENERS: dict[str, Opener] = {
    "csv": Opener(_is_csv, read_csv, ".csv"),
    "parquet": Opener(_is_shards(PARQUET), read_parquet, PARQUET),
    "tar": Opener(_is_shards(TAR), read_tar, TAR),
    "folder": Opener(_is_folder, list_folder),
}


def is_hub_data(name: str) -> bool:
    """Whether a name stands for a data set on the Hub: `hub-data:OWNER/NAME[@REVISION]`."""
    return name.startswith(HUB_DATA)


def is_image_path(name: str) -> bool:
    """Whether a name stands for a person's own images, or the Hub's, rather than a registered data set."""
    return is_hub_data(name) or any(opener.accepts(name) for opener in OPENERS.values())


def read_manifest(name: str, folder: Path | None = None) -> Manifest:
    """Lists the images that a name stands for, without opening them. DataError where there are none.

    folder: where the Parquet files of a data set on the Hub were put.
    """
    if folder is not None:
        return read_parquet(name, folder=folder)
    accepting = (opener for opener in OPENERS.values() if opener.accepts(name))
    return next(accepting, OPENERS["folder"]).read(name)


def unlabelled_records(name: str, folder: Path | None = None) -> Sequence[ImageRecord] | None:
    """All images of shards, which need no labels, to be classified; None where `name` is something else. DataError."""
    if folder is not None or OPENERS["parquet"].accepts(name):
        return unlabelled_parquet(name, folder)
    return unlabelled_tar(name) if OPENERS["tar"].accepts(name) else None


def short_name(name: str) -> str:
    """What reports and file names call a source of images: the last part of its path, without `suffix`.

    NAME of a data set on the Hub.
    """
    if is_hub_data(name):
        return name.removeprefix(HUB_DATA).partition("@")[0].rpartition("/")[2]
    path = Path(name).resolve()
    return path.stem if path.suffix.lower() in {opener.suffix for opener in OPENERS.values()} else path.name
