"""`finetune inspect`: what is in a checkpoint. Reads the header only; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.source import peek


def inspect(checkpoint: str | Path) -> dict[str, Any]:
    """A checkpoint's metadata as JSON values: model, classes, input, recipe, data, results, lineage, versions."""
    return peek(checkpoint).model_dump()
