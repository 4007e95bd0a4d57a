"""Means and differences over trainings and test images together: crossed random effects.

`seeds` trainings were each tested on the same images, so the answers fill a table of shape (seeds, images). Both are
samples: other seeds would give other weights, and other images other rights and wrongs. The interval here covers both,
where `statistics` covers only the images, for one training.

A table is read as mean + training + image + residual, a two-way random-effects analysis of variance, so that

    variance of the mean = training / seeds + images / n + residual / (seeds · n)

(Dorfman, Berbaum and Metz, Investigative Radiology 27 (1992) 723-731; Gallas, Bandos, Samuelson and Wagner,
Communications in Statistics, Theory and Methods 38 (2009) 2586-2603; both with readers and cases for our trainings and
images). The half-width of the interval is Banerjee's (Sankhya 22 (1960) 359-376): each independent part of the variance
has its own Student quantile, and the squares are added, which holds at least 95 % whatever the parts.

Two images are added before the variance is estimated, so that no interval has width 0: one right and one wrong to an
accuracy (Agresti and Coull, The American Statistician 52 (1998) 119-126, add four), one for either side to a difference
(Bonett and Price, Journal of Educational and Behavioral Statistics 37 (2012) 479-488), of the size that a differing
image typically has. `benchmarks/coverage.py` measures how often the intervals hold the truth.

Where images come in groups (of one patient, of one camera track) the groups are the sample, and the table is of shape
(seeds, groups). An accuracy is then a ratio, of right images to images, and each group's entry what it adds to that
ratio: m + (sum of the group - m · its images) / (images a group), with m the training's mean, which is the mean of the
entries (Cochran, Sampling Techniques, 3rd edition 1977, section 6.3). For groups of one size that is the group's own
mean. Approximate are the ratio's variance, to first order, and that groups of uneven size count as equally variable.
The two that are added are groups then, as different as a group with wrong images, or with right ones, typically is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.report.statistics import Booleans, Integers, group_numbers

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Variance:
    """Variance components of one answer (one training, one image or group); their roots are in the unit of the mean.

    None is negative: an estimate below 0 becomes 0. For an unpaired difference each holds both classifiers' parts.
    """

    training: float
    """Between trainings: its root is the standard deviation over seeds of the accuracy on endless images."""
    images: float
    """Between images, or groups of them: what all trainings find easy or hard."""
    residual: float
    """What is left: which training fails on which image or group."""


@dataclass(frozen=True)
class Estimate:
    """A mean over trainings and images and what sampling both is worth; fractions, not percentages."""

    mean: float
    """Of the table as it is; `ci95` is centred a little nearer to the middle, where the added images pull it."""
    ci95: tuple[float, float]
    """95 % interval over other trainings and other test images."""
    standard_error: float
    degrees_of_freedom: float
    """Of the Student distribution whose 97.5 % point times `standard_error` is the half-width of `ci95`."""
    p_value: float
    """Two-sided test of 'the true mean is 0', below 0.05 exactly where `ci95` leaves out 0; no use for an accuracy."""
    variance: Variance
    """Its sum training / seeds + images / n + residual / (seeds · n), where n is `units` and the two added ones, is
    `standard_error`², but where the trainings differ less than the residual alone would make them."""
    seeds: int
    """Trainings; of an unpaired difference the smaller number, not counting a classifier that has only one."""
    images: int
    """Test images, without the added ones."""
    groups: int | None = None
    """Groups of test images; None where no two share one."""

    @property
    def units(self) -> int:
        """What was sampled: groups of images, or images."""
        return self.images if self.groups is None else self.groups


def crossed_mean(values: npt.NDArray[Any], groups: Integers | None = None) -> Estimate:
    """The accuracy over trainings and images, or groups of images.

    `values` has shape (seeds, images), at least two seeds: booleans, or scores from 0 to 1. groups: each image's, int,
    (images,).
    Raises ValueError for another shape or type, NaN, and scores outside 0 to 1.
    """
    table = np.asarray(values)
    if table.dtype != np.bool_ and not np.issubdtype(table.dtype, np.floating):
        raise ValueError(f"values: expected booleans or floats, got {table.dtype}")
    _check_shape("values", table, at_least=2)
    table = table.astype(np.float64)
    if not (table.min() >= 0 and table.max() <= 1):  # false for NaN, too
        raise ValueError("values: expected numbers from 0 to 1")
    return estimate_crossed([table], [added_shares(table, groups)], (0.0, 1.0), groups)


def crossed_difference(first: Booleans, second: Booleans, groups: Integers | None = None) -> Estimate:
    """Accuracy of the second minus accuracy of the first, for trainings in pairs: row k of both has the same seed.

    `first` and `second` are booleans of one shape (seeds, images), at least two seeds: whether each training named each
    image rightly. One training of each has no spread to learn from: see `statistics.paired_difference`. groups: each
    image's, int, (images,).
    Raises ValueError for another shape or type.
    """
    ones, others = _rights("first", first, 2), _rights("second", second, 2)
    if ones.shape != others.shape:
        raise ValueError(f"expected the same seeds and images in both, got {ones.shape} and {others.shape}")
    size = typical_size(others.mean(axis=0) - ones.mean(axis=0), groups)
    return estimate_crossed([others - ones], [(size, -size)], (-1.0, 1.0), groups)


def unpaired_difference(first: Booleans, second: Booleans, groups: Integers | None = None) -> Estimate:
    """Accuracy of the second minus accuracy of the first, on the same images, with trainings that are not in pairs.

    `first` has shape (seeds of the first, images), `second` (seeds of the second, images), both booleans. One of them
    may have a single row, which then counts as fixed: weights as they came, which no seed could change. groups: each
    image's, int, (images,).
    Raises ValueError for another shape or type, and where both have a single row.
    """
    ones, others = _rights("first", first, 1), _rights("second", second, 1)
    if ones.shape[1] != others.shape[1]:
        raise ValueError(f"expected the same images in both, got {ones.shape[1]} and {others.shape[1]}")
    if len(ones) == len(others) == 1:
        raise ValueError("expected at least two seeds in one of the two, got one in both")
    size = typical_size(others.mean(axis=0) - ones.mean(axis=0), groups)
    return estimate_crossed([others, -ones], [(size, 0.0), (0.0, -size)], (-1.0, 1.0), groups)


def detectable(estimate: Estimate, power: float = 0.8) -> float:
    """The smallest true difference that such a test shows with this power: (t.975 + t.power) · standard error.

    Standard error and degrees of freedom are those to expect of a repetition. They are the estimate's own unless its
    trainings happened to differ less than their residual alone would make them.
    """
    return _detectable(estimate, estimate.seeds, estimate.units, power)


def images_for(estimate: Estimate, difference: float = 0.01, power: float = 0.8) -> int | None:
    """Test images that show a true difference of this size with this power, with as many seeds.

    In groups of as many as here, where images come in groups.
    None when no number would do, because the trainings differ too much.
    Raises ValueError for a difference that is not above 0.
    """
    units = _smallest(lambda units: _detectable(estimate, estimate.seeds, units, power), difference, 1)
    return units if units is None or estimate.groups is None else math.ceil(units * estimate.images / estimate.groups)


def seeds_for(estimate: Estimate, difference: float = 0.01, power: float = 0.8) -> int | None:
    """Seeds (at least 2) that show a true difference of this size with this power, with as many test images.

    None when no number would do, because there are too few test images.
    Raises ValueError for a difference that is not above 0.
    """
    return _smallest(lambda seeds: _detectable(estimate, seeds, estimate.units, power), difference, 2)


def _check_shape(name: str, table: npt.NDArray[Any], at_least: int) -> None:
    if table.ndim != 2 or table.shape[0] < at_least or table.shape[1] == 0:
        plural = "one seed" if at_least == 1 else f"{at_least} seeds"
        raise ValueError(f"{name}: expected shape (seeds, images), at least {plural} and one image, got {table.shape}")


def _rights(name: str, right: Booleans, at_least: int) -> Floats:
    table = np.asarray(right)
    if table.dtype != np.bool_:
        raise ValueError(f"{name}: expected booleans, got {table.dtype}")
    _check_shape(name, table, at_least)
    return table.astype(np.float64)


def typical_size(differences: Floats, groups: Integers | None = None) -> float:
    """The root mean square of the differences that are not 0, and of a 1: what one differing image is worth.

    It is 1 where all trainings agree about every image, and smaller the more a difference is that of single trainings.
    With groups (int, N) it is what a group that differs is worth: its sum over the images that a group has.
    """
    if (numbers := group_numbers(groups)) is not None:
        differences = np.bincount(numbers, differences) * (int(numbers.max()) + 1) / len(numbers)
    return math.sqrt((1 + float(np.square(differences).sum())) / (1 + np.count_nonzero(np.abs(differences) > 1e-9)))


def added_shares(rights: Floats, groups: Integers | None = None) -> tuple[float, float]:
    """The two images that are added to a table of rights (1) and wrongs (0), (seeds, images), or the two groups."""
    if group_numbers(groups) is None:
        return 1.0, 0.0
    of_right, of_wrong = (np.mean([typical_size(row, groups) ** 2 for row in rows]) for rows in (rights, 1 - rights))
    return math.sqrt(of_right), 1 - math.sqrt(of_wrong)


def by_group(table: Floats, groups: Integers) -> Floats:
    """What each group adds to each training's mean: (seeds, images) to (seeds, groups), whose rows have those means.

    groups: int, (images,), from 0 without gaps.
    """
    sizes, means = np.bincount(groups), table.mean(axis=1, keepdims=True)
    sums = np.stack([np.bincount(groups, row) for row in table])
    found: Floats = means + (sums - means * sizes) / sizes.mean()
    return found


def estimate_crossed(
    arms: list[Floats],
    added: Sequence[Sequence[float]],
    limits: tuple[float, float],
    groups: Integers | None = None,
) -> Estimate:
    """The sum of the arms' means: each arm has shape (its seeds, images), and `added` holds its added images or groups.

    groups: each image's, int, (images,).
    """
    images, numbers = arms[0].shape[1], group_numbers(groups)
    if numbers is not None:
        arms = [by_group(arm, numbers) for arm in arms]
    tables = [np.hstack([arm, np.tile(pair, (len(arm), 1))]) for arm, pair in zip(arms, added, strict=True)]
    columns = np.sum([table.mean(axis=0) for table in tables], axis=0)
    n, trained = len(columns), [table for table in tables if len(table) > 1]
    seeds = min(len(table) for table in trained)

    parts = [_row_variances(table) for table in trained]
    of_residual = sum(residual for _, _, residual in parts)
    of_images = max(float(columns.var(ddof=1)) / n - of_residual, 0.0)
    of_training = sum(max(rows - residual, 0.0) for _, rows, residual in parts)
    variance = Variance(seeds * of_training, n * of_images, seeds * n * of_residual)

    def half_width(p: float) -> float:  # of the interval of level 1 - p
        t = _student(n - 1, p)
        squares = (max(_student(df, p) ** 2 * rows, t**2 * residual / 4) for df, rows, residual in parts)
        return math.sqrt(sum(squares) + t**2 * of_images)

    # Rows should differ by the residual at least. A quarter of it, if they do not, keeps the width above 0.
    error = math.sqrt(sum(max(rows, residual / 4) for _, rows, residual in parts) + of_images)
    centre, half = float(columns.mean()), half_width(0.05)
    return Estimate(
        mean=float(np.sum([arm.mean() for arm in arms])),
        ci95=(max(limits[0], centre - half), min(limits[1], centre + half)),
        standard_error=error,
        degrees_of_freedom=_equivalent_df(half / error, seeds - 1, n - 1),
        p_value=_p_value(half_width, abs(centre)),
        variance=variance,
        seeds=seeds,
        images=images,
        groups=None if numbers is None else arms[0].shape[1],
    )


def _row_variances(table: Floats) -> tuple[int, float, float]:
    """Of the mean of a table: degrees of freedom of its rows, its variance by the rows, and the residual's share in it.

    They are the mean squares of rows and residual over the number of cells.
    """
    rows, columns = table.shape
    mean, of_rows, of_columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
    squares = float(np.vdot(table, table)) - table.size * mean**2  # what is left of them is the residual's
    squares -= columns * np.square(of_rows - mean).sum() + rows * np.square(of_columns - mean).sum()
    residual = max(float(squares), 0.0) / ((rows - 1) * (columns - 1) * table.size)
    return rows - 1, float(of_rows.var(ddof=1)) / rows, residual


def _student(df: float, p: float) -> float:
    """The number of standard errors that chance exceeds, in either direction, with probability `p`."""
    from scipy.special import stdtrit

    return -float(stdtrit(df, p / 2))


def _p_value(half_width: Callable[[float], float], distance: float) -> float:
    """The p at which the half-width is just `distance`; none is below 1e-111."""
    from scipy.optimize import brentq

    logarithm = -1.0
    while half_width(math.exp(logarithm)) <= distance:
        if logarithm < -200:
            return math.exp(logarithm)
        logarithm *= 2
    return math.exp(brentq(lambda x: half_width(math.exp(x)) - distance, logarithm, 0.0))


def _equivalent_df(reach: float, low: float, high: float) -> float:
    """Degrees of freedom between `low` and `high` of the Student distribution that has its 97.5 % point at `reach`."""
    from scipy.optimize import brentq

    def excess(logarithm: float) -> float:
        return _student(math.exp(logarithm), 0.05) - reach

    ends = math.log(low), math.log(high)
    if excess(ends[0]) <= 0:
        return low
    if excess(ends[1]) >= 0:
        return high
    return math.exp(brentq(excess, *ends))


def _detectable(estimate: Estimate, seeds: int, units: int, power: float) -> float:
    """What could be shown with other numbers of seeds and units, where the variance components stay the same."""
    if not 0 < power < 1:
        raise ValueError(f"expected a power between 0 and 1, such as 0.8, got {power}")
    n, variance = units + 2, estimate.variance
    rows, of_images = variance.training / seeds + variance.residual / (seeds * n), variance.images / n
    half = math.hypot(_student(seeds - 1, 0.05) * math.sqrt(rows), _student(n - 1, 0.05) * math.sqrt(of_images))
    error = math.sqrt(rows + of_images)
    return half + _student(_equivalent_df(half / error, seeds - 1, n - 1), 2 - 2 * power) * error


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
