"""Opens the recipe, the source and the data of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data.manifest import is_image_path
from finetune.data.registry import ALIASES, DATASETS, find_dataset
from finetune.distributed.process_group import ProcessGroup
from finetune.errors import RecipeError
from finetune.models.classifier import Classifier
from finetune.models.registry import MODELS, find_model, stage_names
from finetune.models.spec import TIMM, InputSpec
from finetune.recipe.check_names import KnownNames
from finetune.recipe.load import check_recipe, find_recipe, read_recipe, resolve_recipe
from finetune.recipe.schema import AdaptRecipe, PretrainRecipe
from finetune.report.console import Console
from finetune.run.data import RunData, open_run_data
from finetune.run.input_spec import (
    channels_follow_images,
    input_for_stored_size,
    resolve_input,
    with_channels,
    with_input_channels,
)
from finetune.sources.resolve import Architecture, Source, SourceRef, open_source
from finetune.train.device import Runtime


def mute_non_leaders(console: Console, group: ProcessGroup) -> None:
    """What the leader shows, the others need not."""
    if not group.leader:
        console.hush()


def warn_sharding(runtime: Runtime, console: Console) -> None:
    """A recipe that divides the state of training is good for one process too, but that has to hold all of it."""
    if runtime.sharding is not None and not runtime.is_sharded:
        console.note("sharding: with one process there is nothing to divide; torchrun starts several (docs/scaling.md)")


def open_source_and_data(
    source: SourceRef, plan: AdaptRecipe, root: Path, console: Console
) -> tuple[Source, Classifier, RunData]:
    """The source, its classifier as the recipe's `input` and the images want it, and the images.

    Grey images make a backbone of timm's grey and colour ones make it colourful, unless the recipe gives in_chans; any
    other network has the images turned to what it takes.
    """
    model = plan.model
    chosen = (model.name, model.arguments) if model is not None else (None, {})
    origin = open_source(source, *chosen)
    classifier = origin.classifier
    free = channels_follow_images(classifier.model, chosen[1])
    fixed = origin.metadata is not None
    spec = resolve_input(classifier.input, plan.input, classifier.model, classifier.arguments, fixed=fixed)
    data = open_run_data(plan.data, root, plan.seed, spec, console, any_channels=free)
    classifier.input = input_for_stored_size(spec, plan.input, data.side, data.name)
    classifier = with_input_channels(classifier, data.channels) if free else classifier
    return origin, classifier, data


def open_pretrain_data(plan: PretrainRecipe, root: Path, console: Console) -> tuple[InputSpec, dict[str, Any], RunData]:
    """What a pretrain sees, the model's input for it, and the model's arguments: in_chans follows the images too."""
    model, arguments = plan.model.name, dict(plan.model.arguments)
    free = channels_follow_images(model, arguments)
    spec = resolve_input(find_model(model, arguments).input, plan.input, model, arguments)
    data = open_run_data(plan.data, root, plan.seed, spec, console, any_channels=free)
    spec = input_for_stored_size(spec, plan.input, data.side, data.name)
    if free and data.channels != spec.channels:
        return with_channels(spec, data.channels), {**arguments, "in_chans": data.channels}, data
    return spec, arguments, data


Recipe = PretrainRecipe | AdaptRecipe

RecipeLike = str | Path | Mapping[str, Any] | Recipe


def open_recipe(recipe: RecipeLike, overrides: Sequence[str], source: Architecture | None = None) -> Recipe:
    """A checked recipe. `source` is what an adapt's source says of its network. RecipeError lists every problem."""
    names = KnownNames(
        models=stage_names(),
        datasets={name: find_dataset(name).class_names for name in (*DATASETS, *ALIASES)},
        source_stages=find_model(source.model, source.arguments).stages if source is not None else None,
        source_model=source.model if source is not None and not source.fixed else None,
        model_arguments={name: row.arguments for name, row in MODELS.items()},
        families={TIMM: lambda name, arguments: find_model(name, arguments).stages},
        is_pictures=is_image_path,
    )
    if isinstance(recipe, (PretrainRecipe, AdaptRecipe)):
        recipe = resolve_recipe(recipe)
    if isinstance(recipe, Mapping):
        return check_recipe(recipe, where="recipe", overrides=overrides, names=names)
    return read_recipe(find_recipe(recipe), overrides=overrides, names=names)


def check_kind(found: Recipe, wanted: str, recipe: RecipeLike) -> None:
    """RecipeError when a pretrain recipe is given to adapt, or the other way round."""
    if found.kind == wanted:
        return
    file = str(recipe) if isinstance(recipe, (str, Path)) else "FILE"
    cure = (
        f"finetune pretrain --recipe {file}" if wanted == "adapt" else f"finetune adapt --from SOURCE --recipe {file}"
    )
    where = "recipe" if file == "FILE" else file
    raise RecipeError([f"{where}: kind: expected {wanted!r}, found {found.kind!r}; for this recipe type `{cure}`"])
