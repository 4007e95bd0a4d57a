"""Checks a checkpoint against itself and against the report beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from finetune.checkpoint.format import Checkpoint, Metadata, read_checkpoint
from finetune.checkpoint.safetensors_io import LARGEST, too_large
from finetune.checkpoint.tensor_hash import hash_tensors
from finetune.errors import CheckpointError, RecipeError, SettingError
from finetune.models.classifier import Classifier
from finetune.models.staged import eval_mode
from finetune.recipe.schema import AdaptRecipe
from finetune.report.cross_validation import accuracy_over_folds
from finetune.report.rows import row_of
from finetune.report.statistics import wilson, wilson_by_groups
from finetune.run.setup import Recipe, open_recipe
from finetune.sources.resolve import Architecture, SourceRef, classifier_from_checkpoint, read_source_metadata
from finetune.text import listed
from finetune.train.frozen_check import frozen_tensors

MAX_IMAGES = 2**53  # that a float counts
CONFIDENCE_KEYS = {
    "promise": ("max_error", "confidence", "threshold", "answered", "images"),
    "novelty": ("threshold", "share", "images"),
}
"""What checkpoint and report both say of a part of the confidence."""
State = Literal["ok", "failed", "not checked"]


@dataclass(frozen=True)
class Check:
    """A checked claim: its stable name, whether it holds, why in a sentence, and the faults or tensors it is about."""

    check: str
    state: State
    message: str
    details: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON values, for `finetune verify --json`."""
        return {"check": self.check, "state": self.state, "says": self.message, "details": list(self.details)}

    @classmethod
    def of(cls, check: str, faults: Iterable[str], message: str, details: tuple[str, ...] = ()) -> Check:
        """A check that failed with these faults, or else is ok with this message."""
        found = tuple(faults)
        if not found:
            return cls(check, "ok", message, details)
        return cls(check, "failed", found[0] if len(found) == 1 else f"{len(found)} things do not hold", found)

    @classmethod
    def skipped(cls, check: str, why: str) -> Check:
        return cls(check, "not checked", why)


@dataclass(frozen=True)
class CheckpointUnderTest:
    """The checkpoint to verify.

    `classifier` is None where the tensors fit no network, for the reason `misfit`. `recipe` is None where none is
    recorded, or an invalid one, for the reasons `recipe_faults`.
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

    @property
    def report_path(self) -> Path:
        """Where its report is, if it has one."""
        hub = self.located.hub
        return hub.report if hub is not None and hub.report is not None else self.path.with_suffix(".report.json")


def open_for_checks(located: SourceRef) -> CheckpointUnderTest:
    """Reads a checkpoint without refusing what the checks are about. CheckpointError when it is none of ours."""
    read_source_metadata(located)
    assert located.path is not None
    checkpoint = read_checkpoint(located.path, refuse=False)
    classifier, misfit = None, ""
    try:
        classifier = classifier_from_checkpoint(checkpoint)
    except CheckpointError as error:
        misfit = str(error).removeprefix(f"{located.path}: ")
    recipe, faults = _parse_recipe(checkpoint.metadata)
    return CheckpointUnderTest(located, checkpoint, classifier, misfit, recipe, faults)


def _parse_recipe(metadata: Metadata) -> tuple[Recipe | None, tuple[str, ...]]:
    """The recorded recipe as today's schema has it; or None and the reasons."""
    values = dict(metadata.recipe)
    if not values:
        return None, ()
    data = values.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("name"), str):
        # A folder is recorded by its last name alone, which must not be taken for that of a registered set.
        values["data"] = {**data, "name": f"./{data['name']}"}
    source = Architecture(metadata.model, metadata.arguments, fixed=True) if values.get("kind") == "adapt" else None
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
    """All checks that need no other file."""
    metadata, tensors = subject.metadata, subject.checkpoint.tensors
    first, *rest = subject.misfit.splitlines() or [""]
    network = f"{metadata.model} with {len(metadata.classes)} classes"
    not_finite = [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    faults = [f"NaN or infinite numbers in {name}" for name in not_finite]
    faults += [f"numbers above {LARGEST:g} in {name}" for name in too_large(tensors) if name not in not_finite]
    if not faults and subject.classifier is not None and not has_finite_logits(subject.classifier):
        faults = ["every number is finite, but the network's outputs for a black, a white or a random picture are not"]
    return [
        Check("file", "ok", f"safetensors, whole: {len(tensors)} tensors, {subject.path.stat().st_size:,} bytes"),
        Check("metadata", "ok", f"valid: format {metadata.format}, {network}"),
        Check("tensors", "failed", first, tuple(line.strip() for line in rest))
        if subject.misfit
        else Check("tensors", "ok", f"they fit {network}"),
        Check.of("numbers", faults, "every number is finite, and so are the network's outputs"),
        _check_hash(subject.checkpoint),
        _check_classes(metadata),
        _check_results(metadata),
        _check_recipe(subject),
    ]


@torch.no_grad()
def has_finite_logits(classifier: Classifier) -> bool:
    """Whether a black, a white and a random picture give finite logits: finite weights may be too large for that."""
    spec = classifier.input
    chance = torch.rand(spec.channels, spec.size, spec.size, generator=torch.Generator().manual_seed(0))
    pictures = torch.stack([torch.zeros_like(chance), torch.ones_like(chance), chance])
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (spec.mean, spec.std))
    with eval_mode(classifier):
        return bool(classifier((pictures - mean) / std).isfinite().all())


