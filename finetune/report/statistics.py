"""Confidence intervals and tests: Wilson, McNemar, Newcombe, all three by groups of images too; per-class scores.

Images of one group (a track, a patient) tend to be right or wrong together, so that they are worth fewer images than
they are. Where `groups` are given the groups are the sample: an interval is that of as many images as would vary as
much, with Student's quantile, and a test turns groups around instead of images. Without groups, and where no two images
share one, everything is as for single images.

Sources: the variance by group totals, K.-Y. Liang and S. L. Zeger, Longitudinal data analysis using generalized linear
models, Biometrika 73 (1986) 13-22; counts divided by the design effect, J. N. K. Rao and A. J. Scott, A simple method
for the analysis of clustered binary data, Biometrics 48 (1992) 577-585; the effective number of images, E. L. Korn and
B. I. Graubard, Confidence intervals for proportions with small expected number of positive counts estimated from survey
data, Survey Methodology 24 (1998) 193-201.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.text import listed

Booleans = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]
ClassScores = dict[str, dict[str, int | float | None]]
MAX_DENSE = 100  # classes of a confusion matrix that is written whole
MAX_COUNTED = 10_000  # images that two classifiers answer differently; summing up their ways takes some milliseconds
MAX_TURNED = 300_000_000  # groups answered differently × images so; counting how they may turn takes a second


@dataclass(frozen=True)
class PairedDifference:
    """Two classifiers on the same images; accuracies and differences are fractions, not percentages."""

    difference: float
    """Accuracy of the second minus accuracy of the first, -1 to 1."""
    ci95: tuple[float, float]
    """95 % interval of the difference over other test images; not over other trainings."""
    only_first: int
    """Images that the first got right and the second wrong."""
    only_second: int
    """Images that the second got right and the first wrong."""
    mid_p: float
    """Two-sided mid-p McNemar test of 'neither is better', 0 to 1."""
    exact_p: float
    """The exact conditional McNemar test of the same, which is never below `mid_p`, 0 to 1."""
    design_effect: float = 1.0
    """How many images of these groups are worth one without groups, in this difference."""


def wilson(correct: float, total: float, level: float = 0.95, *, freedom: float = math.inf) -> tuple[float, float]:
    """The Wilson score interval of an accuracy, without continuity correction: (lower, upper), inside 0 to 1.

    It says which accuracies on endless images of the same kind agree with `correct` out of `total`. It covers the luck
    of which images are in the test set, and not the randomness of training. freedom: degrees of freedom of Student's
    quantile, where the variance is estimated; below 1 nothing is known, and the interval is 0 to 1.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927) 209-212.
    Raises ValueError when there are no images, more right than images, or a level outside 0 to 1.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"expected 0 <= correct <= total and total > 0, got correct={correct}, total={total}")
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, such as 0.95, got {level}")
    if freedom < 1:
        return 0.0, 1.0
    z = _quantile(level, freedom)
    share = correct / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    reach = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    # The two ends below are exact in arithmetic but not in floating point.
    lower = 0.0 if correct == 0 else centre - reach
    upper = 1.0 if correct == total else centre + reach
    return lower, upper


def _quantile(level: float, freedom: float) -> float:
    """How many standard errors an interval of this level reaches: the normal's, or Student's."""
    if freedom == math.inf:
        return NormalDist().inv_cdf((1 + level) / 2)
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def group_numbers(groups: Integers | None) -> Integers | None:
    """Groups numbered from 0 without gaps: int64, N; None where no two images share one, so that there are none."""
    if groups is None:
        return None
    found, numbers = np.unique(groups, return_inverse=True)
    return numbers if len(found) < len(numbers) else None


def group_count(groups: Integers | None) -> int | None:
    """The number of groups; None where no two images share one."""
    numbers = group_numbers(groups)
    return None if numbers is None else int(numbers.max()) + 1


