"""Translates pydantic's errors and misspelt keys into messages with near names."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeGuard, cast, get_args

from pydantic import ValidationError

from finetune.recipe.problems import Place, Problem, format_bound, found_text, unknown_key, unknown_value
from finetune.recipe.rules import training_nodes
from finetune.recipe.schema import KINDS, OPTIMIZERS, PRESETS, SCHEDULES, Settings, expand_preset
from finetune.recipe.yaml_loader import Scalar, refused_scalar, resolve_scalar, write_flow
from finetune.text import listed

_MAX_KEY_LEN = 100  # a longer key is not compared with the known ones
_MAX_ERRORS = 200  # translated; looking for near names takes time, and a file with more problems is no recipe
_MAX_UNKNOWN_KEYS = 50  # reported per mapping


def near_keys(key: str, allowed: Sequence[str]) -> list[str]:
    """The allowed keys that `key` was perhaps meant to be, nearest first, two at most."""
    lowered = {name.lower(): name for name in allowed}
    if len(key) > _MAX_KEY_LEN:
        return []
    near = get_close_matches(key.lower(), lowered, n=1, cutoff=0.8) or get_close_matches(key.lower(), lowered, 2, 0.55)
    return [lowered[name] for name in near]


# --- keys that decide which part of the schema applies ----------------------------------------------------------------


def resolve_discriminators(data: Mapping[str, object]) -> tuple[dict[str, object], str | None, list[Problem]]:
    """Corrects kind, optimizer, schedule and preset where they are misspelt, so that the rest can be checked.

    Returns the corrected copy of the data, the kind of recipe (None where it cannot be told), and the problems.
    """
    result: dict[str, object] = copy.deepcopy(dict(data))
    problems = _resolve(result, "kind", (), "kind", KINDS)
    for place, training in training_nodes(result):
        for part, variants in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            mapping = training.get(part)
            if isinstance(mapping, dict):
                problems += _resolve(mapping, "name", (*place, part), part, variants)
    problems += _resolve_preset(result)
    kind = result.get("kind")
    return result, kind if isinstance(kind, str) and kind in KINDS else None, problems


def _resolve(
    mapping: dict[str, object], key: str, place: Place, what: str, variants: Mapping[str, type[Settings]]
) -> list[Problem]:
    """Corrects `mapping[key]` to the name of a variant; where none is near, reports the keys that no variant has."""
    value = mapping.get(key)
    if isinstance(value, str) and value in variants:
        return []
    every = list(dict.fromkeys(name for variant in variants.values() for name in variant.model_fields))
    if isinstance(value, str):
        guess = _near(value, variants)
        problems = [Problem((*place, key), unknown_value(what, value, list(variants), f"{what}s"))]
    elif key in mapping:
        guess = None
        problems = [Problem((*place, key), f"expected one of {listed(variants)}, found {found_text(value)}")]
    elif misspelt := next((name for name in mapping if name not in every and key in near_keys(name, every)), None):
        guess = _near(mapping.pop(misspelt), variants)
        problems = [unknown_key((*place, misspelt), every, [key])]
    else:
        guess = _best_variant(mapping, variants)
        problems = [Problem(place, f"missing key '{key}', one of {listed(variants)}")]
    if guess is not None:
        mapping[key] = guess
        return problems
    unknown = [name for name in mapping if name not in every][:_MAX_UNKNOWN_KEYS]
    return problems + [unknown_key((*place, name), every, near_keys(name, every)) for name in unknown]


def _near(value: object, variants: Mapping[str, object]) -> str | None:
    if not isinstance(value, str) or len(value) > _MAX_KEY_LEN:
        return None
    return next(iter(get_close_matches(value.lower(), variants, n=1, cutoff=0.55)), None)


def _best_variant(mapping: Mapping[str, object], variants: Mapping[str, type[Settings]]) -> str | None:
    """The variant that has all the known keys of `mapping`; of several, the one of which fewest keys are missing."""
    known = {name for variant in variants.values() for name in variant.model_fields} & mapping.keys()

    def missing(name: str) -> int:
        fields = variants[name].model_fields
        return sum(field.is_required() and key not in mapping for key, field in fields.items())

    fits = [name for name, variant in variants.items() if known and known <= variant.model_fields.keys()]
    return min(fits, key=missing, default=None)


def _resolve_preset(data: dict[str, object]) -> list[Problem]:
    """Replaces a preset in `data.augment` by its fields; for an unknown name, those of a near one or none."""
    settings = data.get("data")
    if not isinstance(settings, dict) or "augment" not in settings:
        return []
    augment, place = settings["augment"], ("data", "augment")
    name = augment.get("preset") if isinstance(augment, dict) else augment
    problems: list[Problem] = []
    if isinstance(name, str) and name not in PRESETS:
        where = (*place, "preset") if isinstance(augment, dict) else place
        problems = [Problem(where, unknown_value("preset", name, list(PRESETS), "presets"))]
        guess = _near(name, PRESETS) or "none"
        augment = {**augment, "preset": guess} if isinstance(augment, dict) else guess
    settings["augment"] = expand_preset(augment)
    return problems


# --- pydantic's errors ------------------------------------------------------------------------------------------------

# Unions add a part of pydantic's own to the place of an error, right after these keys.
_UNIONS = ("optimizer", "schedule", "train", "validation")

# Reported by `resolve_discriminators`, by `rules`, or not an error of the person at all.
_SILENT = ("union_tag_invalid", "union_tag_not_found", "rule", "default_factory_not_called")

_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type", "mapping_type"), "a mapping"),
    "finite_number": "a finite number",
}

_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def translate_errors(error: ValidationError, recipe: type[Settings], data: Mapping[str, object]) -> list[Problem]:
    """Returns a problem for each error of validating `data` as `recipe`."""
    problems = (_problem(one, recipe, data) for one in error.errors(include_url=False)[:_MAX_ERRORS])
    return [problem for problem in problems if problem is not None]


def _problem(error: Mapping[str, Any], recipe: type[Settings], data: Mapping[str, object]) -> Problem | None:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    place = _place(error["loc"])
    if kind in _SILENT:
        return None
    if kind == "extra_forbidden":
        allowed = list(_settings_at(place[:-1], recipe, data).model_fields)
        return unknown_key(place, allowed, near_keys(str(place[-1]), allowed))
    if kind == "missing":
        return _missing(place, value, recipe, data)
    if kind in ("too_short", "too_long"):
        return _wrong_length(place, value, context)
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        message = f"must be {words} {format_bound(context[key])}, found {value}"
    elif kind == "string_too_long":
        message = f"expected at most {context['max_length']:,} characters, found {len(value):,}"
    elif kind == "string_too_short":
        message = "must not be empty text"
    elif kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        message = f"expected {_either(choices)}, found {found_text(value)}{_near_choice(value, choices)}"
    elif kind == "expected":
        message = f"expected {context['what']}, found {found_text(value)}{_union_hint(place, value)}"
    elif kind in _KINDS:
        hint = _type_hint(kind, value) or _example("; ", place, recipe, data)
        message = f"expected {_KINDS[kind]}, found {found_text(value)}{hint}"
    else:
        message = f"does not fit here, found {found_text(value)}"
    return Problem(place, message)


def _place(loc: tuple[str | int, ...]) -> Place:
    """Where an error is in the recipe: pydantic's location without the names of union members and fields of ours."""
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


