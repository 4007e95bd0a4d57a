"""What a checkpoint says of itself, held against its own tensors and against itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.checkpoint import Checkpoint, Metadata, read_checkpoint
from finetune.commands.recipes import Recipe, open_recipe
from finetune.digest import digest_of_all
from finetune.errors import CheckpointError, RecipeError, SettingError, listed
from finetune.models.classifier import Classifier
from finetune.reporting.metrics import wilson
from finetune.source import Architecture, Located, classifier_in, peek

MOST_IMAGES = 2**53  # that a float counts
State = Literal["ok", "failed", "not checked"]


@dataclass(frozen=True)
class Check:
    """One claim: its stable name, whether it holds, why in a sentence, and what it is about: tensors, differences."""

    check: str
    state: State
    says: str
    details: tuple[str, ...] = ()

    @classmethod
    def of(cls, check: str, faults: Iterable[str], says: str) -> Check:
        """ok where there are no faults, as `says` has it; failed with the faults where there are."""
        found = tuple(faults)
        if not found:
            return cls(check, "ok", says)
        return cls(check, "failed", found[0] if len(found) == 1 else f"{len(found)} things do not hold", found)

    @classmethod
    def skipped(cls, check: str, why: str) -> Check:
        return cls(check, "not checked", why)


@dataclass(frozen=True)
class Subject:
    """The checkpoint that is looked at.

    `classifier` is None where its tensors fit no network, for the reason `misfit`; `recipe` is None where it has none,
    or one that does not hold, for the reasons `recipe_faults`.
    """

    located: Located
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


def subject_of(located: Located) -> Subject:
    """A source, read without refusing what a check is about. CheckpointError when it is no checkpoint of ours."""
    peek(located)
    assert located.path is not None
    checkpoint = read_checkpoint(located.path, refuse=False)
    classifier, misfit = None, ""
    try:
        classifier = classifier_in(checkpoint)
    except CheckpointError as error:
        misfit = str(error).removeprefix(f"{located.path}: ")
    recipe, faults = _recipe_of(checkpoint.metadata)
    return Subject(located, checkpoint, classifier, misfit, recipe, faults)


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


def own_checks(subject: Subject) -> list[Check]:
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
        _hash(subject.checkpoint),
        _classes(metadata),
        _results(metadata),
        _recipe(subject),
    ]


def _hash(checkpoint: Checkpoint) -> Check:
    recorded = checkpoint.metadata.tensors
    if recorded is None:
        return Check.skipped("hash", "not recorded: the file is older than this hash")
    found = digest_of_all(checkpoint.tensors)
    if found == recorded:
        return Check("hash", "ok", f"the tensors have the recorded sha256 {recorded[:12]}…")
    return Check("hash", "failed", f"the tensors have the sha256 {found[:12]}…, and {recorded[:12]}… is recorded")


def _classes(metadata: Metadata) -> Check:
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


def _results(metadata: Metadata) -> Check:
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
    if type(correct) is not int or type(total) is not int or not 0 <= correct <= total or not 0 < total < MOST_IMAGES:
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


def _recipe(subject: Subject) -> Check:
    if not subject.metadata.recipe:
        return Check.skipped("recipe", "none is recorded: the weights were saved, not trained here")
    faults = (fault.removeprefix("recipe: ") for fault in subject.recipe_faults)
    kind = subject.recipe.kind if subject.recipe is not None else ""
    return Check.of("recipe", faults, f"the recorded recipe, of kind {kind}, passes today's schema")
