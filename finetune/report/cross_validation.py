"""Intervals and tests of a cross-validation, where each image is tested once, by a training on the other folds.

The folds' results are not independent: any two trainings share most of their images. The variance of their mean is
therefore (1/K + test/train) · S² in place of S²/K, with S² the variance between folds and Student's distribution of
K - 1 degrees of freedom: the corrected resampled t test. There is no unbiased estimate of that variance (Bengio and
Grandvalet, Journal of Machine Learning Research 5 (2004) 1089-1105); this one errs on the side of wide intervals.

Folds may agree by chance, or all be right. So no interval is narrower, at either end, than that over images of all
answers together, and no p-value smaller.

Source: C. Nadeau and Y. Bengio, Inference for the generalization error, Machine Learning 52 (2003) 239-281; for folds
in place of random divisions, R. R. Bouckaert and E. Frank, PAKDD 2004, LNCS 3056, 3-12.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.report.metrics import (
    HIGHEST,
    METRICS,
    Answers,
    Interval,
    MetricDifference,
    MetricValue,
    answers_difference,
    find_metric,
)
from finetune.report.statistics import Integers

Floats = npt.NDArray[np.float64]
BY_FOLD = ("auroc",)  # compares images with each other, whose probabilities are of several trainings


@dataclass(frozen=True)
class FoldSpread:
    """What the results of K folds say of their mean: a mean weighted by size, and its corrected standard error."""

    mean: float
    standard_error: float
    folds: int

    @classmethod
    def of(cls, values: Sequence[float], sizes: Sequence[int]) -> FoldSpread:
        """From each fold's result and number of test images, of at least two folds. ValueError."""
        results, tested = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
        if results.ndim != 1 or results.shape != tested.shape or len(results) < 2 or not tested.min() > 0:
            raise ValueError(f"expected results and sizes of at least two folds, got {values} and {sizes}")
        folds, shares = len(results), tested / tested.sum()
        mean = float(shares @ results)
        variance = float(shares @ np.square(results - mean)) * folds / (folds - 1)
        overlap = float((tested / (tested.sum() - tested)).mean())  # test images to training images
        return cls(mean, math.sqrt((1 / folds + overlap) * variance), folds)

    @property
    def half_width(self) -> float:
        """Of the 95 % interval."""
        from scipy.special import stdtrit

        return float(stdtrit(self.folds - 1, 0.975)) * self.standard_error

    def p_value(self, difference: float) -> float:
        """Two-sided, of 'the true difference is 0' where this was found."""
        from scipy.special import stdtr

        if self.standard_error <= 1e-15:
            return 1.0 if abs(difference) <= 1e-15 else 0.0
        return min(1.0, 2 * float(stdtr(self.folds - 1, -abs(difference) / self.standard_error)))

    def widen(self, interval: Interval, centre: float, limits: Interval = (0.0, 1.0)) -> Interval:
        """The interval over images, each end moved out to that of the interval over folds where that is farther."""
        low, high = centre - self.half_width, centre + self.half_width
        return max(limits[0], min(interval[0], low)), min(limits[1], max(interval[1], high))


def accuracy_over_folds(counts: Sequence[tuple[int, int]], interval: Interval) -> Interval:
    """The interval of an accuracy from each fold's (right, all) images, no narrower than `interval`, over images."""
    spread = FoldSpread.of([right / total for right, total in counts], [total for _, total in counts])
    return spread.widen(interval, spread.mean)


def measure_over_folds(answers: Answers, folds: Integers, found: Mapping[str, MetricValue]) -> dict[str, MetricValue]:
    """Metrics of all answers together (`found`, with intervals over images), with intervals over folds too.

    folds: each image's, int, N. AUROC becomes the mean over folds.
    """
    parts, widened = _parts(answers, folds), {}
    for name, own in found.items():
        spread = _spread(name, parts)
        if own.value is None or own.ci95 is None or spread is None:
            undefined = "not defined in every fold: of all answers together, over images"
            widened[name] = own if own.value is None else replace(own, note=undefined)
            continue
        value = spread.mean if name in BY_FOLD else own.value
        moved = (own.ci95[0] + value - own.value, own.ci95[1] + value - own.value)
        limits = (0.0, HIGHEST.get(name, 1.0))
        widened[name] = MetricValue(value, spread.widen(moved, value, limits), own.note)
    return widened


def difference_over_folds(name: str, first: Answers, second: Answers, folds: Integers) -> MetricDifference:
    """A metric of the second minus that of the first, on the same images in the same folds.

    folds: each image's, int, N. The interval leaves out 0 exactly where p is below 0.05. All None where the metric is
    not defined in every fold.
    """
    find_metric(name)
    every = answers_difference(name, [first], [second])
    ones, others = (_values(name, _parts(answers, folds)) for answers in (first, second))
    if every.difference is None or every.ci95 is None or every.p_value is None or ones is None or others is None:
        return MetricDifference(name, None, None, None)
    sizes = [int(size) for size in np.unique(folds, return_counts=True)[1]]
    spread = FoldSpread.of([b - a for a, b in zip(ones, others, strict=True)], sizes)
    difference = spread.mean if name in BY_FOLD else every.difference
    shift = difference - every.difference
    moved = (every.ci95[0] + shift, every.ci95[1] + shift)
    p_value = max(every.p_value, spread.p_value(difference))
    return MetricDifference(name, difference, spread.widen(moved, difference, (-math.inf, math.inf)), p_value)


def _parts(answers: Answers, folds: Integers) -> list[Answers]:
    """The answers of each fold's images, in the order of folds."""
    return [_part(answers, folds == fold) for fold in np.unique(folds)]


def _part(answers: Answers, chosen: npt.NDArray[np.bool_]) -> Answers:
    given = {field.name: getattr(answers, field.name) for field in fields(answers)}
    own: dict[str, Any] = {name: value[chosen] for name, value in given.items() if isinstance(value, np.ndarray)}
    return replace(answers, **own)


def _values(name: str, parts: Sequence[Answers]) -> list[float] | None:
    """The metric in each fold; None where one does not define it."""
    values = [METRICS[name].value(part) for part in parts]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _spread(name: str, parts: Sequence[Answers]) -> FoldSpread | None:
    values = _values(name, parts)
    return None if values is None else FoldSpread.of(values, [len(part.labels) for part in parts])
