"""The `data` part of a recipe: which images, how they are divided, and how training images are changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from finetune.recipe.presets import expanded
from finetune.recipe.settings import Settings, Text, expected

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
    AugmentSettings, BeforeValidator(expanded, json_schema_input_type=AugmentSettings | PresetName)
]


def _class_name(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise expected("a class name (text or a whole number)")
    return value


def _validation_form(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return "images" if isinstance(value, int) else "fraction"


ClassName = Annotated[
    str, Field(min_length=1, max_length=255), BeforeValidator(_class_name, json_schema_input_type=int | str)
]
Validation = Annotated[
    Annotated[int, Field(ge=0, le=100_000_000), Tag("images")] | Annotated[float, Field(ge=0, lt=1), Tag("fraction")],
    Discriminator(
        _validation_form,
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
