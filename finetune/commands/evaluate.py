"""`finetune evaluate`: a checkpoint on the test images of a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.text import Text

from finetune.checkpoint.format import Metadata
from finetune.data.image_dataset import ImageSet
from finetune.data.openers import check_images_name, short_name
from finetune.errors import CheckpointError, DataError, OutputError, SettingError
from finetune.exports import onnx_file, torch_file
from finetune.exports.onnx_file import OnnxFile
from finetune.io.outputs import check_output, replace_file
from finetune.io.safe_open import sha256_of
from finetune.io.sanitize import printable
from finetune.models.classifier import Classifier
from finetune.models.novelty import run_with_features
from finetune.paths import data_root as resolve_data_root
from finetune.report.confidence import ConfidenceSummary, ReliabilityBin, answer_bins
from finetune.report.console import Console
from finetune.report.page import Material, evaluation_page
from finetune.report.predictions import PREDICTION, SUFFIX, read_predictions
from finetune.report.report import Result, TestSetUse, result_values
from finetune.report.tables import CALIBRATION, confidence_parts, evaluation_parts, percent, test_set_lines
from finetune.run.data import open_test
from finetune.run.finalize import (
    Grading,
    RowAnswers,
    as_predictions,
    confidence_summary,
    metric_answers,
    row_predictions,
    score,
)
from finetune.run.ledger import digest_of, record_opening
from finetune.run.measured import LearntFrom, Part, choose_measured
from finetune.run.output_paths import RUNS
from finetune.run.page_pictures import with_pictures
from finetune.run.report_page import page_path, write_page
from finetune.sources.resolve import locate, open_source, recorded_accuracy
from finetune.text import first_line, listed, places_of
from finetune.train.device import Runtime, choose_runtime
from finetune.train.inference import batched_apply, eval_batch_size, outputs


@dataclass(frozen=True)
class Evaluation:
    """A result on the classes that a checkpoint and a data set share.

    Where they share one class alone, all classes of the checkpoint are a choice. `left_out` counts the test images of
    classes that the checkpoint does not know; `not_offered` are the checkpoint's classes that the data set does not
    have, which count as no answer. `claimed` is the accuracy that the checkpoint records for the very same images, if
    any. `part` says which images of the data set they are: its "test" split, those "held_out" of what the checkpoint
    was trained on, "all" where there is no test split, or ones "trained_on", on which an accuracy is no test.
    `test_set` says how often these images were opened before, where there is a folder of runs to remember it. `learnt`
    says that it is no fair test, where the checkpoint has learnt from all images of a cross-validation.
    """

    checkpoint: str
    data: str
    classes: list[str]
    left_out: int
    not_offered: list[str]
    result: Result
    claimed: float | None
    test_set: TestSetUse | None = None
    part: Part = "test"
    learnt: str | None = None
    confidence: ConfidenceSummary | None = None
    bins: list[ReliabilityBin] = field(default_factory=list)

    @property
    def reliability(self) -> dict[str, list[ReliabilityBin]]:
        """What a reliability diagram shows: the network's own probabilities, and those with its temperature if any."""
        calibrated = [] if self.confidence is None else self.confidence.bins_after
        return {name: own for name, own in zip(CALIBRATION, (self.bins, calibrated), strict=True) if own}

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON values."""
        names = ("checkpoint", "data", "classes", "left_out", "not_offered")
        own = {name: getattr(self, name) for name in names}
        found = {**own, "part": self.part, **result_values(self.result), "claimed_accuracy": self.claimed}
        found["test_set"] = None if self.test_set is None else asdict(self.test_set)
        found["confidence"] = None if self.confidence is None else self.confidence.to_dict()
        found |= {} if self.learnt is None else {"learnt": self.learnt}
        values: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))  # JSON has lists and no tuples
        return values


@dataclass(frozen=True)
class EvaluatedSet:
    """An evaluation, its test images with classes in the checkpoint's order, and the data set's own order of these.

    answers: to the test images.
    """

    evaluation: Evaluation
    test: ImageSet
    order: tuple[str, ...]
    answers: RowAnswers


def evaluate(
    checkpoint: str | Path,
    data: str,
    *,
    data_root: str | Path | None = None,
    device: str = "auto",
    on_bad_image: str = "fail",
    group: str | None = None,
    predictions: str | Path | None = None,
    html: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Measures a checkpoint on the test images of the classes that it shares by name with the data.

    checkpoint: a file, hub:OWNER/NAME[@REVISION], timm:NAME[.TAG], or FILE.onnx of `finetune export`. data: a data
    set's name, a folder of pictures or a CSV file. data_root: the folder of the data sets, by default
    $FINETUNE_DATA_ROOT, else ./data. device: auto, cpu, cuda[:N] or mps. on_bad_image: "fail" lists pictures that
    cannot be read and stops, "skip" leaves them out.
    group: which pictures belong together, as `data.group` of recipes, by default as in the checkpoint's training.
    predictions: a CSV file to write, of each image's label, prediction and probability; an older one is moved aside.
    html: also write a page to look at, studies/CHECKPOINT-DATA.evaluate.html. console: where progress is shown, by
    default nowhere.

    DataError when there is no class in common; other errors are those of `finetune.errors`.
    """
    console = console or Console(quiet=True, results=False)
    if predictions is not None:
        check_predictions_path(predictions, (checkpoint, data))
    if html:
        page_path(f"{Path(checkpoint).stem}-{short_name(data)}", "evaluate")
    subject = _open_subject(checkpoint, device, console)
    if html and isinstance(subject.classifier, OnnxFile):
        raise SettingError(f"{checkpoint}: --html shows heatmaps, which need the weights; name the checkpoint itself")
    runtime, root = choose_runtime(device, "float32"), resolve_data_root(data_root)
    metadata, learnt = subject.metadata, LearntFrom.of(subject.metadata)
    found = evaluate_classifier(
        subject.classifier,
        str(checkpoint),
        data,
        root,
        runtime,
        console,
        learnt,
        on_bad_image=on_bad_image,
        group=group,
    )
    recorded = metadata.data.get("test") if metadata is not None else None
    same = isinstance(recorded, dict) and recorded.get("fingerprint") == found.test.fingerprint()
    if predictions is not None:
        content = row_predictions(found.test, {(PREDICTION, None): found.answers})
        write_predictions(Path(predictions), content, console)
    use = _note_opening(found.test.fingerprint(), str(checkpoint), subject.sha256)
    unfair = learnt_note(metadata, found) if metadata is not None else None
    claimed = recorded_accuracy(metadata) if same else None
    evaluation = replace(found.evaluation, claimed=claimed, test_set=use, learnt=unfair)
    if html and isinstance(subject.classifier, Classifier):
        _write_page(evaluation, found, subject.classifier, {str(checkpoint): subject.sha256}, console)
    return evaluation


