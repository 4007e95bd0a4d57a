"""Answers only where sure: the threshold of probability above which errors are promised to be few.

Learn then test (A. N. Angelopoulos, S. Bates, E. J. Candès, M. I. Jordan and L. Lei, Learn then test: calibrating
predictive algorithms to achieve risk control, 2021): each threshold is a hypothesis, "more than `max_error` of the
answers above it are wrong", tested by the exact binomial bound. Fixed-sequence testing counts their number: from a
start on, which the number of images decides alone, each lower threshold is tested at the same level until one is not
rejected, and the last rejected one is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
CONFIDENCE = 0.95
ONE_START = 0.7  # share of the images among which the one sequence of thresholds starts
STARTS = (0.5, 0.9)  # of two sequences, where there are enough images
MAX_LEVELS = 500  # of thresholds looked at for how many images would do
MAX_FACTOR = 1_000  # times as many images, from which on no number is said to be enough


@dataclass(frozen=True)
class Threshold:
    """A threshold of probability, how many images reach it (`answered`) and how many of these are wrong."""

    probability: float
    answered: int
    wrong: int


def images_needed(max_error: float, mistakes: int, level: float = 1 - CONFIDENCE) -> int:
    """How many answers with so many mistakes prove, by the exact binomial bound, an error of at most `max_error`."""
    low = high = mistakes + 1
    while _p_value(mistakes, high, max_error) > level:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _p_value(mistakes, middle, max_error) <= level else (middle + 1, high)
    return high


def find_threshold(
    probability: Floats, right: npt.NDArray[np.bool_], max_error: float, level: float = 1 - CONFIDENCE
) -> Threshold | None:
    """The lowest threshold above which at most `max_error` of answers are wrong, with confidence 1 - level.

    probability: of each held-out image's answer (N). right: whether it is right (N). None where no threshold can be
    promised. Where half of the images can prove it, two sequences share the level, as one that meets a mistake too many
    at its start promises nothing: one starts among the surer half, one among nine of ten; both where the most mistakes
    are allowed.
    """
    order = np.argsort(-probability, kind="stable")
    ranked, wrong = probability[order], np.cumsum(~right[order], dtype=np.int64)
    several = images_needed(max_error, 0, level / len(STARTS)) <= STARTS[0] * len(ranked)
    starts, own_level = (STARTS, level / len(STARTS)) if several else ((ONE_START,), level)
    found = [
        _fixed_sequence(ranked, wrong, max_error, own_level, _start(round(share * len(ranked)), max_error, own_level))
        for share in starts
    ]
    return max((own for own in found if own is not None), key=lambda own: own.answered, default=None)


def _start(most: int, max_error: float, level: float) -> int:
    """Of the first `most` images, the fewest that may hold as many mistakes as `most` may."""
    start, mistakes = images_needed(max_error, 0, level), 1
    while (later := images_needed(max_error, mistakes, level)) <= most:
        start, mistakes = later, mistakes + 1
    return start


def _fixed_sequence(
    ranked: Floats, wrong: npt.NDArray[np.int64], max_error: float, level: float, start: int
) -> Threshold | None:
    """The last threshold that is proven, from the first `start` images on; `wrong` counts mistakes among the surest."""
    found = None
    for count in range(start, len(ranked) + 1):
        if count < len(ranked) and ranked[count] == ranked[count - 1]:
            continue  # no threshold parts images of one probability
        if _p_value(int(wrong[count - 1]), count, max_error) > level:
            break
        found = Threshold(float(ranked[count - 1]), count, int(wrong[count - 1]))
    return found


def images_that_would_do(
    probability: Floats, right: npt.NDArray[np.bool_], max_error: float, level: float = 1 - CONFIDENCE
) -> int | None:
    """About how many held-out images like these would let a threshold be promised; None where hardly any number would.

    As many as the answers above some threshold need if their share of mistakes stays what it is, half a mistake more
    than was seen.
    """
    order = np.argsort(-probability, kind="stable")
    every = max(1, len(order) // MAX_LEVELS)
    wrong, counts = (np.cumsum(~right[order]) + 0.5)[::every], np.arange(1, len(order) + 1)[::every]
    most = math.inf
    for count, mistakes in zip(counts.tolist(), wrong.tolist(), strict=True):
        if mistakes / count >= max_error:
            continue
        factor = 1.0
        while factor < MAX_FACTOR and _p_value(int(factor * mistakes), round(factor * count), max_error) > level:
            factor *= 1.1
        if factor < MAX_FACTOR:
            most = min(most, factor * len(order))
    return None if most == math.inf else round(most)


def _p_value(mistakes: int, count: int, max_error: float) -> float:
    """The exact binomial p-value: the chance of at most so many mistakes in `count` answers at this rate."""
    from scipy.special import bdtr

    if mistakes >= count:
        return 1.0
    return float(bdtr(mistakes, count, max_error))
