"""Which kind of recipe, optimizer and schedule is meant, where the key that says so is missing or misspelt.

pydantic stops at such a key and looks at nothing beside it. So the key is settled first: the fault is reported here,
and where the meaning is clear the near value takes its place, so that the rest can be checked too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from difflib import get_close_matches

from finetune.errors import listed
from finetune.recipe.faults import Fault, Place, found, unknown, unknown_key
from finetune.recipe.optimizer import OPTIMIZERS, SCHEDULES
from finetune.recipe.presets import PRESETS, expanded
from finetune.recipe.rules import trainings_of
from finetune.recipe.schema import KINDS
from finetune.recipe.settings import Settings

_LONGEST_KEY = 100  # a longer key is not compared with the known ones


def settled(data: Mapping[str, object]) -> tuple[dict[str, object], str | None, list[Fault]]:
    """Returns the data with every such key settled as far as possible, the kind of recipe if clear, and the faults."""
    result: dict[str, object] = copy.deepcopy(dict(data))
    faults = _settle(result, "kind", (), "kind", KINDS)
    for place, training in trainings_of(result):
        for part, variants in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            mapping = training.get(part)
            if isinstance(mapping, dict):
                faults += _settle(mapping, "name", (*place, part), part, variants)
    faults += _settle_preset(result)
    kind = result.get("kind")
    return result, kind if isinstance(kind, str) and kind in KINDS else None, faults


def _settle_preset(data: dict[str, object]) -> list[Fault]:
    """Puts the fields of a preset of `data.augment` in its place; an unknown name gives way to a near one or none."""
    settings = data.get("data")
    if not isinstance(settings, dict) or "augment" not in settings:
        return []
    augment, place = settings["augment"], ("data", "augment")
    name = augment.get("preset") if isinstance(augment, dict) else augment
    faults: list[Fault] = []
    if isinstance(name, str) and name not in PRESETS:
        where = (*place, "preset") if isinstance(augment, dict) else place
        faults = [Fault(where, unknown("preset", name, list(PRESETS), "presets"))]
        guess = _near(name, PRESETS) or "none"
        augment = {**augment, "preset": guess} if isinstance(augment, dict) else guess
    settings["augment"] = expanded(augment)
    return faults


def near_keys(key: str, allowed: list[str]) -> list[str]:
    """The allowed keys that `key` was perhaps meant to be, nearest first, two at most."""
    lowered = {name.lower(): name for name in allowed}
    if len(key) > _LONGEST_KEY:
        return []
    near = get_close_matches(key.lower(), lowered, n=1, cutoff=0.8) or get_close_matches(key.lower(), lowered, 2, 0.55)
    return [lowered[name] for name in near]


def _settle(
    mapping: dict[str, object], key: str, place: Place, what: str, variants: Mapping[str, type[Settings]]
) -> list[Fault]:
    """Settles `mapping[key]` in place; where nothing is clear, at least the keys that no variant has are reported."""
    value = mapping.get(key)
    if isinstance(value, str) and value in variants:
        return []
    every = list(dict.fromkeys(name for variant in variants.values() for name in variant.model_fields))
    faults: list[Fault] = []
    if key in mapping:
        guess = _near(value, variants)
        if isinstance(value, str):
            message = unknown(what, value, list(variants), f"{what}s")
        else:
            message = f"expected one of {listed(variants)}, found {found(value)}"
        faults.append(Fault((*place, key), message))
    else:
        strange = [name for name in mapping if name not in every and key in near_keys(name, every)]
        guess = _near(mapping[strange[0]], variants) if strange else _fitting(mapping, variants)
        if strange:
            faults.append(unknown_key((*place, strange[0]), every, [key]))
            del mapping[strange[0]]
        else:
            faults.append(Fault(place, f"missing key '{key}', one of {listed(variants)}"))
    if guess is not None:
        mapping[key] = guess
    else:
        odd = [name for name in mapping if name not in every][:50]
        faults += [unknown_key((*place, name), every, near_keys(name, every)) for name in odd]
    return faults


def _near(value: object, variants: Mapping[str, object]) -> str | None:
    if not isinstance(value, str) or len(value) > _LONGEST_KEY:
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
