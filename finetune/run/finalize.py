"""Ends a run: scores, report, and the checkpoint with its metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from torch import Tensor

from finetune.checkpoint.format import InputMetadata, Metadata, encode, read_checkpoint, write_checkpoint
from finetune.data.image_dataset import ImageSet
from finetune.data.manifest import is_image_path, short_name
from finetune.errors import CheckpointError
from finetune.io.atomic import prepared_files, write_atomic
from finetune.models.classifier import Classifier
from finetune.recipe.load import resolve_recipe
from finetune.recipe.schema import AdaptRecipe, PretrainRecipe
from finetune.report.comparison import Comparison, Score
from finetune.report.console import Console
from finetune.report.report import (
    PhaseSummary,
    Report,
    Result,
    Retention,
    SourceSummary,
    TargetSummary,
    Transplant,
    result_values,
)
from finetune.report.statistics import confusion, per_class
from finetune.report.tables import report_tables
from finetune.run.data import RunData
from finetune.run.output_paths import OutputPaths, move_aside
from finetune.sources.resolve import Source
from finetune.train.device import Runtime, environment, versions

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.models.classifier import Classifier


def save(classifier: Classifier, path: str | Path) -> str:
    """Writes a classifier as a checkpoint, in place of any file of that name, and returns the new file's sha256.

    What the file it was loaded from says of recipe, data and results is kept only while weights, classes and input are
    the same. CheckpointError, and nothing is written, when the file could not be loaded again.
    """
    state, origin = classifier.network.state_dict(), classifier.origin
    rows, names = classifier.network.head.out_features, len(classifier.class_names)
    if rows != names:
        raise CheckpointError(f"{path}: not written: the head has {rows} rows, and there are {names} class names")
    if not isinstance(origin, Source) or not names:
        return write_checkpoint(Path(path), state, make_metadata(classifier))
    content = _unchanged(classifier, origin)
    if content is not None:
        write_atomic(Path(path), content)
        return origin.sha256
    lineage = origin.lineage_of_child()
    return write_checkpoint(Path(path), state, make_metadata(classifier, lineage=lineage))


def make_metadata(
    classifier: Classifier,
    *,
    recipe: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    lineage: list[dict[str, Any]] | None = None,
) -> Metadata:
    """The metadata of a classifier as it is now. CheckpointError when no file could say that."""
    from finetune.train.device import versions

    try:
        return Metadata(
            model=classifier.model,
            arguments=classifier.arguments,
            classes=list(classifier.class_names),
            input=InputMetadata.model_validate(classifier.input.as_dict()),
            recipe=recipe or {},
            data=data or {},
            results=results or {},
            lineage=lineage or [],
            versions=versions(classifier.model),
        )
    except ValidationError as error:
        raise CheckpointError(f"this classifier cannot be saved: {error.errors()[0]['msg'].lower()}") from None


def _unchanged(classifier: Classifier, origin: Source) -> bytes | None:
    """The file that it came from, if that is still there and says the same: weights, model, classes and input."""
    now, then, path = make_metadata(classifier), origin.metadata, origin.path or origin.cached
    if then is None or path is None:
        return None
    if (now.model, now.arguments, now.classes, now.input) != (then.model, then.arguments, then.classes, then.input):
        return None
    try:
        loaded, content = read_checkpoint(path), path.read_bytes()
    except (CheckpointError, OSError):
        return None
    if not loaded.sha256 == origin.sha256 == hashlib.sha256(content).hexdigest():
        return None
    return content if _equal_state(loaded.tensors, classifier.network.state_dict()) else None


def _equal_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype and first[k].equal(second[k].cpu()) for k in first
    )


def correct_mask(images: ImageSet, predicted: Tensor) -> npt.NDArray[np.bool_]:
    """Whether each image was named rightly, from predicted class indices (int64, N)."""
    right: npt.NDArray[np.bool_] = (predicted.cpu() == images.labels).numpy()
    return right


def score(images: ImageSet, predicted: Tensor, *, method: str | None = None, detailed: bool = True) -> Result:
    """The result of predictions (int64, N) for labelled images; `detailed` adds classes and confusion."""
    score = asdict(Score.of(correct_mask(images, predicted)))
    if not detailed:
        return Result(**score, method=method)
    labels, found = images.labels.numpy(), predicted.cpu().numpy()
    classes = {name: dict(values) for name, values in per_class(labels, found, images.class_names).items()}
    return Result(
        **score, method=method, per_class=classes, confusion=confusion(labels, found, len(images.class_names))
    )


def public_recipe(plan: PretrainRecipe | AdaptRecipe) -> dict[str, Any]:
    """The resolved recipe for checkpoint and report, which others may see: of a folder its name, not where it lies."""
    values: dict[str, Any] = resolve_recipe(plan)
    name = values["data"].get("name")
    if name is not None and is_image_path(name):
        values["data"] = {**values["data"], "name": short_name(name)}
    return values


def run_fingerprint(
    plan: PretrainRecipe | AdaptRecipe, model: str, data: Mapping[str, Any], runtime: Runtime
) -> dict[str, Any]:
    """What a run's bytes depend on, but the processor and its threads: only an equal run is gone on with.

    How much may be cached has no part in it, so that a run which ran out of memory or disk can go on with less.
    """
    return {
        "kind": plan.kind,
        "recipe": {key: value for key, value in resolve_recipe(plan).items() if key != "cache"},
        "data": data,
        "precision": runtime.precision,
        "versions": versions(model),
    }


def build_report(
    plan: PretrainRecipe | AdaptRecipe,
    material: RunData,
    runtime: Runtime,
    seconds: float,
    phases: list[PhaseSummary],
    results: dict[str, Result | None],
    *,
    source: SourceSummary | None = None,
    transplant: Transplant | None = None,
    comparisons: dict[str, Comparison | None] | None = None,
    retention: Retention | None = None,
) -> Report:
    """The report of a run; the last four are for an adapt."""
    return Report(
        kind=plan.kind,
        recipe=public_recipe(plan),
        seed=plan.seed,
        device=str(runtime.device),
        environment=environment(runtime),
        seconds=seconds,
        source=source,
        target=TargetSummary(
            name=material.name,
            classes=list(material.class_names),
            train=len(material.train),
            validation=len(material.validation),
            test=len(material.test),
            notes=list(material.notes),
        ),
        transplant=transplant,
        phases=phases,
        results=results,
        comparisons=comparisons or {},
        retention=retention,
    )


def save_run(
    classifier: Classifier,
    described: Mapping[str, Any],
    report: Report,
    outputs: OutputPaths,
    console: Console,
) -> str:
    """Writes checkpoint and report, shows the outcome, and returns the checkpoint's sha256.

    An older, different checkpoint gets another name first. Until the new ones have their names, the old ones have
    theirs: at every moment there is a checkpoint that loads.
    When the bytes are those that are there already, so are the results, and nothing but the report's timings changes.
    """
    results = {k: None if r is None else result_values(r, brief=True) for k, r in report.results.items()}
    metadata = make_metadata(classifier, **described, results=results)
    content = encode(classifier.network.state_dict(), metadata)
    digest = hashlib.sha256(content).hexdigest()
    said = report.to_json().encode()
    if digest == outputs.digest():
        console.note(f"{outputs.checkpoint}: the same bytes as the run before")
        write_atomic(outputs.report, said)
    else:
        with prepared_files({outputs.checkpoint: content, outputs.report: said}):
            move_aside(outputs, console)
    for table in report_tables(report):
        console.show(table)
    console.say(f"wrote {outputs.checkpoint} (sha256 {digest[:12]}) and {outputs.report}")
    return digest
