"""Reads a recipe and checks it whole: every problem at once, each with its line.

The way of a recipe: text or Python data becomes plain data with lines (`document`, `plain`), `--set` values are put in
(`override`), the kind of everything is settled (`tags`), then schema, rules between fields and names are each checked,
and what they found is put in one list (`faults`).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.recipe.document import Document, read_yaml
from finetune.recipe.dump import dump_recipe, resolved
from finetune.recipe.explain import explained
from finetune.recipe.faults import Fault, found, rendered, without_echoes
from finetune.recipe.names import KnownNames, name_faults
from finetune.recipe.override import override
from finetune.recipe.plain import from_python
from finetune.recipe.rules import rule_faults
from finetune.recipe.schema import KINDS, AdaptRecipe, PretrainRecipe
from finetune.recipe.tags import near_keys, settled
from finetune.strangers.regular import read_regular

__all__ = ["KnownNames", "Recipe", "check_recipe", "dump_recipe", "parse_recipe", "read_recipe", "resolved"]

Recipe = PretrainRecipe | AdaptRecipe

LARGEST = 1_000_000  # bytes of a recipe file
_SHIPPED = "`finetune recipes` lists the recipes that come with finetune"


def read_recipe(path: str | PathLike[str], *, overrides: Sequence[str] = (), names: KnownNames) -> Recipe:
    """Reads a recipe file, puts in the `KEY=VALUE` overrides, and checks it.

    Raises:
        RecipeError: with one line for each problem of file, overrides and names.
    """
    return parse_recipe(_text_of(Path(path)), where=str(path), overrides=overrides, names=names)


def parse_recipe(text: str, *, where: str, overrides: Sequence[str] = (), names: KnownNames) -> Recipe:
    """Checks a recipe given as YAML text; `where` names it in messages. Raises RecipeError."""
    if len(text) > LARGEST:
        raise RecipeError([f"{where}: has over {LARGEST:,} characters; a recipe is far smaller"])
    document = read_yaml(text)
    override(document, overrides)
    return _checked(document, where, names)


def check_recipe(
    data: Mapping[str, object], *, where: str = "recipe", overrides: Sequence[str] = (), names: KnownNames
) -> Recipe:
    """Checks a recipe given as Python data (dicts, lists, text, numbers), which has no lines. Raises RecipeError."""
    document = from_python(data)
    override(document, overrides)
    return _checked(document, where, names)


def _checked(document: Document, where: str, names: KnownNames) -> Recipe:
    checked: list[Fault] = []
    recipe = None
    if isinstance(document.data, dict):
        checked, recipe = _examined(document.data, names)
    elif document.empty and document.whole:
        checked = [Fault((), "is empty; a recipe starts with `kind: pretrain` or `kind: adapt`")]
    elif document.whole:
        checked = [Fault((), f"expected a mapping that starts with `kind: `, found {found(document.data)}")]
    faults = without_echoes(document.faults, checked, document.broken)
    if faults or recipe is None:
        raise RecipeError(rendered(faults, where, document.lines))
    return recipe


def _examined(data: dict[str, object], names: KnownNames) -> tuple[list[Fault], Recipe | None]:
    """Returns all that schema, rules and names have to say, and the recipe where the schema accepts it."""
    data, kind, faults = settled(data)
    recipe = None
    if kind is not None:
        named = name_faults(data, kind, names)
        strange = {fault.place for fault in named if fault.place[0] == "model"}  # whatever their values are
        try:
            recipe = cast(Recipe, KINDS[kind].model_validate(data))
        except ValidationError as error:
            faults += [fault for fault in explained(error, KINDS[kind], data) if fault.place not in strange]
        faults += named
    return [*faults, *rule_faults(data)], recipe


def _text_of(path: Path) -> str:
    try:
        content = read_regular(path, LARGEST)
    except FileNotFoundError:
        beside = {Path(name).stem: name for name in _recipes_in(path.parent)}
        near = [repr(beside[stem]) for stem in near_keys(path.stem, list(beside))]
        hint = f"; did you mean {' or '.join(near)}?" if near else ";"
        raise RecipeError([f"{path}: no such file{hint} {_SHIPPED}"]) from None
    except IsADirectoryError:
        inside = _recipes_in(path)
        say = f"name one of its recipes: {', '.join(inside[:20])}" if inside else f"it holds no recipe; {_SHIPPED}"
        raise RecipeError([f"{path}: is a folder; {say}"]) from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise RecipeError([f"{path}: is larger than {LARGEST // 1000:,} kB; a recipe is far smaller"]) from None
        raise RecipeError([f"{str(path)!r}: cannot be read ({error.strerror}); {_SHIPPED}"]) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError([f"{path}:{line}: is not UTF-8 text; save the file as UTF-8"]) from None


def _recipes_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return []
