"""Translates pydantic's errors and misspelt keys into messages with near names."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, cast

from pydantic import ValidationError

from finetune.recipe.problems import Place, Problem, format_bound, found_text, unknown_key, unknown_value
from finetune.recipe.rules import training_nodes
from finetune.recipe.schema import (
    KINDS,
    OPTIMIZERS,
    PRESETS,
    SCHEDULES,
    AdaptRecipe,
    AugmentSettings,
    CacheSettings,
    InputSettings,
    LastStages,
    LoraSettings,
    ModelSettings,
    Phase,
    ScratchSettings,
    Settings,
    SourceModelSettings,
    expand_preset,
)
from finetune.recipe.yaml_loader import boolean_hint, number_hint
from finetune.text import listed

_MAX_KEY_LEN = 100  # a longer key is not compared with the known ones


def resolve_discriminators(data: Mapping[str, object]) -> tuple[dict[str, object], str | None, list[Problem]]:
    """Returns the data with every such key settled as far as possible, the kind of recipe if clear, and the faults."""
    result: dict[str, object] = copy.deepcopy(dict(data))
    faults = _resolve(result, "kind", (), "kind", KINDS)
    for place, training in training_nodes(result):
        for part, variants in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            mapping = training.get(part)
            if isinstance(mapping, dict):
                faults += _resolve(mapping, "name", (*place, part), part, variants)
    faults += _resolve_preset(result)
    kind = result.get("kind")
    return result, kind if isinstance(kind, str) and kind in KINDS else None, faults


def _resolve_preset(data: dict[str, object]) -> list[Problem]:
    """Puts the fields of a preset of `data.augment` in its place; an unknown name gives way to a near one or none."""
    settings = data.get("data")
    if not isinstance(settings, dict) or "augment" not in settings:
        return []
    augment, place = settings["augment"], ("data", "augment")
    name = augment.get("preset") if isinstance(augment, dict) else augment
    faults: list[Problem] = []
    if isinstance(name, str) and name not in PRESETS:
        where = (*place, "preset") if isinstance(augment, dict) else place
        faults = [Problem(where, unknown_value("preset", name, list(PRESETS), "presets"))]
        guess = _near(name, PRESETS) or "none"
        augment = {**augment, "preset": guess} if isinstance(augment, dict) else guess
    settings["augment"] = expand_preset(augment)
    return faults


def near_keys(key: str, allowed: list[str]) -> list[str]:
    """The allowed keys that `key` was perhaps meant to be, nearest first, two at most."""
    lowered = {name.lower(): name for name in allowed}
    if len(key) > _MAX_KEY_LEN:
        return []
    near = get_close_matches(key.lower(), lowered, n=1, cutoff=0.8) or get_close_matches(key.lower(), lowered, 2, 0.55)
    return [lowered[name] for name in near]


def _resolve(
    mapping: dict[str, object], key: str, place: Place, what: str, variants: Mapping[str, type[Settings]]
) -> list[Problem]:
    """Settles `mapping[key]` in place; where nothing is clear, at least the keys that no variant has are reported."""
    value = mapping.get(key)
    if isinstance(value, str) and value in variants:
        return []
    every = list(dict.fromkeys(name for variant in variants.values() for name in variant.model_fields))
    faults: list[Problem] = []
    if key in mapping:
        guess = _near(value, variants)
        if isinstance(value, str):
            message = unknown_value(what, value, list(variants), f"{what}s")
        else:
            message = f"expected one of {listed(variants)}, found {found_text(value)}"
        faults.append(Problem((*place, key), message))
    else:
        strange = [name for name in mapping if name not in every and key in near_keys(name, every)]
        guess = _near(mapping[strange[0]], variants) if strange else _fitting(mapping, variants)
        if strange:
            faults.append(unknown_key((*place, strange[0]), every, [key]))
            del mapping[strange[0]]
        else:
            faults.append(Problem(place, f"missing key '{key}', one of {listed(variants)}"))
    if guess is not None:
        mapping[key] = guess
    else:
        odd = [name for name in mapping if name not in every][:50]
        faults += [unknown_key((*place, name), every, near_keys(name, every)) for name in odd]
    return faults


def _near(value: object, variants: Mapping[str, object]) -> str | None:
    if not isinstance(value, str) or len(value) > _MAX_KEY_LEN:
        return None
    return next(iter(get_close_matches(value.lower(), variants, n=1, cutoff=0.55)), None)


def _fitting(mapping: Mapping[str, object], variants: Mapping[str, type[Settings]]) -> str | None:
    """The variant that has all the known keys given, of several the one that lacks the fewest."""
    known = {name for variant in variants.values() for name in variant.model_fields} & mapping.keys()

    def lacking(name: str) -> int:
        fields = variants[name].model_fields
        return sum(field.is_required() and key not in mapping for key, field in fields.items())

    fits = [name for name, variant in variants.items() if known and known <= variant.model_fields.keys()]
    return min(fits, key=lacking, default=None)


_MAX_LISTED = 200  # errors put into words; looking for near names takes time, and a file with more faults is no recipe

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


def translate_errors(error: ValidationError, recipe: type[Settings], data: Mapping[str, object]) -> list[Problem]:
    """Returns a fault for each error of validating `data` as `recipe`."""
    faults = [_problem(one, recipe, data) for one in error.errors(include_url=False)[:_MAX_LISTED]]
    return [fault for fault in faults if fault is not None]


def _problem(error: Mapping[str, Any], recipe: type[Settings], data: Mapping[str, object]) -> Problem | None:
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
        return Problem(place, f"must be {words} {format_bound(context[key])}, found {value}")
    if kind in ("too_short", "too_long"):
        return _length(place, value, context)
    if kind == "string_too_long":
        return Problem(place, f"expected at most {context['max_length']:,} characters, found {len(value):,}")
    if kind == "string_too_short":
        return Problem(place, "must not be empty text")
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return Problem(place, f"expected {_either(choices)}, found {found_text(value)}{_near_choice(value, choices)}")
    if kind == "expected":
        return Problem(place, f"expected {context['what']}, found {found_text(value)}{_hint(place, value)}")
    if kind in _KINDS:
        hint = _kind_hint(kind, value) or _example(place, value, recipe, data)
        return Problem(place, f"expected {_KINDS[kind]}, found {found_text(value)}{hint}")
    return Problem(place, f"does not fit here, found {found_text(value)}")


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


def _missing(place: Place, value: object, recipe: type[Settings], data: Mapping[str, object]) -> Problem:
    parent, key = place[:-1], place[-1]
    if isinstance(key, int):
        return Problem(parent, f"expected 2 numbers, found {len(cast(list[object], value))}")
    if place == ("model", "name"):
        given = [name for name in cast(Mapping[str, object], data["model"]) if "name" in near_keys(name, ["name"])]
        if given:
            return Problem(("model", given[0]), "unknown key; did you mean 'name'? A model needs its name")
    examples = _part(parent, recipe, data).model_fields[key].examples
    example = f", for example {key}: {flow(examples[0])}" if examples else ""
    return Problem(parent, f"missing key '{key}'{example}", lacks=(place,))


def _length(place: Place, value: object, context: Mapping[str, Any]) -> Problem | None:
    count = len(cast(list[object], value))
    if "max_length" in context:
        what = "phases" if place == ("phases",) else "numbers"
        at_most = "at most " if context["max_length"] != 2 else ""
        return Problem(place, f"expected {at_most}{context['max_length']} {what}, found {count}")
    if count >= context["min_length"]:
        return None  # it has entries; they were refused one by one
    return Problem(place, "must not be empty")


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
    return boolean_hint(value) if kind == "bool_type" else ""


def _example(place: Place, value: object, recipe: type[Settings], data: Mapping[str, object]) -> str:
    """`; for example {name: sgd, lr: 0.05}` where a mapping or a list was expected and the field has an example."""
    if not place or not isinstance(place[-1], str):
        return ""
    field = _part(place[:-1], recipe, data).model_fields.get(place[-1])
    return f"; for example {place[-1]}: {flow(field.examples[0])}" if field is not None and field.examples else ""


def flow(value: object) -> str:
    """Writes a value of plain names and numbers on one line of YAML: `{name: sgd, lr: 0.05}`."""
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")
