"""Checks a checkpoint against itself and against the report beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.checkpoint.format import Checkpoint, Metadata, read_checkpoint
from finetune.checkpoint.limits import MAX_REPORT_BYTES
from finetune.checkpoint.tensor_hash import hash_tensors
from finetune.errors import CheckpointError, RecipeError, SettingError
from finetune.io.safe_open import read_regular
from finetune.models.classifier import Classifier
from finetune.report.statistics import wilson
from finetune.run.setup import Recipe, open_recipe
from finetune.sources.resolve import Architecture, SourceRef, classifier_from_checkpoint, read_source_metadata
from finetune.text import listed
from finetune.train.frozen_check import frozen_tensors

MAX_IMAGES = 2**53  # that a float counts

State = Literal["ok", "failed", "not checked"]


@dataclass(frozen=True)
class Check:
    """One claim: its stable name, whether it holds, why in a sentence, and what it is about: tensors, differences."""

    check: str
    state: State
    message: str
    details: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON of `finetune verify --json`."""
        return {"check": self.check, "state": self.state, "says": self.message, "details": list(self.details)}

    @classmethod
    def of(cls, check: str, faults: Iterable[str], message: str) -> Check:
        """ok where there are no faults, as `message` has it; failed with the faults where there are."""
        found = tuple(faults)
        if not found:
            return cls(check, "ok", message)
        return cls(check, "failed", found[0] if len(found) == 1 else f"{len(found)} things do not hold", found)

    @classmethod
    def skipped(cls, check: str, why: str) -> Check:
        return cls(check, "not checked", why)


@dataclass(frozen=True)
class CheckpointUnderTest:
    """The checkpoint that is looked at.

    `classifier` is None where its tensors fit no network, for the reason `misfit`; `recipe` is None where it has none,
    or one that does not hold, for the reasons `recipe_faults`.
    """

    located: SourceRef
    checkpoint: Checkpoint
    classifier: Classifier | None
    misfit: str
    recipe: Recipe | None
    recipe_faults: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.checkpoint.path

    @property
    def metadata(self) -> Metadata:
        return self.checkpoint.metadata


def open_for_checks(located: SourceRef) -> CheckpointUnderTest:
    """A source, read without refusing what a check is about. CheckpointError when it is no checkpoint of ours."""
    read_source_metadata(located)
    assert located.path is not None
    checkpoint = read_checkpoint(located.path, refuse=False)
    classifier, misfit = None, ""
    try:
        classifier = classifier_from_checkpoint(checkpoint)
    except CheckpointError as error:
        misfit = str(error).removeprefix(f"{located.path}: ")
    recipe, faults = _recipe_of(checkpoint.metadata)
    return CheckpointUnderTest(located, checkpoint, classifier, misfit, recipe, faults)


def _recipe_of(metadata: Metadata) -> tuple[Recipe | None, tuple[str, ...]]:
    values = dict(metadata.recipe)
    if not values:
        return None, ()
    data = values.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("name"), str):
        # A folder is recorded by its last name alone, which must not be taken for that of a registered set.
        values["data"] = {**data, "name": f"./{data['name']}"}
    adapts = values.get("kind") == "adapt"
    source = Architecture(metadata.model, metadata.arguments, fixed=True) if adapts else None
    try:
        recipe = open_recipe(values, (), source)
    except RecipeError as error:
        return None, error.problems
    except SettingError as error:  # of the checkpoint's own model
        return None, (str(error),)
    named = recipe.model.name if recipe.model is not None else None
    if named not in (None, metadata.model):
        return None, (f"recipe: model: is of {named}, and the checkpoint is a {metadata.model}",)
    return recipe, ()


