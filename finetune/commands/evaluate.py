"""`finetune evaluate`: a checkpoint on the test images of a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.text import Text

from finetune.checkpoint.format import Metadata
from finetune.data.image_dataset import ImageSet
from finetune.errors import DataError, OutputError, SettingError
from finetune.io.atomic import prepared_files
from finetune.io.sanitize import printable
from finetune.models.classifier import Classifier
from finetune.paths import data_root as resolve_data_root
from finetune.report.console import Console
from finetune.report.page import Material, evaluation_page
from finetune.report.predictions import PREDICTION, SUFFIX, read_predictions
from finetune.report.report import Result, TestSetUse, result_values
from finetune.report.tables import evaluation_parts, percent, test_set_lines
from finetune.run.data import open_test
from finetune.run.finalize import Grading, RowAnswers, as_predictions, row_predictions, score
from finetune.run.ledger import digest_of, record_opening
from finetune.run.measured import LearntFrom, Part, choose_measured
from finetune.run.output_paths import RUNS, move_file_aside
from finetune.run.page_pictures import with_pictures
from finetune.run.report_page import page_path, write_page
from finetune.sources.resolve import locate, open_source
from finetune.text import first_line, listed, places_of
from finetune.train.device import Runtime, choose_runtime
from finetune.train.inference import outputs


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

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON values."""
        names = ("checkpoint", "data", "classes", "left_out", "not_offered")
        own = {name: getattr(self, name) for name in names}
        found = {**own, "part": self.part, **result_values(self.result), "claimed_accuracy": self.claimed}
        found["test_set"] = None if self.test_set is None else asdict(self.test_set)
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

    checkpoint: a file, hub:OWNER/NAME[@REVISION] or timm:NAME[.TAG]. data: a data set's name, a folder of pictures or a
    CSV file. data_root: the folder of the data sets, by default $FINETUNE_DATA_ROOT, else ./data. device: auto, cpu,
    cuda[:N] or mps. on_bad_image: "fail" lists pictures that cannot be read and stops, "skip" leaves them out.
    group: which pictures belong together, as `data.group` of recipes, by default as in the checkpoint's training.
    predictions: a CSV file to write, of each image's label, prediction and probability; an older one is moved aside.
    html: also write a page to look at, studies/CHECKPOINT-DATA.evaluate.html. console: where progress is shown, by
    default nowhere.

    DataError when there is no class in common; other errors are those of `finetune.errors`.
    """
    console = console or Console(quiet=True, results=False)
    if predictions is not None:
        check_predictions_path(Path(predictions))
    source = open_source(locate(checkpoint, note=console.note, bars=not console.quiet))
    runtime, root = choose_runtime(device, "float32"), resolve_data_root(data_root)
    learnt = LearntFrom.of(source.metadata)
    found = evaluate_classifier(
        source.classifier, str(checkpoint), data, root, runtime, console, learnt, on_bad_image=on_bad_image, group=group
    )
    recorded = source.metadata.data.get("test") if source.metadata is not None else None
    same = isinstance(recorded, dict) and recorded.get("fingerprint") == found.test.fingerprint()
    if predictions is not None:
        content = row_predictions(found.test, {(PREDICTION, None): found.answers})
        write_predictions(Path(predictions), content, console)
    use = _note_opening(found.test.fingerprint(), str(checkpoint), source.sha256)
    unfair = learnt_note(source.metadata, found) if source.metadata is not None else None
    evaluation = replace(found.evaluation, claimed=source.accuracy if same else None, test_set=use, learnt=unfair)
    if html:
        _write_page(evaluation, found, source.classifier, {str(checkpoint): source.sha256}, console)
    return evaluation


def _write_page(
    evaluation: Evaluation, found: EvaluatedSet, classifier: Classifier, sha256: Mapping[str, str], console: Console
) -> None:
    predictions = as_predictions(found.test, {(PREDICTION, None): found.answers})
    material = with_pictures(Material(predictions, sha256=sha256), classifier, found.test)
    lines = [part.plain for part in shown_parts(evaluation) if isinstance(part, Text)]
    name = f"{Path(evaluation.checkpoint).stem}-{evaluation.data}"
    page = evaluation_page(evaluation.to_dict(), lines, evaluation.result, material)
    write_page(page_path(name, "evaluate"), page, console)


def shown_parts(found: Evaluation) -> list[RenderableType]:
    """What the command shows."""
    shared = (found.left_out, found.not_offered, found.learnt)
    parts = evaluation_parts(found.result, found.data, found.classes, found.claimed, *shared)
    return [*parts, *map(Text, test_set_lines(found.test_set))]


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
    classifier: Classifier,
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
    like = learnt.reading(data) | ({"group": group} if group is not None else {})
    data, found = open_test(data, root, classifier.input, console, on_bad_image=on_bad_image, like=like)
    whole, part, said = choose_measured(found, data, checkpoint, learnt)
    counts = whole.counts()
    shared = [name for name in classifier.class_names if name in counts]
    if not any(counts[name] for name in shared):
        raise DataError(
            f"{checkpoint} and {data} have no class in common: the checkpoint knows "
            f"{listed(classifier.class_names)}; {data} has {listed(whole.class_names)}. "
            f"`finetune adapt --from {checkpoint} --target {data}` swaps the head"
        )
    if said:
        console.note(said)
    test, own = whole.with_classes(shared, empty=True), shared
    if len(shared) == 1:  # a choice among one class is always right
        shared = list(classifier.class_names)
        labels = torch.full_like(test.labels, shared.index(own[0]))
        test = replace(test, labels=labels, class_names=classifier.class_names)
    runtime.place(classifier.network)
    normalize = classifier.input.normalizer(runtime.device)
    rows, grading = places_of(shared, classifier.class_names), Grading.of(test)
    numbers = outputs(
        classifier.network,
        test.images.to(runtime.device),
        normalize,
        reduce=lambda logits, start: grading.reduce(logits[:, rows], start),
    )
    answers = RowAnswers.of_numbers(numbers)
    result = score(test, answers, row="test")
    offered = set(shared)
    not_offered = [name for name in classifier.class_names if name not in offered]
    chosen = set(own)
    evaluation = Evaluation(checkpoint, data, shared, len(whole) - len(test), not_offered, result, None, part=part)
    return EvaluatedSet(evaluation, test, tuple(name for name in whole.class_names if name in chosen), answers)


def check_predictions_path(path: Path) -> None:
    """SettingError unless `path` ends in .csv; OutputError where something else than a file of predictions is there."""
    if path.suffix != SUFFIX:
        raise SettingError(f"--predictions {path}: expected a file name that ends in {SUFFIX}")
    if not path.exists():
        return
    try:
        read_predictions(path)
    except DataError as error:
        raise OutputError(
            f"{path}: is there already and is no file of predictions ({first_line(error)}); name another place"
        ) from None


def write_predictions(path: Path, content: bytes, console: Console) -> None:
    """Writes a file of predictions; an older, different one gets a second name first. OutputError."""
    with prepared_files({path: content}):
        move_file_aside(path, content, console)
    console.note(f"wrote {path}")
