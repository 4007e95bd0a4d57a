"""Whether an exported file answers as its checkpoint does, and how long both take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

TOLERANCE = 1e-4  # between two logits
WARM_UP = 2  # pictures run before any is timed
Logits = npt.NDArray[np.float32]
Picture = TypeVar("Picture")


@dataclass(frozen=True)
class Proof:
    """An exported file's logits (N×classes) against the checkpoint's, on the same pictures.

    worst: the picture with the largest difference of a logit. changed: pictures whose class is another one.
    """

    pictures: int
    largest_difference: float
    worst: str
    changed: tuple[str, ...]
    tolerance: float = TOLERANCE

    @classmethod
    def of(cls, ours: Logits, theirs: Logits, names: Sequence[str]) -> Proof:
        """From both logits, N×classes, N at least 1. What is not a finite number differs without limit."""
        gaps = np.nan_to_num(np.abs(ours.astype(np.float64) - theirs), nan=np.inf).max(1)
        changed = np.flatnonzero(ours.argmax(1) != theirs.argmax(1))
        return cls(len(ours), float(gaps.max()), names[int(gaps.argmax())], tuple(names[int(i)] for i in changed))

    @property
    def holds(self) -> bool:
        """Whether every logit is within the tolerance and no decision is another one."""
        return self.largest_difference <= self.tolerance and not self.changed


@dataclass(frozen=True)
class Latency:
    """Median milliseconds for one picture; ratio: the median over pictures of its time to the checkpoint's."""

    milliseconds: float
    ratio: float


def measure_latency(
    runs: Mapping[str, Callable[[Picture], object]], pictures: Sequence[Picture], reference: str
) -> dict[str, Latency]:
    """Times each of `runs` on each picture in turn, so that what else the machine does slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for index, picture in enumerate([*[pictures[0]] * WARM_UP, *pictures]):
        for name in order if index % 2 else reversed(order):
            started = time.perf_counter()
            runs[name](picture)
            seconds[name].append(time.perf_counter() - started)
    timed = {name: np.array(values[WARM_UP:]) for name, values in seconds.items()}
    own = timed[reference]
    return {name: Latency(1000 * float(np.median(t)), float(np.median(t / own))) for name, t in timed.items()}
