"""Ends a run: scores, report, and the checkpoint with its metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.checkpoint.confidence import Confidence
from finetune.checkpoint.format import encode
from finetune.data.image_dataset import ImageSet
from finetune.data.openers import is_hub_data, is_image_path, short_name
from finetune.errors import NonFiniteError, SettingError
from finetune.io.atomic import prepared_files
from finetune.io.outputs import is_kept_aside, move_files_aside
from finetune.models.classifier import Classifier
from finetune.models.cost import network_cost
from finetune.models.spec import TIMM, InputSpec
from finetune.recipe.load import resolve_recipe
from finetune.recipe.schema import AdaptRecipe, PretrainRecipe
from finetune.report.comparison import ACCURACY, Comparison, Score, compare_answers
from finetune.report.confidence import ConfidenceSummary, summarize_confidence
from finetune.report.console import Console
from finetune.report.metrics import Answers, find_metric, measure_all
from finetune.report.predictions import Column, ColumnKey, Predictions, image_names, predictions_csv
from finetune.report.report import (
    NetworkSummary,
    PhaseSummary,
    Report,
    Result,
    TargetSummary,
    TestSetUse,
    result_values,
)
from finetune.report.rows import INTERPOLATED, Row, row_of
from finetune.report.statistics import Confusion, per_class
from finetune.report.tables import report_tables
from finetune.run.ledger import digest_of, record_opening
from finetune.run.output_paths import OutputPaths, move_aside, same_results
from finetune.run.setup import RunSetup
from finetune.sources.save import make_metadata
from finetune.system import versions
from finetune.text import listed
from finetune.train.device import Runtime, environment

MAX_PROBABILITIES = 16_000_000  # images × classes of a row whose probabilities are all kept; 64 MB
MAX_SOFTMAX = 250_000  # numbers whose softmax is taken at once, in float64: what a processor keeps at hand


@dataclass(frozen=True)
class RowAnswers:
    """What a row answers to the test images: the class of each (int64, N) and its probability (float32, N).

    true_probability: that of the true class (float32, N). probabilities: of all classes (float32, N×C), None where they
    are more than MAX_PROBABILITIES. method: how the source answered, where that is not always the same; of the
    commonest class, which one it is.
    """

    predicted: Tensor
    confidence: Tensor
    true_probability: Tensor
    probabilities: Tensor | None = None
    method: str | None = None

    @classmethod
    def of_numbers(cls, numbers: Tensor, method: str | None = None) -> RowAnswers:
        """From what `Grading.reduce` keeps."""
        numbers = numbers.cpu()
        every = numbers[:, 3:] if numbers.shape[1] > 3 else None
        return cls(numbers[:, 0].long(), numbers[:, 1], numbers[:, 2], every, method)

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], method: str | None = None) -> RowAnswers:
        """From what `tensors` gives. KeyError where one is missing."""
        predicted, confidence, true = (tensors[name] for name in ("predicted", "confidence", "true_probability"))
        return cls(predicted, confidence, true, tensors.get("probabilities"), method)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by the names of their fields."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def subset(self, indices: npt.NDArray[np.int64]) -> RowAnswers:
        """The answers to the images at these indices."""
        return self.of_tensors({name: own[indices] for name, own in self.tensors().items()}, self.method)


@dataclass(frozen=True)
class Grading:
    """Turns logits into answers batch by batch, as those of all test images may not fit into memory.

    labels: of the test images, int64, N. classes: how many there are.
    """

    labels: Tensor
    classes: int

    @classmethod
    def of(cls, images: ImageSet) -> Grading:
        return cls(images.labels.cpu(), len(images.class_names))

    @property
    def keeps_all(self) -> bool:
        """Whether the probabilities of all classes are kept."""
        return len(self.labels) * self.classes <= MAX_PROBABILITIES

    @property
    def head_batch(self) -> int:
        """How many images go through a head at once: all, where all probabilities are kept."""
        return max(1, MAX_PROBABILITIES // self.classes)

    def reduce(self, logits: Tensor, start: int) -> Tensor:
        """What is kept of a batch's logits (float, B×C) of the images from `start` on: float32, B×(3+K).

        The predicted class, its probability, and that of the true class; then those of all K = C classes, or of K = 0.
        NonFiniteError for logits that are no numbers.
        """
        if strange := int((~logits.isfinite().all(1)).sum()):
            raise NonFiniteError(
                f"the network's outputs are NaN or infinite for {strange:,} of {len(logits):,} images: its weights "
                "overflow, and name no class; train again at a lower learning rate (`finetune verify` checks a file)"
            )
        given, size = logits.detach().cpu(), max(1, MAX_SOFTMAX // self.classes)
        found = torch.empty(len(given), 3 + self.classes * self.keeps_all)
        for first in range(0, len(given), size):
            rows = slice(first, min(first + size, len(given)))
            chances, predicted = given[rows].double().softmax(1).float(), given[rows].argmax(1)
            labels = self.labels[start + rows.start : start + rows.stop]
            chosen = chances.gather(1, torch.stack([predicted, labels], 1))
            found[rows, :3] = torch.cat([predicted[:, None].float(), chosen], 1)
            if self.keeps_all:
                found[rows, 3:] = chances
        return found.to(logits.device)

    def answers(self, logits: Tensor, method: str | None = None) -> RowAnswers:
        """The answers to all images, from their logits (float, N×C)."""
        return RowAnswers.of_numbers(self.reduce(logits, 0), method)

    def majority(self, train: ImageSet) -> RowAnswers:
        """Always naming the commonest class of the training images, with the share of each class as its probability.

        `method` is that class; None where several are as common.
        """
        counts = train.counts()
        shares = (torch.tensor(list(counts.values())).double() / len(train)).log().softmax(0).float()
        most = max(counts.values())
        commonest = [name for name, images in counts.items() if images == most]
        count, first = len(self.labels), int(shares.argmax())
        return RowAnswers(
            torch.full((count,), first),
            shares[first].expand(count),
            shares[self.labels],
            shares.expand(count, -1) if self.keeps_all else None,
            commonest[0] if len(commonest) == 1 else None,
        )


def correct_mask(images: ImageSet, predicted: Tensor) -> npt.NDArray[np.bool_]:
    """Whether each image was classified correctly, from predicted class indices (int64, N): booleans (N)."""
    right: npt.NDArray[np.bool_] = (predicted.cpu() == images.labels).numpy()
    return right


def score(images: ImageSet, answers: RowAnswers, row: str) -> Result:
    """The result of a row's answers to labelled images."""
    score: dict[str, Any] = asdict(Score.of(correct_mask(images, answers.predicted), images.group_indices()))
    score |= {"method": answers.method, "metrics": measure_all(metric_answers(images, answers), images.class_names)}
    if not row_of(row).detailed:
        return Result(**score)
    labels, found = images.labels.numpy(), answers.predicted.numpy()
    classes = {name: dict(values) for name, values in per_class(labels, found, images.class_names).items()}
    return Result(**score, per_class=classes, confusion=Confusion.of(labels, found, len(images.class_names)))


