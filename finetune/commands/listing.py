"""`finetune models`, `finetune datasets`, `finetune recipes`: what is registered, and the details of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.data.registry import DATASETS, find_dataset, is_present
from finetune.errors import SettingError
from finetune.models.registry import MODELS, build_model, find_model, list_models
from finetune.recipe.load import first_comment, shipped_recipes
from finetune.text import name_hint


def models() -> dict[str, str]:
    """What each model is, by name."""
    return {name: row.title for name, row in MODELS.items()} | {
        "timm/NAME": "any of timm's classifiers; `finetune models 'timm/*net*'` lists names"
    }


def matching_models(pattern: str) -> list[str]:
    """The names of the models that match a pattern with * or ?. SettingError when there are none."""
    found = list_models(pattern)
    if not found:
        raise SettingError(f"no model is called {pattern!r}; names of timm's models start with timm/")
    return found


def model_details(name: str, classes: int = 10) -> dict[str, Any]:
    """A model's input, and the parameter counts of its stages and in all, with a head for `classes` classes."""
    import torch

    row = find_model(name)
    with torch.device("meta"):  # shapes alone; some of timm's models fill a machine
        network = build_model(name, classes, {})
    stages = {stage: sum(p.numel() for p in network.stage_parameters(stage)) for stage in network.stages}
    return {
        "name": name,
        "title": row.title,
        "source": row.source,
        "input": row.input.as_dict(),
        "classes": classes,
        "arguments": list(row.arguments),
        "stages": stages,
        "parameters": sum(stages.values()),
    }


def datasets(root: Path) -> dict[str, dict[str, Any]]:
    """By name: title, number of classes, and whether the files are in `root` (digits come with scikit-learn)."""
    return {
        name: {"title": row.title, "classes": len(row.class_names), "present": is_present(name, root)}
        for name, row in DATASETS.items()
    }


def dataset_details(name: str, root: Path) -> dict[str, Any]:
    """A data set's classes, sizes, source and licence, and whether its files are in `root`."""
    row = find_dataset(name)
    return {
        "name": row.name,
        "title": row.title,
        "about": row.about,
        "classes": list(row.class_names),
        "train_images": row.train_images,
        "test_images": row.test_images,
        "size": [row.channels, row.size, row.size],
        "licence": row.licence,
        "source": row.source,
        "folder": str(row.raw_folder(root)) if row.folder else None,
        "files": list(row.files),
        "present": is_present(name, root),
    }


def recipes() -> dict[str, str]:
    """The first line of each shipped recipe's opening comment, by name."""
    return {name: first_comment(path).partition("\n")[0] for name, path in shipped_recipes().items()}


def recipe_text(name: str) -> str:
    """The text of a shipped recipe."""
    known = shipped_recipes()
    name = Path(name).stem
    if name not in known:
        raise SettingError(f"unknown recipe {name!r}{name_hint(name, known, 'recipes')}")
    return known[name].read_text(encoding="utf-8")
