"""Metrics of a classifier beyond accuracy, each with a 95 % interval, and their paired differences.

A new metric is an entry of METRICS, its value function, and its influence function: the infinitesimal jackknife, which
is the variance of a bootstrap over images in closed form, exact and the same every time. Where images come in groups
their influences are summed by group first, as if groups were drawn (`statistics.design_effect`). `python -m
finetune.report.metrics` prints the table of docs/reports.md.

Sources: B. Efron, Nonparametric estimates of standard error: the jackknife, the bootstrap and other methods, Biometrika
68 (1981) 589-599; for AUROC, E. R. DeLong et al., Comparing the areas under two or more correlated ROC curves,
Biometrics 44 (1988) 837-845; for macro-F1, K. Takahashi et al., Confidence interval for micro-averaged F1 and
macro-averaged F1 scores, Applied Intelligence 52 (2022) 4961-4972.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from finetune.errors import SettingError
from finetune.report import crossed
from finetune.report.statistics import Integers, accuracy_interval, design_effect, group_count, group_numbers, wilson
from finetune.text import listed, name_hint

Floats = npt.NDArray[np.floating[Any]]
Interval = tuple[float, float]
Needs = Literal["predictions", "confidence", "probabilities"]

PLAIN = ("auroc", "log_loss", "brier")  # shown as numbers, not in percent
HIGHEST = {"log_loss": math.inf, "brier": 2.0}  # of a metric's values, where it is not 1
BINS = 10  # of equal width, for the calibration error
SUM_TOLERANCE = 1e-3  # of the probabilities of an image, which are to sum to 1; half precision rounds so
POSITIVE = 1  # of two classes, the one that sensitivity is about


@dataclass(frozen=True, eq=False)
class Answers:
    """What a classifier said of N labelled images of C classes, checked.

    labels, predicted: int, N, 0 to C - 1. confidence: the probability of the predicted class, float, N, if known.
    probabilities: of all classes, float, N×C, if known. groups: each image's group, int, N, where images come in them.
    true_probability: that of the true class, float, N, where it is known and `probabilities` are too many to be kept.
    ValueError where any of this does not hold, and for N = 0.
    """

    labels: Integers
    predicted: Integers
    classes: int
    confidence: Floats | None = None
    probabilities: Floats | None = None
    groups: Integers | None = None
    true_probability: Floats | None = None

    def __post_init__(self) -> None:
        images = len(self.labels)
        if images == 0:
            raise ValueError("expected at least one image, got none")
        for name, values in (("labels", self.labels), ("predicted", self.predicted)):
            if values.shape != (images,) or not np.issubdtype(values.dtype, np.integer):
                raise ValueError(f"{name}: expected integers of shape ({images},), got {values.dtype} {values.shape}")
            if not 0 <= values.min() <= values.max() < self.classes:
                raise ValueError(f"{name}: expected 0 to {self.classes - 1}, got {values.min()} to {values.max()}")
        if self.groups is not None and (
            self.groups.shape != (images,) or not np.issubdtype(self.groups.dtype, np.integer)
        ):
            raise ValueError(f"groups: expected integers of shape ({images},), got {self.groups.shape}")
        for name, given, shape in (
            ("confidence", self.confidence, (images,)),
            ("true_probability", self.true_probability, (images,)),
            ("probabilities", self.probabilities, (images, self.classes)),
        ):
            if given is not None and given.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {given.shape}")
            if given is not None and not (given.min() >= 0 and given.max() <= 1 + SUM_TOLERANCE):  # so is NaN found
                raise ValueError(f"{name}: expected 0 to 1, got {given.min()} to {given.max()}")

    @classmethod
    def of(
        cls,
        labels: npt.ArrayLike,
        probabilities: npt.ArrayLike,
        predicted: Integers | None = None,
        groups: Integers | None = None,
    ) -> Answers:
        """From labels (int, N) and the probabilities of all classes (float, N×C), each row of which sums to 1.

        predicted: what was answered (int, N), where rounding may have made two probabilities equal.
        """
        true, given = np.asarray(labels), np.asarray(probabilities)
        if given.ndim != 2 or not np.issubdtype(given.dtype, np.floating):
            raise ValueError(f"probabilities: expected floats of shape (images, classes), got {given.dtype}")
        if given.dtype.itemsize < 4:
            given = given.astype(np.float32)
        sums = given.sum(1, dtype=np.float64)
        if len(sums) and not np.abs(sums - 1).max() <= SUM_TOLERANCE:
            raise ValueError(f"probabilities: expected rows that sum to 1, got {sums.min()} to {sums.max()}")
        if predicted is None:
            predicted = given.argmax(1) if given.size else np.zeros(0, np.int64)
        confidence = np.take_along_axis(given, predicted[:, None], 1)[:, 0] if given.size else None
        return cls(true, predicted, given.shape[1], confidence, given, groups)

    @classmethod
    def of_predictions(
        cls,
        labels: Integers,
        predicted: Integers,
        classes: int,
        confidence: Floats | None = None,
        groups: Integers | None = None,
    ) -> Answers:
        """From labels, predicted classes and, if known, their probabilities; of two classes that says all of them."""
        every = None
        if confidence is not None and classes == 2:
            second = np.where(predicted == POSITIVE, confidence, 1 - confidence)
            every = np.stack([1 - second, second], 1)
        return cls(labels, predicted, classes, confidence, every, groups)

    @cached_property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each image was named rightly."""
        return cast(npt.NDArray[np.bool_], self.labels == self.predicted)

    @cached_property
    def totals(self) -> Integers:
        """The images of each class: int, C."""
        return np.bincount(self.labels, minlength=self.classes)

    @cached_property
    def present(self) -> Integers:
        """The classes that have an image, which are those that count in means over classes."""
        return np.flatnonzero(self.totals)

    @cached_property
    def recalls(self) -> Floats:
        """The share of each class's images that was named rightly: C, 0 for a class without an image."""
        hits = np.bincount(self.labels[self.right], minlength=self.classes)
        return np.divide(hits, self.totals, out=np.zeros(self.classes), where=self.totals > 0)

    @cached_property
    def group_numbers(self) -> Integers | None:
        """Each image's group, from 0 without gaps: int, N; None where no two images share one."""
        return group_numbers(self.groups)

    @cached_property
    def freedom(self) -> float:
        """Degrees of freedom of a variance over groups of images; infinite, for the normal quantile, without groups."""
        count = group_count(self.groups)
        return math.inf if count is None else count - 1

    def design_effect(self, influence: Floats, size: float) -> float:
        """How many images count as one without groups, for a metric that each image moves so, a mean over `size`."""
        return 1.0 if self.group_numbers is None else design_effect(influence, self.group_numbers, 1 / size)

    @property
    def effective_images(self) -> float:
        """How many images a mean over classes is worth (Kish): N where all classes have as many, else fewer."""
        return float(len(self.present) ** 2 / (1 / self.totals[self.present]).sum())

    @cached_property
    def losses(self) -> crossed.Floats:
        """-log of the true class's probability, float64, N; clipped at the type's precision, as in scikit-learn."""
        true = self.true_probability
        if true is None:
            assert self.probabilities is not None
            true = np.take_along_axis(self.probabilities, self.labels[:, None], 1)[:, 0]
        smallest = np.finfo(true.dtype).eps
        return -np.log(np.clip(true, smallest, 1 - smallest).astype(np.float64))

    @cached_property
    def squares(self) -> crossed.Floats | None:
        """The squared distance between the probabilities of all classes and the truth, float64, N; None if unknown."""
        if self.probabilities is None:
            return None
        every = self.probabilities.astype(np.float64)
        true = np.take_along_axis(every, self.labels[:, None], 1)[:, 0]
        return cast(crossed.Floats, (every**2).sum(1) - 2 * true + 1)

    @cached_property
    def placements(self) -> tuple[Floats, Floats]:
        """The area under the ROC curve of each class that is told from the rest, and AUROC's influence of each image.

        An image's placement is the share of the other images, of the class or not, on its right side. All of a class
        follow from how many of the class's own images are below each image, and how many are equal.
        """
        assert self.probabilities is not None
        classes, found = _ranked_classes(self), np.zeros(len(self.labels))
        areas = np.zeros(len(classes))
        for place, c in enumerate(classes.tolist()):
            own, scores = self.labels == c, self.probabilities[:, c].copy()
            inside = np.sort(scores[own])
            size, rest = len(inside), len(scores) - len(inside)
            below, upto = np.searchsorted(inside, scores, "left"), np.searchsorted(inside, scores, "right")
            others = ~own
            # Of the class's k-th lowest image: how many others are below, and how many are not above.
            lower = np.bincount(upto[others], minlength=size + 1).cumsum()
            not_above = np.bincount(below[others], minlength=size + 1).cumsum()
            above = ((lower + not_above) / 2 / rest)[below[own]]
            under = 1 - (below + upto)[others] / 2 / size
            found[own] += (above - above.mean()) / size
            found[others] += (under - under.mean()) / rest
            areas[place] = above.mean()
        return areas, found / max(1, len(classes))

    def has(self, needs: Needs) -> bool:
        """Whether what a metric needs is known; probabilities that were too many to be kept are."""
        known = {"predictions": True, "confidence": self.confidence is not None}
        return known.get(needs, self.probabilities is not None or self.true_probability is not None)


