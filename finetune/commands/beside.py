"""The report beside a checkpoint, held against what the checkpoint says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.bounds import MOST_REPORT
from finetune.commands.claims import Check, Subject
from finetune.commands.phase_values import trained_stages
from finetune.digest import digest_of_all
from finetune.strangers.regular import read_regular
from finetune.training.proof import frozen_tensors

NAME = "report"


def report_of(subject: Subject) -> Path:
    """Where the report of a checkpoint lies, if it has one."""
    hub = subject.located.hub
    return hub.report if hub is not None and hub.report is not None else subject.path.with_suffix(".report.json")


def read_report(path: Path) -> dict[str, Any] | None:
    """A report's values, which may be anybody's and anything; None where there is no such file, or it is no report."""
    try:
        found = json.loads(read_regular(path, MOST_REPORT))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def report_check(subject: Subject, path: Path, report: Mapping[str, Any] | None) -> Check:
    """Whether the report beside the checkpoint is of the same run and says the same."""
    if not path.exists():
        return Check.skipped(NAME, f"there is no {path.name} beside it")
    if report is None:
        return Check(NAME, "failed", f"{path}: not the JSON of a report")
    says = f"{path.name} says the same of recipe, seed, results, images and phases"
    return Check.of(NAME, (f"{path.name}: {fault}" for fault in _faults(subject, report)), says)


def _faults(subject: Subject, report: Mapping[str, Any]) -> Iterator[str]:
    metadata = subject.metadata
    for key in ("recipe", "results"):
        if key not in report:
            yield f"there is no {key} in it"
    for key, ours, theirs in _pairs(subject, report):
        if ours != theirs:
            yield f"{key}: it says {_short(theirs)}, and the checkpoint {_short(ours)}"
    results = _mapping(report.get("results"))
    for name in {**metadata.results, **results}:
        yield from _result_faults(name, metadata.results.get(name), results.get(name))
    yield from _comparison_faults(report, results)
    yield from _phase_faults(subject, report)


def _pairs(subject: Subject, report: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What the two say of the same thing, as far as the report says anything."""
    metadata = subject.metadata
    recipe, data, lineage = metadata.recipe, metadata.data, metadata.lineage
    ours = {"kind": recipe.get("kind"), "recipe": recipe, "seed": recipe.get("seed")}
    yield from ((key, value, report[key]) for key, value in ours.items() if key in report)
    target = _mapping(report.get("target"))
    images = {part: _mapping(data.get(part)).get("images") for part in ("train", "validation", "test")}
    about = {"name": data.get("name"), "classes": metadata.classes, **images}
    yield from ((f"target.{key}", value, target[key]) for key, value in about.items() if key in target)
    if "source" in report:
        source = _mapping(report["source"])
        yield "source.sha256", lineage[0].get("sha256") if lineage else None, source.get("sha256")


def _result_faults(name: str, ours: Any, theirs: Any) -> Iterator[str]:
    if ours is None and theirs is None:
        return
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        missing = "the report" if isinstance(ours, Mapping) else "the checkpoint"
        yield f"results.{name}: {missing} has none"
        return
    for key, value in ours.items():
        if theirs.get(key) != value:
            yield f"results.{name}.{key}: it says {_short(theirs.get(key))}, and the checkpoint {_short(value)}"


def _comparison_faults(report: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    for name, value in _mapping(report.get("comparisons")).items():
        of, _, against = name.partition("_vs_")
        first, second = (_mapping(results.get(key)).get("accuracy") for key in (against, of))
        said = _mapping(value).get("difference")
        numbers = [n for n in (first, second, said) if isinstance(n, float)]
        if value is not None and (len(numbers) < 3 or abs(numbers[1] - numbers[0] - numbers[2]) > 1e-9):
            yield f"comparisons.{name}: the difference is not that of the two accuracies"


def _phase_faults(subject: Subject, report: Mapping[str, Any]) -> Iterator[str]:
    """The phases are the recipe's, and what the last one froze is in the file as the report has it."""
    phases, recipe, classifier = report.get("phases"), subject.recipe, subject.classifier
    if not isinstance(phases, list) or recipe is None:
        return
    names = [_mapping(phase).get("name") for phase in phases]
    if names != [phase.name for phase in recipe.phases]:
        yield f"phases: it says {_short(names)}, and the recipe {_short([phase.name for phase in recipe.phases])}"
        return
    last, said = recipe.phases[-1], _mapping(phases[-1])
    if classifier is None or "frozen" not in said or last.lora is not None:
        return  # a low-rank adapter is added to frozen weights once the phase is over
    stages = trained_stages(classifier.network.stages, last.train)
    written = classifier.network.state_dict()
    frozen = [name for name in frozen_tensors(classifier.network, stages, last.norms) if name in written]
    digest = digest_of_all({name: written[name] for name in frozen})
    found = {"tensors": len(frozen), "sha256": digest} if frozen else None
    if said["frozen"] != found:
        yield f"phases.{last.name}.frozen: it says {_set(said['frozen'])}, and the checkpoint has {_set(found)}"


def _set(value: Any) -> str:
    if isinstance(value, Mapping) and {"tensors", "sha256"} <= value.keys():
        return f"{_short(value['tensors'])} tensors with the sha256 {str(value['sha256'])[:12]}…"
    return _short(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 90 else f"{text[:80]}… ({len(text)} characters)"
