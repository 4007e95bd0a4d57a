"""The two kinds of recipe and their parts, field by field, with bounds and units.

The parts live in `model`, `image_data`, `phase` and `optimizer`, and can all be imported from here. Rules that hold
between fields are in `rules`, as functions of plain data, so that they are checked even where a field is wrong. The
recipe reference (`reference`) is generated from the descriptions.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from finetune.recipe.cache import CacheSettings
from finetune.recipe.image_data import AugmentSettings, DataSettings, NamedDataSettings
from finetune.recipe.model import InputSettings, Model, ModelSettings, SourceModel, SourceModelSettings
from finetune.recipe.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    AdamW,
    Constant,
    Cosine,
    OneCycle,
    Optimizer,
    Schedule,
    Sgd,
    Step,
)
from finetune.recipe.phase import LastStages, LoraSettings, Phase, Phases
from finetune.recipe.rules import rule_faults
from finetune.recipe.settings import Settings

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AdamW",
    "AdaptRecipe",
    "AugmentSettings",
    "CacheSettings",
    "Constant",
    "Cosine",
    "DataSettings",
    "InputSettings",
    "LastStages",
    "LoraSettings",
    "ModelSettings",
    "NamedDataSettings",
    "OneCycle",
    "Optimizer",
    "Phase",
    "PretrainRecipe",
    "Schedule",
    "ScratchSettings",
    "Sgd",
    "SourceModelSettings",
    "Step",
]


Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    Field(
        description="Arithmetic of the training: auto is bfloat16 where the processor is fast at it, else float32; the "
        "report's environment says which it was."
    ),
]
Input = Annotated[
    InputSettings | None,
    Field(
        description="How an image becomes the network's input. Left out, all or in part: as the model brings it.",
        examples=[{"size": 224}],
    ),
]
Sharding = Annotated[
    Literal["fsdp"] | None,
    Field(
        description="fsdp: each of several processes (torchrun) keeps a part of weights, gradients and optimizer state "
        "while a phase trains, for models whose training does not fit otherwise. Left out: each keeps all of it.",
        examples=["fsdp"],
    ),
]
Caching = Annotated[
    CacheSettings | None,
    Field(
        description="How much may be kept of what frozen stages make of the images. Left out: 2 GB of memory, or a "
        "quarter of what the machine has if that is less, and 20 GB of the disk.",
        examples=[{"memory": 4}],
    ),
]
Seed = Annotated[int, Field(ge=0, description="Start of all random numbers: same recipe and seed, same bytes.")]
Comparison = Literal["linear_probe", "scratch"]


class _Recipe(Settings):
    @model_validator(mode="after")
    def _hold_the_rules(self) -> Self:
        faults = rule_faults(self.model_dump(mode="json", exclude_none=True))
        if faults:
            raise PydanticCustomError("rule", "{message}", {"message": "; ".join(fault.message for fault in faults)})
        return self


class PretrainRecipe(_Recipe):
    """Training a model from random weights."""

    kind: Literal["pretrain"] = Field(description="Training from random weights.", examples=["pretrain"])
    model: Model
    input: Input = None
    data: NamedDataSettings = Field(description="The images.", examples=[{"name": "mnist"}])
    phases: Phases
    precision: Precision = "auto"
    sharding: Sharding = None
    cache: Caching = None
    seed: Seed = 0
    test_each_epoch: bool = Field(
        default=False,
        description="Print the test accuracy after each epoch of 100 steps or more, as the article does; nothing is "
        "chosen by it.",
    )


class ScratchSettings(Settings):
    """How the comparison model, which starts from random weights, is trained."""

    optimizer: Optimizer | None = Field(
        default=None,
        description="The rule that turns gradients into steps. Left out: the last phase's.",
        examples=[{"name": "sgd", "lr": 0.05}],
    )
    schedule: Schedule | None = Field(
        default=None,
        description="How the learning rate moves over the whole training. Left out: the last phase's.",
        examples=[{"name": "cosine"}],
    )


class AdaptRecipe(_Recipe):
    """Fine-tuning weights that exist on other images."""

    kind: Literal["adapt"] = Field(description="Fine-tuning weights that exist.", examples=["adapt"])
    model: SourceModel | None = Field(
        default=None,
        description="The architecture of a bare file of weights, which cannot say it itself (--model gives it too), "
        "and arguments of a timm model.",
        examples=["timm/resnet18"],
    )
    input: Input = None
    data: DataSettings = Field(
        default=DataSettings(),
        description="The images of the target.",
        examples=[{"validation": 0.1}],
        json_schema_extra={"default": {}},
    )
    head: Literal["auto", "class_means", "random"] = Field(
        default="auto",
        description="How the new head starts: auto keeps the rows of class names that source and target share and "
        "starts the others from class means of the features; class_means and random start all rows that way.",
    )
    phases: Phases
    compare: Annotated[tuple[Comparison, ...], Field(strict=False)] = Field(
        default=("linear_probe", "scratch"),
        description="What the result is compared with: the best linear head on frozen features, and the same model "
        "trained from random weights for as long.",
        examples=[["linear_probe", "scratch"]],
    )
    scratch: ScratchSettings | None = Field(
        default=None,
        description="Settings of the comparison from random weights. Left out: those of the last phase, which are "
        "not always fair to random weights.",
    )
    precision: Precision = "auto"
    sharding: Sharding = None
    cache: Caching = None
    seed: Seed = 0


KINDS: dict[str, type[Settings]] = {"pretrain": PretrainRecipe, "adapt": AdaptRecipe}
