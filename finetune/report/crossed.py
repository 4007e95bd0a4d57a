"""Means and differences over trainings and test images together: crossed random effects.

`seeds` trainings were each tested on the same images, so the answers fill a table of shape (seeds, images). Both are
samples: other seeds would give other weights, and other images other rights and wrongs. The interval here covers both,
where `statistics` covers only the images, for one training.

A table is read as mean + training + image + residual (a two-way random-effects analysis of variance), so that

    variance of the mean = training / seeds + images / n + residual / (seeds · n)

Sources: D. D. Dorfman, K. S. Berbaum and C. E. Metz, Receiver operating characteristic rating analysis, Investigative
Radiology 27 (1992) 723-731, and B. D. Gallas, A. Bandos, F. W. Samuelson and R. F. Wagner, A framework for
random-effects ROC analysis, Communications in Statistics, Theory and Methods 38 (2009) 2586-2603 (readers and cases,
here trainings and images); F. E. Satterthwaite, An approximate distribution of estimates of variance components,
Biometrics Bulletin 2 (1946) 110-114 (degrees of freedom); D. G. Bonett and R. M. Price, Adjusted Wald confidence
interval for a difference of binomial proportions based on paired data, Journal of Educational and Behavioral
Statistics 37 (2012) 479-488, and A. Agresti and B. A. Coull, Approximate is better than exact for interval estimation
of binomial proportions, The American Statistician 52 (1998) 119-126 (added images, which give an interval a width
where no answer differs). `benchmarks/coverage.py` measures how often the intervals hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.report.statistics import Booleans

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Variance:
    """Variance components of one answer (one training, one image); their roots are in the unit of the mean.

    None is negative: an estimate below 0 becomes 0. For an unpaired difference each holds both classifiers' parts.
    """

    training: float
    """Between trainings: its root is the standard deviation over seeds of the accuracy on endless images."""
    images: float
    """Between images: what all trainings find easy or hard."""
    residual: float
    """What is left: which training fails on which image."""


@dataclass(frozen=True)
class Estimate:
    """A mean over a table of trainings × images, with what its sampling of both is worth; fractions, not percentages."""

    mean: float
    """Of the table as it is. The interval is centred a little nearer to the middle, where the added images pull it."""
    ci95: tuple[float, float]
    """95 % interval over other trainings and other test images."""
    standard_error: float
    degrees_of_freedom: float
    p_value: float
    """Two-sided t test of 'the true mean is 0', below 0.05 exactly where `ci95` leaves out 0. Of no use for an accuracy."""
    variance: Variance
    """`standard_error`² is training / seeds + images / (n + added) + residual / (seeds · (n + added))."""
    seeds: int
    """Trainings; of an unpaired difference the smaller number, not counting a classifier that has only one."""
    images: int
    """Test images, n, without the added ones."""
    added: int
    """Images added: 2 to a difference, 4 to an accuracy."""
    training_degrees_of_freedom: float
    """Of the part that trainings have: seeds - 1, or up to twice that where the trainings are not paired."""


def crossed_mean(values: npt.NDArray[Any]) -> Estimate:
    """The accuracy over trainings and images.

    `values` has shape (seeds, images), at least two seeds: booleans, or scores from 0 to 1. Two images that are right
    and two that are wrong, in every training, are added before the variance is estimated (Agresti and Coull).
    Raises ValueError for another shape or type, NaN, and scores outside 0 to 1.
    """
    table = np.asarray(values)
    if table.dtype != np.bool_ and not np.issubdtype(table.dtype, np.floating):
        raise ValueError(f"values: expected booleans or floats, got {table.dtype}")
    _check_shape("values", table, at_least=2)
    table = table.astype(np.float64)
    if not (np.isfinite(table).all() and 0 <= table.min() and table.max() <= 1):
        raise ValueError("values: expected numbers from 0 to 1")
    return _estimate([table], [[1.0, 1.0, 0.0, 0.0]], (0.0, 1.0))


def crossed_difference(first: Booleans, second: Booleans) -> Estimate:
    """Accuracy of the second minus accuracy of the first, for trainings in pairs: row k of both has the same seed.

    `first` and `second` are booleans of one shape (seeds, images), at least two seeds: whether each training named each
    image rightly. Two images are added, one that only the first and one that only the second has right (Bonett and
    Price). One training of each has no spread to learn from: see `statistics.paired_difference`.
    Raises ValueError for another shape or type.
    """
    first, second = _rights("first", first, 2), _rights("second", second, 2)
    if first.shape != second.shape:
        raise ValueError(f"expected the same seeds and images in both, got {first.shape} and {second.shape}")
    return _estimate([second - first], [[1.0, -1.0]], (-1.0, 1.0))


def unpaired_difference(first: Booleans, second: Booleans) -> Estimate:
    """Accuracy of the second minus accuracy of the first, on the same images, with trainings that are not in pairs.

    `first` has shape (seeds of the first, images), `second` (seeds of the second, images), both booleans. One of them
    may have a single row, which then counts as fixed: weights as they came, which no seed could change.
    Raises ValueError for another shape or type, and where both have a single row.
    """
    first, second = _rights("first", first, 1), _rights("second", second, 1)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"expected the same images in both, got {first.shape[1]} and {second.shape[1]}")
    if len(first) == len(second) == 1:
        raise ValueError("expected at least two seeds in one of the two, got one in both")
    return _estimate([second, -first], [[1.0, 0.0], [0.0, -1.0]], (-1.0, 1.0))


def detectable(estimate: Estimate, power: float = 0.8) -> float:
    """The smallest true difference that such a test shows with this power: (t.975 + t.power) · standard error."""
    return _reach(estimate.degrees_of_freedom, power) * estimate.standard_error


def images_for(estimate: Estimate, difference: float = 0.01, power: float = 0.8) -> int | None:
    """Test images that show a true difference of this size with this power, with as many seeds.

    None when no number would do, because the trainings differ too much.
    Raises ValueError for a difference that is not above 0.
    """
    return _smallest(lambda images: _planned(estimate, estimate.seeds, images, power), difference, 1)


def seeds_for(estimate: Estimate, difference: float = 0.01, power: float = 0.8) -> int | None:
    """Seeds (at least 2) that show a true difference of this size with this power, with as many test images.

    None when no number would do, because there are too few test images.
    Raises ValueError for a difference that is not above 0.
    """
    return _smallest(lambda seeds: _planned(estimate, seeds, estimate.images, power), difference, 2)


def _check_shape(name: str, table: npt.NDArray[Any], at_least: int) -> None:
    if table.ndim != 2 or table.shape[0] < at_least or table.shape[1] == 0:
        plural = "one seed" if at_least == 1 else f"{at_least} seeds"
        raise ValueError(f"{name}: expected shape (seeds, images), at least {plural} and one image, got {table.shape}")


def _rights(name: str, right: Booleans, at_least: int) -> Any:
    table = np.asarray(right)
    if table.dtype != np.bool_:
        raise ValueError(f"{name}: expected booleans, got {table.dtype}")
    _check_shape(name, table, at_least)
    return table.astype(np.float64)


def _estimate(arms: list[Floats], added: list[list[float]], limits: tuple[float, float]) -> Estimate:
    """The sum of the arms' means: each arm has shape (its seeds, images), and `added` holds its added images."""
    from scipy.special import stdtr

    images = arms[0].shape[1]
    tables = [np.hstack([arm, np.tile(extra, (len(arm), 1))]) for arm, extra in zip(arms, added, strict=True)]
    columns = np.sum([table.mean(axis=0) for table in tables], axis=0)
    trained = [_mean_squares(table) for table in tables if len(table) > 1]
    seeds = min(len(table) for table in tables if len(table) > 1)
    n = len(columns)

    of_training = [max(ms_training - ms_residual, 0.0) / (rows * n) for rows, ms_training, ms_residual in trained]
    of_residual = sum(ms_residual / (rows * n) for rows, _, ms_residual in trained)
    of_images = max(float(columns.var(ddof=1)) / n - of_residual, 0.0)
    variance = Variance(seeds * sum(of_training), n * of_images, seeds * n * of_residual)

    noise = sum((ms_training / (rows * n)) ** 2 / (rows - 1) for rows, ms_training, _ in trained)
    total = sum(ms_training / (rows * n) for rows, ms_training, _ in trained)
    training_df = total**2 / noise if noise else float(seeds - 1)
    error, df = _error(variance, seeds, n, training_df)
    centre = float(columns.mean())
    half = _quantile(0.975, df) * error
    return Estimate(
        mean=float(np.sum([arm.mean() for arm in arms])),
        ci95=(max(limits[0], centre - half), min(limits[1], centre + half)),
        standard_error=error,
        degrees_of_freedom=df,
        p_value=float(2 * stdtr(df, -abs(centre) / error)),
        variance=variance,
        seeds=seeds,
        images=images,
        added=n - images,
        training_degrees_of_freedom=training_df,
    )


