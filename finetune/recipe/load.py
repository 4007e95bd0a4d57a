"""Finds, reads, overrides, checks and writes recipes."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from os import PathLike
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.io.safe_open import read_regular
from finetune.io.sanitize import quoted
from finetune.io.text_path import to_path
from finetune.paths import shipped_folder
from finetune.recipe.check_names import KnownNames, name_problems
from finetune.recipe.error_messages import near_keys, resolve_discriminators, translate_errors
from finetune.recipe.problems import Place, Problem, drop_duplicates, found_text, render_problems
from finetune.recipe.rules import rule_problems
from finetune.recipe.schema import KINDS, AdaptRecipe, PretrainRecipe
from finetune.recipe.yaml_loader import MAX_DEPTH, Document, from_python, read_yaml, refused_scalar, write_recipe

__all__ = ["KnownNames", "Recipe", "check_recipe", "dump_recipe", "parse_recipe", "read_recipe", "resolve_recipe"]
Recipe = PretrainRecipe | AdaptRecipe
MAX_BYTES = 1_000_000  # bytes of a recipe file
MAX_SETTINGS = 1_000
MAX_SETTING_LEN = 100_000  # characters


# --- reading and checking ---------------------------------------------------------------------------------------------


def read_recipe(path: str | PathLike[str], *, overrides: Sequence[str] = (), names: KnownNames) -> Recipe:
    """Reads a recipe file, puts in the `KEY=VALUE` overrides, and checks it.

    Raises:
        RecipeError: with one line for each problem of file, overrides and names.
    """
    return parse_recipe(_read_text(Path(path)), where=str(path), overrides=overrides, names=names)


def parse_recipe(text: str, *, where: str, overrides: Sequence[str] = (), names: KnownNames) -> Recipe:
    """Checks a recipe given as YAML text; `where` names it in messages. Raises RecipeError."""
    if len(text) > MAX_BYTES:
        raise RecipeError([f"{where}: has over {MAX_BYTES:,} characters; a recipe is far smaller"])
    return _check_document(read_yaml(text), where, overrides, names)


def check_recipe(
    data: Mapping[str, object], *, where: str = "recipe", overrides: Sequence[str] = (), names: KnownNames | None = None
) -> Recipe:
    """Checks a recipe given as Python data (dicts, lists, text, numbers), which has no lines. Raises RecipeError.

    Without `names` any model and data set may be named.
    """
    return _check_document(from_python(data), where, overrides, names)


def _check_document(document: Document, where: str, overrides: Sequence[str], names: KnownNames | None) -> Recipe:
    apply_overrides(document, overrides)
    checked: list[Problem] = []
    recipe = None
    if isinstance(document.data, dict):
        checked, recipe = _check_data(document.data, names)
    elif document.empty and document.complete:
        checked = [Problem((), "is empty; a recipe starts with `kind: pretrain` or `kind: adapt`")]
    elif document.complete:
        checked = [Problem((), f"expected a mapping that starts with `kind: `, found {found_text(document.data)}")]
    problems = drop_duplicates(document.problems, checked, document.broken)
    if problems or recipe is None:
        raise RecipeError(render_problems(problems, where, document.lines))
    return recipe


def _check_data(data: dict[str, object], names: KnownNames | None) -> tuple[list[Problem], Recipe | None]:
    """Returns the problems that schema, rules and names find, and the recipe where the schema accepts it."""
    data, kind, problems = resolve_discriminators(data)
    recipe = None
    if kind is not None:
        unknown = [] if names is None else name_problems(data, kind, names)
        arguments = {p.place for p in unknown if p.place[0] == "model"}  # unknown ones, whatever their values are
        try:
            recipe = cast(Recipe, KINDS[kind].model_validate(data))
        except ValidationError as error:
            problems += [p for p in translate_errors(error, KINDS[kind], data) if p.place not in arguments]
        problems += unknown
    return [*problems, *rule_problems(data)], recipe


# --- writing ----------------------------------------------------------------------------------------------------------


def resolve_recipe(recipe: Recipe) -> dict[str, object]:
    """Returns the recipe as plain data, in the order of a recipe file; what is not set (None) is left out."""
    data: dict[str, object] = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.model is not None:
        name, arguments = recipe.model.name, recipe.model.arguments
        named = {} if name is None else {"name": name}
        data["model"] = {**named, **arguments} if arguments or name is None else name
    return data


def dump_recipe(recipe: Recipe) -> str:
    """Returns the resolved recipe as YAML. Reading it gives an equal recipe; equal recipes give the same text."""
    return write_recipe(resolve_recipe(recipe))


# --- overrides: --set KEY=VALUE ---------------------------------------------------------------------------------------

_KEY = re.compile(r"[^.\[\]=\s]+(\[\d{1,6}\])*(\.[^.\[\]=\s]+(\[\d{1,6}\])*)*")
_PART = re.compile(r"\[(\d+)\]|[^.\[\]]+")
_TEXT_MEANS: dict[Place, str] = {("model",): "name", ("data", "augment"): "preset"}  # the key a text there stands for


def apply_overrides(document: Document, settings: Sequence[str]) -> None:
    """Puts each `KEY=VALUE` into the document, in order; one that does not fit becomes a problem of the document."""
    if len(settings) > MAX_SETTINGS:
        document.refuse((), f"given {len(settings):,} times, at most {MAX_SETTINGS:,}", "--set")
        return
    for setting in settings:
        label = "--set " + quoted(setting)[1:-1].replace('\\"', '"')
        key, _, text = setting.partition("=")
        if message := _setting_problem(setting, key.strip()):
            document.refuse((), message, label)
            continue
        place = tuple(int(m[1]) if m[1] else m[0] for m in _PART.finditer(key.strip()))
        value = read_yaml(text, flow_only=True)
        document.problems += [replace(p, place=(*place, *p.place), at=None, line=label) for p in value.problems]
        document.broken |= {(*place, *broken) for broken in value.broken}
        if value.empty and not value.problems:
            document.refuse(place, "has no value; write null for none", label)
        elif value.complete and not value.empty and isinstance(document.data, dict):
            _set_value(document, place, value, label)


def _setting_problem(setting: str, key: str) -> str:
    """Says why a setting is no `KEY=VALUE` that could be put anywhere; "" where it is one."""
    if len(setting) > MAX_SETTING_LEN:
        return f"has {len(setting):,} characters, at most {MAX_SETTING_LEN:,}; write it in the recipe"
    if "=" not in setting or not _KEY.fullmatch(key) or refused_scalar(key):
        return "expected KEY=VALUE, with a key such as phases[0].optimizer.lr"
    if len(_PART.findall(key)) > MAX_DEPTH:
        return f"names a place deeper than {MAX_DEPTH} levels; a recipe has 5"
    return ""


def _set_value(document: Document, place: Place, value: Document, label: str) -> None:
    node: object = document.data
    for depth, part in enumerate(place):
        parent = place[:depth]
        if message := _bad_step(node, part):
            document.refuse(parent, message, label)
            return
        inner = cast(dict[str | int, object], node)  # or a list: both are written by their key or index
        if depth == len(place) - 1:
            _drop_lines(document, place)
            document.lines |= {(*place, *below): label for below in value.lines}
            document.broken |= {(*place, *broken) for broken in value.broken}
            inner[part] = value.data
            return
        short = _TEXT_MEANS.get(place[: depth + 1])
        if isinstance(part, str) and inner.get(part) is None and isinstance(place[depth + 1], str):
            inner[part] = {}
            document.lines[(*parent, part)] = label
            document.broken.discard((*parent, part))
        elif short is not None and isinstance(inner.get(part), str):
            inner[part] = {short: inner[part]}
            document.lines[(*parent, part, short)] = document.lines.get((*parent, part), label)
        node = inner.get(part) if isinstance(part, str) else inner[part]


def _bad_step(node: object, part: str | int) -> str:
    """Says why `part` is no key or index of `node`; "" where it can be."""
    if isinstance(part, str):
        hint = "; give an index, as in phases[0]" if isinstance(node, list) else ""
        return "" if isinstance(node, dict) else f"is {found_text(node)}, so it has no key {quoted(part)}{hint}"
    if not isinstance(node, list):
        return f"is {found_text(node)}, so it has no item [{part}]"
    if part < len(node):
        return ""
    return f"has no item [{part}]; {f'its items are [0] to [{len(node) - 1}]' if node else 'it is empty'}"


def _drop_lines(document: Document, place: Place) -> None:
    """Drops the lines and unread values of what is replaced."""
    size = len(place)
    document.lines = {key: line for key, line in document.lines.items() if key[:size] != place}
    document.broken = {key for key in document.broken if key[:size] != place}


# --- files ------------------------------------------------------------------------------------------------------------

_SHIPPED = "`finetune recipes` lists the recipes that come with finetune"


def _read_text(path: Path) -> str:
    try:
        return read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"{path}:{line}: is not UTF-8 text; save the file as UTF-8"
    except FileNotFoundError:
        beside = {Path(name).stem: name for name in _recipes_in(path.parent)}
        near = [repr(beside[stem]) for stem in near_keys(path.stem, list(beside))]
        hint = f"; did you mean {' or '.join(near)}?" if near else ";"
        message = f"{path}: no such file{hint} {_SHIPPED}"
    except IsADirectoryError:
        inside = ", ".join(_recipes_in(path)[:20])
        hint = f"name one of its recipes: {inside}" if inside else f"it holds no recipe; {_SHIPPED}"
        message = f"{path}: is a folder; {hint}"
    except OSError as error:
        message = f"{str(path)!r}: cannot be read ({error.strerror}); {_SHIPPED}"
        if error.errno == errno.EFBIG:
            message = f"{path}: is larger than {MAX_BYTES // 1000:,} kB; a recipe is far smaller"
    raise RecipeError([message])


def _recipes_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return []


def shipped_recipes() -> dict[str, Path]:
    """The shipped recipes by name, for example {"mnist": .../recipes/mnist.yaml}."""
    return {path.stem: path for path in sorted(shipped_folder("recipes").glob("*.yaml"))}


def find_recipe(path: str | Path) -> Path:
    """The file itself if it is there; else the shipped recipe that `recipes/NAME.yaml`, or `NAME`, means anywhere.

    RecipeError for a text that can be no path.
    """
    path = to_path(path, lambda fault: RecipeError([fault]))
    if path == Path(path.name) and not path.suffix:
        path = path if path.exists() else Path("recipes") / f"{path.name}.yaml"
    shipped = shipped_folder("recipes") / path.name
    return shipped if not path.exists() and path.parent == Path("recipes") and shipped.exists() else path


def first_comment(path: Path) -> str:
    """A recipe's opening comment: what it is for, what accuracy to expect, and the command that showed it."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return "\n".join(line.removeprefix("#").strip() for line in lines)