def _check_hash(checkpoint: Checkpoint) -> Check:
    recorded = checkpoint.metadata.tensors
    if recorded is None:
        return Check.skipped("hash", "not recorded: the file is older than this hash")
    found = hash_tensors(checkpoint.tensors)
    fault = f"the tensors have the sha256 {found[:12]}…, and {recorded[:12]}… is recorded"
    return Check.of(
        "hash", [fault] if found != recorded else [], f"the tensors have the recorded sha256 {recorded[:12]}…"
    )


def _check_classes(metadata: Metadata) -> Check:
    trained, ours = metadata.data.get("classes"), metadata.classes
    if trained is None:
        return Check.skipped("classes", "the classes of the training data are not recorded")
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
    images = as_mapping(metadata.data.get("test")).get("images")
    faults = (f"results.{name}: {fault}" for name, value in results.items() for fault in _result_faults(value, images))
    return Check.of("results", faults, f"accuracies and intervals follow from the counts: {', '.join(results)}")


def _result_faults(value: Any, images: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"expected a result, found {type(value).__name__}"
        return
    correct, total = value.get("correct"), value.get("total")
    if type(correct) is not int or type(total) is not int or not 0 <= correct <= total or not 0 < total < MAX_IMAGES:
        yield f"expected correct of total, found {correct} of {total}"
        return
    if images is not None and total != images:
        yield f"is of {total} images, and {images} test images are recorded"
    accuracy, interval, expected = value.get("accuracy"), value.get("ci95"), _interval(value, correct, total)
    if expected is None:
        found = f"{value.get('groups')} and {value.get('effective_images')}"
        yield f"expected groups and effective_images of {total} images, found {found}"
        return
    if "per_fold" in value:
        counts = _fold_counts(value["per_fold"])
        if sum(right for right, _ in counts) != correct or sum(images for _, images in counts) != total:
            yield f"the folds do not add up to {correct} of {total}"
            return
        expected = accuracy_over_folds(counts, expected)
    if accuracy != correct / total:
        yield f"the accuracy says {accuracy}, and {correct} of {total} is {correct / total}"
    ends = interval if isinstance(interval, list) and all(type(end) is float for end in interval) else []
    if len(ends) != 2 or any(abs(a - b) > 1e-9 for a, b in zip(ends, expected, strict=True)):
        yield f"the interval says {interval}, and {correct} of {total} has {list(expected)}"


def _fold_counts(values: Any) -> list[tuple[int, int]]:
    """(right, all) images of each fold of a cross-validation; none where any of them cannot be."""
    each = [as_mapping(value) for value in values] if isinstance(values, list) else []
    counts = [(own.get("correct"), own.get("total")) for own in each]
    found = [(a, b) for a, b in counts if type(a) is int and type(b) is int and 0 <= a <= b and 0 < b < MAX_IMAGES]
    return found if len(found) == len(counts) >= 2 else []


def _interval(value: Mapping[str, Any], correct: int, total: int) -> tuple[float, float] | None:
    """The interval of these counts: Wilson's, or by the groups that are recorded; None where they cannot be."""
    groups, effective = value.get("groups"), value.get("effective_images")
    if groups is None and effective is None:
        return wilson(correct, total)
    possible = type(groups) is int and isinstance(effective, float) and 0 < groups <= total and 0 < effective <= total
    return wilson_by_groups(correct, total, effective, groups) if possible else None  # type: ignore[arg-type]


def _check_recipe(subject: CheckpointUnderTest) -> Check:
    if not subject.metadata.recipe:
        return Check.skipped("recipe", "none is recorded: the weights were saved, not trained here")
    faults = (fault.removeprefix("recipe: ") for fault in subject.recipe_faults)
    kind = subject.recipe.kind if subject.recipe is not None else ""
    return Check.of("recipe", faults, f"the recorded recipe, of kind {kind}, passes today's schema")


def report_check(subject: CheckpointUnderTest, report: Mapping[str, Any] | None) -> Check:
    """Whether the report of the checkpoint is of the same run and agrees with it. `report`: its values, if any."""
    path = subject.report_path
    if report is None:
        return Check.skipped("report", f"there is no {path.name} beside it")
    message = f"{path.name} says the same of recipe, seed, results, images and phases"
    return Check.of("report", (f"{path.name}: {fault}" for fault in _report_faults(subject, report)), message)


def _report_faults(subject: CheckpointUnderTest, report: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"there is no {key} in it" for key in ("recipe", "results") if key not in report)
    for key, value, reported in _shared_values(subject.metadata, report):
        if value != reported:
            yield f"{key}: it says {_short(reported)}, and the checkpoint {_short(value)}"
    ours, theirs = subject.metadata.results, as_mapping(report.get("results"))
    several = _several_seeds(report)  # of which the checkpoint is one, or their average
    names = ours if several else {**ours, **{key: value for key, value in theirs.items() if not row_of(key).floor}}
    for name in names:
        reported = _first_seed(theirs.get(name)) if several else theirs.get(name)
        yield from _reported_result_faults(name, ours.get(name), reported)
    yield from _comparison_faults(report, theirs)
    yield from _phase_faults(subject, report)


def _shared_values(metadata: Metadata, report: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, the checkpoint's value, the report's value) for what both say, as far as the report says it."""
    recipe, data, lineage = metadata.recipe, metadata.data, metadata.lineage
    ours = {"kind": recipe.get("kind"), "recipe": recipe, "seed": recipe.get("seed")}
    yield from ((key, value, report[key]) for key, value in ours.items() if key in report)
    target = as_mapping(report.get("target"))
    images = {part: as_mapping(data.get(part)).get("images") for part in ("train", "validation", "test")}
    about = {"name": data.get("name"), "classes": metadata.classes, **images}
    yield from ((f"target.{key}", value, target[key]) for key, value in about.items() if key in target)
    if "source" in report:
        source = as_mapping(report["source"])
        yield "source.sha256", lineage[0].get("sha256") if lineage else None, source.get("sha256")
    yield from _shared_confidence(metadata, report)


def _shared_confidence(metadata: Metadata, report: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """As `_shared_values`, of temperature, promise and novelty score; the report knows none that `calibrate` fitted."""
    ours = metadata.confidence.model_dump() if metadata.confidence is not None else {}
    if "confidence" not in report or ours.get("how") == "data":
        return
    theirs = as_mapping(report["confidence"])
    for key in ("temperature", "how", *(["images"] if ours else [])):
        yield f"confidence.{key}", ours.get(key), theirs.get(key)
    for part, keys in CONFIDENCE_KEYS.items():
        own, said = ours.get(part), theirs.get(part)
        if own is None or not isinstance(said, Mapping):
            yield f"confidence.{part}", None if own is None else {key: own[key] for key in keys}, said
        else:
            yield from ((f"confidence.{part}.{key}", own[key], said.get(key)) for key in keys)


def _several_seeds(report: Mapping[str, Any]) -> bool:
    """Whether a report is over several seeds."""
    seeds = report.get("seeds")
    return isinstance(seeds, list) and len(seeds) > 1


def _first_seed(result: Any) -> Any:
    """The result of the first seed's training, with its interval; a result without seeds as it is."""
    values = as_mapping(result)
    each = values.get("per_seed")
    first = as_mapping(each[0]) if isinstance(each, list) and each else values
    correct, total = first.get("correct"), first.get("total")
    if first is values or type(correct) is not int or type(total) is not int or not 0 <= correct <= total or not total:
        return result
    grouped = {"groups": values.get("groups"), "effective_images": first.get("effective_images")}
    own = {"correct": correct, "total": total, "accuracy": first.get("accuracy"), **grouped}
    own["ci95"] = list(_interval(own, correct, total) or ())
    return {**own, **({"method": values["method"]} if "method" in values else {})}


def _reported_result_faults(name: str, ours: Any, theirs: Any) -> Iterator[str]:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key, value in ours.items():
            if theirs.get(key) != value:
                yield f"results.{name}.{key}: it says {_short(theirs.get(key))}, and the checkpoint {_short(value)}"
    elif ours is not None or theirs is not None:
        yield f"results.{name}: {'the report' if isinstance(ours, Mapping) else 'the checkpoint'} has none"


def _comparison_faults(report: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    for name, value in as_mapping(report.get("comparisons")).items():
        of, _, against = name.partition("_vs_")
        first, second = (as_mapping(results.get(key)).get("accuracy") for key in (against, of))
        said = as_mapping(value).get("difference")
        if as_mapping(value).get("metric", "accuracy") != "accuracy":
            continue
        numbers = [n for n in (first, second, said) if isinstance(n, float)]
        if value is not None and (len(numbers) < 3 or abs(numbers[1] - numbers[0] - numbers[2]) > 1e-9):
            yield f"comparisons.{name}: the difference is not that of the two accuracies"


def _phase_faults(subject: CheckpointUnderTest, report: Mapping[str, Any]) -> Iterator[str]:
    """The phases are the recipe's, and the tensors that the last one froze have the hash in the report."""
    phases, recipe, classifier = report.get("phases"), subject.recipe, subject.classifier
    if not isinstance(phases, list) or recipe is None:
        return
    names, expected = [as_mapping(phase).get("name") for phase in phases], [phase.name for phase in recipe.phases]
    if names != expected:
        yield f"phases: it says {_short(names)}, and the recipe {_short(expected)}"
        return
    last, reported = recipe.phases[-1], as_mapping(phases[-1])
    mixed = isinstance(recipe, AdaptRecipe) and recipe.keep is not None
    if classifier is None or "frozen" not in reported or last.lora is not None or mixed:
        return  # a low-rank adapter, or the source, is mixed into frozen weights once the phase is over
    tensors, stages = classifier.network.state_dict(), last.trained_stages(classifier.network.stages)
    frozen = {n: tensors[n] for n in frozen_tensors(classifier.network, stages, last.norms) if n in tensors}
    found, said = {"tensors": len(frozen), "sha256": hash_tensors(frozen)} if frozen else None, reported["frozen"]
    if said != found:
        yield f"phases.{last.name}.frozen: it says {_frozen_text(said)}, and the checkpoint has {_frozen_text(found)}"


def _frozen_text(value: Any) -> str:
    if isinstance(value, Mapping) and {"tensors", "sha256"} <= value.keys():
        return f"{_short(value['tensors'])} tensors with the sha256 {str(value['sha256'])[:12]}…"
    return _short(value)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """The value itself if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 90 else f"{text[:80]}… ({len(text)} characters)"