def _mean_squares(table: Floats) -> tuple[int, float, float]:
    """Rows, mean square of the rows and of the residual, for a table of at least two rows and two columns."""
    rows, columns = table.shape
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    ms_rows = columns * float(table.mean(axis=1).var(ddof=1))
    return rows, ms_rows, float(np.square(residual).sum()) / ((rows - 1) * (columns - 1))


def _error(variance: Variance, seeds: int, n: int, training_df: float) -> tuple[float, float]:
    """Standard error of a mean over `seeds` and `n` images, and Satterthwaite's degrees of freedom."""
    of_residual = variance.residual / (seeds * n)
    of_training, of_images = variance.training / seeds + of_residual, variance.images / n + of_residual
    squared = of_training + of_images - of_residual
    noise = of_training**2 / training_df + of_images**2 / (n - 1) + of_residual**2 / ((seeds - 1) * (n - 1))
    return math.sqrt(squared), squared**2 / noise


def _quantile(share: float, df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, share))


def _reach(df: float, power: float) -> float:
    if not 0 < power < 1:
        raise ValueError(f"expected a power between 0 and 1, such as 0.8, got {power}")
    return _quantile(0.975, df) + _quantile(power, df)


def _planned(estimate: Estimate, seeds: int, images: int, power: float) -> float:
    """What would be detectable with other numbers of seeds and images, if the variance components stay."""
    training_df = estimate.training_degrees_of_freedom * (seeds - 1) / (estimate.seeds - 1)
    error, df = _error(estimate.variance, seeds, images + estimate.added, training_df)
    return _reach(df, power) * error


ENDLESS = 10**12
"""A number of images or seeds where more would change nothing."""


def _smallest(size: Callable[[int], float], difference: float, start: int) -> int | None:
    """The smallest whole number from `start` on at which `size`, which falls, is at most `difference`."""
    if not difference > 0:
        raise ValueError(f"expected a difference above 0, such as 0.01, got {difference}")
    if size(ENDLESS) > difference:
        return None
    low, high = start - 1, start
    while size(high) > difference:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) > difference else (low, middle)
    return high
