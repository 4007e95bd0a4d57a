"""Compares two sets of answers on the same images and puts the result in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from finetune.report.rows import row_of
from finetune.report.statistics import Booleans, paired_difference, wilson

Verdict = Literal["helps", "no difference shown", "hurts"]
SIGNIFICANT = 0.05
"""A difference is called shown when the mid-p of McNemar's test is below this."""


@dataclass(frozen=True)
class Score:
    """How one classifier did on a test set; fractions, not percentages."""

    correct: int
    total: int
    accuracy: float
    ci95: tuple[float, float]
    """Wilson interval over other test images; the randomness of training is not covered."""

    @classmethod
    def of(cls, right: Booleans) -> Self:
        """From a boolean array of shape (images,): whether each image was named rightly. ValueError when empty."""
        if right.dtype != np.bool_ or right.ndim != 1:
            raise ValueError(f"expected booleans of shape (images,), got {right.dtype} of shape {right.shape}")
        correct, total = int(np.count_nonzero(right)), len(right)
        ci95 = wilson(correct, total)
        return cls(correct, total, correct / total, ci95)


@dataclass(frozen=True)
class Comparison:
    """The second classifier against the first, on the same test images; fractions, not percentages."""

    difference: float
    """Accuracy of the second minus accuracy of the first."""
    ci95: tuple[float, float]
    """Newcombe interval over other test images; the randomness of training is not covered."""
    p_value: float
    """Mid-p of the two-sided McNemar test, which decides the verdict."""
    verdict: Verdict
    exact_p_value: float | None = None
    """Exact conditional McNemar test, for those who ask for it; None in older reports, where `p_value` is that."""


def compare(first_right: Booleans, second_right: Booleans) -> Comparison:
    """Whether the second classifier is better than the first; both arrays as in `statistics.paired_difference`.

    The verdict follows the p-value alone. The interval comes from another method, so near the border it may leave out
    zero while the verdict is 'no difference shown' (or, with very few images told apart, hold zero while the verdict
    is another). Then `sentence` says so.
    """
    pair = paired_difference(first_right, second_right)
    verdict: Verdict = "no difference shown"
    if pair.mid_p < SIGNIFICANT:
        verdict = "helps" if pair.difference > 0 else "hurts"
    return Comparison(pair.difference, pair.ci95, pair.mid_p, verdict, pair.exact_p)


def sentence(comparison: Comparison, of: str, against: str) -> str:
    """One plain sentence in percentage points about row `of` (the second) against row `against` (the first).

    Both are keys of a report's rows. A row without a cause gets a sentence that claims none.
    """
    cause = row_of(against).cause
    of, against = row_of(of).title, row_of(against).title
    lower, upper = comparison.ci95
    p = _p_text(comparison.p_value)
    if comparison.verdict == "no difference shown":
        spread = f"{_signed(comparison.difference)} points, 95 % interval {_signed(lower)} to {_signed(upper)}, {p}"
        return f"no difference shown between {of} and {against} ({spread}): {_remaining_range(of, lower, upper)}"
    better = comparison.verdict == "helps"
    size = comparison.difference if better else -comparison.difference
    ends = (lower, upper) if better else (-upper, -lower)
    gap = f"by {_points(size)} points (95 % interval {_points(ends[0])} to {_points(ends[1])}, {p})"
    conclusion = f"{cause} {comparison.verdict}" if cause else f"{of} is {'better' if better else 'worse'}"
    if ends[0] <= 0:
        conclusion += ", narrowly: the interval still has 0 in it"
    return f"{of} {'beats' if better else 'falls behind'} {against} {gap}: {conclusion}"


def _remaining_range(of: str, lower: float, upper: float) -> str:
    """What the interval leaves possible when no difference was shown: no proof that the two are equal."""
    if lower > 0 or upper < 0:
        nearer, farther = sorted((abs(lower), abs(upper)))
        way = "better" if lower > 0 else "worse"
        return (
            f"too close to call, as the interval has {of} {_points(nearer)} to {_points(farther)} points {way} "
            f"but the test is not below p = {SIGNIFICANT}"
        )
    return f"{of} may still be anything from {_points(-lower)} points worse to {_points(upper)} points better"


def _points(fraction: float) -> str:
    return f"{round(100 * fraction, 2) + 0.0:.2f}"  # + 0.0 turns -0.0 into 0.0


def _signed(fraction: float) -> str:
    return f"{round(100 * fraction, 2) + 0.0:+.2f}"


def _p_text(p_value: float) -> str:
    """'p = 0.0312' or 'p < 0.0001'; never rounded across the border that decides the verdict."""
    if p_value < 0.0001:
        return "p < 0.0001"
    digits = 4
    while (round(p_value, digits) < SIGNIFICANT) != (p_value < SIGNIFICANT):
        digits += 1
    return f"p = {p_value:.{digits}f}"
