"""`finetune compare`: the paired verdict of one classifier against another, from files of predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import DataError, SettingError
from finetune.io.sanitize import printable
from finetune.io.text_path import to_path
from finetune.report.comparison import Comparison, Verdict, compare_folds, compare_over_seeds, sentence
from finetune.report.cross_validation import accuracy_over_folds, difference_over_folds
from finetune.report.crossed import Floats, crossed_mean
from finetune.report.metrics import METRICS, POSITIVE, Answers, answers_difference, applicable_metrics, find_metric
from finetune.report.predictions import Predictions, read_predictions
from finetune.report.report import json_values
from finetune.report.rows import ADAPT_ROWS, row_of
from finetune.report.statistics import Booleans, Integers, accuracy_interval, group_count
from finetune.text import listed, name_hint, places_of

DEFAULT_ROW = "after"
UNTRAINED = ("majority", "before")
MAX_NAMED = 5  # images in one message


@dataclass(frozen=True)
class ComparedRow:
    """One side of a comparison. `seeds` is empty where there is one training; `accuracy` is the mean over them."""

    file: str
    row: str
    seeds: list[int]
    accuracy: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class ComparedMetric:
    """A metric of both sides, and second minus first with its 95 % interval and p-value; None where not defined."""

    first: float | None
    second: float | None
    difference: float | None
    ci95: tuple[float, float] | None
    p_value: float | None
    higher_is_better: bool


@dataclass(frozen=True)
class RowComparison:
    """The second row against the first, on the same images.

    paired: the trainings of a seed belong together. only_first, only_second: images that only one of the two named
    rightly, a mean over pairs of trainings. comparison: of accuracies. metric: the one asked about. positive: of two
    classes, the one that sensitivity is about: the second by name. note: what the verdict does not cover. groups: of
    images, by which intervals and tests are; None where no two images share one. folds: of a cross-validation in which
    both were tested; None else.
    """

    first: ComparedRow
    second: ComparedRow
    images: int
    paired: bool
    only_first: float
    only_second: float
    comparison: Comparison
    metric: str
    metrics: dict[str, ComparedMetric]
    positive: str | None
    note: str | None = None
    folds: int | None = None
    groups: int | None = None

    @property
    def sentence(self) -> str:
        """The verdict in words, where A is the first and B the second; or by their rows where a cause may be named."""
        caused = self.first.file == self.second.file and self.second.row == DEFAULT_ROW
        if caused and self.first.row in ADAPT_ROWS:
            return sentence(self.comparison, self.second.row, self.first.row)
        return sentence(self.comparison, "B", "A")

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values, the verdict in words among them."""
        return json_values(asdict(self) | {"sentence": self.sentence})


def compare(
    first: str | Path,
    second: str | Path | None = None,
    *,
    row: str | None = None,
    against: str | None = None,
    metric: str = "accuracy",
) -> RowComparison:
    """Compares the second classifier with the first, on the images of their files of predictions.

    first, second: the files; without `second` both rows are of the first. row: of the second, by default `after`, or
    the only one of its file. against: of the first, by default the same row. metric: a name of `report.metrics.METRICS`
    that the files are enough for: they have the probability of the predicted class alone.

    Of several seeds all count: trainings and images are crossed. Seeds pair up within one file; two files are two
    experiments. Rows that were cross-validated in the same folds are compared over these. The order of images is free.
    Where a file has groups of images, intervals and tests are by groups, for both. DataError where a file is wrong or
    the two are not of the same images, labels and groups; SettingError where rows or metric are not to be had.
    """
    find_metric(metric)
    if second is None and against is None:
        raise SettingError("compare: expected two files of predictions, or one and --against ROW, another row of it")
    first = to_path(first, DataError)
    one = read_predictions(first)
    same = second is None or to_path(second, DataError).resolve() == first.resolve()
    other = one if same or second is None else read_predictions(second)
    second = first if second is None else second
    row = _chosen_row(other, second, row, "--row")
    against = _chosen_row(
        one, first, against if against is not None else (row if row in one.rows else None), "--against"
    )
    if same and row == against:
        raise SettingError(f"compare: {first}: row {row} against itself; name another row with --against")
    if not same:
        _check_same_images(one, other, str(first), str(second))
        _check_same_groups(one, other, str(first), str(second))
    places = {image: place for place, image in enumerate(other.images)}
    order = np.array([places[image] for image in one.images])
    names = tuple(sorted({*one.class_names, *other.class_names}))
    groups = _groups(one, other, order)
    firsts, seconds = _answers(one, against, names, None, groups), _answers(other, row, names, order, groups)
    folds = _same_folds(one, other, order) if len(firsts) == len(seconds) == 1 else None
    paired = same and one.seeds(against) == other.seeds(row)
    fixed = _single_training([(against, firsts), (row, seconds)])
    return RowComparison(
        _compared_row(str(first), against, one, firsts, folds),
        _compared_row(str(second), row, other, seconds, folds),
        len(one.images),
        paired,
        *_only_one_right(firsts, seconds, paired=paired),
        comparison := _compare_rights(firsts, seconds, folds, paired=paired, fixed=fixed),
        metric,
        _compared_metrics(firsts, seconds, comparison, metric, folds, paired=paired),
        names[POSITIVE] if len(names) == 2 else None,
        "; ".join(_notes(one, other, firsts, folds, fixed=fixed)) or None,
        groups=group_count(groups),
        folds=None if folds is None else len(np.unique(folds)),
    )