def design_effect(influence: Floats, groups: Integers, unit: float) -> float:
    """How many times the variance that as many images without groups would have; at least 1.

    influence: how much each image moves a value from its mean (float, N, which sum to 0). unit: how much one image
    moves a mean over them. The variance by group totals is that of Liang and Zeger over that by images. With few wrong
    images it says little, and with none nothing, so one image more is counted, with the greatest effect there is: that
    of groups which are right or wrong as a whole, Σ size² / N. With no wrong image the groups thus count as images.
    """
    sums, sizes = np.bincount(groups, influence), np.bincount(groups)
    images, count = len(influence), len(sums)
    greatest = float(np.square(sizes).sum()) / images
    if count < 2:
        return greatest
    by_group = float(np.square(sums).sum()) * count / (count - 1)
    by_image = float(np.square(influence).sum()) * images / (images - 1)
    return max(1.0, (by_group + greatest * unit**2) / (by_image + unit**2))


def effective_images(right: Booleans, groups: Integers | None) -> float | None:
    """As how many images without groups these say of an accuracy; None where no two images share a group."""
    numbers, images = group_numbers(groups), len(right)
    if numbers is None:
        return None
    return images / design_effect((right - right.mean()) / images, numbers, 1 / images)


def accuracy_interval(right: Booleans, groups: Integers | None = None) -> tuple[float, float]:
    """The Wilson interval of an accuracy, by groups where images share them: see `wilson_by_groups`.

    right: booleans (N). groups: each image's group, int, N.
    """
    correct, total, effective = int(np.count_nonzero(right)), len(right), effective_images(right, groups)
    if effective is None:
        return wilson(correct, total)
    return wilson_by_groups(correct, total, effective, group_count(groups) or 1)


def wilson_by_groups(correct: int, total: int, effective: float, groups: int) -> tuple[float, float]:
    """The Wilson interval of an accuracy that is worth `effective` images, with the t quantile of so many groups."""
    return wilson(correct / total * effective, effective, freedom=groups - 1)


def paired_difference(
    first_right: Booleans, second_right: Booleans, groups: Integers | None = None
) -> PairedDifference:
    """How much better the second classifier is than the first, both tested on the same images in the same order.

    `first_right` and `second_right` are boolean arrays of shape (images,): whether each image was named rightly.
    Neither the interval nor the p-values cover the randomness of training. Where neither has more images right than
    the other, the mid-p is 1.

    groups: each image's group, int, (images,). With groups the p-values are those of turning whole groups around, which
    are McNemar's where a group is one image, and the interval is Newcombe's of the counts over the design effect.

    Sources: the test, Q. McNemar, Note on the sampling error of the difference between correlated proportions,
    Psychometrika 12 (1947) 153-157; its mid-p, M. W. Fagerland, S. Lydersen and P. Laake, The McNemar test for binary
    matched-pairs data: mid-p and asymptotic are better than exact conditional, BMC Medical Research Methodology 13
    (2013) 91; the interval, R. G. Newcombe, Improved confidence intervals for the difference between binomial
    proportions based on paired data, Statistics in Medicine 17 (1998) 2635-2650, method 10; groups turned around, P. I.
    Good, Permutation, Parametric and Bootstrap Tests of Hypotheses (2005), which for many groups is the test of N. A.
    Obuchowski, On the comparison of correlated proportions for clustered data, Statistics in Medicine 17 (1998)
    1495-1507.
    Raises ValueError for arrays that are empty, not boolean, not one-dimensional or not of one length.
    """
    first, second = np.asarray(first_right), np.asarray(second_right)
    for name, right in (("first_right", first), ("second_right", second)):
        if right.dtype != np.bool_ or right.ndim != 1:
            raise ValueError(f"{name}: expected booleans of shape (images,), got {right.dtype} of shape {right.shape}")
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(f"expected the same images, at least one, in both, got {len(first)} and {len(second)}")
    both = int(np.count_nonzero(first & second))
    only_first = int(np.count_nonzero(first & ~second))
    only_second = int(np.count_nonzero(~first & second))
    neither = len(first) - both - only_first - only_second
    numbers, effect, freedom = group_numbers(groups), 1.0, math.inf
    if numbers is None:
        mid_p, exact_p = _mcnemar(only_first, only_second)
    else:
        moved = second.astype(np.float64) - first
        effect = design_effect((moved - moved.mean()) / len(first), numbers, 1 / len(first))
        sums = np.bincount(numbers, moved)
        freedom = len(sums) - 1
        mid_p, exact_p = _sign_flip(np.rint(sums).astype(np.int64))
    return PairedDifference(
        difference=(only_second - only_first) / len(first),
        ci95=_newcombe(both, only_second, only_first, neither, effect, freedom),
        only_first=only_first,
        only_second=only_second,
        mid_p=mid_p,
        exact_p=exact_p,
        design_effect=effect,
    )


