"""Finds and reads recipes: the shipped ones by name, any by path, and dicts given from Python."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data.catalog import ALIASES, DATASETS, find_dataset
from finetune.data.photographs import is_photographs
from finetune.errors import RecipeError
from finetune.models.registry import MODELS, TIMM, find_model, stage_names
from finetune.recipe.names import KnownNames
from finetune.recipe.reader import check_recipe, read_recipe, resolved
from finetune.recipe.schema import AdaptRecipe, PretrainRecipe
from finetune.source import Architecture

Recipe = PretrainRecipe | AdaptRecipe
RecipeLike = str | Path | Mapping[str, Any] | Recipe


def shipped_folder() -> Path:
    """Where the shipped recipes are: beside the package in a checkout, under the environment once installed."""
    beside = Path(__file__).resolve().parents[2] / "recipes"
    return beside if beside.is_dir() else Path(sys.prefix) / "share" / "finetune" / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """The shipped recipes by name, for example {"mnist": .../recipes/mnist.yaml}."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.yaml"))}


def find_recipe(path: str | Path) -> Path:
    """The file itself if it is there; else the shipped recipe that `recipes/NAME.yaml` means from anywhere."""
    path = Path(path)
    shipped = shipped_folder() / path.name
    return shipped if not path.exists() and path.parent == Path("recipes") and shipped.exists() else path


def first_comment(path: Path) -> str:
    """A recipe's opening comment: what it is for, what accuracy to expect, and the command that showed it."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)


def open_recipe(recipe: RecipeLike, overrides: Sequence[str], source: Architecture | None = None) -> Recipe:
    """A checked recipe. `source` is what an adapt's source says of its network. RecipeError lists every problem."""
    names = KnownNames(
        models=stage_names(),
        datasets={name: find_dataset(name).class_names for name in (*DATASETS, *ALIASES)},
        source_stages=find_model(source.model, source.arguments).stages if source is not None else None,
        source_model=source.model if source is not None and not source.fixed else None,
        model_arguments={name: row.arguments for name, row in MODELS.items()},
        families={TIMM: lambda name, arguments: find_model(name, arguments).stages},
        is_pictures=is_photographs,
    )
    if isinstance(recipe, (PretrainRecipe, AdaptRecipe)):
        recipe = resolved(recipe)
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