@dataclass(frozen=True)
class MetricValue:
    """A metric's value and 95 % interval over other test images; the randomness of training is not covered.

    Fractions, but for log_loss, which is in nats. Both are None where the metric is not defined; `note` says why, or
    what was left out.
    """

    value: float | None
    ci95: Interval | None
    note: str | None = None


@dataclass(frozen=True)
class MetricDifference:
    """A metric of the second classifier minus that of the first, on the same images, as a mean over seeds.

    The 95 % interval and the two-sided p-value are over other test images and, where there are several seeds, over
    other trainings too; the interval leaves out 0 exactly where p is below 0.05. All are None where the metric is not
    defined.
    """

    metric: str
    difference: float | None
    ci95: Interval | None
    p_value: float | None


@dataclass(frozen=True)
class Metric:
    """One metric. `title` and `how` are shown; `needs` says what of a classifier's answers it is made from.

    value: the metric of answers, None where it is not defined. influence: how much each image moves it from its mean
    (N, which sum to 0); the sum of squares is the variance of the value over other images. interval: of answers and
    their value, None where one group of images is all there is. binary: for two classes only.
    """

    title: str
    how: str
    higher_is_better: bool
    needs: Needs
    value: Callable[[Answers], float | None]
    influence: Callable[[Answers], Floats]
    interval: Callable[[Answers, float], Interval | None]
    interval_how: str
    binary: bool = False


