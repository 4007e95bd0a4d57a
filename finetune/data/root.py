"""Where the data sets are."""

from __future__ import annotations

import os
from pathlib import Path

ROOT_VARIABLE = "FINETUNE_DATA_ROOT"


def data_root(given: str | Path | None) -> Path:
    """`given`, else $FINETUNE_DATA_ROOT, else ./data."""
    return Path(given or os.environ.get(ROOT_VARIABLE) or "data")
