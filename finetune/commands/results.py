"""The end of a run: predictions become results, and checkpoint and report are written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from finetune.checkpoint import encode
from finetune.commands.material import Material
from finetune.commands.outputs import Outputs, set_aside
from finetune.data.images import ImageSet
from finetune.data.photographs import is_photographs, short_name
from finetune.files import prepared, write_whole
from finetune.models.classifier import Classifier
from finetune.recipe.reader import resolved
from finetune.recipe.schema import AdaptRecipe, PretrainRecipe
from finetune.reporting.console import Console
from finetune.reporting.metrics import confusion, per_class
from finetune.reporting.report import (
    PhaseSummary,
    Report,
    Result,
    Retention,
    SourceSummary,
    TargetSummary,
    Transplant,
    result_values,
)
from finetune.reporting.tables import report_tables
from finetune.reporting.verdict import Comparison, Score
from finetune.saving import describe
from finetune.training.runtime import Runtime, environment, versions


def right_answers(images: ImageSet, predicted: Tensor) -> npt.NDArray[np.bool_]:
    """Whether each image was named rightly, from predicted class indices (int64, N)."""
    right: npt.NDArray[np.bool_] = (predicted.cpu() == images.labels).numpy()
    return right


def measure(images: ImageSet, predicted: Tensor, *, method: str | None = None, detailed: bool = True) -> Result:
    """The result of predictions (int64, N) for labelled images; `detailed` adds classes and confusion."""
    score = asdict(Score.of(right_answers(images, predicted)))
    if not detailed:
        return Result(**score, method=method)
    labels, found = images.labels.numpy(), predicted.cpu().numpy()
    classes = {name: dict(values) for name, values in per_class(labels, found, images.class_names).items()}
    return Result(
        **score, method=method, per_class=classes, confusion=confusion(labels, found, len(images.class_names))
    )


def recorded(plan: PretrainRecipe | AdaptRecipe) -> dict[str, Any]:
    """The resolved recipe for checkpoint and report, which others may see: of a folder its name, not where it lies."""
    values: dict[str, Any] = resolved(plan)
    name = values["data"].get("name")
    if name is not None and is_photographs(name):
        values["data"] = {**values["data"], "name": short_name(name)}
    return values


def what_decides(
    plan: PretrainRecipe | AdaptRecipe, model: str, data: Mapping[str, Any], runtime: Runtime
) -> dict[str, Any]:
    """What a run's bytes depend on, but the processor and its threads: only an equal run is gone on with.

    How much may be cached has no part in it, so that a run which ran out of memory or disk can go on with less.
    """
    return {
        "kind": plan.kind,
        "recipe": {key: value for key, value in resolved(plan).items() if key != "cache"},
        "data": data,
        "precision": runtime.precision,
        "versions": versions(model),
    }


def run_report(
    plan: PretrainRecipe | AdaptRecipe,
    material: Material,
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
        recipe=recorded(plan),
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
    outputs: Outputs,
    console: Console,
) -> str:
    """Writes checkpoint and report, shows the outcome, and returns the checkpoint's sha256.

    An older, different checkpoint gets another name first. Until the new ones have their names, the old ones have
    theirs: at every moment there is a checkpoint that loads.
    When the bytes are those that are there already, so are the results, and nothing but the report's timings changes.
    """
    results = {k: None if r is None else result_values(r, brief=True) for k, r in report.results.items()}
    metadata = describe(classifier, **described, results=results)
    content = encode(classifier.network.state_dict(), metadata)
    digest = hashlib.sha256(content).hexdigest()
    said = report.to_json().encode()
    if digest == outputs.digest():
        console.note(f"{outputs.checkpoint}: the same bytes as the run before")
        write_whole(outputs.report, said)
    else:
        with prepared({outputs.checkpoint: content, outputs.report: said}):
            set_aside(outputs, console)
    for table in report_tables(report):
        console.show(table)
    console.say(f"wrote {outputs.checkpoint} (sha256 {digest[:12]}) and {outputs.report}")
    return digest
