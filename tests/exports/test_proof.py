"""A proof fails for one logit too far off, one other decision, and what is no number; times are paired."""

from __future__ import annotations

import time

import numpy as np
import pytest

from finetune.exports.proof import TOLERANCE, Proof, measure_latency

LOGITS = np.array([[1.0, 2.0], [3.0, 1.0], [0.0, 1e-5]], dtype=np.float32)
NAMES = ["first", "second", "third"]


def moved(row: int, column: int, by: float) -> np.ndarray:
    found = LOGITS.copy()
    found[row, column] += by
    return found


@pytest.mark.parametrize(
    ("theirs", "holds", "worst", "changed"),
    [
        (LOGITS, True, "first", ()),
        (moved(1, 0, TOLERANCE / 2), True, "second", ()),
        (moved(1, 0, -2 * TOLERANCE), False, "second", ()),
        (moved(2, 0, 3e-5), False, "third", ("third",)),  # within the tolerance, and yet another answer
        (moved(0, 1, np.nan), False, "first", ("first",)),
    ],
)
def test_a_proof_is_of_every_logit_and_every_decision(theirs, holds, worst, changed):
    proof = Proof.of(LOGITS, theirs, NAMES)
    assert (proof.holds, proof.worst, proof.pictures) == (holds, worst, 3)
    assert proof.changed == changed or not np.isfinite(theirs).all()


def test_ratios_are_of_the_same_picture():
    waits = {"checkpoint": 0.002, "file": 0.006}
    runs = {name: lambda picture, wait=wait: time.sleep(wait * picture) for name, wait in waits.items()}
    found = measure_latency(runs, [1, 2, 3], "checkpoint")
    assert found["checkpoint"].ratio == 1 and 1.5 < found["file"].ratio < 4
    assert found["file"].milliseconds > found["checkpoint"].milliseconds
