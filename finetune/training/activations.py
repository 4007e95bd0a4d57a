"""What activations are known by, where they may be kept, and what is kept of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from finetune.data.mapped import Images
from finetune.data.rowfile import RowFile

TRAIN, VALIDATION, TEST = "train", "validation", "test"  # the parts that every run has
MEMORY, FILE = "memory", "file"
PLACES = {MEMORY: "memory", FILE: "a file"}  # in words


@dataclass(frozen=True)
class Part:
    """Images of a run. `learnt` from: then they are run in the precision of training, else, to judge, in float32."""

    images: Images
    learnt: bool = False


class Key(NamedTuple):
    """Which images' activations, in front of which stage, and of how many augmented views (None: as they are)."""

    part: str
    cut: int
    views: int | None = None


@dataclass(frozen=True)
class Kept:
    """Activations, one row an image, view after view. `identity` is that of the weights in front of the boundary."""

    identity: str
    rows: Tensor | RowFile
    size: int  # bytes
