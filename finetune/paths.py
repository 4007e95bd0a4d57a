"""The folders for data sets and caches, from options and environment variables."""

from __future__ import annotations

import os
from pathlib import Path

ROOT_VARIABLE = "FINETUNE_DATA_ROOT"
CACHE_VARIABLE = "FINETUNE_CACHE"


def data_root(given: str | Path | None) -> Path:
    """The folder of the data sets: `given`, else $FINETUNE_DATA_ROOT, else ./data."""
    return Path(given or os.environ.get(ROOT_VARIABLE) or "data")


def cache_folder(given: str | Path | None = None) -> Path:
    """The cache folder, safe to delete: `given`, $FINETUNE_CACHE, $XDG_CACHE_HOME/finetune or ~/.cache/finetune."""
    if own := given or os.environ.get(CACHE_VARIABLE):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path(os.path.expanduser("~")) / ".cache") / "finetune"  # noqa: PTH111
