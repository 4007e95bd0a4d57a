"""Compares two sets of answers on the same images and puts the result in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from finetune.report.cross_validation import difference_over_folds
from finetune.report.crossed import (
    Estimate,
    Variance,
    crossed_difference,
    detectable,
    images_for,
    seeds_for,
    unpaired_difference,
)
from finetune.report.metrics import METRICS, PLAIN, Answers, answers_difference, find_metric
from finetune.report.rows import MIN_SEEDS, row_of
from finetune.report.statistics import (
    Booleans,
    Integers,
    accuracy_interval,
    effective_images,
    group_count,
    mcnemar_detectable,
    mcnemar_images,
    paired_difference,
)

Verdict = Literal["helps", "better", "no difference shown", "worse", "hurts"]
Design = Literal["images", "seeds x images", "folds"]
SIGNIFICANT = 0.05
"""A difference is called shown when the p-value is below this."""
ACCURACY = "accuracy"
NOTHING_LEARNT = ": it may have learnt nothing"
POWER_REACH = 1.43  # what is shown 4 times in 5, in half-widths of a 95 % interval: (1.96 + 0.84) / 1.96
IMAGES: Design = "images"
CROSSED: Design = "seeds x images"
FOLDS: Design = "folds"


@dataclass(frozen=True)
class Score:
    """How one classifier did on a test set; fractions, not percentages."""

    correct: int
    total: int
    accuracy: float
    ci95: tuple[float, float]
    """Of one training the Wilson interval over other test images; of several, over other trainings and images."""
    groups: int | None = None
    """Groups of images, by which the interval is; None where no two images share one."""
    effective_images: float | None = None
    """As how many images without groups those of one training count in `ci95`; None without groups."""

    @classmethod
    def of(cls, right: Booleans, groups: Integers | None = None) -> Self:
        """From a boolean array of shape (images,): whether each image was named rightly. ValueError when empty.

        groups: each image's group, int, (images,).
        """
        if right.dtype != np.bool_ or right.ndim != 1:
            raise ValueError(f"expected booleans of shape (images,), got {right.dtype} of shape {right.shape}")
        correct, total = int(np.count_nonzero(right)), len(right)
        ci95 = accuracy_interval(right, groups)
        return cls(correct, total, correct / total, ci95, group_count(groups), effective_images(right, groups))


@dataclass(frozen=True)
class ForOnePoint:
    """What would show a true difference of one point with 80 % power: that many test images, or that many seeds.

    Each with the other as it is; None where no number would do, or where it is not known.
    """

    images: int | None
    seeds: int | None


@dataclass(frozen=True)
class Comparison:
    """The second classifier against the first, on the same test images; fractions, not percentages."""

    difference: float
    """Accuracy of the second minus accuracy of the first; over seeds, of their means."""
    ci95: tuple[float, float]
    """Design `images`: Newcombe's over other test images. `seeds x images`: over other trainings too. `folds`: over
    folds, each another training and other test images, and no narrower than over images (`cross_validation`)."""
    p_value: float
    """Two-sided; it decides the verdict. `images`: mid-p of McNemar's test, or of turning groups of images around. Else
    dual to the interval."""
    verdict: Verdict
    exact_p_value: float | None = None
    """Exact conditional McNemar test, or of groups, where one training was compared with one."""
    design: Design = IMAGES
    seeds: int = 1
    """Trainings of each procedure; of design `folds` the number of folds."""
    shots_vary: bool = False
    """Each seed learnt from labelled images of its own choice, so that `variance.training` holds that too."""
    variance: Variance | None = None
    """Components of one answer's variance, of several seeds."""
    uncertainty: Variance | None = None
    """Which share of the variance of `difference` each of them makes."""
    detectable: float | None = None
    """The smallest true difference that this test shows with 80 % power."""
    one_point: ForOnePoint | None = None
    metric: str = ACCURACY
    groups: int | None = None
    """Groups of test images, by which interval and test are; None where no two images share one."""


def compare(first_right: Booleans, second_right: Booleans, groups: Integers | None = None) -> Comparison:
    """Whether the second training did better than the first; both arrays as in `statistics.paired_difference`.

    The verdict follows the p-value alone, and is about these two trainings. The interval comes from another method, so
    near the border it may leave out zero while the verdict is 'no difference shown' (or, with very few images told
    apart, hold zero while the verdict is another). Then `sentence` says so.
    """
    pair = paired_difference(first_right, second_right, groups)
    effect = pair.design_effect
    differing, images = (pair.only_first + pair.only_second) / effect, len(first_right) / effect
    return Comparison(
        difference=pair.difference,
        ci95=pair.ci95,
        p_value=pair.mid_p,
        exact_p_value=pair.exact_p,
        verdict=_verdict(pair.difference, pair.mid_p, seeds=1),
        detectable=mcnemar_detectable(differing, images),
        one_point=ForOnePoint(math.ceil(mcnemar_images(differing, images) * effect), None),
        groups=group_count(groups),
    )


