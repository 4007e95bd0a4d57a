"""pydantic's errors, said in the words of a recipe: the place as it is typed, what was expected, what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from finetune.errors import listed
from finetune.recipe.faults import Fault, Place, found, unknown_key, written
from finetune.recipe.model import InputSettings, ModelSettings, SourceModelSettings
from finetune.recipe.optimizer import OPTIMIZERS, SCHEDULES
from finetune.recipe.phase import LastStages, LoraSettings, Phase
from finetune.recipe.scalars import number_hint, truth_hint
from finetune.recipe.schema import AdaptRecipe, AugmentSettings, CacheSettings, ScratchSettings
from finetune.recipe.settings import Settings
from finetune.recipe.tags import near_keys

_MOST = 200  # errors put into words; looking for near names takes time, and a file with more faults is no recipe

# Unions add a part of pydantic's own to the place of an error, right after these keys.
_UNIONS = ("optimizer", "schedule", "train", "validation")
# Reported elsewhere: by `tags` (union tags), by `rules`, or not a person's fault at all.
_SILENT = ("union_tag_invalid", "union_tag_not_found", "rule", "default_factory_not_called")
_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "mapping_type": "a mapping",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def explained(error: ValidationError, recipe: type[Settings], data: Mapping[str, object]) -> list[Fault]:
    """Returns a fault for each error of validating `data` as `recipe`."""
    faults = [_fault(one, recipe, data) for one in error.errors(include_url=False)[:_MOST]]
    return [fault for fault in faults if fault is not None]


def _fault(error: Mapping[str, Any], recipe: type[Settings], data: Mapping[str, object]) -> Fault | None:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    place = _place(error["loc"])
    if kind in _SILENT:
        return None
    if kind == "extra_forbidden":
        allowed = list(_part(place[:-1], recipe, data).model_fields)
        return unknown_key(place, allowed, near_keys(str(place[-1]), allowed))
    if kind == "missing":
        return _missing(place, value, recipe, data)
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return Fault(place, f"must be {words} {written(context[key])}, found {value}")
    if kind in ("too_short", "too_long"):
        return _length(place, value, context)
    if kind == "string_too_long":
        return Fault(place, f"expected at most {context['max_length']:,} characters, found {len(value):,}")
    if kind == "string_too_short":
        return Fault(place, "must not be empty text")
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return Fault(place, f"expected {_either(choices)}, found {found(value)}{_near_choice(value, choices)}")
    if kind == "expected":
        return Fault(place, f"expected {context['what']}, found {found(value)}{_hint(place, value)}")
    if kind in _KINDS:
        hint = _kind_hint(kind, value) or _example(place, value, recipe, data)
        return Fault(place, f"expected {_KINDS[kind]}, found {found(value)}{hint}")
    return Fault(place, f"does not fit here, found {found(value)}")


def _place(loc: tuple[str | int, ...]) -> Place:
    place: list[str | int] = []
    union = False
    for part in loc:
        if union:
            union = False
        elif place == ["model"] and part == "arguments":
            continue
        else:
            place.append(part)
            union = part in _UNIONS and (len(place) == 3 or place[0] in ("data", "scratch"))
    return tuple(place)


def _part(place: Place, recipe: type[Settings], data: Mapping[str, object]) -> type[Settings]:
    """The schema of the mapping at `place`."""
    keys = tuple(part for part in place if isinstance(part, str))
    if not keys:
        return Phase if place else recipe
    if keys[-1] in ("optimizer", "schedule"):
        variants = OPTIMIZERS if keys[-1] == "optimizer" else SCHEDULES
        return variants[str(cast(Mapping[str, object], _at(data, place))["name"])]
    if keys == ("data",):
        return cast(type[Settings], recipe.model_fields["data"].annotation)
    parts: dict[tuple[str, ...], type[Settings]] = {
        ("model",): SourceModelSettings if recipe is AdaptRecipe else ModelSettings,
        ("input",): InputSettings,
        ("data", "augment"): AugmentSettings,
        ("phases",): Phase,
        ("phases", "train"): LastStages,
        ("phases", "lora"): LoraSettings,
        ("scratch",): ScratchSettings,
        ("cache",): CacheSettings,
    }
    return parts.get(keys, recipe)


def _at(data: object, place: Place) -> object:
    for part in place:
        data = cast(Any, data)[part]
    return data


def _missing(place: Place, value: object, recipe: type[Settings], data: Mapping[str, object]) -> Fault:
    parent, key = place[:-1], place[-1]
    if isinstance(key, int):
        return Fault(parent, f"expected 2 numbers, found {len(cast(list[object], value))}")
    if place == ("model", "name"):
        given = [name for name in cast(Mapping[str, object], data["model"]) if "name" in near_keys(name, ["name"])]
        if given:
            return Fault(("model", given[0]), "unknown key; did you mean 'name'? A model needs its name")
    examples = _part(parent, recipe, data).model_fields[key].examples
    example = f", for example {key}: {flow(examples[0])}" if examples else ""
    return Fault(parent, f"missing key '{key}'{example}", lacks=(place,))


def _length(place: Place, value: object, context: Mapping[str, Any]) -> Fault | None:
    count = len(cast(list[object], value))
    if "max_length" in context:
        what = "phases" if place == ("phases",) else "numbers"
        at_most = "at most " if context["max_length"] != 2 else ""
        return Fault(place, f"expected {at_most}{context['max_length']} {what}, found {count}")
    if count >= context["min_length"]:
        return None  # it has entries; they were refused one by one
    return Fault(place, "must not be empty")


def _either(choices: list[str]) -> str:
    return f"{listed(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]


def _near_choice(value: object, choices: list[str]) -> str:
    near = near_keys(value, choices) if isinstance(value, str) else []
    return f"; did you mean {_either([repr(name) for name in near])}?" if near else ""


def _hint(place: Place, value: object) -> str:
    if place[-1] == "validation":
        return number_hint(value, whole=False)
    if place[-1] == "train" and isinstance(value, str):
        return _near_choice(value, ["head", "all"]) or f"; stages go in a list, even one: {flow([value])}"
    return ""


def _kind_hint(kind: str, value: object) -> str:
    if kind in ("int_type", "float_type"):
        return number_hint(value, whole=kind == "int_type")
    if kind == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return f'; write "{value}" in quotes'
    return truth_hint(value) if kind == "bool_type" else ""


def _example(place: Place, value: object, recipe: type[Settings], data: Mapping[str, object]) -> str:
    """`; for example {name: sgd, lr: 0.05}` where a mapping or a list was expected and the field has an example."""
    if not place or not isinstance(place[-1], str):
        return ""
    field = _part(place[:-1], recipe, data).model_fields.get(place[-1])
    return f"; for example {place[-1]}: {flow(field.examples[0])}" if field is not None and field.examples else ""


def flow(value: object) -> str:
    """Writes a value of plain names and numbers on one line of YAML: `{name: sgd, lr: 0.05}`."""
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")