# --- accuracy, sensitivity, specificity, balanced accuracy


def _accuracy(answers: Answers) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(answers.labels, answers.predicted))


def _accuracy_influence(answers: Answers) -> Floats:
    return cast(Floats, (answers.right - answers.right.mean()) / len(answers.right))


def _accuracy_interval(answers: Answers, value: float) -> Interval:
    return accuracy_interval(answers.right, answers.groups)


def _recall(class_index: int) -> Callable[[Answers], float | None]:
    def value(answers: Answers) -> float | None:
        from sklearn.metrics import recall_score

        if not answers.totals[class_index]:
            return None
        return float(recall_score(answers.labels, answers.predicted, pos_label=class_index, zero_division=0))

    return value


def _recall_influence(class_index: int) -> Callable[[Answers], Floats]:
    def influence(answers: Answers) -> Floats:
        own = answers.labels == class_index
        return cast(
            Floats, np.where(own, answers.right - answers.recalls[class_index], 0.0) / answers.totals[class_index]
        )

    return influence


def _recall_interval(class_index: int) -> Callable[[Answers, float], Interval]:
    def interval(answers: Answers, value: float) -> Interval:
        own = answers.labels == class_index
        return accuracy_interval(answers.right[own], None if answers.groups is None else answers.groups[own])

    return interval


def _balanced_accuracy(answers: Answers) -> float:
    from sklearn.metrics import recall_score  # balanced_accuracy_score warns of a predicted class without an image

    score = recall_score(answers.labels, answers.predicted, labels=answers.present, average="macro", zero_division=0)
    return float(score)


def _balanced_accuracy_influence(answers: Answers) -> Floats:
    reach = len(answers.present) * answers.totals[answers.labels]
    return (answers.right - answers.recalls[answers.labels]) / reach


# --- macro-F1


def _macro_f1(answers: Answers) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(answers.labels, answers.predicted, labels=answers.present, average="macro", zero_division=0))


