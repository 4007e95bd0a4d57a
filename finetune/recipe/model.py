"""The `model` and `input` parts of a recipe: which architecture, and how an image becomes its input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from finetune.recipe.settings import Settings, Text, expected


def _argument(value: object) -> object:
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise expected("a number, text, true or false")
    return value


Arguments = Annotated[
    dict[str, Annotated[int | float | str | bool, BeforeValidator(_argument)]],
    Field(default={}, description="Arguments of the model, written beside its name."),
]


class ModelSettings(Settings):
    """The model and its arguments."""

    name: Text = Field(
        description="A registered model, or timm/NAME for any of timm's; `finetune models` lists them.",
        examples=["cnn"],
    )
    arguments: Arguments


class SourceModelSettings(Settings):
    """The architecture of weights that do not say it themselves, and its arguments."""

    name: Text | None = Field(
        default=None,
        description="The architecture of a bare file of weights, such as timm/resnet18. Left out where the source "
        "says its own.",
        examples=["timm/resnet18"],
    )
    arguments: Arguments


def _gathered(value: object) -> object:
    """Turns `cnn` and `{name: cnn, dropout: 0.5}`, as a recipe has them, into the fields of `ModelSettings`."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        return value
    fields: dict[str, object] = {"arguments": {key: item for key, item in value.items() if key != "name"}}
    return {**fields, "name": value["name"]} if "name" in value else fields


def _json_schema(required: list[str]) -> WithJsonSchema:
    """What `_gathered` takes: a name, or a mapping of the name and whatever arguments the model has."""
    mapping: dict[str, object] = {
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 1}},
        "additionalProperties": {"type": ["number", "string", "boolean"]},
    }
    if required:
        mapping["required"] = required
    return WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, mapping]})


Model = Annotated[
    ModelSettings,
    BeforeValidator(_gathered),
    Field(
        description="The model: its name, or a mapping of its name and its arguments.",
        examples=["cnn"],
    ),
    _json_schema(["name"]),
]
SourceModel = Annotated[SourceModelSettings, BeforeValidator(_gathered), _json_schema([])]

Mean = Annotated[float, Field(ge=-1, le=2)]
Deviation = Annotated[float, Field(ge=0.001, le=2)]


class InputSettings(Settings):
    """How an image becomes the network's input, where it is to differ from what the model brings."""

    size: int | None = Field(
        default=None, ge=1, le=4096, description="Side of the square input, in pixels.", examples=[224]
    )
    mean: Annotated[tuple[Mean, ...], Field(strict=False, min_length=1, max_length=3)] | None = Field(
        default=None,
        description="Subtracted from each channel of values 0 to 1: one number, or one per channel.",
        examples=[[0.5]],
    )
    std: Annotated[tuple[Deviation, ...], Field(strict=False, min_length=1, max_length=3)] | None = Field(
        default=None,
        description="What each channel is divided by after that: one number, or one per channel.",
        examples=[[0.5]],
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = Field(
        default=None, description="How pictures are resized."
    )
    crop: float | None = Field(
        default=None,
        ge=0.1,
        le=1,
        description="Part of the resized picture's side that the input keeps, from its centre; 1 keeps all.",
        examples=[0.875],
    )
    resize: Literal["shorter_side", "squash"] | None = Field(
        default=None,
        description="A picture that is not square: shorter_side keeps its proportions and cuts what is too long, "
        "squash changes them.",
    )