@dataclass(frozen=True)
class _Subject:
    """What is measured: a checkpoint's classifier, or an exported file with the metadata of its checkpoint."""

    classifier: Classifier | OnnxFile
    metadata: Metadata | None
    sha256: str


def _open_subject(checkpoint: str | Path, device: str, console: Console) -> _Subject:
    """Opens a checkpoint or an ONNX file. CheckpointError, SettingError."""
    path = Path(checkpoint)
    if path.suffix == torch_file.SUFFIX:
        raise CheckpointError(
            f"{checkpoint}: expected a checkpoint or an ONNX file of `finetune export`, found a torch.export program; "
            "NAME.export.json beside it says what it was proven on"
        )
    if path.suffix == onnx_file.SUFFIX:
        if device not in ("auto", "cpu"):
            raise SettingError(f"--device {device}: an ONNX file is run on the processor; leave --device out")
        file = OnnxFile.read(path)
        return _Subject(file, file.facts.metadata, sha256_of(path))
    source = open_source(locate(checkpoint, note=console.note, bars=not console.quiet))
    return _Subject(source.classifier, source.metadata, source.sha256)


def _write_page(
    evaluation: Evaluation, found: EvaluatedSet, classifier: Classifier, sha256: Mapping[str, str], console: Console
) -> None:
    predictions = as_predictions(found.test, {(PREDICTION, None): found.answers})
    material = with_pictures(Material(predictions, sha256=sha256), classifier, found.test)
    lines = [part.plain for part in shown_parts(evaluation) if isinstance(part, Text)]
    name = f"{Path(evaluation.checkpoint).stem}-{evaluation.data}"
    page = evaluation_page(evaluation.to_dict(), lines, evaluation.result, evaluation.confidence, material)
    write_page(page_path(name, "evaluate"), page, console)


