"""Augmentations with a name, as plain values of `AugmentSettings`; a recipe may start from one and change fields."""

from __future__ import annotations

from collections.abc import Mapping

PRESETS: dict[str, dict[str, int | float | bool]] = {
    "none": {},
    "digits": {"shift": 2, "rotate": 8, "scale": 0.1, "shear": 6, "elastic": 1.5, "elastic_grid": 5},
    "photo": {"crop": 0.35, "flip": True, "colour": 0.3, "erasing": 0.1},
}


def expanded(value: object) -> object:
    """`photo`, or a mapping with `preset: photo`, as a mapping of fields, in which those given win over the preset's.

    What is no known preset, or no mapping with one, comes back as it is.
    """
    if isinstance(value, str) and value in PRESETS:
        return dict(PRESETS[value])
    if not isinstance(value, Mapping):
        return value
    name = value.get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        return value
    return {**PRESETS[name], **{key: item for key, item in value.items() if key != "preset"}}