def compare_over_seeds(
    first_right: Booleans,
    second_right: Booleans,
    groups: Integers | None = None,
    *,
    paired: bool | None = None,
    shots_vary: bool = False,
) -> Comparison:
    """Whether the second procedure does better than the first; both of shape (seeds, images).

    paired: row k of both is of the same seed; by default where there are as many of both. One of them may have a single
    row: weights that were not trained. Trainings and images, or groups of images (int, (images,)), are crossed
    (`crossed`), and the verdict follows from the p-value, which agrees with the interval. With one row in both it is
    `compare`.
    """
    if len(first_right) == len(second_right) == 1:
        return compare(first_right[0], second_right[0], groups)
    paired = len(first_right) == len(second_right) if paired is None else paired
    estimate = (crossed_difference if paired else unpaired_difference)(first_right, second_right, groups)
    return Comparison(
        difference=estimate.mean,
        ci95=estimate.ci95,
        p_value=estimate.p_value,
        verdict=_verdict(estimate.mean, estimate.p_value, seeds=estimate.seeds),
        design=CROSSED,
        seeds=estimate.seeds,
        shots_vary=shots_vary,
        variance=estimate.variance,
        uncertainty=_shares(estimate),
        detectable=found if (found := detectable(estimate)) <= 1 else None,
        one_point=ForOnePoint(images_for(estimate), seeds_for(estimate)),
        groups=estimate.groups,
    )


def compare_answers(
    first: Sequence[Answers], second: Sequence[Answers], metric: str = ACCURACY, *, shots_vary: bool = False
) -> Comparison | None:
    """Whether the second procedure does better than the first by a metric, from the answers of each seed's training.

    All are answers to the same images in the same order; with as many seeds in both they are paired. None where the
    metric is not defined.
    """
    if metric == ACCURACY:
        tables = [np.stack([answers.right for answers in side]) for side in (first, second)]
        return compare_over_seeds(tables[0], tables[1], first[0].groups, shots_vary=shots_vary)
    found, seeds = answers_difference(metric, first, second), len(second)
    if found.difference is None or found.ci95 is None or found.p_value is None:
        return None
    half = (found.ci95[1] - found.ci95[0]) / 2
    return Comparison(
        difference=found.difference,
        ci95=found.ci95,
        p_value=found.p_value,
        verdict=_verdict(_sign(metric) * found.difference, found.p_value, seeds=seeds),
        design=IMAGES if seeds == 1 else CROSSED,
        seeds=seeds,
        shots_vary=shots_vary,
        detectable=POWER_REACH * half,
        metric=metric,
        groups=group_count(first[0].groups),
    )


def compare_folds(
    first: Answers, second: Answers, folds: Integers, metric: str = ACCURACY, *, shots_vary: bool = False
) -> Comparison | None:
    """Whether the second procedure does better than the first by a metric, cross-validated.

    first, second: answers to the same images, each by the training of its fold. folds: each image's, int, N. None where
    the metric is not defined in every fold.
    """
    found, trainings = difference_over_folds(metric, first, second, folds), len(np.unique(folds))
    if found.difference is None or found.ci95 is None or found.p_value is None:
        return None
    power = POWER_REACH * (found.ci95[1] - found.ci95[0]) / 2
    return Comparison(
        difference=found.difference,
        ci95=found.ci95,
        p_value=found.p_value,
        verdict=_verdict(_sign(metric) * found.difference, found.p_value, seeds=trainings),
        design=FOLDS,
        seeds=trainings,
        shots_vary=shots_vary,
        detectable=power if power <= 1 or metric in PLAIN else None,
        metric=metric,
    )


def _sign(metric: str) -> int:
    """1 where more of a metric is better, -1 where less is."""
    return 1 if find_metric(metric).higher_is_better else -1


def distinct(table: Booleans) -> Booleans:
    """The table (seeds, images) itself; one row of it where all are the same, as they are where nothing is trained."""
    return table[:1] if bool((table == table[:1]).all()) else table


def _verdict(difference: float, p_value: float, *, seeds: int) -> Verdict:
    """The rule of every comparison: a p-value below SIGNIFICANT shows a difference; enough seeds may name a cause."""
    if p_value >= SIGNIFICANT:
        return "no difference shown"
    if seeds < MIN_SEEDS:
        return "better" if difference > 0 else "worse"
    return "helps" if difference > 0 else "hurts"