def mcnemar_images(differing: float, total: float, difference: float = 0.01, power: float = 0.8) -> int:
    """Test images on which a 5 % McNemar test shows a true difference of accuracy of this size with this power.

    `differing` of `total` images were answered rightly by just one of the two classifiers. That share is taken for
    the true one, but no smaller than `difference`, which it could not be. Trainings are not covered.

    Source: R. J. Connor, Sample size for testing differences in proportions for the paired-sample design, Biometrics 43
    (1987) 207-211. Raises ValueError for counts that cannot be, and a difference or power outside 0 to 1.
    """
    if not 0 <= differing <= total or total == 0:
        raise ValueError(f"expected 0 <= differing <= total and total > 0, got differing={differing}, total={total}")
    if not (0 < difference <= 1 and 0 < power < 1):
        raise ValueError(f"expected a difference and a power from 0 to 1, got {difference} and {power}")
    share = max(differing / total, difference)
    z, z_power = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(power)
    return math.ceil((z * math.sqrt(share) + z_power * math.sqrt(share - difference**2)) ** 2 / difference**2)


def mcnemar_detectable(differing: float, total: float, power: float = 0.8) -> float | None:
    """The smallest true difference for which `mcnemar_images` asks no more than these `total` images.

    None with the very few images (below 4) that could show none. Raises ValueError as `mcnemar_images` does.
    """
    low, high = 0.0, 1.0
    if mcnemar_images(differing, total, high, power) > total:
        return None
    for _ in range(50):
        middle = (low + high) / 2
        enough = mcnemar_images(differing, total, middle, power) <= total
        low, high = (low, middle) if enough else (middle, high)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: below 0.05 only, in 95 % of cases, where there is a difference.

    That holds for all of them together, however they depend on each other.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6 (1979) 65-70.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two lists: 1 where they order the same way, -1 the other way round.

    None with fewer than three in each, or where all of one are equal.
    """
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic)


def per_class(labels: Integers, predictions: Integers, class_names: Sequence[str]) -> ClassScores:
    """{class name: {correct, total, accuracy}} in the order of `class_names`; without images, accuracy is None.

    `labels` and `predictions` are integers of shape (images,), 0 to len(class_names) - 1.
    Raises ValueError for numbers outside that range, shapes that differ, or a class name given twice.
    """
    if len(set(class_names)) != len(class_names):
        raise ValueError(f"a class name is given twice in {listed(class_names)}")
    truth, given = _checked(labels, predictions, len(class_names))
    every = np.bincount(truth, minlength=len(class_names)).tolist()
    right = np.bincount(truth[truth == given], minlength=len(class_names)).tolist()
    return {
        name: {"correct": correct, "total": total, "accuracy": correct / total if total else None}
        for name, correct, total in zip(class_names, right, every, strict=True)
    }


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix, as the pairs of classes that occur: there are never more of these than images.

    `images[k]` (1 or more) images of class `true[k]` were taken for class `predicted[k]`; classes go by number, 0 to
    `classes` - 1, and pairs by these numbers, each once. ValueError where any of this does not hold.
    """

    classes: int
    true: list[int]
    predicted: list[int]
    images: list[int]

    def __post_init__(self) -> None:
        rows, columns, counts = self._arrays()
        if not len(rows) == len(columns) == len(counts):
            raise ValueError(f"expected as many of each, found {len(rows)}, {len(columns)} and {len(counts)}")
        if not len(rows):
            return
        if min(rows.min(), columns.min()) < 0 or max(rows.max(), columns.max()) >= self.classes:
            raise ValueError(f"expected classes from 0 to {self.classes - 1}")
        if counts.min() < 1 or (np.diff(rows * self.classes + columns) <= 0).any():
            raise ValueError("expected each pair of classes once, in order, with its images")

    def _arrays(self) -> tuple[Integers, Integers, Integers]:
        """True classes, predicted classes and images, each int64."""
        return _int64(self.true), _int64(self.predicted), _int64(self.images)

    @classmethod
    def of(cls, labels: Integers, predictions: Integers, classes: int) -> Confusion:
        """From `labels` and `predictions`: integers of shape (images,), 0 to classes - 1. ValueError for all else."""
        truth, given = _checked(labels, predictions, classes)
        return cls._of_pairs(classes, truth * classes + given, np.ones(len(truth), dtype=np.int64))

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[int]]) -> Confusion:
        """From the whole matrix: a row of counts for each true class. ValueError unless it is square."""
        classes = len(rows)
        if any(len(row) != classes for row in rows):
            raise ValueError(f"expected {classes} rows of as many counts")
        counts = _int64(rows).reshape(-1)
        if len(counts) and counts.min() < 0:
            raise ValueError("expected no count below 0")
        pairs = np.flatnonzero(counts)
        return cls._of_pairs(classes, pairs, counts[pairs])

    @classmethod
    def total(cls, tables: Sequence[Confusion]) -> Confusion:
        """The sum of several, at least one, of the same classes."""
        classes, parts = tables[0].classes, [table._arrays() for table in tables]
        pairs = np.concatenate([rows * classes + columns for rows, columns, _ in parts])
        return cls._of_pairs(classes, pairs, np.concatenate([counts for *_, counts in parts]))

    @classmethod
    def _of_pairs(cls, classes: int, pairs: Integers, counts: Integers) -> Confusion:
        """From `true · classes + predicted` and the images of each, where a pair may be there again (both int64, N)."""
        every, where = np.unique(pairs, return_inverse=True)
        sums = np.zeros(len(every), dtype=np.int64)
        np.add.at(sums, where, counts)
        return cls(classes, (every // classes).tolist(), (every % classes).tolist(), sums.tolist())

    @property
    def right(self) -> int:
        """Images that were named rightly."""
        rows, columns, counts = self._arrays()
        return int(counts[rows == columns].sum())

    def totals(self) -> Integers:
        """The images of each true class: int64, classes."""
        rows, _, counts = self._arrays()
        return np.bincount(rows, counts, self.classes).astype(np.int64)

    def most_confused(self, most: int) -> list[int]:
        """At most `most` classes, in their order: those that have the most mistakes, of their images or for them."""
        if self.classes <= most:
            return list(range(self.classes))
        rows, columns, counts = self._arrays()
        wrong = np.where(rows == columns, 0, counts)
        mistakes = np.bincount(rows, wrong, self.classes) + np.bincount(columns, wrong, self.classes)
        chosen: list[int] = np.sort(np.argsort(-mistakes, kind="stable")[:most]).tolist()
        return chosen

    def rows(self, chosen: Sequence[int] | None = None) -> Integers:
        """The matrix of all classes, or of `chosen` ones, each once: int64, a row for each true class."""
        kept = range(self.classes) if chosen is None else chosen
        place = np.full(self.classes, -1, dtype=np.int64)
        place[list(kept)] = np.arange(len(kept))
        rows, columns, counts = self._arrays()
        shown = (place[rows] >= 0) & (place[columns] >= 0)
        found = np.zeros((len(kept), len(kept)), dtype=np.int64)
        found[place[rows[shown]], place[columns[shown]]] = counts[shown]
        return found

    def mistakes(self, most: int) -> list[tuple[int, int, int]]:
        """The most frequent mistakes, as (true class, class it was taken for, images)."""
        rows, columns, counts = self._arrays()
        wrong = np.flatnonzero(rows != columns)
        first = wrong[np.argsort(-counts[wrong], kind="stable")[:most]].tolist()
        return [(self.true[k], self.predicted[k], self.images[k]) for k in first]

    def to_json(self) -> list[list[int]] | dict[str, Any]:
        """The whole matrix of at most MAX_DENSE classes; of more the pairs that occur, by the names of the fields."""
        dense: list[list[int]] = self.rows().tolist() if self.classes <= MAX_DENSE else []
        return dense or {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Reads both forms of `to_json`, a whole matrix of any size."""
        from pydantic import TypeAdapter
        from pydantic_core import core_schema

        def read(value: Any) -> Any:
            return (
                cls.of_rows(TypeAdapter(list[list[int]]).validate_python(value)) if isinstance(value, list) else value
            )

        return core_schema.no_info_before_validator_function(read, handler(source))


def _int64(values: Sequence[int] | Sequence[Sequence[int]]) -> Integers:
    """As an array. ValueError for a number that no file has so many images for."""
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        raise ValueError("expected numbers below 2^63") from None


def _checked(labels: Integers, predictions: Integers, n: int) -> tuple[Integers, Integers]:
    """Both as int64. ValueError unless they are integers of one shape (images,), 0 to n - 1."""
    truth, given = np.asarray(labels), np.asarray(predictions)
    if truth.ndim != 1 or truth.shape != given.shape:
        raise ValueError(f"expected two arrays of one shape (images,), got {truth.shape} and {given.shape}")
    for name, values in (("labels", truth), ("predictions", given)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name}: expected integers, got {values.dtype}")
        if len(values) and not 0 <= values.min() <= values.max() < n:
            raise ValueError(f"{name}: expected 0 to {n - 1}, got {values.min()} to {values.max()}")
    return truth.astype(np.int64), given.astype(np.int64)


def _mcnemar(only_first: int, only_second: int) -> tuple[float, float]:
    """Two-sided mid-p and exact p: how often fair tosses for the differing images would fall at least so unevenly.

    The mid-p counts what is just as uneven only half.
    """
    differing, fewer = only_first + only_second, min(only_first, only_second)
    if differing > MAX_COUNTED:
        from scipy.special import bdtr  # takes longer to import than to sum up the usual few

        at_most, below = (float(bdtr(count, differing, 0.5)) if count >= 0 else 0.0 for count in (fewer, fewer - 1))
        return min(1.0, at_most + below), min(1.0, 2 * at_most)
    ways = as_uneven = 1  # in which just so many, and in which at most so many, of the differing are the first's
    for count in range(fewer):
        ways = ways * (differing - count) // (count + 1)
        as_uneven += ways
    every = 1 << differing
    return min(1.0, (2 * as_uneven - ways) / every), min(1.0, 2 * as_uneven / every)


def _sign_flip(sums: Integers) -> tuple[float, float]:
    """Two-sided mid-p and exact p: how often groups that fall to either side by fair tosses are at least so uneven.

    sums: of each group, how many more images the second got right than the first. All ways are counted, and with very
    many groups taken for normal.
    """
    sizes = np.sort(np.abs(sums[sums != 0]))
    total, found = int(sizes.sum()), abs(int(sums.sum()))
    if len(sizes) * total > MAX_TURNED:
        p_value = math.erfc(found / math.sqrt(2 * float(np.square(sizes.astype(np.float64)).sum())))
        return p_value, p_value
    chances = np.ones(1)  # of the sums -reach to reach of the groups so far
    for size in sizes.tolist():
        turned = np.zeros(len(chances) + 2 * size)
        turned[2 * size :] = chances / 2
        turned[: len(chances)] += chances / 2
        chances = turned
    as_uneven, just_so = 2 * float(chances[total + found :].sum()), float(chances[total + found])
    return (min(1.0, as_uneven - just_so) if found else 1.0), min(1.0, as_uneven)


def _newcombe(
    both: int, only_second: int, only_first: int, neither: int, effect: float = 1.0, freedom: float = math.inf
) -> tuple[float, float]:
    """95 % interval of accuracy(second) - accuracy(first): the two Wilson intervals, squared and added.

    phi is the correlation of the two rights and wrongs, drawn towards 0 where positive. Never leaves -1 to 1, and has
    a width even when the two agree on every image. effect: images that are worth one, by which all counts are divided;
    freedom: of Student's quantile.
    """
    if freedom < 1:
        return -1.0, 1.0
    total = both + only_second + only_first + neither
    second, first = both + only_second, both + only_first
    margins = second * (total - second) * first * (total - first)
    excess = float(both * neither - only_second * only_first)
    if excess > 0:
        excess = max(excess - total * effect / 2, 0.0)
    phi = excess / math.sqrt(margins) if margins else 0.0

    difference = (second - first) / total
    size = total / effect
    ends = [wilson(min(right / effect, size), size, freedom=freedom) for right in (second, first)]
    second_low, second_high = (abs(second / total - end) for end in ends[0])
    first_low, first_high = (abs(first / total - end) for end in ends[1])
    below = math.sqrt(second_low**2 - 2 * phi * second_low * first_high + first_high**2)
    above = math.sqrt(second_high**2 - 2 * phi * second_high * first_low + first_low**2)
    return difference - below, difference + above
