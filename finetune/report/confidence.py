"""What a report says of a network's confidence: calibrated before and after, promised and found, and novelty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.report.metrics import Answers, MetricValue, bin_numbers, measure
from finetune.report.statistics import accuracy_interval

CALIBRATED = ("log_loss", "brier", "calibration_error")  # metrics that a temperature moves
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PromiseFound:
    """What of a promise was found on test images: how many were answered, and how many of these wrongly.

    error: the share wrong among the answered, with its 95 % interval; None where none was answered.
    """

    images: int
    answered: int
    wrong: int
    error: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class PromiseSummary:
    """A promise: at most `max_error` of answers from probability `threshold` on are wrong, with `confidence`.

    answered: the share of the `images` it was proven on that reach the threshold. found: on test images, where any
    were measured.
    """

    max_error: float
    confidence: float
    threshold: float
    answered: float
    images: int
    found: PromiseFound | None = None


@dataclass(frozen=True)
class NoveltySummary:
    """The novelty score: the `threshold` above which a picture is unlike those trained on.

    share: of new images of the same kind, how many are expected above it. images: held out, that it was set by. test:
    how many of the test images are above it, where they were measured.
    """

    threshold: float
    share: float
    images: int
    test: int | None = None


@dataclass(frozen=True)
class ReliabilityBin:
    """The answers of one of ten equal bins of probability: how many, how many right, and their mean probability.

    ValueError for numbers that no answers have.
    """

    images: int
    right: int
    probability: float

    def __post_init__(self) -> None:
        if not (0 <= self.right <= self.images > 0 and 0 <= self.probability <= 1):
            raise ValueError(f"no bin of answers: {self.right} of {self.images} right at {self.probability}")


@dataclass(frozen=True)
class ConfidenceSummary:
    """What a checkpoint records of its confidence, and what that is worth on test images.

    temperature: None where there were too few images to fit one. images: that it was fitted on; how: `validation`,
    `folds` or `data`. before, after: the metrics of the test images without and with the temperature; bins_before,
    bins_after: what a reliability diagram shows of them, bins without images left out. notes: what could not be had,
    and why.
    """

    temperature: float | None
    images: int
    how: str | None
    before: dict[str, MetricValue] = field(default_factory=dict)
    after: dict[str, MetricValue] = field(default_factory=dict)
    promise: PromiseSummary | None = None
    novelty: NoveltySummary | None = None
    notes: list[str] = field(default_factory=list)
    bins_before: list[ReliabilityBin] = field(default_factory=list)
    bins_after: list[ReliabilityBin] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def summarize_confidence(
    record: Mapping[str, Any] | None, answers: Answers | None, notes: list[str], unlike: int | None = None
) -> ConfidenceSummary:
    """Summarizes what a checkpoint records (`Confidence` as JSON values) and what that is worth on test images.

    answers: the network's own, not calibrated; None measures nothing. unlike: how many test images are above the
    novelty score's threshold.
    """
    if record is None:
        return ConfidenceSummary(None, 0, None, notes=notes)
    calibrated = None if answers is None else with_temperature(answers, record["temperature"])
    if answers is not None and calibrated is None:
        notes = [*notes, f"calibration is not measured: {len(answers.labels):,} images × {answers.classes:,} classes"]
    measured = [] if answers is None or calibrated is None else [answers, calibrated]
    before, after = [{name: measure(name, own) for name in CALIBRATED} for own in measured] or ({}, {})
    promise, novelty = record.get("promise"), record.get("novelty")
    return ConfidenceSummary(
        record["temperature"],
        record["images"],
        record["how"],
        before,
        after,
        None if promise is None else PromiseSummary(**promise, found=_found(calibrated, promise["threshold"])),
        None if novelty is None else NoveltySummary(novelty["threshold"], novelty["share"], novelty["images"], unlike),
        notes,
        *([answer_bins(own) for own in measured] or ([], [])),
    )


def reliability_bins(probability: Floats, right: npt.NDArray[np.bool_]) -> list[ReliabilityBin]:
    """The bins of a reliability diagram that have images. probability: of each answer (N); right: N."""
    places = bin_numbers(probability)
    inside = [places == own for own in np.unique(places)]
    return [ReliabilityBin(int(own.sum()), int(right[own].sum()), float(probability[own].mean())) for own in inside]


def answer_bins(answers: Answers) -> list[ReliabilityBin]:
    """The bins of answers whose probabilities are known."""
    if answers.confidence is None:
        return []
    return reliability_bins(np.clip(answers.confidence, 0, 1).astype(np.float64), answers.right)


def with_temperature(answers: Answers, temperature: float) -> Answers | None:
    """The same answers with their probabilities at a temperature; None where not all probabilities are known.

    softmax(logits / T) is the softmax of the logarithms of the probabilities over T.
    """
    if answers.probabilities is None:
        return None
    logs = np.log(np.maximum(answers.probabilities.astype(np.float64), np.finfo(np.float32).tiny)) / temperature
    powers = np.exp(logs - logs.max(1, keepdims=True))
    return Answers.of(answers.labels, powers / powers.sum(1, keepdims=True), answers.predicted, answers.groups)


def _found(answers: Answers | None, threshold: float) -> PromiseFound | None:
    if answers is None or answers.confidence is None:
        return None
    sure = answers.confidence >= threshold
    answered, wrong = int(sure.sum()), int((sure & ~answers.right).sum())
    if not answered:
        return PromiseFound(len(sure), 0, 0, None, None)
    groups = None if answers.groups is None else answers.groups[sure]
    low, high = accuracy_interval(answers.right[sure], groups)
    return PromiseFound(len(sure), answered, wrong, wrong / answered, (1 - high, 1 - low))


HOW = {"validation": "validation images", "folds": "images out of fold", "data": "images given to calibrate"}


def confidence_lines(found: ConfidenceSummary | None) -> list[str]:
    """Sentences for a person."""
    if found is None:
        return []
    lines = []
    if found.temperature is not None:
        how = HOW.get(found.how or "", found.how)
        lines.append(f"calibrated: temperature {found.temperature:g}, fitted on {found.images:,} {how}")
    if found.promise is not None:
        lines += _promise_lines(found.promise)
    if found.novelty is not None:
        own = found.novelty
        line = (
            f"pictures with a novelty score above {own.threshold:.2f} are called unlike those trained on, as about "
            f"{100 * own.share:.1f} % of pictures like those are"
        )
        lines.append(line if own.test is None else f"{line}; of the test images {own.test:,} are")
    return [*lines, *found.notes]


def _promise_lines(own: PromiseSummary) -> list[str]:
    promised = (
        f"promised with {100 * own.confidence:g} % confidence: at most {100 * own.max_error:g} % wrong among answers "
        f"from a probability of {own.threshold:.4f} on, {100 * own.answered:.1f} % of {own.images:,} held-out images"
    )
    found = own.found
    if found is None:
        return [promised]
    if found.error is None or found.ci95 is None or not found.images:
        return [promised, f"found: none of {found.images:,} test images answered"]
    share = 100 * found.answered / found.images
    low, high = (100 * end for end in found.ci95)
    return [
        promised,
        f"found: {share:.1f} % of {found.images:,} test images answered, {found.wrong:,} of them wrongly: "
        f"{100 * found.error:.2f} % ({low:.2f} to {high:.2f})",
    ]