def _shares(estimate: Estimate) -> Variance:
    """Each component's share of the variance of the mean."""
    found, units = estimate.variance, estimate.units
    parts = (found.training / estimate.seeds, found.images / units, found.residual / (estimate.seeds * units))
    total = sum(parts)
    return Variance(*(part / total if total else 0.0 for part in parts))


def is_told(comparison: Comparison, against: str) -> bool:
    """Whether a comparison gets a sentence: beating what any weights should beat is not worth one."""
    return not (row_of(against).floor and comparison.verdict in ("better", "helps"))


def comparison_from(values: Any) -> Comparison | None:
    """A comparison from the JSON of a report, which anybody may have written; None where it is none.

    Older reports spoke of a cause after one training; that is taken back.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        found = TypeAdapter(Comparison).validate_python(values)
    except ValidationError:
        return None
    if found.metric not in METRICS:  # of a later version
        return None
    if found.verdict == "no difference shown":
        return found
    return replace(found, verdict=_verdict(_sign(found.metric) * found.difference, found.p_value, seeds=found.seeds))


def sentences(
    comparisons: Mapping[str, Comparison | None], commonest: str | None = None, *, learnt: bool = False
) -> list[str]:
    """What a report's comparisons show, in words; their keys are such as after_vs_scratch.

    A row that is not shown to beat a floor gets no praise for beating another. commonest: the class that the floor
    always names. learnt: other numbers show that the row has learnt something all the same.
    """
    always = f"always answering {commonest!r}" if commonest is not None else "always naming the commonest class"
    pairs = [(*key.partition("_vs_")[::2], found) for key, found in comparisons.items() if found is not None]
    beaten = all(not row_of(against).floor or not is_told(found, against) for _, against, found in pairs)
    said = []
    for of, against, found in pairs:
        if against and is_told(found, against):
            unbeaten = always if row_of(against).floor or not beaten else None
            text = sentence(found, of, against, unbeaten=unbeaten)
            said.append(text.removesuffix(NOTHING_LEARNT) if learnt else text)
    return said


def sentence(comparison: Comparison, of: str, against: str, *, unbeaten: str | None = None) -> str:
    """One plain sentence in percentage points about row `of` (the second) against row `against` (the first).

    Both are keys of a report's rows. It claims a cause only where there is one and enough seeds show it. unbeaten: what
    `of` is not shown to be better than, and anybody could do; then it is not praised for beating `against`.
    """
    cause, floor = row_of(against).cause, row_of(against).floor
    of, against = row_of(of).title, unbeaten if floor and unbeaten is not None else row_of(against).title
    over = {IMAGES: _images_text(comparison), FOLDS: f"{comparison.seeds} folds"}.get(
        comparison.design, f"{comparison.seeds} seeds and the {_images_text(comparison)}"
    )
    spread = f"95 % interval {{}} to {{}} over {over}, {p_text(comparison.p_value)}"
    metric, sign = comparison.metric, _sign(comparison.metric)  # from here on more is better
    lower, upper = sorted(sign * end for end in comparison.ci95)
    points = _unit(metric)
    if comparison.verdict == "no difference shown":
        ends_shown = spread.format(_signed(metric, lower), _signed(metric, upper))
        between = f"{_signed(metric, sign * comparison.difference)} {points}, {ends_shown}"
        if floor:
            return f"{of} is not shown to be better than {against} ({between}){NOTHING_LEARNT}"
        return (
            f"no difference shown between {of} and {against} ({between}): {_remaining_range(metric, of, lower, upper)}"
            f"{_power_text(comparison)}{_source_text(comparison)}"
        )
    better = comparison.verdict in ("helps", "better")
    size = abs(comparison.difference)
    ends = (lower, upper) if better else (-upper, -lower)
    shown_ends = (_points(metric, ends[0]), _points(metric, ends[1]))
    gap = f"by {_points(metric, size)} {points} ({spread.format(*shown_ends)})"
    conclusion = _conclusion(comparison, cause, of, better=better)
    if better and unbeaten is not None and not floor:
        conclusion = f"yet it is not shown to be better than {unbeaten}"
    if ends[0] <= 0:
        conclusion += ", narrowly: the interval still has 0 in it"
    return f"{of} {'beats' if better else 'falls behind'} {against} {gap}: {conclusion}{_source_text(comparison)}"


def groups_line(images: int, groups: int | None, effective: float | None = None) -> str | None:
    """That intervals and tests are by groups of images, as in '1,920 test images in 160 groups: ...'; None without.

    effective: as how many images without groups they count in an accuracy's interval.
    """
    if groups is None:
        return None
    worth = "" if effective is None else f", worth about {max(1, round(effective)):,} single ones here"
    which = "one group" if groups == 1 else f"{groups:,} groups"
    return f"{images:,} test images in {which}{worth}: intervals and tests are by groups"


def _images_text(comparison: Comparison) -> str:
    """What the test images are as a sample: images, or groups of them."""
    if comparison.groups is None:
        return "test images"
    return f"{comparison.groups:,} {'group' if comparison.groups == 1 else 'groups'} of test images"


def _conclusion(comparison: Comparison, cause: str | None, of: str, *, better: bool) -> str:
    """What a shown difference says, and what would settle what it cannot."""
    if comparison.verdict in ("helps", "hurts"):
        return f"{cause} {comparison.verdict}" if cause else f"{of} is {'better' if better else 'worse'}"
    did = "better" if better else "worse"
    if not cause:
        return f"{of} did {did}"
    found = "this training did" if comparison.seeds == 1 else f"these {comparison.seeds} trainings did"
    more = "folds" if comparison.design == FOLDS else "seeds"
    effect = "helps" if better else "hurts"
    return f"{found} {did}; whether {cause} {effect} takes {MIN_SEEDS} {more} or more: --{more} 5"


def _remaining_range(metric: str, of: str, lower: float, upper: float) -> str:
    """What the interval leaves possible when no difference was shown: no proof that the two are equal."""
    if lower > 0 or upper < 0:
        nearer, farther = sorted((abs(lower), abs(upper)))
        way = "better" if lower > 0 else "worse"
        return (
            f"too close to call, as the interval has {of} {_points(metric, nearer)} to {_points(metric, farther)} "
            f"{_unit(metric)} {way} "
            f"but the test is not below p = {SIGNIFICANT}"
        )
    worse, better, unit = _points(metric, -lower), _points(metric, upper), _unit(metric)
    return f"{of} may still be anything from {worse} {unit} worse to {better} {unit} better"


def _power_text(comparison: Comparison) -> str:
    """What the test would have shown, and what one point would take."""
    if comparison.detectable is None:
        images = "test images" if comparison.groups is None else "groups of test images"
        few = {IMAGES: images, FOLDS: "folds"}.get(comparison.design, "seeds")
        return f"; so few {few} show no difference at all"
    shown = f"{_points(comparison.metric, comparison.detectable)} {_unit(comparison.metric)}"
    found = f"; a true difference of {shown} would have been shown 4 times in 5"
    needed = comparison.one_point
    such = "" if comparison.groups is None else " in such groups"
    ways = [] if needed is None or needed.images is None else [f"{needed.images:,} test images{such}"]
    ways += [] if needed is None or needed.seeds is None else [f"{needed.seeds:,} seeds"]
    if ways:
        return f"{found}, and one of 1 point with {' or '.join(ways)}"
    return f"{found}; one of 1 point takes more of both, seeds and test images" if needed is not None else found


def _source_text(comparison: Comparison) -> str:
    """Which share of the uncertainty comes from where, over seeds."""
    if comparison.uncertainty is None:
        return ""
    training = "training and the choice of shots" if comparison.shots_vary else "training"
    shares = comparison.uncertainty
    images = f"{100 * (shares.images + shares.residual):.0f} % the {_images_text(comparison)}"
    return f" (of the uncertainty {100 * shares.training:.0f} % is {training}, {images})"


def _unit(metric: str) -> str:
    """What a difference of a metric is counted in."""
    return "points" if metric == ACCURACY else f"{'' if metric in PLAIN else 'points of '}{find_metric(metric).title}"


def _points(metric: str, value: float, sign: str = "") -> str:
    """Percentage points, as in '1.80'; of log loss and AUROC the number itself."""
    shown, digits = (value, 4) if metric in PLAIN else (100 * value, 2)
    return f"{round(shown, digits) + 0.0:{sign}.{digits}f}"  # + 0.0 turns -0.0 into 0.0


def _signed(metric: str, value: float) -> str:
    return _points(metric, value, "+")


def p_text(p_value: float) -> str:
    """'p = 0.0312' or 'p < 0.0001'; never rounded across the border that decides the verdict."""
    if p_value < 0.0001:
        return "p < 0.0001"
    digits = 4
    while (round(p_value, digits) < SIGNIFICANT) != (p_value < SIGNIFICANT):
        digits += 1
    return f"p = {p_value:.{digits}f}"
