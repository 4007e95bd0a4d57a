"""Finds, reads, overrides, checks and writes recipes."""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.io.safe_open import read_regular
from finetune.io.sanitize import quoted
from finetune.recipe.check_names import KnownNames, name_problems
from finetune.recipe.error_messages import near_keys, resolve_discriminators, translate_errors
from finetune.recipe.problems import Place, Problem, drop_duplicates, found_text, render_problems
from finetune.recipe.rules import rule_problems
from finetune.recipe.schema import KINDS, AdaptRecipe, PretrainRecipe
from finetune.recipe.yaml_loader import MAX_DEPTH, Document, from_python, read_yaml, refused_scalar, resolve_scalar

_PLAIN = re.compile(r"[A-Za-z_.][A-Za-z0-9_./+-]*")  # text that needs no quotes, if it is not a word such as true


def resolve_recipe(recipe: PretrainRecipe | AdaptRecipe) -> dict[str, object]:
    """Returns the recipe as plain data, in the order of a recipe file; what is not set (None) is left out."""
    data: dict[str, object] = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.model is not None:
        name, arguments = recipe.model.name, recipe.model.arguments
        named = {} if name is None else {"name": name}
        data["model"] = {**named, **arguments} if arguments or name is None else name
    return data


def dump_recipe(recipe: PretrainRecipe | AdaptRecipe) -> str:
    """Returns the resolved recipe as YAML. Reading it gives an equal recipe; equal recipes give the same text."""
    return "".join(line + "\n" for line in _block(resolve_recipe(recipe)))


def _block(data: Mapping[str, object], indent: str = "") -> list[str]:
    lines = []
    for key, value in data.items():
        if key == "phases" and isinstance(value, list):
            lines.append(f"{key}:")
            for phase in value:
                first, *rest = _block(phase, indent + "    ")
                lines += [f"{indent}  - {first.lstrip()}", *rest]
        elif key in ("data", "scratch") and isinstance(value, Mapping) and value:
            lines += [f"{indent}{key}:", *_block(value, indent + "  ")]
        else:
            lines.append(f"{indent}{_text(key)}: {_flow(value)}")
    return lines


def _flow(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(str(key))}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and isinstance(resolve_scalar(text), str):
        return text
    escaped = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped)


MAX_SETTINGS = 1_000

MAX_SETTING_LEN = 100_000  # characters

_KEY = re.compile(r"[^.\[\]=\s]+(\[\d{1,6}\])*(\.[^.\[\]=\s]+(\[\d{1,6}\])*)*")

_PART = re.compile(r"\[(\d+)\]|[^.\[\]]+")


def apply_overrides(document: Document, settings: Sequence[str]) -> None:
    """Puts each `KEY=VALUE` into the document, in order; what cannot be put becomes a problem of the document."""
    if len(settings) > MAX_SETTINGS:
        document.problems.append(Problem((), f"given {len(settings):,} times, at most {MAX_SETTINGS:,}", line="--set"))
        return
    for setting in settings:
        label = f"--set {_one_line(setting)}"
        key, equals, text = setting.partition("=")
        if len(setting) > MAX_SETTING_LEN:
            message = f"has {len(setting):,} characters, at most {MAX_SETTING_LEN:,}; write it in the recipe"
            document.problems.append(Problem((), message, line=label))
            continue
        if not equals or not _KEY.fullmatch(key.strip()) or refused_scalar(key.strip()):
            message = "expected KEY=VALUE, with a key such as phases[0].optimizer.lr"
            document.problems.append(Problem((), message, line=label))
            continue
        place = tuple(int(m[1]) if m[1] else m[0] for m in _PART.finditer(key.strip()))
        if len(place) > MAX_DEPTH:
            message = f"names a place deeper than {MAX_DEPTH} levels; a recipe has 5"
            document.problems.append(Problem((), message, line=label))
            continue
        value = read_yaml(text, flow_only=True)
        document.problems += [replace(f, place=(*place, *f.place), at=None, line=label) for f in value.problems]
        document.broken |= {(*place, *broken) for broken in value.broken}
        if value.empty and not value.problems:
            document.problems.append(Problem(place, "has no value; write null for none", line=label))
        elif value.complete and not value.empty and isinstance(document.data, dict):
            _set_value(document, place, value, label)


def _set_value(document: Document, place: Place, value: Document, label: str) -> None:
    node: object = document.data
    for depth, part in enumerate(place):
        here, last = place[:depth], depth == len(place) - 1
        problem = _bad_setting(node, part, here, label)
        if problem is not None:
            document.problems.append(problem)
            return
        inner = cast(dict[str | int, object], node)  # or a list: both are written by their key or index
        if last:
            _drop_lines(document, place)
            document.lines |= {(*place, *below): label for below in value.lines}
            document.broken |= {(*place, *broken) for broken in value.broken}
            inner[part] = value.data
            return
        if isinstance(part, str) and inner.get(part) is None and isinstance(place[depth + 1], str):
            inner[part] = {}
            document.lines[(*here, part)] = label
            document.broken.discard((*here, part))
        elif here == () and part == "model" and isinstance(inner.get(part), str):
            inner[part] = {"name": inner[part]}
            document.lines[("model", "name")] = document.lines.get(("model",), label)
        elif here == ("data",) and part == "augment" and isinstance(inner.get(part), str):
            inner[part] = {"preset": inner[part]}
            document.lines[("data", "augment", "preset")] = document.lines.get(("data", "augment"), label)
        node = inner.get(part) if isinstance(part, str) else inner[part]