def self_checks(subject: CheckpointUnderTest) -> list[Check]:
    """Everything that needs no other file."""
    metadata, tensors = subject.metadata, subject.checkpoint.tensors
    first, *rest = subject.misfit.splitlines() or [""]
    network = f"{metadata.model} with {len(metadata.classes)} classes"
    nonsense = [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    return [
        Check("file", "ok", f"safetensors, whole: {len(tensors)} tensors, {subject.path.stat().st_size:,} bytes"),
        Check("metadata", "ok", f"valid: format {metadata.format}, {network}"),
        Check("tensors", "failed", first, tuple(line.strip() for line in rest))
        if subject.misfit
        else Check("tensors", "ok", f"they fit {network}"),
        Check.of("numbers", (f"NaN or infinite numbers in {name}" for name in nonsense), "every number is finite"),
        _check_hash(subject.checkpoint),
        _check_classes(metadata),
        _check_results(metadata),
        _check_recipe(subject),
    ]


def _check_hash(checkpoint: Checkpoint) -> Check:
    recorded = checkpoint.metadata.tensors
    if recorded is None:
        return Check.skipped("hash", "not recorded: the file is older than this hash")
    found = hash_tensors(checkpoint.tensors)
    if found == recorded:
        return Check("hash", "ok", f"the tensors have the recorded sha256 {recorded[:12]}…")
    return Check("hash", "failed", f"the tensors have the sha256 {found[:12]}…, and {recorded[:12]}… is recorded")


def _check_classes(metadata: Metadata) -> Check:
    trained = metadata.data.get("classes")
    if trained is None:
        return Check.skipped("classes", "the classes of the training data are not recorded")
    ours = metadata.classes
    faults = []
    if trained != ours:
        same = isinstance(trained, list) and sorted(map(str, trained)) == sorted(ours)
        order = "in another order" if same else "others"
        faults = [f"the classes are {order} than those of the training data: {listed(ours)}"]
    return Check.of("classes", faults, f"the {len(ours)} classes are those of the training data, in their order")


def _check_results(metadata: Metadata) -> Check:
    results = {name: value for name, value in metadata.results.items() if value is not None}
    if not results:
        return Check.skipped("results", "none are recorded")
    test = metadata.data.get("test")
    images = test.get("images") if isinstance(test, Mapping) else None
    faults = [fault for name, value in results.items() for fault in _result_faults(name, value, images)]
    return Check.of("results", faults, f"accuracies and intervals follow from the counts: {', '.join(results)}")


def _result_faults(name: str, value: Any, images: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"results.{name}: expected a result, found {type(value).__name__}"
        return
    correct, total = value.get("correct"), value.get("total")
    if type(correct) is not int or type(total) is not int or not 0 <= correct <= total or not 0 < total < MAX_IMAGES:
        yield f"results.{name}: expected correct of total, found {correct} of {total}"
        return
    if images is not None and total != images:
        yield f"results.{name}: is of {total} images, and {images} test images are recorded"
    ends, wanted, said = value.get("ci95"), wilson(correct, total), value.get("accuracy")
    if said != correct / total:
        yield f"results.{name}: the accuracy says {said}, and {correct} of {total} is {correct / total}"
    near = isinstance(ends, list) and len(ends) == 2 and all(type(end) is float for end in ends)
    if not near or any(abs(a - b) > 1e-9 for a, b in zip(ends or (), wanted, strict=False)):
        yield f"results.{name}: the interval says {ends}, and {correct} of {total} has {list(wanted)}"


def _check_recipe(subject: CheckpointUnderTest) -> Check:
    if not subject.metadata.recipe:
        return Check.skipped("recipe", "none is recorded: the weights were saved, not trained here")
    faults = (fault.removeprefix("recipe: ") for fault in subject.recipe_faults)
    kind = subject.recipe.kind if subject.recipe is not None else ""
    return Check.of("recipe", faults, f"the recorded recipe, of kind {kind}, passes today's schema")


REPORT_CHECK = "report"


def read_own_report(subject: CheckpointUnderTest) -> Path:
    """Where the report of a checkpoint lies, if it has one."""
    hub = subject.located.hub
    return hub.report if hub is not None and hub.report is not None else subject.path.with_suffix(".report.json")


def read_report(path: Path) -> dict[str, Any] | None:
    """A report's values, which may be anybody's and anything; None where there is no such file, or it is no report."""
    try:
        found = json.loads(read_regular(path, MAX_REPORT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def report_check(subject: CheckpointUnderTest, path: Path, report: Mapping[str, Any] | None) -> Check:
    """Whether the report beside the checkpoint is of the same run and says the same."""
    if not path.exists():
        return Check.skipped(REPORT_CHECK, f"there is no {path.name} beside it")
    if report is None:
        return Check(REPORT_CHECK, "failed", f"{path}: not the JSON of a report")
    message = f"{path.name} says the same of recipe, seed, results, images and phases"
    return Check.of(REPORT_CHECK, (f"{path.name}: {fault}" for fault in _report_problems(subject, report)), message)


def _report_problems(subject: CheckpointUnderTest, report: Mapping[str, Any]) -> Iterator[str]:
    metadata = subject.metadata
    for key in ("recipe", "results"):
        if key not in report:
            yield f"there is no {key} in it"
    for key, ours, theirs in _counted_pairs(subject, report):
        if ours != theirs:
            yield f"{key}: it says {_short(theirs)}, and the checkpoint {_short(ours)}"
    results = _as_mapping(report.get("results"))
    for name in {**metadata.results, **results}:
        yield from _reported_result_problems(name, metadata.results.get(name), results.get(name))
    yield from _comparison_faults(report, results)
    yield from _phase_faults(subject, report)


def _counted_pairs(subject: CheckpointUnderTest, report: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What the two say of the same thing, as far as the report says anything."""
    metadata = subject.metadata
    recipe, data, lineage = metadata.recipe, metadata.data, metadata.lineage
    ours = {"kind": recipe.get("kind"), "recipe": recipe, "seed": recipe.get("seed")}
    yield from ((key, value, report[key]) for key, value in ours.items() if key in report)
    target = _as_mapping(report.get("target"))
    images = {part: _as_mapping(data.get(part)).get("images") for part in ("train", "validation", "test")}
    about = {"name": data.get("name"), "classes": metadata.classes, **images}
    yield from ((f"target.{key}", value, target[key]) for key, value in about.items() if key in target)
    if "source" in report:
        source = _as_mapping(report["source"])
        yield "source.sha256", lineage[0].get("sha256") if lineage else None, source.get("sha256")


def _reported_result_problems(name: str, ours: Any, theirs: Any) -> Iterator[str]:
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
    for name, value in _as_mapping(report.get("comparisons")).items():
        of, _, against = name.partition("_vs_")
        first, second = (_as_mapping(results.get(key)).get("accuracy") for key in (against, of))
        said = _as_mapping(value).get("difference")
        numbers = [n for n in (first, second, said) if isinstance(n, float)]
        if value is not None and (len(numbers) < 3 or abs(numbers[1] - numbers[0] - numbers[2]) > 1e-9):
            yield f"comparisons.{name}: the difference is not that of the two accuracies"


def _phase_faults(subject: CheckpointUnderTest, report: Mapping[str, Any]) -> Iterator[str]:
    """The phases are the recipe's, and what the last one froze is in the file as the report has it."""
    phases, recipe, classifier = report.get("phases"), subject.recipe, subject.classifier
    if not isinstance(phases, list) or recipe is None:
        return
    names = [_as_mapping(phase).get("name") for phase in phases]
    if names != [phase.name for phase in recipe.phases]:
        yield f"phases: it says {_short(names)}, and the recipe {_short([phase.name for phase in recipe.phases])}"
        return
    last, said = recipe.phases[-1], _as_mapping(phases[-1])
    if classifier is None or "frozen" not in said or last.lora is not None:
        return  # a low-rank adapter is added to frozen weights once the phase is over
    stages = last.trained_stages(classifier.network.stages)
    written = classifier.network.state_dict()
    frozen = [name for name in frozen_tensors(classifier.network, stages, last.norms) if name in written]
    digest = hash_tensors({name: written[name] for name in frozen})
    found = {"tensors": len(frozen), "sha256": digest} if frozen else None
    if said["frozen"] != found:
        yield f"phases.{last.name}.frozen: it says {_as_set(said['frozen'])}, and the checkpoint has {_as_set(found)}"


def _as_set(value: Any) -> str:
    if isinstance(value, Mapping) and {"tensors", "sha256"} <= value.keys():
        return f"{_short(value['tensors'])} tensors with the sha256 {str(value['sha256'])[:12]}…"
    return _short(value)


def _as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 90 else f"{text[:80]}… ({len(text)} characters)"
