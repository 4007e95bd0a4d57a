"""The report of a run: the typed form of `NAME.report.json`. Accuracies are fractions; keys are stable."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.errors import SettingError
from finetune.io.safe_open import read_regular
from finetune.report.comparison import Comparison, Score
from finetune.report.confidence import ConfidenceSummary
from finetune.report.metrics import MetricValue
from finetune.report.rows import own_row
from finetune.report.stage_answer import StageAnswer
from finetune.report.statistics import Confusion

MAX_REPORT_BYTES = 100_000_000  # bytes of a report; of ten thousand classes it has three million


@dataclass(frozen=True)
class SeedScore:
    """One training's share of a result over seeds."""

    seed: int
    correct: int
    total: int
    accuracy: float
    effective_images: float | None = None
    """As in `Score`."""


@dataclass(frozen=True)
class WithoutTwins:
    """A score on the test images without a twin among those to learn from; None where there are none of these."""

    images: int
    accuracy: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class FoldScore:
    """One fold's share of a cross-validated result: its training's seed, and its answers to the fold's images."""

    fold: int
    seed: int
    correct: int
    total: int
    accuracy: float


@dataclass(frozen=True)
class Result(Score):
    """A score and, where it applies, how it was got (`method`), each class's score, and the confusion matrix.

    Over several seeds `accuracy` is the mean and all counts are sums; `per_seed` has each training's own. Of a
    cross-validation every image counts once, and `per_fold` has each training's own. `metrics` are those of
    `metrics.METRICS`.
    """

    method: str | None = None
    per_class: dict[str, dict[str, Any]] | None = None
    confusion: Confusion | None = None
    per_seed: list[SeedScore] | None = None
    per_fold: list[FoldScore] | None = None
    metrics: dict[str, MetricValue] | None = None
    without_twins: WithoutTwins | None = None


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """Where the weights came from: a file's `path` or a repository's `id`, and what the source says of itself."""

    path: str | None = None
    id: str | None = None
    sha256: str
    model: str
    dataset: str | None
    accuracy: float | None


@dataclass(frozen=True)
class TargetSummary:
    """The images of the run: classes in the order of the head's rows, and how many images each part has.

    `notes` are what was said of a person's own pictures: left out, in two parts at once, few of a class.
    """

    name: str
    classes: list[str]
    train: int
    validation: int
    test: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class NetworkSummary:
    """The network: its parameters, and the multiply-adds of one image through it (None where they cannot be counted).

    `timm` is what timm publishes of an architecture of its own, so that nobody has to import timm to know it; None for
    another.
    """

    model: str
    parameters: int
    multiply_adds: int | None
    timm: dict[str, Any] | None = None


@dataclass(frozen=True)
class Transplant:
    """Which tensors were taken over, which started new, and {target class: source class} for head rows taken over."""

    kept: list[str]
    fresh: list[str]
    head_rows_reused: dict[str, str]


@dataclass(frozen=True)
class EpochRow:
    """One line of a phase's history. `images_per_second` is of training alone; `seconds` includes validation."""

    epoch: int
    train_loss: float
    validation_accuracy: float | None
    learning_rate: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class FrozenDigest:
    """What a phase was not to change and did not: how many tensors of the checkpoint, and the sha256 over them."""

    tensors: int
    sha256: str


@dataclass(frozen=True)
class PhaseSummary:
    """One phase: the stages that trained, how many numbers that is, and whether the frozen prefix was run only once.

    `frozen` is None where the phase froze nothing.
    """

    name: str
    trains: list[str]
    trainable_parameters: int
    cached: bool
    epochs: list[EpochRow]
    frozen: FrozenDigest | None = None


@dataclass(frozen=True)
class Retention:
    """Accuracy on the source's own test images before and after, and of the mix of both: what was forgotten."""

    dataset: str
    before: float
    after: float
    interpolated: float | None = None