def _groups(one: Predictions, other: Predictions, order: Any) -> Integers | None:
    """Each image's group as a number, in the order of `one`: by the file that has groups; None where neither has."""
    names = one.groups or tuple(other.groups[place] for place in order if other.groups)
    if not names:
        return None
    number: dict[str | int, int] = {}
    return np.array([number.setdefault(name or place, len(number)) for place, name in enumerate(names)], dtype=np.int64)


def _same_folds(one: Predictions, other: Predictions, order: Any) -> Integers | None:
    """The fold of each image, in the order of `one`; None unless both were cross-validated, in the same folds."""
    if one.folds is None or other.folds is None or not np.array_equal(one.folds, other.folds[order]):
        return None
    return one.folds if len(np.unique(one.folds)) > 1 else None


def _notes(
    one: Predictions, other: Predictions, firsts: Sequence[Answers], folds: Integers | None, *, fixed: bool
) -> Iterator[str]:
    """What the verdict does not cover, and where its groups are from."""
    if fixed:
        yield f"the luck of the one training of {'AB'[len(firsts) > 1]} is not covered; more seeds of it would"
    elif folds is None and (one.folds is not None or other.folds is not None):
        yield "not cross-validated in the same folds: this is over images, and the luck of trainings is not covered"
    if bool(one.groups) != bool(other.groups):
        known = "A" if one.groups else "B"
        yield f"only the file of {known} says which images belong together; its groups count for both"


def _single_training(sides: Sequence[tuple[str, Sequence[Answers]]]) -> bool:
    """Whether one side is a single training and the other several. Rows that nothing trains are none."""
    counts = [len(answers) for _, answers in sides]
    return min(counts) == 1 < max(counts) and any(len(answers) == 1 and row not in UNTRAINED for row, answers in sides)


def _chosen_row(found: Predictions, path: str | Path, row: str | None, option: str) -> str:
    """The row asked for, else `after`, else the only one."""
    if row is None:
        if DEFAULT_ROW in found.rows or len(found.rows) == 1:
            return DEFAULT_ROW if DEFAULT_ROW in found.rows else found.rows[0]
        raise SettingError(f"{path}: which row? Name it with {option}; its rows are {_named(found.rows)}")
    if row not in found.rows:
        raise SettingError(f"{path}: no row {row!r}{name_hint(row, map(printable, found.rows), 'its rows')}")
    return row


def _named(names: Sequence[str]) -> str:
    return listed(printable(name) for name in names)


def _check_same_images(one: Predictions, other: Predictions, first: str, second: str) -> None:
    """DataError unless both are of the same images with the same labels."""
    faults = []
    for own, path, theirs, elsewhere in ((one, first, other, second), (other, second, one, first)):
        held = set(theirs.images)
        if missing := [image for image in own.images if image not in held]:
            count = f"{len(missing):,} of {len(own.images):,}"
            faults.append(f"{count} images of {path} are not in {elsewhere}: {_some(missing)}")
    if faults:
        raise DataError(
            f"{first} and {second} are not of the same images: {'; '.join(faults)}; "
            "expected predictions for one test set"
        )
    given = dict(zip(other.images, (other.class_names[i] for i in other.labels), strict=True))
    labels = ((image, one.class_names[i]) for image, i in zip(one.images, one.labels, strict=True))
    if differing := [f"{image} ({label}, {given[image]})" for image, label in labels if given[image] != label]:
        raise DataError(
            f"{first} and {second} label {len(differing):,} of {len(one.images):,} images differently: "
            f"{_some(differing)}; expected predictions for one test set"
        )


