"""Opens the recipe, the source and the data of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from finetune.data.openers import is_image_path
from finetune.data.registry import ALIASES, DATASETS, find_dataset
from finetune.errors import RecipeError
from finetune.models.classifier import Classifier
from finetune.models.registry import MODELS, find_model, stage_names
from finetune.models.spec import TIMM, InputSpec
from finetune.recipe.check_names import KnownNames
from finetune.recipe.load import check_recipe, find_recipe, read_recipe, resolve_recipe
from finetune.recipe.schema import AdaptRecipe, PretrainRecipe
from finetune.run.data import RunData, advise, open_run_data
from finetune.run.input_spec import (
    channels_follow_images,
    input_for_stored_size,
    resolve_input,
    with_channels,
    with_input_channels,
)
from finetune.run.memory import check_memory
from finetune.run.options import RunCall
from finetune.sources.resolve import Architecture, Source, SourceRef, locate, open_source
from finetune.train.device import Runtime, choose_runtime

Recipe = PretrainRecipe | AdaptRecipe
RecipeLike = str | Path | Mapping[str, Any] | Recipe
R = TypeVar("R", PretrainRecipe, AdaptRecipe)


@dataclass(frozen=True)
class RunSetup:
    """What a run works with, opened and fitted to each other: the device, the data, and the network to build.

    `spec` is the network's input as these images need it; `arguments` are the model's, `in_chans` among them where the
    images decide it.
    """

    runtime: Runtime
    data: RunData
    model: str
    arguments: Mapping[str, Any]
    spec: InputSpec


@dataclass(frozen=True)
class AdaptSetup(RunSetup):
    """What an adapt works with: a RunSetup, its source, and the source's classifier with the input that is needed."""

    source: Source
    classifier: Classifier


def open_pretrain(recipe: PretrainRecipe, call: RunCall) -> RunSetup:
    """Opens what a pretrain recipe names."""
    runtime = _choose_runtime(recipe, call)
    model, arguments = recipe.model.name, dict(recipe.model.arguments)
    follow = channels_follow_images(model, arguments)
    spec = resolve_input(find_model(model, arguments).input, recipe.input, model, arguments)
    with call.group.leader_first("images"):
        data = _open_data(recipe, spec, call, any_channels=follow)
    spec = _fit_to_data(spec, recipe, data)
    if follow and data.channels != spec.channels:
        spec, arguments = with_channels(spec, data.channels), {**arguments, "in_chans": data.channels}
    if not call.force:
        check_memory(recipe, model, arguments, spec, len(data.class_names), len(data.train), runtime)
    return RunSetup(runtime, data, model, arguments, spec)


def open_adapt(source: SourceRef, recipe: AdaptRecipe, call: RunCall) -> AdaptSetup:
    """Opens what an adapt recipe names, and its source.

    Grey images make a timm backbone grey and colour images make it take colours, unless the recipe gives in_chans; for
    any other network the images are converted to what it takes.
    """
    runtime = _choose_runtime(recipe, call)
    name, arguments = (recipe.model.name, recipe.model.arguments) if recipe.model is not None else (None, {})
    with call.group.leader_first("images"):
        loaded = open_source(source, name, arguments)
        classifier = loaded.classifier
        follow = channels_follow_images(classifier.model, arguments)
        fixed = loaded.metadata is not None
        spec = resolve_input(classifier.input, recipe.input, classifier.model, classifier.arguments, fixed=fixed)
        data = _open_data(recipe, spec, call, any_channels=follow)
    classifier.input = _fit_to_data(spec, recipe, data)
    classifier = with_input_channels(classifier, data.channels) if follow else classifier
    if not call.force:
        about = (classifier.model, classifier.arguments, classifier.input, len(data.class_names), len(data.train))
        check_memory(recipe, *about, runtime)
    return AdaptSetup(
        runtime, data, classifier.model, classifier.arguments, classifier.input, source=loaded, classifier=classifier
    )


def find_source(source: str | Path, call: RunCall) -> SourceRef:
    """Finds a source; what has to be fetched from the Hub is fetched by the leader first."""
    with call.group.leader_first("source"):
        return locate(source, note=call.console.note, bars=not call.console.quiet)


def _choose_runtime(recipe: Recipe, call: RunCall) -> Runtime:
    runtime = choose_runtime(call.device, recipe.precision, call.group, recipe.sharding)
    if runtime.sharding is not None and not runtime.is_sharded:
        call.console.note(
            "sharding: with one process there is nothing to divide; torchrun starts several (docs/scaling.md)"
        )
    return runtime


def _open_data(recipe: Recipe, spec: InputSpec, call: RunCall, *, any_channels: bool) -> RunData:
    data = open_run_data(recipe.data, call.data_root, recipe.seed, spec, call.console, any_channels=any_channels)
    advised = advise(data, recipe)
    for note in advised.notes[len(data.notes) :]:
        call.console.note(note)
    return advised


def _fit_to_data(spec: InputSpec, recipe: Recipe, data: RunData) -> InputSpec:
    """The input for images as they are stored, which says how their files were decoded."""
    spec = input_for_stored_size(spec, recipe.input, data.side, data.name)
    return replace(spec, **vars(data.decoding))


def open_recipe(recipe: RecipeLike, overrides: Sequence[str], source: Architecture | None = None) -> Recipe:
    """A checked recipe. `source` is what an adapt's source says of its network. RecipeError lists every problem."""
    names = KnownNames(
        models=stage_names(),
        datasets={name: find_dataset(name).class_names for name in (*DATASETS, *ALIASES)},
        source_stages=find_model(source.model, source.arguments).stages if source is not None else None,
        source_model=source.model if source is not None and not source.fixed else None,
        model_arguments={name: row.arguments for name, row in MODELS.items()},
        families={TIMM: lambda name, arguments: find_model(name, arguments).stages},
        is_image_path=is_image_path,
    )
    if isinstance(recipe, (PretrainRecipe, AdaptRecipe)):
        recipe = resolve_recipe(recipe)
    if isinstance(recipe, Mapping):
        return check_recipe(recipe, where="recipe", overrides=overrides, names=names)
    return read_recipe(find_recipe(recipe), overrides=overrides, names=names)


def expect_kind(kind: type[R], found: Recipe, recipe: RecipeLike) -> R:
    """The recipe, when it is of this kind. RecipeError when a pretrain recipe is given to adapt, or the other way."""
    if isinstance(found, kind):
        return found
    file = str(recipe) if isinstance(recipe, (str, Path)) else "FILE"
    command = "pretrain" if isinstance(found, PretrainRecipe) else "adapt --from SOURCE"
    where = "recipe" if file == "FILE" else file
    expected = "pretrain" if kind is PretrainRecipe else "adapt"
    raise RecipeError(
        [
            f"{where}: kind: expected {expected!r}, found {found.kind!r}; "
            f"for this recipe type `finetune {command} --recipe {file}`"
        ]
    )