@dataclass(frozen=True)
class FrontierPoint:
    """A mix of source and fine-tuned network: `weight` is the share of the latter.

    accuracy, log_loss: on validation images, the loss at a temperature of the mix's own. source_accuracy: on images of
    the source's task that are no test images; None where these are not at hand.
    """

    weight: float
    accuracy: float
    log_loss: float
    source_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Interpolation:
    """How the mix of source and fine-tuned network was chosen: nothing of it was measured on test images.

    weight: of the fine-tuned network in the chosen mix. retain: the part of the source's accuracy that was to be kept;
    None asks for the mix nearest to the source that is as good as the fine-tuned network. images: validation images of
    the target. source_images: of the source, from the part of its data (`validation`, or `train`, which it has learnt
    from), and the untouched source's accuracy on them; None where they are not at hand, for the reason in `note`.
    weights: of each training by its seed or fold, where there are several.
    """

    weight: float
    retain: float | None
    images: int
    source_images: int | None
    source_part: str | None
    source_before: float | None
    frontier: list[FrontierPoint]
    note: str | None = None
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """As in '0.6 of the fine-tuned'."""
        return f"{self.weight:g} of the fine-tuned"

    @property
    def sentence(self) -> str:
        """How the mix was chosen, in words."""
        images = f"{self.images:,} validation images"
        if self.retain is None or self.source_before is None:
            found = f"nearest to the source of those whose log loss on {images} is as good as the fine-tuned network's"
            unasked = "" if self.retain is None else f"; retain was left out: {self.note}"
            return f"{self.method}, the {found}{unasked}"
        least, which = 100 * self.retain * self.source_before, self.source_which
        if any((point.source_accuracy or 0) >= self.retain * self.source_before for point in self.frontier):
            found = f"most accurate on {images} of those with at least {least:.2f} % on {which}"
        else:
            found = f"one with the highest accuracy on {which}, as none has {least:.2f} %"
        return f"{self.method}, the {found}"

    @property
    def source_which(self) -> str:
        """Which images of the source were looked at, in words."""
        learnt = "" if self.source_part == "validation" else " (training images, which it has learnt from)"
        return f"{self.source_images:,} images of the source's data{learnt}"


@dataclass(frozen=True)
class TestSetUse:
    """How often the test images were opened before, in the same folder of runs, and by which runs (the latest).

    `other_choices` counts the recipes (for `evaluate`: the checkpoints) that earlier runs of the same command tried on
    them.
    """

    __test__ = False  # for pytest, which takes the name for that of tests

    fingerprint: str
    opened_before: int
    by: list[str]
    other_choices: int


@dataclass(frozen=True)
class Report:
    """The report of a run. A pretrain has `results["test"]`; an adapt has a result for each of `rows.ADAPT_ROWS`.

    A result that was not asked for is None; so are `source`, `transplant`, `retention` and `interpolation` where there
    are none. folds: of a cross-validation, where all images are test images, and the weights that are kept have learnt
    from all.
    """

    kind: str
    recipe: dict[str, Any]
    seed: int
    device: str
    environment: dict[str, Any]
    seconds: float
    source: SourceSummary | None
    target: TargetSummary
    transplant: Transplant | None
    phases: list[PhaseSummary]
    results: dict[str, Result | None]
    comparisons: dict[str, Comparison | None] = field(default_factory=dict)
    retention: Retention | None = None
    interpolation: Interpolation | None = None
    seeds: list[int] = field(default_factory=list)
    test_set: TestSetUse | None = None
    folds: int | None = None
    network: NetworkSummary | None = None
    confidence: ConfidenceSummary | None = None
    phases_per_seed: dict[str, list[PhaseSummary]] = field(default_factory=dict)
    """The phases of each training by its seed, where there are several; `phases` has the first one's."""
    where: StageAnswer | None = None
    """What `train: auto` came to, of several trainings in the one whose weights are kept; None without it."""

    @property
    def own_row(self) -> str | None:
        """The key of the row that is about the weights that were written."""
        return own_row(self.results, self.recipe)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        found = asdict(replace(self, results={}))
        if self.folds is None:
            del found["folds"]
        if not self.phases_per_seed:
            del found["phases_per_seed"]
        if self.source is not None:
            found["source"] = {k: v for k, v in found["source"].items() if not (k in ("path", "id") and v is None)}
        values = json_values(found)
        values["results"] = {
            name: None if result is None else result_values(result) for name, result in self.results.items()
        }
        return values

    def to_json(self) -> str:
        """The text of `NAME.report.json`."""
        return report_text(self.to_dict())


