"""Accuracy against labelled images: what a start is worth in labels, and what more labels would bring.

Intervals come from resampling crossed over seeds and test images, with a fixed random generator. Seeds are resampled by
a multiplier bootstrap whose draws have Student's tails, as few seeds say little of their own spread; images by drawing
them with replacement. Every number of labels and both curves share the draws, as they share seeds and images.

A curve is extrapolated as a straight line of probit(accuracy) over log(labels). Of the forms that were tried it came
closest to what was measured (docs/labels.md has the figures); two others are part of the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from finetune.report.statistics import Booleans, Integers, group_numbers

Floats = npt.NDArray[np.float64]

DRAWS = 2_000
MIN_POINTS = 3  # numbers of labels from which on a curve is extrapolated
STEPS = 64  # of the interpolation between two numbers of labels
MAX_EXPONENT, EXPONENTS = 3.0, 60  # of the power law, and how many of them are tried
EQUAL = 1e-9  # accuracies that differ by less are the same, and so are relative numbers of labels


@dataclass(frozen=True)
class LabelWorth:
    """How many times as many labels the other curve needs for the same accuracy; None lies outside what was measured.

    Where the other curve has this accuracy over a range of labels that holds as many as here, times is 1, and the
    interval spans the range. measured: the least and the most that could be told, by the fewest and the most labels
    measured.
    """

    times: float | None
    lower: float | None
    """End of the 95 % interval over other trainings and images; None: below `measured`."""
    upper: float | None
    """None: above `measured`."""
    reached: bool
    """False: the other curve does not come to this accuracy with the most labels measured."""
    measured: tuple[float, float]


@dataclass(frozen=True)
class Forecast:
    """What an accuracy would be with so many labelled images a class; fractions, not percentages.

    ci95: over other trainings, other test images, the forms that a curve may have, and by how much the form misses.
    """

    images_per_class: float
    accuracy: float
    ci95: tuple[float, float]


def resampled_means(tables: Sequence[Booleans], groups: Integers | None = None, draws: int = DRAWS) -> Floats:
    """Means of tables of one shape (seeds, images) as other seeds and images might have them: (draws, tables).

    With one seed only the images vary. groups: each image's, int, (images,), which are then drawn in place of images.
    Values are cut to 0 to 1.
    """
    answers = np.stack([np.asarray(table, dtype=np.float64) for table in tables], axis=-1)  # seeds, images, tables
    seeds = len(answers)
    rng = np.random.default_rng(0)
    found = _drawn_means(rng, answers.mean(axis=0), group_numbers(groups), draws)
    if seeds > 1:
        by_seed = answers.mean(axis=1)
        normal = rng.standard_normal((draws, seeds)) @ (by_seed - by_seed.mean(axis=0)) / np.sqrt(seeds * (seeds - 1))
        found += normal / np.sqrt(rng.chisquare(seeds - 1, (draws, 1)) / (seeds - 1))
    return _cut(found)


def _drawn_means(rng: np.random.Generator, columns: Floats, groups: Integers | None, draws: int) -> Floats:
    """Means over as many images, or groups of them, drawn with replacement: (images, tables) to (draws, tables)."""
    if groups is None:
        images = len(columns)
        rows, counts = np.unique(columns, axis=0, return_counts=True)
        found: Floats = rng.multinomial(images, counts / images, size=draws) @ rows / images
        return found
    sums = np.stack([np.bincount(groups, column) for column in [*columns.T, np.ones(len(columns))]], axis=1)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws) @ sums
    means: Floats = drawn[:, :-1] / drawn[:, -1:]
    return means


def isotonic(curves: Floats) -> Floats:
    """The nearest curves that never fall, in least squares: (..., numbers of labels)."""
    length = curves.shape[-1]
    sums = np.concatenate([np.zeros((*curves.shape[:-1], 1)), np.cumsum(curves, axis=-1)], axis=-1)
    found = np.full(curves.shape, -np.inf)
    for start in range(length):
        ends = np.arange(start + 1, length + 1)
        means = (sums[..., ends] - sums[..., start, None]) / (ends - start)
        lowest = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]  # over all ends from here on
        found[..., start:] = np.maximum(found[..., start:], lowest)
    return found


def labels_needed(labels: Floats, curves: Floats, accuracies: Floats) -> tuple[Floats, Floats]:
    """How many labels each curve needs for an accuracy: 0 below what was measured, infinity above it.

    Returns the fewest and the most with which it has this accuracy; they differ where it stays the same for a while.
    labels: K, ascending. curves: (draws, K). accuracies: (draws,). Between the measured numbers a curve is a monotone
    cubic over log(labels).
    """
    from scipy.interpolate import PchipInterpolator

    logs, rising = np.log(labels), isotonic(curves)
    if len(labels) > 1:
        places = np.concatenate([np.linspace(a, b, STEPS, endpoint=False) for a, b in pairwise(logs)])
        places = np.append(places, logs[-1])
        heights = np.maximum.accumulate(PchipInterpolator(logs, rising, axis=1)(places), axis=1)
    else:
        places, heights = logs, rising
    numbers = np.exp(places)
    numbers[::STEPS] = labels  # free of rounding
    above = (heights < accuracies[:, None] - EQUAL).sum(axis=1)  # the first place that is high enough
    beyond = (heights <= accuracies[:, None] + EQUAL).sum(axis=1)  # the first place that is higher
    draws, last = np.arange(len(heights)), len(places) - 1
    right = np.minimum(above, last)
    left = np.maximum(right - 1, 0)
    low, high = heights[draws, left], heights[draws, right]
    share = np.divide(accuracies - low, high - low, out=np.ones_like(low), where=high > low)
    needed: Floats = np.exp(places[left] + np.clip(share, 0, 1) * (places[right] - places[left]))
    needed = np.where(share >= 1, numbers[right], needed)
    needed[above == 0] = labels[0]
    needed[beyond == 0] = 0.0
    needed[above > last] = np.inf
    most: Floats = np.where(beyond > above, np.maximum(numbers[beyond - 1], needed), needed)
    return needed, most


def _cut(accuracies: Floats, margin: float = 0.0) -> Floats:
    """Values outside `margin` to 1 - `margin` as the nearer end."""
    cut: Floats = np.clip(accuracies, margin, 1 - margin)
    return cut


def label_worth(labels: Floats, curve: Floats, other: Floats, draws: tuple[Floats, Floats]) -> list[LabelWorth]:
    """What the start of `curve` is worth against `other`, at each number of labels.

    labels: images a class, K, ascending. curve, other: mean accuracies, K. draws: resampled means of both, (draws, K).
    """
    found = []
    for place, here in enumerate(labels):
        times, longest = (float(own[0] / here) for own in labels_needed(labels, other[None], curve[None, place]))
        if times <= 1 + EQUAL and longest >= 1 - EQUAL:
            times = 1.0
        each = (own / here for own in labels_needed(labels, draws[1], draws[0][:, place]))
        lower, upper = (
            float(np.quantile(own, share, method="inverted_cdf"))
            for own, share in zip(each, (0.025, 0.975), strict=True)
        )
        fewest, most = float(labels[0] / here), float(labels[-1] / here)
        found.append(
            LabelWorth(
                times=times if 0 < times < np.inf else None,
                lower=min(lower, most) if lower > 0 else None,
                upper=min(max(upper, fewest), most) if upper < np.inf else None,
                reached=times < np.inf,
                measured=(fewest, most),
            )
        )
    return found


def forecast(labels: Floats, means: Floats, draws: Floats, at: Sequence[float], images: int) -> list[Forecast]:
    """The curve with as many labels a class as `at` says; none where fewer than MIN_POINTS numbers were measured.

    labels: images a class, K, ascending. means: accuracies, K. draws: resampled means, (draws, K). images: test images.
    Lines are fitted to accuracies that stay half a test image away from 0 and 1. A forecast that comes so near is moved
    to what was measured, and its interval reaches that.
    """
    if len(labels) < MIN_POINTS or not len(at):
        return []
    places, margin = np.asarray(at, dtype=np.float64), 0.5 / images
    inner, resampled = _cut(means, margin), _cut(draws, margin)
    centre = FORMS[FORM](labels, inner[None], places)[0]
    every = np.concatenate([form(labels, resampled, places) for form in FORMS.values()])
    every = _missing(every, places, labels, inner, margin)
    lower, upper = np.quantile(every, (0.025, 0.975), axis=0)
    low, high = margin + EQUAL, 1 - margin - EQUAL
    ends = np.quantile(np.vstack([draws, means]), (0.025, 0.975), axis=0)
    lower = np.where(lower <= low, np.minimum(lower, ends[0].min()), lower)
    upper = np.where(upper >= high, np.maximum(upper, ends[1].max()), upper)
    centre = np.where(centre <= low, np.minimum(centre, means[-1]), centre)
    centre = np.where(centre >= high, np.maximum(centre, means[-1]), centre)
    return [
        Forecast(float(place), float(middle), (float(min(low, middle)), float(max(high, middle))))
        for place, middle, low, high in zip(places, centre, lower, upper, strict=True)
    ]


def _missing(foretold: Floats, at: Floats, labels: Floats, means: Floats, margin: float) -> Floats:
    """Forecasts (draws, at) moved by as much, in probits, as the measured numbers were missed by those before them.

    Each measured number from the third on is foretold from all before it; the root mean square of what that missed by
    is the standard deviation for as long a step, and grows as a random walk does.
    """
    from scipy.special import ndtr, ndtri

    before = range(2, len(labels))
    told = [FORMS[FORM](labels[:k], means[None, :k], labels[k : k + 1])[0, 0] for k in before]
    missed = float(np.sqrt(np.mean(np.square(ndtri(_cut(np.array(told), margin)) - ndtri(means[2:])))))
    steps = np.log(at / labels[-1]) / np.diff(np.log(labels)).mean()
    normal = np.random.default_rng(1).standard_normal((len(foretold), 1))
    found: Floats = ndtr(ndtri(_cut(foretold, margin)) + normal * missed * np.sqrt(np.maximum(steps, 0.0)))
    return found


def _probit(labels: Floats, curves: Floats, at: Floats) -> Floats:
    """Accuracy = Φ(a + b · log labels), b not below 0."""
    from scipy.special import ndtr, ndtri

    found: Floats = ndtr(_line(labels, ndtri(curves), at))
    return found


def _logit(labels: Floats, curves: Floats, at: Floats) -> Floats:
    """Log odds of a right answer = a + b · log labels, b not below 0."""
    from scipy.special import expit, logit

    found: Floats = expit(_line(labels, logit(curves), at))
    return found


def _line(labels: Floats, values: Floats, at: Floats) -> Floats:
    """Straight lines through values (draws, K) over log(labels) in least squares, at other numbers: (draws, at)."""
    logs = np.log(labels)
    middle = logs.mean()
    slopes = np.maximum(values @ (logs - middle) / np.square(logs - middle).sum(), 0.0)
    line: Floats = values.mean(axis=1)[:, None] + slopes[:, None] * (np.log(at) - middle)
    return line


def _power(labels: Floats, curves: Floats, at: Floats) -> Floats:
    """Error = a + b · labels ** -c with a, b and c not below 0; relative errors are what is made least."""
    errors = 1 - curves
    best, found = np.full(len(curves), np.inf), np.zeros((len(curves), len(at)))
    for exponent in np.linspace(MAX_EXPONENT / EXPONENTS, MAX_EXPONENT, EXPONENTS):
        falling = labels**-exponent / errors  # divided by the errors, as are the ones below and what is to be met, 1
        ones = 1 / errors
        ff, oo, fo = (falling**2).sum(1), (ones**2).sum(1), (falling * ones).sum(1)
        f1, o1 = falling.sum(1), ones.sum(1)
        floor = np.maximum((o1 * ff - f1 * fo) / np.maximum(oo * ff - fo**2, 1e-300), 0.0)
        scale = np.maximum((f1 - floor * fo) / ff, 0.0)
        missed = np.square(floor[:, None] * ones + scale[:, None] * falling - 1).sum(1)
        better = missed < best
        best[better] = missed[better]
        found[better] = 1 - floor[better, None] - scale[better, None] * at**-exponent
    return _cut(found)


FORMS: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {"probit": _probit, "logit": _logit, "power": _power}
"""The forms that a curve may have: called with labels (K), accuracies (draws, K) and other numbers of labels (M)."""
FORM = "probit"
"""The form of the forecast; the others are only in its interval."""
