"""A checked recipe back as plain data and as YAML text, with every default and derived name filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from finetune.recipe.scalars import resolve
from finetune.recipe.schema import AdaptRecipe, PretrainRecipe

_PLAIN = re.compile(r"[A-Za-z_.][A-Za-z0-9_./+-]*")  # text that needs no quotes, if it is not a word such as true


def resolved(recipe: PretrainRecipe | AdaptRecipe) -> dict[str, object]:
    """Returns the recipe as plain data, in the order of a recipe file; what is not set (None) is left out."""
    data: dict[str, object] = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.model is not None:
        name, arguments = recipe.model.name, recipe.model.arguments
        named = {} if name is None else {"name": name}
        data["model"] = {**named, **arguments} if arguments or name is None else name
    return data


def dump_recipe(recipe: PretrainRecipe | AdaptRecipe) -> str:
    """Returns the resolved recipe as YAML. Reading it gives an equal recipe; equal recipes give the same text."""
    return "".join(line + "\n" for line in _block(resolved(recipe)))


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
    if _PLAIN.fullmatch(text) and isinstance(resolve(text), str):
        return text
    escaped = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped)
