"""The schema of a recipe's model, input, data and augmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from finetune.recipe.settings import Settings, Text, expected

PRESETS: dict[str, dict[str, int | float | bool]] = {
    "none": {},
    "digits": {"shift": 2, "rotate": 8, "scale": 0.1, "shear": 6, "elastic": 1.5, "elastic_grid": 5},
    "photo": {"crop": 0.35, "flip": True, "colour": 0.3, "erasing": 0.1},
}


def expand_preset(value: object) -> object:
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


PresetName = Literal["none", "digits", "photo"]


class AugmentSettings(Settings):
    """Random changes made to every training image anew in each epoch; 0 leaves a change out.

    Instead of the mapping the name of a preset may be given: `augment: photo`. `none` changes nothing, `digits` is
    for drawn characters (shift 2, rotate 8, scale 0.1, shear 6, elastic 1.5 on a grid of 5), `photo` for photographs
    (crop 0.35, flip, colour 0.3, erasing 0.1).
    """

    preset: PresetName | None = Field(
        default=None,
        exclude=True,
        description="Start from these fields; the ones given beside it win. A resolved recipe has the fields instead.",
    )
    shift: int = Field(default=0, ge=0, le=512, description="Largest shift, in pixels, in each direction.")
    rotate: float = Field(default=0.0, ge=0, le=180, description="Largest rotation, in degrees, either way.")
    scale: float = Field(
        default=0.0, ge=0, lt=1, description="Largest change of size, as a fraction: 0.1 is 0.9 to 1.1 times."
    )
    shear: float = Field(default=0.0, ge=0, lt=90, description="Largest shear, in degrees, either way.")
    elastic: float = Field(
        default=0.0, ge=0, le=512, description="Largest move, in pixels, of the nodes of a smooth random displacement."
    )
    elastic_grid: int = Field(
        default=4, ge=2, le=8, description="Points a side of the grid that displacement is drawn on."
    )
    erase: int = Field(
        default=0, ge=0, le=512, description="Side, in pixels, of a square painted over with background."
    )
    crop: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Smallest part of the area that a random crop keeps, resized to the model's input; 0.35 is usual "
        "for photographs. 0: no crop.",
    )
    flip: bool = Field(default=False, description="Turn images left to right, half of the time.")
    colour: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Largest change of brightness, contrast and saturation, as a fraction: 0.3 is 0.7 to 1.3 times.",
    )
    erasing: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="How often a rectangle of 2 % to 33 % of the image is painted over with the mean colour.",
    )
    mixup: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Blend each image and its label with another's; the share follows Beta(mixup, mixup). 0: do not.",
    )
    cutmix: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Paste a box of another image into each, and mix the labels by area; the area follows "
        "Beta(cutmix, cutmix). With mixup too, each image gets one of the two by chance.",
    )


Augmentation = Annotated[
    AugmentSettings, BeforeValidator(expand_preset, json_schema_input_type=AugmentSettings | PresetName)
]


def _class_name(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise expected("a class name (text or a whole number)")
    return value


def _validation_kind(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return "images" if isinstance(value, int) else "fraction"


ClassName = Annotated[
    str, Field(min_length=1, max_length=255), BeforeValidator(_class_name, json_schema_input_type=int | str)
]

Validation = Annotated[
    Annotated[int, Field(ge=0, le=100_000_000), Tag("images")] | Annotated[float, Field(ge=0, lt=1), Tag("fraction")],
    Discriminator(
        _validation_kind,
        custom_error_type="expected",
        custom_error_message="expected {what}",
        custom_error_context={"what": "a whole number of images or a fraction below 1"},
    ),
]


class DataSettings(Settings):
    """Which images, and how they are divided and changed."""

    name: Text | None = Field(
        default=None,
        description="A registered data set (`finetune datasets` lists them), a folder of pictures, or a CSV file of "
        "path,label[,split]. In an adapt recipe it may be left out: --target gives it.",
        examples=["mnist"],
    )
    classes: Annotated[tuple[ClassName, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None,
        description="Use only the images of these classes, in this order. Left out: all classes.",
        examples=[[0, 1]],
    )
    validation: Validation = Field(
        default=0,
        description="Training images put aside for validation: a whole number of images, or a fraction of them. Not "
        "used where a folder or CSV brings validation images of its own.",
        examples=[0.1],
    )
    shots: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Labelled training images used per class, drawn by the seed. Left out: all.",
    )
    on_bad_image: Literal["fail", "skip"] = Field(
        default="fail",
        description="Pictures of a folder or CSV that cannot be read: fail lists them and stops, skip lists them and "
        "goes on without them.",
    )
    augment: Augmentation | None = Field(
        default=None,
        description="Random changes made to training images: their fields, or the name of a preset. Left out: none.",
        examples=[{"shift": 2}],
    )


class NamedDataSettings(DataSettings):
    """Which images, where nothing else can say so."""

    name: Text = Field(
        description="A registered data set (`finetune datasets` lists them), a folder of pictures, or a CSV file of "
        "path,label[,split].",
        examples=["mnist"],
    )