def _settings_at(place: Place, recipe: type[Settings], data: object) -> type[Settings]:
    """The schema of the mapping at `place`."""
    settings = recipe
    for part in place:
        data = cast(Any, data)[part]
        if isinstance(part, str):
            variants = _settings_in(settings.model_fields[part].annotation)
            if len(variants) > 1:  # a discriminated union
                name = cast(Mapping[str, object], data)["name"]
                variants = [v for v in variants if name in get_args(v.model_fields["name"].annotation)]
            settings = variants[0]
    return settings


def _settings_in(annotation: object) -> list[type[Settings]]:
    """The parts of the schema that a type names: for `tuple[Phase, ...] | None` it is [Phase]."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [settings for part in get_args(annotation) for settings in _settings_in(part)]


def _missing(place: Place, value: object, recipe: type[Settings], data: Mapping[str, object]) -> Problem:
    parent, key = place[:-1], place[-1]
    if isinstance(key, int):
        return Problem(parent, f"expected 2 numbers, found {len(cast(list[object], value))}")
    return Problem(parent, f"missing key '{key}'{_example(', ', place, recipe, data)}", lacks=(place,))


def _wrong_length(place: Place, value: object, context: Mapping[str, Any]) -> Problem | None:
    count = len(cast(list[object], value))
    if "max_length" in context:
        what = "phases" if place == ("phases",) else "numbers"
        at_most = "at most " if context["max_length"] != 2 else ""
        return Problem(place, f"expected {at_most}{context['max_length']} {what}, found {count}")
    if count >= context["min_length"]:
        return None  # it has entries; they were refused one by one
    return Problem(place, "must not be empty")


# --- hints: the end of a message --------------------------------------------------------------------------------------


def _either(choices: list[str]) -> str:
    return f"{listed(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]


def _near_choice(value: object, choices: list[str]) -> str:
    near = near_keys(value, choices) if isinstance(value, str) else []
    return f"; did you mean {_either([repr(name) for name in near])}?" if near else ""


def _union_hint(place: Place, value: object) -> str:
    if place[-1] == "validation":
        return _number_hint(value, whole=False)
    if place[-1] == "train" and isinstance(value, str):
        near = _near_choice(value, ["head", "all", "auto"])
        return near or f"; stages go in a list, even one: {write_flow([value[:_MAX_KEY_LEN]])}"
    return ""


def _type_hint(kind: str, value: object) -> str:
    if kind in ("int_type", "float_type"):
        return _number_hint(value, whole=kind == "int_type")
    if kind == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return f'; write "{value}" in quotes'
    if kind == "bool_type" and isinstance(value, str):  # older YAML took these words for true and false
        if value.lower() in ("no", "off", "n", "false"):
            return "; write false"
        return "; write true" if value.lower() in ("yes", "on", "y", "true") else ""
    return ""


def _number_hint(value: object, whole: bool) -> str:
    """Returns `; write 0.001` where text (or, for a whole number, 3.0) was meant as a number, else ""."""
    if isinstance(value, float) and whole and value.is_integer():
        return f"; write {int(value)}"
    if not isinstance(value, str) or len(value) > 40:
        return ""
    text, how = value, " without quotes"
    if not _is_number(resolve_scalar(value)):
        text, how = re.sub(r"[\s_]", "", value).replace(",", "."), ""
        text = re.sub("[\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}]", "-", text)
        number = resolve_scalar(text.removesuffix("%"))
        if not _is_number(number):
            return ""
        text = f"{number / 100:g}" if text.endswith("%") else text
    return f"; write {text}{how}" if not whole or isinstance(resolve_scalar(text), int) else ""


def _is_number(value: Scalar) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and refused_scalar(value) is None


def _example(before: str, place: Place, recipe: type[Settings], data: object) -> str:
    """`for example optimizer: {name: sgd, lr: 0.05}` where the schema has an example for the key at `place`."""
    if not place or not isinstance(place[-1], str):
        return ""
    field = _settings_at(place[:-1], recipe, data).model_fields[place[-1]]
    return f"{before}for example {place[-1]}: {write_flow(field.examples[0])}" if field.examples else ""