def _macro_f1_influence(answers: Answers) -> Floats:
    """From F1 = 2 hits / (images of the class + images taken for it), differentiated in each image's weight."""
    named = answers.totals + np.bincount(answers.predicted, minlength=answers.classes)
    hits = np.bincount(answers.labels[answers.right], minlength=answers.classes)
    f1 = np.divide(2 * hits, named, out=np.zeros(answers.classes), where=named > 0)
    per_image = np.divide(1.0, named, out=np.zeros(answers.classes), where=answers.totals > 0)
    labels, predicted = answers.labels, answers.predicted
    moved = 2 * answers.right * per_image[labels] - (f1 * per_image)[labels] - (f1 * per_image)[predicted]
    return cast(Floats, moved / len(answers.present))


def _score_interval(metric: str, most: int | None = 1) -> Callable[[Answers, float], Interval]:
    """The Wilson interval of as many images as explain the variance, but at most `most` times as many as there are.

    Unlike value ± 1.96 standard errors it stays within 0 to 1, and has a width where every image was named rightly.
    `most` None: one for each class, as each image is in the comparison of each class with the rest.
    """

    def interval(answers: Answers, value: float) -> Interval:
        influence, size = METRICS[metric].influence(answers), answers.effective_images
        effect, variance = answers.design_effect(influence, size), float((influence**2).sum())
        if variance > 0:
            size = min(size * (most or answers.classes), value * (1 - value) / variance)
        size /= effect
        return wilson(value * size, size, freedom=answers.freedom)

    return interval


# --- AUROC


def _ranked_classes(answers: Answers) -> Integers:
    """The classes to tell from the rest: those with an image, or of two the second, whose AUROC is the first's too."""
    if len(answers.present) == 1:
        return answers.present[:0]
    return np.array([POSITIVE]) if answers.classes == 2 else answers.present


def _auroc(answers: Answers) -> float | None:
    """None for images of one class, and where there are too many probabilities to have been kept."""
    if answers.probabilities is None or len(answers.present) == 1:
        return None
    return float(answers.placements[0].mean())


def _auroc_influence(answers: Answers) -> Floats:
    return answers.placements[1]


# --- log loss


def _log_loss(answers: Answers) -> float:
    return float(answers.losses.mean())


def _log_loss_influence(answers: Answers) -> Floats:
    return cast(Floats, (answers.losses - answers.losses.mean()) / len(answers.losses))


def _log_loss_interval(answers: Answers, value: float) -> Interval | None:
    return _mean_interval(answers, answers.losses, value)


def _mean_interval(answers: Answers, losses: crossed.Floats, value: float) -> Interval | None:
    """The t interval of a mean over images, corrected for skewness, as few with a great loss make most of it.

    Source: P. Hall, On the removal of skewness by transformation, J. R. Statist. Soc. B 54 (1992) 221-228.
    """
    if answers.freedom < 1:
        return None
    if answers.group_numbers is not None:
        losses = crossed.by_group(losses[None], answers.group_numbers)[0]
    images = len(losses)
    spread = float(losses.std(ddof=1)) if images > 1 else 0.0
    if spread <= 1e-12 * value:
        return value, value
    skewness = float(((losses - value) ** 3).mean()) / spread**3
    root, reach = math.sqrt(images), _t_quantile(images - 1)

    def moved(t: float) -> float:
        if abs(skewness) < 1e-6:
            return t / root
        cubed = 1 + skewness * (t / root - skewness / (6 * images))
        return (math.copysign(abs(cubed) ** (1 / 3), cubed) - 1) * 3 / skewness

    return max(0.0, value - moved(reach) * spread), value - moved(-reach) * spread


def _brier(answers: Answers) -> float | None:
    return None if answers.squares is None else float(answers.squares.mean())


def _brier_influence(answers: Answers) -> Floats:
    assert answers.squares is not None
    return cast(Floats, (answers.squares - answers.squares.mean()) / len(answers.squares))


def _brier_interval(answers: Answers, value: float) -> Interval | None:
    assert answers.squares is not None
    return _mean_interval(answers, answers.squares, value)