def shown_parts(found: Evaluation) -> list[RenderableType]:
    """What the command shows."""
    shared = (found.left_out, found.not_offered, found.learnt)
    parts = evaluation_parts(found.result, found.data, found.classes, found.claimed, *shared)
    return [*parts, *confidence_parts(found.confidence), *map(Text, test_set_lines(found.test_set))]


def learnt_note(metadata: Metadata, found: EvaluatedSet) -> str | None:
    """Why these images are no fair test of a checkpoint that has learnt from all images of a cross-validation."""
    data, own = metadata.data, metadata.data.get("own_test")
    if data.get("folds") is None:
        return None
    after, settings = metadata.results.get("after"), metadata.recipe.get("data")
    accuracy = after.get("accuracy") if isinstance(after, dict) else None
    instead = f"; cross-validated accuracy: {percent(accuracy)}" if isinstance(accuracy, float) else ""
    if isinstance(own, dict) and own.get("fingerprint") == found.test.fingerprint():
        shots = isinstance(settings, dict) and settings.get("shots") is not None
        which = "some of these images may be among those it has" if shots else "these images are among those it has"
        return f"no fair test: {which} learnt from{instead}"
    name = printable(str(data.get("name")))
    return f"it has learnt from images of {name}: no fair test where some of these are among them{instead}"


def _note_opening(fingerprint: str, checkpoint: str, sha256: str) -> TestSetUse | None:
    """Notes in the ledger beside the runs, where there is one to write to, that these test images were opened."""
    if not RUNS.is_dir():
        return None
    run = digest_of([fingerprint, sha256])
    with suppress(OutputError):  # it is not worth losing a result for
        return record_opening(RUNS, fingerprint, command="evaluate", name=checkpoint, run=run, choice=sha256)
    return None


def evaluate_classifier(
    classifier: Classifier | OnnxFile,
    checkpoint: str,
    data: str,
    root: Path,
    runtime: Runtime,
    console: Console,
    learnt: LearntFrom,
    *,
    on_bad_image: str = "fail",
    group: str | None = None,
) -> EvaluatedSet:
    """Measures a classifier, which messages call `checkpoint`; `claimed` stays None. Errors as for `evaluate`.

    learnt: what it was trained on; without a test split in the data, images of these are not measured.

    The network is left on the runtime's device.
    """
    if not classifier.class_names:
        raise SettingError(f"{checkpoint}: these weights have no head, so they name no class; adapt makes one")
    check_images_name(data)
    like = learnt.reading(data) | ({"group": group} if group is not None else {})
    data, found = open_test(data, root, classifier.input, console, on_bad_image=on_bad_image, like=like)
    whole, part, said = choose_measured(found, data, checkpoint, learnt)
    counts = whole.counts()
    shared = [name for name in classifier.class_names if name in counts]
    if not any(counts[name] for name in shared):
        source = "CHECKPOINT" if isinstance(classifier, OnnxFile) else checkpoint
        raise DataError(
            f"{checkpoint} and {data} have no class in common: the checkpoint knows "
            f"{listed(classifier.class_names)}; {data} has {listed(whole.class_names)}. "
            f"`finetune adapt --from {source} --target {data}` swaps the head"
        )
    if said:
        console.note(said)
    test, own = whole.with_classes(shared, empty=True), shared
    if len(shared) == 1:  # a choice among one class is always right
        shared = list(classifier.class_names)
        labels = torch.full_like(test.labels, shared.index(own[0]))
        test = replace(test, labels=labels, class_names=classifier.class_names)
    grading = Grading.of(test)
    numbers, novelty = _graded(classifier, test, grading, places_of(shared, classifier.class_names), runtime)
    answers = RowAnswers.of_numbers(numbers)
    result = score(test, answers, row="test")
    offered = set(shared)
    not_offered = [name for name in classifier.class_names if name not in offered]
    chosen = set(own)
    evaluation = Evaluation(checkpoint, data, shared, len(whole) - len(test), not_offered, result, None, part=part)
    confidence = _confidence(classifier, test, answers, novelty, not_offered)
    evaluation = replace(evaluation, confidence=confidence, bins=answer_bins(metric_answers(test, answers)))
    return EvaluatedSet(evaluation, test, tuple(name for name in whole.class_names if name in chosen), answers)