def _check_same_groups(one: Predictions, other: Predictions, first: str, second: str) -> None:
    """DataError where both have groups of images, and others."""
    if not one.groups or not other.groups:
        return
    given = dict(zip(other.images, other.groups, strict=True))
    groups = zip(one.images, one.groups, strict=True)
    if differing := [
        f"{image} ({own or 'none'}, {given[image] or 'none'})" for image, own in groups if given[image] != own
    ]:
        raise DataError(
            f"{first} and {second} put {len(differing):,} of {len(one.images):,} images into other groups: "
            f"{_some(differing)}; expected one grouping; leave the column group out of one file to count by the other's"
        )


def _some(names: Sequence[str]) -> str:
    return _named(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else "")


def _answers(found: Predictions, row: str, names: Sequence[str], order: Any, groups: Integers | None) -> list[Answers]:
    """What each training of a row said, its classes renumbered to those of `names` and its images put in order."""
    place = np.array(places_of(found.class_names, names))
    chosen = slice(None) if order is None else order
    answers = []
    for seed in found.seeds(row):
        column = found.columns[row, seed]
        confidence = None if column.probability is None else column.probability[chosen]
        labels, predicted = place[found.labels[chosen]], place[column.predicted[chosen]]
        answers.append(Answers.of_predictions(labels, predicted, len(names), confidence, groups))
    return answers


def _compared_row(
    file: str, row: str, found: Predictions, answers: Sequence[Answers], folds: Integers | None
) -> ComparedRow:
    rights = _rights(answers)
    seeds = [seed for seed in found.seeds(row) if seed is not None]
    groups = answers[0].groups
    interval = accuracy_interval(rights[0], groups) if len(rights) == 1 else crossed_mean(rights, groups).ci95
    if folds is not None:
        own = [rights[0][folds == fold] for fold in np.unique(folds)]
        interval = accuracy_over_folds([(int(right.sum()), len(right)) for right in own], interval)
    return ComparedRow(file, row, seeds, float(rights.mean()), interval)


def _rights(answers: Sequence[Answers]) -> Booleans:
    """Trainings × images: whether each named each image rightly."""
    return np.stack([given.right for given in answers])


def _only_one_right(first: Sequence[Answers], second: Sequence[Answers], *, paired: bool) -> tuple[float, float]:
    ones, others = _rights(first).astype(np.float64), _rights(second).astype(np.float64)
    if not paired:  # of all pairs of trainings
        ones, others = ones.mean(0, keepdims=True), others.mean(0, keepdims=True)
    return _count(ones * (1 - others)), _count((1 - ones) * others)


def _count(shares: Floats) -> float:
    return float(shares.sum() / len(shares))


def _compare_rights(
    first: Sequence[Answers], second: Sequence[Answers], folds: Integers | None, *, paired: bool, fixed: bool
) -> Comparison:
    """The accuracies, compared over trainings and images; no cause is claimed where a single training is `fixed`."""
    if folds is not None:
        over_folds = compare_folds(first[0], second[0], folds)
        assert over_folds is not None, "every fold has an accuracy"
        return over_folds
    found = compare_over_seeds(_rights(first), _rights(second), first[0].groups, paired=paired)
    caps: dict[Verdict, Verdict] = {"helps": "better", "hurts": "worse"}
    return replace(found, verdict=caps.get(found.verdict, found.verdict)) if fixed else found


def _compared_metrics(
    first: Sequence[Answers],
    second: Sequence[Answers],
    accuracy: Comparison,
    asked: str,
    folds: Integers | None,
    *,
    paired: bool,
) -> dict[str, ComparedMetric]:
    """Every metric that both sides are enough for, in the order of METRICS. SettingError where `asked` is not one."""
    common = [
        name for name in applicable_metrics(first[0]) if all(name in applicable_metrics(a) for a in (*first, *second))
    ]
    if asked not in common:
        raise SettingError(f"--metric {asked}: these files are not enough for it; expected one of {listed(common)}")
    metrics = {}
    for name in common:
        metric = METRICS[name]
        if folds is not None:
            found = difference_over_folds(name, first[0], second[0], folds)
        else:
            found = answers_difference(name, first, second, paired=paired or len(first) == len(second) == 1)
        interval, p_value = found.ci95, found.p_value
        if name == "accuracy":
            interval, p_value = accuracy.ci95, accuracy.p_value
        a, b = (_mean([metric.value(given) for given in side]) for side in (first, second))
        metrics[name] = ComparedMetric(a, b, found.difference, interval, p_value, metric.higher_is_better)
    return metrics


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def row_title(side: ComparedRow) -> str:
    """As in 'after of b.csv, seeds 0, 1, 2'."""
    seeds = f", seeds {listed(map(str, side.seeds))}" if len(side.seeds) > 1 else ""
    return f"{row_of(side.row).title} of {side.file}{seeds}"