def metric_answers(images: ImageSet, answers: RowAnswers) -> Answers:
    """A row's answers to labelled images, as metrics take them."""
    return Answers(
        images.labels.numpy(),
        answers.predicted.numpy(),
        len(images.class_names),
        answers.confidence.numpy(),
        None if answers.probabilities is None else answers.probabilities.numpy(),
        images.group_indices(),
        answers.true_probability.numpy(),
    )


def confidence_summary(
    record: Confidence | None,
    notes: Sequence[str],
    images: ImageSet,
    answers: RowAnswers | None,
    unlike: int | None = None,
) -> ConfidenceSummary:
    """What a report says of a network's confidence, measured on its answers to labelled images, if there are any."""
    values = None if record is None else record.model_dump()
    found = None if answers is None else metric_answers(images, answers)
    return summarize_confidence(values, found, list(notes), unlike)


def row_predictions(
    images: ImageSet, answers: Mapping[ColumnKey, RowAnswers], folds: npt.NDArray[np.int64] | None = None
) -> bytes:
    """The content of a file of predictions, as `as_predictions` has them."""
    return predictions_csv(as_predictions(images, answers, folds))


def as_predictions(
    images: ImageSet, answers: Mapping[ColumnKey, RowAnswers], folds: npt.NDArray[np.int64] | None = None
) -> Predictions:
    """Answers image by image: of each row, and of each seed where there are several.

    folds: of a cross-validation, the fold in which each image was tested, from 0.
    """
    columns = {}
    for key, found in answers.items():
        given = metric_answers(images, found)
        assert given.confidence is not None
        columns[key] = Column(found.predicted.numpy(), np.clip(given.confidence, 0, 1).astype(np.float64))
    names = image_names(images.files, len(images))
    groups = images.groups if any(images.groups) else ()
    numbers = None if folds is None else folds + 1
    return Predictions(names, images.labels.numpy(), images.class_names, columns, groups, numbers)


