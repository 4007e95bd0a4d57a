"""The folders for data sets and caches, from options and environment variables, and of what comes with finetune."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT_VARIABLE = "FINETUNE_DATA_ROOT"
CACHE_VARIABLE = "FINETUNE_CACHE"
SHIPPED_CHECKPOINTS = ("mnist",)  # what `--from mnist` may name from anywhere


def shipped_folder(name: str) -> Path:
    """The folder of what comes with finetune, `recipes` or `checkpoints`.

    In a checkout it is beside the package. Once installed it is SCHEME/share/finetune/NAME, where pip puts data files:
    under the environment, a user's folder, --prefix or --target, each of which holds the package too.
    """
    package = Path(__file__).resolve().parent
    if (package.parent / "pyproject.toml").is_file() and (package.parent / name).is_dir():
        return package.parent / name
    places = [above / "share" / "finetune" / name for above in (*package.parents[:5], Path(sys.prefix))]
    return next((place for place in places if place.is_dir()), places[-1])


def shipped_checkpoint(name: str) -> Path | None:
    """The file of a checkpoint that comes with finetune, by its name; None for any other name."""
    return shipped_folder("checkpoints") / f"{name}.safetensors" if name in SHIPPED_CHECKPOINTS else None


def data_root(given: str | Path | None) -> Path:
    """The folder of the data sets: `given`, else $FINETUNE_DATA_ROOT, else ./data."""
    return Path(given or os.environ.get(ROOT_VARIABLE) or "data")


def cache_folder(given: str | Path | None = None) -> Path:
    """The cache folder, safe to delete: `given`, $FINETUNE_CACHE, $XDG_CACHE_HOME/finetune or ~/.cache/finetune."""
    if own := given or os.environ.get(CACHE_VARIABLE):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path(os.path.expanduser("~")) / ".cache") / "finetune"  # noqa: PTH111