def _bad_setting(node: object, part: str | int, here: Place, label: str) -> Problem | None:
    """Says why `part` is no key or index of `node`, which stands at `here`; None where it can be."""
    if isinstance(part, str):
        if isinstance(node, dict):
            return None
        hint = "; give an index, as in phases[0]" if isinstance(node, list) else ""
        return Problem(here, f"is {found_text(node)}, so it has no key {quoted(part)}{hint}", line=label)
    if not isinstance(node, list):
        return Problem(here, f"is {found_text(node)}, so it has no item [{part}]", line=label)
    if part < len(node):
        return None
    has = f"its items are [0] to [{len(node) - 1}]" if node else "it is empty"
    return Problem(here, f"has no item [{part}]; {has}", line=label)


def _drop_lines(document: Document, place: Place) -> None:
    """Forgets lines and unread values of what is replaced."""
    size = len(place)
    document.lines = {key: line for key, line in document.lines.items() if key[:size] != place}
    document.broken = {key for key in document.broken if key[:size] != place}


def _one_line(setting: str) -> str:
    text = quoted(setting)[1:-1]
    return text.replace('\\"', '"')


__all__ = ["KnownNames", "Recipe", "check_recipe", "dump_recipe", "parse_recipe", "read_recipe", "resolve_recipe"]

Recipe = PretrainRecipe | AdaptRecipe

MAX_BYTES = 1_000_000  # bytes of a recipe file

_SHIPPED = "`finetune recipes` lists the recipes that come with finetune"


def read_recipe(path: str | PathLike[str], *, overrides: Sequence[str] = (), names: KnownNames) -> Recipe:
    """Reads a recipe file, puts in the `KEY=VALUE` overrides, and checks it.

    Raises:
        RecipeError: with one line for each problem of file, overrides and names.
    """
    return parse_recipe(_text_of(Path(path)), where=str(path), overrides=overrides, names=names)


def parse_recipe(text: str, *, where: str, overrides: Sequence[str] = (), names: KnownNames) -> Recipe:
    """Checks a recipe given as YAML text; `where` names it in messages. Raises RecipeError."""
    if len(text) > MAX_BYTES:
        raise RecipeError([f"{where}: has over {MAX_BYTES:,} characters; a recipe is far smaller"])
    document = read_yaml(text)
    apply_overrides(document, overrides)
    return _checked(document, where, names)


def check_recipe(
    data: Mapping[str, object], *, where: str = "recipe", overrides: Sequence[str] = (), names: KnownNames | None = None
) -> Recipe:
    """Checks a recipe given as Python data (dicts, lists, text, numbers), which has no lines. Raises RecipeError.

    Without `names` any model and data set may be named.
    """
    document = from_python(data)
    apply_overrides(document, overrides)
    return _checked(document, where, names)


def _checked(document: Document, where: str, names: KnownNames | None) -> Recipe:
    checked: list[Problem] = []
    recipe = None
    if isinstance(document.data, dict):
        checked, recipe = _examined(document.data, names)
    elif document.empty and document.complete:
        checked = [Problem((), "is empty; a recipe starts with `kind: pretrain` or `kind: adapt`")]
    elif document.complete:
        checked = [Problem((), f"expected a mapping that starts with `kind: `, found {found_text(document.data)}")]
    problems = drop_duplicates(document.problems, checked, document.broken)
    if problems or recipe is None:
        raise RecipeError(render_problems(problems, where, document.lines))
    return recipe


def _examined(data: dict[str, object], names: KnownNames | None) -> tuple[list[Problem], Recipe | None]:
    """Returns all that schema, rules and names have to say, and the recipe where the schema accepts it."""
    data, kind, problems = resolve_discriminators(data)
    recipe = None
    if kind is not None:
        named = [] if names is None else name_problems(data, kind, names)
        strange = {problem.place for problem in named if problem.place[0] == "model"}  # whatever their values are
        try:
            recipe = cast(Recipe, KINDS[kind].model_validate(data))
        except ValidationError as error:
            problems += [
                problem for problem in translate_errors(error, KINDS[kind], data) if problem.place not in strange
            ]
        problems += named
    return [*problems, *rule_problems(data)], recipe


def _text_of(path: Path) -> str:
    try:
        content = read_regular(path, MAX_BYTES)
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
            raise RecipeError([f"{path}: is larger than {MAX_BYTES // 1000:,} kB; a recipe is far smaller"]) from None
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
