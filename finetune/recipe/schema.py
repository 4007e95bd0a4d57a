"""The schema of whole recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from finetune.recipe.data_schema import (
    AugmentSettings,
    DataSettings,
    InputSettings,
    Model,
    ModelSettings,
    NamedDataSettings,
    SourceModel,
    SourceModelSettings,
)
from finetune.recipe.phase_schema import (
    OPTIMIZERS,
    SCHEDULES,
    AdamW,
    Constant,
    Cosine,
    LastStages,
    LoraSettings,
    OneCycle,
    Optimizer,
    Phase,
    Phases,
    Schedule,
    Sgd,
    Step,
)
from finetune.recipe.rules import rule_problems
from finetune.recipe.settings import Settings
from finetune.report.rows import ADAPT_ROWS


class CacheSettings(Settings):
    """What frozen stages make of the images is kept meanwhile, so that they need to run only once.

    Where both are too small, less of it or nothing is kept: that costs time and changes no result, but for the last
    bits. `finetune plan` tells.
    """

    memory: float = Field(
        default=2.0,
        ge=0,
        le=1e6,
        description="Most memory it may take, in GB (1,000,000,000 bytes), in each process; the GPU's where that "
        "trains. 0: none.",
    )
    disk: float = Field(
        default=20.0,
        ge=0,
        le=1e6,
        description="Most room on the disk for what does not fit into memory, in GB, in each process; in the folder "
        "FINETUNE_CACHE, else ~/.cache/finetune, where 1 GB is left free. 0: none.",
    )


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

if TYPE_CHECKING:
    OptionalRow = str
else:
    OptionalRow = Literal[tuple(key for key, row in ADAPT_ROWS.items() if row.optional)]


class _Recipe(Settings):
    @model_validator(mode="after")
    def _hold_the_rules(self) -> Self:
        faults = rule_problems(self.model_dump(mode="json", exclude_none=True))
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
    compare: Annotated[tuple[OptionalRow, ...], Field(strict=False)] = Field(
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