def _graded(
    classifier: Classifier | OnnxFile, test: ImageSet, grading: Grading, rows: Sequence[int], runtime: Runtime
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What `grading` keeps of all images' logits for the classes `rows`, and their novelty scores (N), if any."""
    if isinstance(classifier, OnnxFile):
        return grading.reduce(classifier.logits(test.images)[:, rows], 0), None
    network = classifier.network
    runtime.place(network)
    normalize = classifier.input.normalizer(runtime.device)
    images = test.images.to(runtime.device)
    if (score := classifier.novelty) is None:
        return outputs(network, images, normalize, reduce=lambda own, start: grading.reduce(own[:, rows], start)), None

    def run(x: torch.Tensor) -> torch.Tensor:
        logits, features = run_with_features(network, normalize(x), score.cuts)
        return torch.cat([logits, score.scores(features)[:, None].to(logits)], 1)

    def reduce(found: torch.Tensor, start: int) -> torch.Tensor:
        return torch.cat([grading.reduce(found[:, :-1][:, rows], start), found[:, -1:]], 1)

    size = eval_batch_size(normalize.pixels(images), runtime.device)
    numbers = batched_apply(run, network, images, size, reduce=reduce)
    return numbers[:, :-1], numbers[:, -1]


def _confidence(
    classifier: Classifier | OnnxFile,
    test: ImageSet,
    answers: RowAnswers,
    novelty: torch.Tensor | None,
    not_offered: Sequence[str],
) -> ConfidenceSummary | None:
    """What the checkpoint records of its confidence, and what that is worth on these images."""
    exported = isinstance(classifier, OnnxFile)
    record = classifier.facts.metadata.confidence if isinstance(classifier, OnnxFile) else classifier.confidence
    if record is None:
        return None
    notes = []
    if not_offered:
        notes.append(
            "calibration is not measured: a temperature and a promise are about a choice among all classes of the "
            f"checkpoint, of which {len(not_offered):,} were no choice here"
        )
    if exported and record.novelty is not None:
        notes.append("how many pictures are unlike is not measured: an exported file gives no features")
    unlike = None
    if novelty is not None and record.novelty is not None:
        unlike = int((novelty.double() > record.novelty.threshold).sum())
    return confidence_summary(record, notes, test, None if not_offered else answers, unlike)


def check_predictions_path(path: str | Path, inputs: Sequence[str | Path]) -> None:
    """SettingError, OutputError as of `check_output`, and where something else than a file of predictions is there."""
    if not check_output(path, "--predictions", [SUFFIX], inputs=inputs).exists():
        return
    try:
        read_predictions(Path(path))
    except DataError as error:
        raise OutputError(
            f"{path}: is there already and is no file of predictions ({first_line(error)}); name another place"
        ) from None


def write_predictions(path: Path, content: bytes, console: Console) -> None:
    """Writes a file of predictions; an older, different one gets a second name first. OutputError."""
    replace_file(path, content, console.note)
    console.note(f"wrote {path}")