def _t_quantile(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


# --- calibration error


def _bins(answers: Answers) -> tuple[Integers, Floats]:
    """The bin of each image's confidence, and confidence minus right (1) or wrong (0), both N."""
    assert answers.confidence is not None
    confidence = np.clip(answers.confidence, 0, 1).astype(np.float64)
    return bin_numbers(confidence), confidence - answers.right


def bin_numbers(probability: Floats) -> Integers:
    """The bin of each probability (N), 0 to BINS - 1, as scikit-learn's `calibration_curve` has them."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probability)


def _calibration_error(answers: Answers) -> float:
    from sklearn.calibration import calibration_curve

    assert answers.confidence is not None
    right, confident = calibration_curve(answers.right.astype(int), np.clip(answers.confidence, 0, 1), n_bins=BINS)
    sizes = np.bincount(_bins(answers)[0], minlength=BINS)
    return float(np.average(np.abs(right - confident), weights=sizes[sizes > 0]))


def _calibration_error_influence(answers: Answers) -> Floats:
    bins, gaps = _bins(answers)
    sign = np.sign(np.bincount(bins, gaps, BINS))[bins]
    return cast(Floats, (sign * gaps - (sign * gaps).mean()) / len(gaps))


def _calibration_error_interval(answers: Answers, value: float) -> Interval:
    """Normal, from the bins' gaps; the lower end takes off the bias, as the noise of every gap counts upwards.

    The bias is that of folded normal gaps around the gap to expect without its noise.
    """
    from scipy.special import ndtr

    if answers.freedom < 1:
        return 0.0, 1.0
    bins, gaps = _bins(answers)
    images = len(bins)
    found = np.bincount(bins, gaps, BINS) / images
    variances = np.maximum(np.bincount(bins, gaps**2, BINS) / images**2 - found**2 / images, 1e-30)
    variances *= answers.design_effect(_calibration_error_influence(answers), images)
    deviations, expected = np.sqrt(variances), np.sqrt(np.maximum(found**2 - variances, 0))
    noise = deviations * math.sqrt(2 / math.pi) * np.exp(-(expected**2) / (2 * variances))
    bias = float((noise - 2 * expected * ndtr(-expected / deviations)).sum())
    quantile = 1.96 if answers.group_numbers is None else _t_quantile(answers.freedom)
    reach = quantile * math.sqrt(float(variances.sum()))
    return max(0.0, value - bias - reach), min(1.0, value + reach)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "accuracy",
        "the share of images named rightly",
        True,
        "predictions",
        _accuracy,
        _accuracy_influence,
        _accuracy_interval,
        "Wilson",
    ),
    "balanced_accuracy": Metric(
        "balanced accuracy",
        "the mean over classes of the share of the class's images named rightly",
        True,
        "predictions",
        _balanced_accuracy,
        _balanced_accuracy_influence,
        _score_interval("balanced_accuracy"),
        "Wilson of as many images as explain its variance",
    ),
    "macro_f1": Metric(
        "macro-F1",
        "the mean over classes of F1, the harmonic mean of precision and recall",
        True,
        "predictions",
        _macro_f1,
        _macro_f1_influence,
        _score_interval("macro_f1"),
        "Wilson of as many images as explain its variance (Takahashi)",
    ),
    "sensitivity": Metric(
        "sensitivity",
        "of two classes, the share of the second's images, the positive ones, named rightly",
        True,
        "predictions",
        _recall(POSITIVE),
        _recall_influence(POSITIVE),
        _recall_interval(POSITIVE),
        "Wilson",
        binary=True,
    ),
    "specificity": Metric(
        "specificity",
        "of two classes, the share of the first's images, the negative ones, named rightly",
        True,
        "predictions",
        _recall(1 - POSITIVE),
        _recall_influence(1 - POSITIVE),
        _recall_interval(1 - POSITIVE),
        "Wilson",
        binary=True,
    ),
    "auroc": Metric(
        "AUROC",
        "the chance that an image of a class gets a higher probability of it than another image, a mean over classes",
        True,
        "probabilities",
        _auroc,
        _auroc_influence,
        _score_interval("auroc", most=None),
        "Wilson of as many images as explain its variance (DeLong)",
    ),
    "log_loss": Metric(
        "log loss",
        "the mean of -log(probability of the true class), in nats",
        False,
        "probabilities",
        _log_loss,
        _log_loss_influence,
        _log_loss_interval,
        "t, corrected for skewness (Hall)",
    ),
    "brier": Metric(
        "Brier score",
        "the mean squared distance between the probabilities of all classes and the truth, 0 to 2",
        False,
        "probabilities",
        _brier,
        _brier_influence,
        _brier_interval,
        "t, corrected for skewness (Hall)",
    ),
    "calibration_error": Metric(
        "calibration error",
        f"confidence minus accuracy, without sign, a mean over images in {BINS} equal bins of confidence",
        False,
        "confidence",
        _calibration_error,
        _calibration_error_influence,
        _calibration_error_interval,
        "normal, its lower end without the bias of noise",
    ),
}
"""The metrics, in the order of tables."""


def find_metric(name: str) -> Metric:
    """The metric of this name; SettingError with the near names when there is none."""
    if name not in METRICS:
        raise SettingError(f"unknown metric {name!r}{name_hint(name, METRICS, 'metrics')}")
    return METRICS[name]


def applicable_metrics(answers: Answers) -> list[str]:
    """The names of the metrics that these answers are enough for."""
    return [n for n, m in METRICS.items() if answers.has(m.needs) and (not m.binary or answers.classes == 2)]


def measure(name: str, answers: Answers, class_names: Sequence[str] = ()) -> MetricValue:
    """A metric's value with its interval. `class_names` (C) are for its note; without them classes go by number."""
    metric = find_metric(name)
    _check_applies(name, answers)
    value = metric.value(answers)
    names = list(class_names) or [str(c) for c in range(answers.classes)]
    if value is None and answers.probabilities is None:
        return MetricValue(None, None, f"not measured: {len(answers.labels):,} images × {len(names):,} classes")
    if value is None:
        return MetricValue(None, None, f"not defined: every image is of class {names[answers.labels[0]]}")
    note = f"positive: {names[POSITIVE]}; negative: {names[1 - POSITIVE]}" if metric.binary else None
    absent = [names[c] for c in np.flatnonzero(answers.totals == 0)]
    if absent and name in ("balanced_accuracy", "macro_f1", "auroc"):
        note = f"without classes that have no image: {listed(absent)}"
    interval = metric.interval(answers, value)
    if interval is None:
        note = "no interval: all images are of one group"
    return MetricValue(value, interval, note)


def measure_all(answers: Answers, class_names: Sequence[str] = ()) -> dict[str, MetricValue]:
    """Every metric that the answers are enough for, in the order of METRICS."""
    return {name: measure(name, answers, class_names) for name in applicable_metrics(answers)}


def measure_over_seeds(answers: Sequence[Answers], class_names: Sequence[str] = ()) -> dict[str, MetricValue]:
    """Every metric that the answers are enough for, as means over seeds: one of `answers` for each seed's training.

    All are to the same images in the same order. The intervals are over other trainings and other images, and of
    accuracy that of `crossed_mean`; where the seeds answer alike, as where nothing is trained, it is one seed's.
    """
    found = {}
    for name, first in measure_all(answers[0], class_names).items():
        table = _table(name, answers)
        if table is None or bool((table == table[0]).all()):
            found[name] = first
            continue
        neutral = float(table.mean())
        added, groups = (neutral, neutral), answers[0].groups
        if METRICS[name].needs == "predictions":
            added = crossed.added_shares(np.stack([given.right for given in answers]).astype(np.float64), groups)
        limits = (0.0, HIGHEST.get(name, 1.0))
        estimate = crossed.estimate_crossed([table], [added], limits, groups)
        found[name] = MetricValue(estimate.mean, estimate.ci95, first.note)
    return found


def _table(name: str, answers: Sequence[Answers]) -> crossed.Floats | None:
    """Trainings × images, whose row means are the metric's values and whose columns say what each image moves.

    Of accuracy it is the rights and wrongs. None where the metric is not defined.
    """
    values = [METRICS[name].value(given) for given in answers]
    if None in values:
        return None
    influences = np.stack([METRICS[name].influence(given) for given in answers])
    return cast(crossed.Floats, influences.shape[1] * influences + np.array(values, dtype=np.float64)[:, None])


def all_metrics(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, class_names: Sequence[str] = ()
) -> dict[str, MetricValue]:
    """Every metric of labels (int, N) and probabilities (float, N×C); sensitivity and specificity for C = 2 only."""
    return measure_all(Answers.of(labels, probabilities), class_names)


def metric_value(name: str, labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> MetricValue:
    """One metric of labels (int, N) and probabilities (float, N×C). SettingError for an unknown name."""
    return measure(name, Answers.of(labels, probabilities))


def metric_difference(
    name: str, labels: npt.ArrayLike, first: Sequence[npt.ArrayLike], second: Sequence[npt.ArrayLike]
) -> MetricDifference:
    """A metric of `second` minus that of `first`: probabilities (float, N×C) of one training a seed, seeds paired."""
    return answers_difference(
        name, [Answers.of(labels, given) for given in first], [Answers.of(labels, given) for given in second]
    )


def answers_difference(
    name: str, first: Sequence[Answers], second: Sequence[Answers], *, paired: bool = True
) -> MetricDifference:
    """As `metric_difference`, from answers to the same images in the same order, one training each.

    Without `paired` the numbers of trainings may differ. Each training's value and the influences of its images make a
    row of a table, and rows and images are crossed random effects as in `crossed`, so that accuracy comes out as
    there; one training on each side is a t test over images. Metrics that count images get two images more, one for
    each side, so that no interval has width 0.
    """
    if not first or not second or (paired and len(first) != len(second)):
        raise ValueError(f"expected as many trainings of both, at least one, got {len(first)} and {len(second)}")
    metric = find_metric(name)
    for answers in (*first, *second):
        _check_applies(name, answers)
        if not np.array_equal(answers.labels, first[0].labels):
            raise ValueError("expected the same labels of the same images from all")
    ones, others = _table(name, first), _table(name, second)
    if ones is None or others is None:
        return MetricDifference(name, None, None, None)
    counts, groups = metric.needs == "predictions", first[0].groups
    size = crossed.typical_size(others.mean(0) - ones.mean(0), groups)
    if len(ones) == len(others) == 1:
        moved = others - ones
        if (numbers := first[0].group_numbers) is not None:
            moved = crossed.by_group(moved, numbers)
        return _over_images(name, moved[0], [size, -size] if counts else [])
    difference = float(others.mean() - ones.mean())
    arms: list[crossed.Floats] = [others - ones] if paired else [others, -ones]
    if counts:
        added = [(size, -size)] if paired else [(size, 0.0), (0.0, -size)]
    else:
        added = [(float(arm.mean()), float(arm.mean())) for arm in arms]  # these move nothing
        if max(float(np.ptp(arm)) for arm in arms) <= 1e-15:
            return _no_spread(name, difference)
    found = crossed.estimate_crossed(arms, added, (-math.inf, math.inf), groups)
    return MetricDifference(name, difference, found.ci95, found.p_value)


def _over_images(name: str, moved: Floats, added: Sequence[float]) -> MetricDifference:
    """The t test of a table of one row: the difference with what each image or group moves it, and the added ones."""
    from scipy.special import stdtr

    difference, row = float(moved.mean()), np.append(moved, added)
    if len(row) < 2:
        return MetricDifference(name, difference, None, None)
    freedom, centre = len(row) - 1, float(row.mean())
    error = float(row.std(ddof=1)) / math.sqrt(len(row))
    if error <= 1e-15:
        return _no_spread(name, difference)
    reach = _t_quantile(freedom) * error
    p_value = min(1.0, 2 * float(stdtr(freedom, -abs(centre) / error)))
    return MetricDifference(name, difference, (centre - reach, centre + reach), p_value)


def _no_spread(name: str, difference: float) -> MetricDifference:
    """Where no image or training moves the difference, as between a classifier and itself."""
    return MetricDifference(name, difference, (difference, difference), 1.0 if abs(difference) <= 1e-15 else 0.0)


def _check_applies(name: str, answers: Answers) -> None:
    metric = find_metric(name)
    if not answers.has(metric.needs):
        needed = (
            "the probability of each answer" if metric.needs == "confidence" else "the probabilities of all classes"
        )
        raise SettingError(
            f"metric {name} needs {needed}, which are not there; those that can be had are "
            f"{listed(applicable_metrics(answers))}"
        )
    if metric.binary and answers.classes != 2:
        raise SettingError(f"metric {name} is for two classes, and there are {answers.classes}")


def metrics_markdown() -> str:
    """The table of metrics in docs/reports.md; `python -m finetune.report.metrics` prints it."""
    lines = ["| key | what it is | better | 95 % interval |", "|---|---|---|---|"]
    for key, metric in METRICS.items():
        better = "higher" if metric.higher_is_better else "lower"
        lines.append(f"| `{key}` | {metric.how} | {better} | {metric.interval_how} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(metrics_markdown())