def compare_rows(
    images: ImageSet,
    answers: Mapping[str, Sequence[RowAnswers]],
    of: str,
    rows: Mapping[str, Row],
    *,
    metric: str = ACCURACY,
    shots_vary: bool = False,
) -> dict[str, Comparison | None]:
    """Row `of` against each of the `rows` it is compared with, all on the same images; None for one that was not made.

    answers: by row, one for each seed. Keys are such as after_vs_scratch.
    """
    given = {name: [metric_answers(images, one) for one in found] for name, found in answers.items()}
    return {
        f"{of}_vs_{name}": compare_answers(given[name], given[of], metric, shots_vary=shots_vary)
        if name in given
        else None
        for name, row in rows.items()
        if row.compared
    }


def checkpoint_results(results: Mapping[str, Result | None]) -> dict[str, Any]:
    """What a checkpoint's metadata says of its results: rows that are about the weights, without their details.

    A row that was not made is null; but for the mix, which earlier versions do not know.
    """
    return {
        name: None if result is None else result_values(result, brief=True)
        for name, result in results.items()
        if not row_of(name).floor and not (name == INTERPOLATED and result is None)
    }


def check_metric(metric: str, test: ImageSet) -> None:
    """SettingError unless the metric can be had of these test images; before anything is trained."""
    found, present = find_metric(metric), [name for name, count in test.counts().items() if count]
    if metric in ("auroc", "brier") and not Grading.of(test).keeps_all:
        raise SettingError(
            f"--metric {metric}: it needs every probability, and {len(test):,} test images × {len(test.class_names):,} "
            f"classes are more than the {MAX_PROBABILITIES:,} that are kept; choose another metric, such as log_loss"
        )
    if found.binary and len(test.class_names) != 2:
        raise SettingError(f"--metric {metric}: it is for two classes, and {test.origin} has {len(test.class_names)}")
    if (found.binary or metric == "auroc") and len(present) < 2:
        raise SettingError(
            f"--metric {metric}: expected test images of at least two classes, found only {listed(present)} in "
            f"{test.origin}; choose another metric"
        )


def open_test_set(run_folder: Path, command: str, fingerprint: Mapping[str, Any]) -> TestSetUse:
    """Notes in the ledger that the run of this folder and fingerprint opens its test images. OutputError.

    Its choice, which may look like tuning, is the recipe and the source; not the seed, nor how many images it learns
    from.
    """
    recipe = {key: value for key, value in fingerprint["recipe"].items() if key not in ("seed", "data")}
    data = {key: value for key, value in fingerprint["recipe"]["data"].items() if key != "shots"}
    choice = [recipe, data, fingerprint.get("source")]
    return record_opening(
        run_folder.parent,
        fingerprint["data"]["test"]["fingerprint"],
        command=command,
        name=run_folder.name,
        run=digest_of(fingerprint),
        choice=digest_of(choice),
    )