ONLY_WITH_GROUPS = ("groups", "effective_images")


def json_values(found: Mapping[str, Any]) -> dict[str, Any]:
    """A report's values as JSON has them: lists and no tuples; no key on groups of images where there are none."""
    values = _without_absent(json.loads(json.dumps(found, allow_nan=False)))
    assert isinstance(values, dict)
    return values


def _without_absent(value: Any) -> Any:
    if isinstance(value, dict):
        kept = ((key, own) for key, own in value.items() if own is not None or key not in ONLY_WITH_GROUPS)
        return {key: _without_absent(own) for key, own in kept}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_without_absent(own) for own in value]
    return value


def report_text(values: dict[str, Any]) -> str:
    """The text of a report's file; bytes of a path that are no UTF-8 are written as \\udc.."""
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace").decode()


def read_report(path: Path) -> Report:
    """A report from its file. SettingError when it does not hold."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Report).validate_python(read_report_values(path))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "its beginning"
        raise SettingError(f"{path}: not a report of finetune: at {at}: {first['msg'].lower()}") from None


def read_report_values(path: Path) -> dict[str, Any]:
    """The JSON object in the file of a report, which anybody may have written. SettingError says why there is none."""
    try:
        found = _parse(read_regular(path, MAX_REPORT_BYTES))
    except OSError as error:
        reason = "you may not read it" if isinstance(error, PermissionError) else error.strerror or error
        raise SettingError(f"{path}: the report cannot be read ({reason}){_cure(error)}") from None
    except ValueError as error:
        raise SettingError(f"{path}: not a report: {error}") from None
    except RecursionError:
        raise SettingError(f"{path}: not a report: nested too deep") from None
    if not isinstance(found, dict):
        raise SettingError(f"{path}: not a report: expected a JSON object, found {type(found).__name__} {found!r:.40}")
    return found


def read_report_beside(path: Path) -> dict[str, Any] | None:
    """Reads a report's values as `read_report_values` does; None where there is no such file."""
    try:
        path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return None
    return read_report_values(path)


def _cure(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "; allow it (chmod u+r)"
    return "; name or make it anew" if error.errno == errno.EFBIG else ""


def _parse(content: bytes) -> Any:
    """The JSON value in the file of a report. ValueError says what is wrong with it, and where."""
    if not content.strip():
        raise ValueError("the file is empty")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start:,}") from None
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except json.JSONDecodeError as error:
        ends = not set(text[error.pos :]) & set(',:[]{}"') and error.pos > 0  # within the last word or number
        cut = ends or error.msg.startswith("Unterminated string")
        fault = "cut short" if cut else f"no JSON ({error.msg})"
        raise ValueError(f"{fault} at line {error.lineno}, column {error.colno}") from None


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is no number of a report")
    return value


def result_values(result: Result, *, brief: bool = False) -> dict[str, Any]:
    """A result as JSON values without the parts that do not apply; `brief` leaves classes and confusion out too."""
    if brief:
        result = replace(result, per_class=None, confusion=None, per_seed=None, metrics=None, without_twins=None)
    values = json_values(asdict(replace(result, per_class=None, confusion=None)))
    if result.per_class is not None:  # it and the confusion are JSON values as they are
        values["per_class"] = {name: dict(own) for name, own in result.per_class.items()}
    if result.confusion is not None:
        values["confusion"] = result.confusion.to_json()
    return {key: value for key, value in values.items() if value is not None}