def public_recipe(recipe: PretrainRecipe | AdaptRecipe) -> dict[str, Any]:
    """The resolved recipe for checkpoint and report, with a data folder's name in place of its path."""
    values: dict[str, Any] = resolve_recipe(recipe)
    name = values["data"].get("name")
    if name is not None and is_image_path(name) and not is_hub_data(name):
        values["data"] = {**values["data"], "name": short_name(name)}
    return values


def run_fingerprint(
    recipe: PretrainRecipe | AdaptRecipe, model: str, data: Mapping[str, Any], runtime: Runtime
) -> dict[str, Any]:
    """Everything that a run's bytes depend on, except processor and threads. Resuming requires an equal fingerprint.

    The size of caches is left out, so that a run which ran out of memory or disk can resume with smaller ones.
    """
    return {
        "kind": recipe.kind,
        "recipe": {key: value for key, value in resolve_recipe(recipe).items() if key != "cache"},
        "data": data,
        "precision": runtime.precision,
        "versions": versions(model),
    }


def build_report(
    recipe: PretrainRecipe | AdaptRecipe,
    setup: RunSetup,
    seconds: float,
    phases: list[PhaseSummary],
    results: Mapping[str, Result | None],
) -> Report:
    """The report of a run, without what only an adapt has."""
    data, runtime = setup.data, setup.runtime
    return Report(
        kind=recipe.kind,
        recipe=public_recipe(recipe),
        seed=recipe.seed,
        device=str(runtime.device),
        environment=environment(runtime),
        seconds=seconds,
        source=None,
        target=TargetSummary(
            name=data.name,
            classes=list(data.class_names),
            train=len(data.train),
            validation=len(data.validation),
            test=len(data.test),
            notes=list(data.notes),
        ),
        transplant=None,
        phases=phases,
        results=dict(results),
        seeds=[recipe.seed],
        network=summarize_network(setup.model, setup.arguments, len(data.class_names), setup.spec),
    )


def summarize_network(model: str, arguments: Mapping[str, Any], classes: int, spec: InputSpec) -> NetworkSummary:
    """A network's size, and what timm publishes of it. SettingError for a model that does not exist."""
    cost = network_cost(model, arguments, classes, spec.channels, spec.size)
    published = None
    if model.startswith(TIMM):
        from finetune.models.timm.names import published_settings

        published = published_settings(model)
    return NetworkSummary(model, cost.parameters, cost.multiply_adds, published)


def save_run(
    classifier: Classifier,
    metadata_fields: Mapping[str, Any],
    report: Report,
    predictions: bytes,
    outputs: OutputPaths,
    console: Console,
) -> str:
    """Writes checkpoint, report and predictions, shows the outcome, and returns the checkpoint's sha256.

    An older, different checkpoint is renamed first; at every moment there is one that loads under the old or the new
    name. When the bytes equal those of the file in place, only the others are written again.
    """
    metadata = make_metadata(classifier, **metadata_fields)
    content = encode(classifier.network.state_dict(), metadata)
    digest = hashlib.sha256(content).hexdigest()
    contents = {outputs.report: report.to_json().encode(), outputs.predictions: predictions}
    if digest == outputs.digest():
        console.note(f"{outputs.checkpoint}: the same bytes as the run before")
        with prepared_files(contents):
            if not same_results(outputs.report, report.to_dict()) and not is_kept_aside(outputs.report):
                move_files_aside(list(contents), outputs.checkpoint.stem, console.note)
    else:
        with prepared_files({outputs.checkpoint: content, **contents}):
            move_aside(outputs, console)
    for table in report_tables(report):
        console.show(table)
    beside = f"{outputs.report.name} and {outputs.predictions.name}"
    console.say(f"wrote {outputs.checkpoint} (sha256 {digest[:12]}), {beside}")
    return digest
