"""The schema of a recipe: every key with its type, its bounds, its default and, below it, its meaning."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from finetune.batching import batches_per_epoch, images_in_steps
from finetune.recipe.rules import rule_problems
from finetune.report.rows import ADAPT_ROWS, wanted_rows


class Settings(BaseModel):
    """Base of every part of a recipe. Strict: true is not 1 and "1" is not 1; only a whole number may stand for 1.0."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        for field in cls.model_fields.values():
            field.description = " ".join((field.description or "").split()) or None  # said below it, in several lines
        return handler(source)


Text = Annotated[str, Field(min_length=1, max_length=4096)]


def _expected(what: str) -> PydanticCustomError:
    """The error of a value of the wrong kind; `error_messages` adds what was found."""
    return PydanticCustomError("expected", "expected {what}", {"what": what})


def _discriminator(form_of: Callable[[object], str | None], what: str) -> Discriminator:
    """Picks the tagged form of a union that `form_of` names; where it names none, the error is `_expected(what)`."""
    return Discriminator(form_of, "expected", "expected {what}", {"what": what})


PRESETS: dict[str, dict[str, int | float | bool]] = {
    "none": {},
    "digits": {"shift": 2, "rotate": 8, "scale": 0.1, "shear": 6, "elastic": 1.5, "elastic_grid": 5},
    "photo": {"crop": 0.35, "flip": True, "colour": 0.3, "erasing": 0.1},
}


def expand_preset(value: object) -> object:
    """Replaces `photo`, or `preset: photo` in a mapping, by the preset's fields; fields given beside it win.

    A value without a known preset is returned unchanged.
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
        raise _expected("a number, text, true or false")
    return value


Arguments = Annotated[
    dict[str, Annotated[int | float | str | bool, BeforeValidator(_argument)]],
    Field(default={}, description="Arguments of the model, written beside its name."),
]


class ModelSettings(Settings):
    """The model and its arguments."""

    name: Text = Field(examples=["cnn"])
    """A registered model, or timm/NAME for any of timm's; `finetune models` lists them."""
    arguments: Arguments


class SourceModelSettings(Settings):
    """The architecture of weights that do not say it themselves, and its arguments."""

    name: Text | None = Field(default=None, examples=["timm/resnet18"])
    """The architecture of a bare file of weights, such as timm/resnet18. Left out where the source says its own."""
    arguments: Arguments


def _name_and_arguments(value: object) -> object:
    """Turns `cnn` or `{name: cnn, dropout: 0.5}` of a recipe into the fields of `ModelSettings`."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        return value
    fields: dict[str, object] = {"arguments": {key: item for key, item in value.items() if key != "name"}}
    return {**fields, "name": value["name"]} if "name" in value else fields


def _json_schema(required: list[str]) -> WithJsonSchema:
    """The JSON Schema of a model: its name, or a mapping of the name and whatever arguments the model has."""
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
    BeforeValidator(_name_and_arguments),
    Field(description="The model: its name, or a mapping of its name and its arguments.", examples=["cnn"]),
    _json_schema(["name"]),
]
SourceModel = Annotated[SourceModelSettings, BeforeValidator(_name_and_arguments), _json_schema([])]
Means = Annotated[tuple[Annotated[float, Field(ge=-1, le=2)], ...], Field(strict=False, min_length=1, max_length=3)]
Deviations = Annotated[
    tuple[Annotated[float, Field(ge=0.001, le=2)], ...], Field(strict=False, min_length=1, max_length=3)
]


class InputSettings(Settings):
    """How an image becomes the network's input, where it is to differ from what the model brings."""

    size: int | None = Field(default=None, ge=1, le=4096, examples=[224])
    """Side of the square input, in pixels."""
    mean: Means | None = Field(default=None, examples=[[0.5]])
    """Subtracted from each channel of values 0 to 1: one number, or one per channel."""
    std: Deviations | None = Field(default=None, examples=[[0.5]])
    """What each channel is divided by after that: one number, or one per channel."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    """How pictures are resized."""
    crop: float | None = Field(default=None, ge=0.1, le=1, examples=[0.875])
    """Part of the resized picture's side that the input keeps, from its centre; 1 keeps all."""
    resize: Literal["shorter_side", "squash"] | None = None
    """A picture that is not square: shorter_side keeps its proportions and cuts what is too long, squash changes
    them."""


PresetName = Literal["none", "digits", "photo"]


def _beta_shape(value: float) -> float:
    """Below 0.001 draws from the distribution are no numbers."""
    if value and not 0.001 <= value <= 10:
        raise _expected("0, or a number from 0.001 to 10")
    return value


BetaShape = Annotated[float, AfterValidator(_beta_shape)]


class AugmentSettings(Settings):
    """Random changes made to every training image anew in each epoch; 0 leaves a change out.

    Instead of the mapping the name of a preset may be given: `augment: photo`. `none` changes nothing, `digits` is
    for drawn characters (shift 2, rotate 8, scale 0.1, shear 6, elastic 1.5 on a grid of 5), `photo` for photographs
    (crop 0.35, flip, colour 0.3, erasing 0.1).
    """

    preset: PresetName | None = Field(default=None, exclude=True)
    """Start from these fields; the ones given beside it win. A resolved recipe has the fields instead."""
    shift: int = Field(default=0, ge=0, le=512)
    """Largest shift, in pixels, in each direction."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Largest rotation, in degrees, either way."""
    scale: float = Field(default=0.0, ge=0, lt=1)
    """Largest change of size, as a fraction: 0.1 is 0.9 to 1.1 times."""
    shear: float = Field(default=0.0, ge=0, lt=90)
    """Largest shear, in degrees, either way."""
    elastic: float = Field(default=0.0, ge=0, le=512)
    """Largest move, in pixels, of the nodes of a smooth random displacement."""
    elastic_grid: int = Field(default=4, ge=2, le=8)
    """Points a side of the grid that displacement is drawn on."""
    erase: int = Field(default=0, ge=0, le=512)
    """Side, in pixels, of a square painted over with background."""
    crop: float = Field(default=0.0, ge=0, le=1)
    """Smallest part of the area that a random crop keeps, resized to the model's input; 0.35 is usual for photographs.
    0: no crop."""
    flip: bool = False
    """Turn images left to right, half of the time."""
    colour: float = Field(default=0.0, ge=0, le=1)
    """Largest change of brightness, contrast and saturation, as a fraction: 0.3 is 0.7 to 1.3 times."""
    erasing: float = Field(default=0.0, ge=0, le=1)
    """How often a rectangle of 2 % to 33 % of the image is painted over with the mean colour."""
    mixup: BetaShape = 0.0
    """Blend each image and its label with another's; the share follows Beta(mixup, mixup). 0: do not."""
    cutmix: BetaShape = 0.0
    """Paste a box of another image into each, and mix the labels by area; the area follows Beta(cutmix, cutmix). With
    mixup too, each image gets one of the two by chance."""


Augmentation = Annotated[
    AugmentSettings, BeforeValidator(expand_preset, json_schema_input_type=AugmentSettings | PresetName)
]


def _class_name(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _expected("a class name (text or a whole number)")
    return value


def _validation_kind(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return "images" if isinstance(value, int) else "fraction"


ClassName = Annotated[
    str, Field(min_length=1, max_length=255), BeforeValidator(_class_name, json_schema_input_type=int | str)
]
ClassNames = Annotated[tuple[ClassName, ...], Field(strict=False, min_length=1)]

Validation = Annotated[
    Annotated[int, Field(ge=0, le=100_000_000), Tag("images")] | Annotated[float, Field(ge=0, lt=1), Tag("fraction")],
    _discriminator(_validation_kind, "a whole number of images or a fraction below 1"),
]


def _regular_expression(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise _expected(f"a regular expression, or `folder` ({error})") from None
    return value


GroupPattern = Annotated[Text, AfterValidator(_regular_expression)]


class ColumnNames(Settings):
    """What a CSV calls its columns; a column left out is looked for under the usual names."""

    path: Text | None = Field(default=None, examples=["image_id"])
    """Of the picture files, relative to the CSV's folder."""
    label: Text | None = Field(default=None, examples=["category"])
    """Of the classes."""
    split: Text | None = Field(default=None, examples=["set"])
    """Of the parts: train, validation or test."""
    group: Text | None = Field(default=None, examples=["patient"])
    """Of the groups that are never in two parts."""


class DataSettings(Settings):
    """Which images, and how they are divided and changed."""

    name: Text | None = Field(default=None, examples=["mnist"])
    """A registered data set (`finetune datasets` lists them), a folder of pictures, or a CSV file of
    path,label[,split]. In an adapt recipe it may be left out: --target gives it."""
    classes: ClassNames | None = Field(default=None, examples=[[0, 1]])
    """Use only the images of these classes, in this order; numbers are names as they are written, 001 too. Left out:
    all classes."""
    validation: Validation = Field(default=0, examples=[0.1])
    """Training images put aside for validation: a whole number of images, or a fraction of them. Not used where a
    folder or CSV brings validation images of its own."""
    shots: int | None = Field(default=None, ge=1, le=100_000_000)
    """Labelled training images used per class, drawn by the seed. Left out: all."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """Pictures of a folder or CSV that cannot be read: fail lists them and stops, skip lists them and goes on without
    them."""
    group: GroupPattern | None = Field(default=None, examples=[r"(\d+)_\d+"])
    """Pictures that belong together, such as those of one patient or one camera track, and are never in two parts: a
    regular expression whose parentheses find the group's name in a picture's path below the data set's folder, or
    `folder` for the folder that a picture lies in. A CSV may have a column `group` instead. Left out: each picture
    stands alone."""
    columns: ColumnNames | None = Field(default=None, examples=[{"path": "image_id", "label": "category"}])
    """What a table calls its columns, where these are not the usual names such as image_id or category."""
    decode: Literal["scaled", "exact"] | None = Field(default=None, examples=["exact"])
    """How finely JPEG pictures are decoded: scaled, to no fewer than twice the pixels that are used, or exact, all of
    them. Left out: scaled."""
    augment: Augmentation | None = Field(default=None, examples=[{"shift": 2}])
    """Random changes made to training images: their fields, or the name of a preset. Left out: none."""


class NamedDataSettings(DataSettings):
    """Which images, where nothing else can say so."""

    name: Text = Field(examples=["mnist"])
    """A registered data set (`finetune datasets` lists them), a folder of pictures, or a CSV file of
    path,label[,split]."""


LearningRate = Annotated[
    float,
    Field(
        gt=0,
        description="Highest learning rate of the phase, for the head and for all layers if layer_decay is 1.",
        examples=[0.01],
    ),
]


class Sgd(Settings):
    """Stochastic gradient descent."""

    name: Literal["sgd"]
    """Stochastic gradient descent."""
    lr: LearningRate
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Part of the last step that is carried into the next."""
    nesterov: bool = False
    """Look ahead along the momentum (Nesterov); needs momentum above 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty: this times the weight is added to its gradient. Not applied to biases and normalisation weights
    (parameters with one axis)."""


MeanDecay = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Settings):
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter, arXiv:1711.05101)."""

    name: Literal["adamw"]
    """Adam with decoupled weight decay."""
    lr: LearningRate
    betas: Annotated[tuple[MeanDecay, MeanDecay], Field(strict=False)] = (0.9, 0.999)
    """Part kept, each step, of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the divisor, against division by zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Each step a weight shrinks by this times the learning rate, as a fraction of itself. Not applied to biases and
    normalisation weights (parameters with one axis)."""


Optimizer = Annotated[Sgd | AdamW, Field(discriminator="name")]


class Constant(Settings):
    """The same learning rate throughout."""

    name: Literal["constant"]
    """The same learning rate throughout."""


class Cosine(Settings):
    """Rises in a straight line over `warmup`, then falls to 0 along half a cosine."""

    name: Literal["cosine"]
    """Half a cosine down to 0, after an optional rise."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the phase's steps over which the rate rises from 0."""


class OneCycle(Settings):
    """Up and down once, from and to nearly 0 (Smith and Topin, arXiv:1708.07120)."""

    name: Literal["one_cycle"]
    """Once up and once down."""
    warmup: float = Field(default=0.3, gt=0, lt=1)
    """Fraction of the phase's steps over which the rate rises."""
    shape: Literal["cosine", "linear"] = "cosine"
    """Rise and fall along a cosine, or straight lines."""


Fraction = Annotated[float, Field(gt=0, lt=1)]


class Step(Settings):
    """Falls by a factor at given points."""

    name: Literal["step"]
    """Falls by a factor at given points."""
    at: Annotated[tuple[Fraction, ...], Field(strict=False, min_length=1)] = Field(examples=[[0.5, 0.75]])
    """Where the rate falls, as growing fractions of the phase's steps."""
    factor: float = Field(default=0.1, gt=0, lt=1)
    """What the rate is multiplied by at each of these points."""


Schedule = Annotated[Constant | Cosine | OneCycle | Step, Field(discriminator="name")]
OPTIMIZERS: dict[str, type[Settings]] = {"sgd": Sgd, "adamw": AdamW}
SCHEDULES: dict[str, type[Settings]] = {"constant": Constant, "cosine": Cosine, "one_cycle": OneCycle, "step": Step}


class LastStages(Settings):
    """The last stages of the model, counted from the output; the head is one of them."""

    last: int = Field(ge=1, examples=[2])
    """How many stages, counted from the output; 1 is the head alone."""


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al., arXiv:2106.09685): a weight W learns as W + (alpha / rank)·B·A."""

    rank: int = Field(ge=1, le=1024, examples=[8])
    """Rows of A and columns of B."""
    alpha: float = Field(default=16.0, gt=0)
    """The adapters' product is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of an adapter's input that is dropped."""


AUTO = "auto"  # for `train`: the stages that `finetune where` would name


def _train_form(value: object) -> str | None:
    if isinstance(value, str):
        return "word" if value in ("head", "all", AUTO) else None
    if isinstance(value, Mapping | LastStages):
        return "last"
    return "stages" if isinstance(value, list | tuple) else None


Train = Annotated[
    Annotated[Literal["head", "all", "auto"], Tag("word")]
    | Annotated[LastStages, Tag("last")]
    | Annotated[tuple[Text, ...], Field(strict=False, min_length=1), Tag("stages")],
    _discriminator(_train_form, "head, all, auto, {last: N} or a list of stage names"),
]


def default_phase_name(values: dict[str, Any]) -> str:
    """Names a phase after what it trains: 'head', 'all', 'last-2' or 'conv1+fc1'."""
    train = values["train"]
    if isinstance(train, LastStages):
        return f"last-{train.last}"
    return train if isinstance(train, str) else "+".join(train)


class Phase(Settings):
    """One stretch of training. What is not trained is frozen: it stays bit for bit the same (but see `norms`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["epochs", "optimizer"]},
                {"required": ["steps", "optimizer"]},
                {"required": ["solver"]},
            ]
        }
    )

    train: Train = Field(examples=["all"])
    """What trains: head, all, {last: N} stages counted from the output, or a list of stage names; in an adapt recipe
    also auto, the stages that `finetune where` names for the source and the images."""
    name: str = Field(default_factory=default_phase_name, min_length=1, max_length=4096)
    """Name of the phase in reports, once in a recipe. Left out: head, all, auto, last-2, or conv1+fc1 from what trains,
    with -2, -3 and so on added where that name is taken."""
    epochs: int | None = Field(default=None, ge=1, le=100_000, examples=[5])
    """Length in passes over the training images. Give either epochs or steps."""
    steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Length in optimizer steps (batches). Give either epochs or steps."""
    min_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """With epochs: at least so many optimizer steps, since a pass over a few images teaches little."""
    max_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """With epochs: at most so many optimizer steps, so that a large data set does not take all day."""
    batch_size: int = Field(default=64, ge=1, le=1_000_000)
    """Images per optimizer step, over all processes together."""
    optimizer: Optimizer | None = Field(default=None, examples=[{"name": "sgd", "lr": 0.05}])
    """The rule that turns gradients into steps. Every phase without a solver has one."""
    solver: Literal["lbfgs"] | None = None
    """Instead of optimizer and length, for the head alone: lbfgs computes the best linear head on the frozen features
    (L2 penalty chosen on the validation images, or over five folds without any)."""
    lora: LoraSettings | None = Field(default=None, examples=[{"rank": 8}])
    """Train low-rank adapters beside the weights of the stages instead of the weights themselves; the head trains as
    usual, and at the phase's end the adapters are added to the weights. Needs the package peft."""
    schedule: Schedule = Field(default=Constant(name="constant"), examples=[{"name": "cosine"}])
    """How the learning rate moves over the phase."""
    l2_sp: float | None = Field(default=None, gt=0, examples=[0.01])
    """Pull towards the source (Li et al., arXiv:1802.01483): half of this times the squared distance of the trained
    weights from the source's, all together, is added to the loss; the head's are left out. weight_decay pulls towards 0
    beside it."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Part of the target probability that is spread evenly over all classes."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Gradients are scaled down so that their L2 norm, all together, is at most this."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Keep a running average of the weights with this decay per step, and use it."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Learning rate of a stage as a fraction of that of the next one towards the head."""
    norms: Literal["hold", "hold_all", "update"] = "hold"
    """Batch normalisation: hold keeps the running mean and variance of frozen layers and uses them, hold_all does so in
    the stages that train too (good for few images), update lets even those of frozen layers follow the images seen."""
    augment: bool = True
    """Whether data.augment applies in this phase."""
    views: int | None = Field(default=None, ge=1, le=1000, examples=[4])
    """Change each image in so many ways only, the epochs taking them in turn: what frozen stages make of them is then
    kept from one turn to the next, as it is of images that are not augmented. Left out: anew in each epoch, and nothing
    is kept."""
    keep: Literal["last", "best"] = "last"
    """Weights the phase ends with: those after its last step, or those of the row of the report with the best accuracy
    on the validation images (data.validation must not be 0). A row is an epoch, or several epochs of fewer than 100
    steps together."""

    def trained_stages(self, stages: Sequence[str]) -> tuple[str, ...]:
        """The stages that train, of a network's `stages` and in their order; all that may, as long as that is auto."""
        if self.train in ("all", AUTO):
            return tuple(stages)
        if self.train == "head":
            return tuple(stages[-1:])
        if isinstance(self.train, LastStages):
            return tuple(stages[-self.train.last :])
        return tuple(stage for stage in stages if stage in self.train)

    def steps_for(self, images: int) -> int:
        """Length in optimizer steps on so many training images: the one place where epochs become steps.

        A solver takes none.
        """
        if self.solver is not None:
            return 0
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        steps = self.epochs * batches_per_epoch(images, self.batch_size)
        steps = max(steps, self.min_steps or steps)
        return min(steps, self.max_steps or steps)

    def images_seen(self, images: int) -> int:
        """How many images the phase sees, each of the `images` as often as it comes; a solver sees each once.

        An epoch shows each image once; its last batch may be of another size.
        """
        if self.solver is not None:
            return images
        return images_in_steps(self.steps_for(images), images, self.batch_size)


def _name_phases(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """Adds -2, -3, ... to derived names that are taken; names a person gave are left as they are."""
    taken = {phase.name for phase in phases if "name" in phase.model_fields_set}
    count: dict[str, int] = {}
    result = []
    for phase in phases:
        name = phase.name
        if "name" not in phase.model_fields_set:
            while name in taken:
                count[phase.name] = count.get(phase.name, 1) + 1
                name = f"{phase.name}-{count[phase.name]}"
            taken.add(name)
        result.append(phase.model_copy(update={"name": name}))
    return tuple(result)


Phases = Annotated[
    tuple[Phase, ...],
    Field(
        strict=False,
        min_length=1,
        max_length=100,
        description="What is trained, one phase after the other.",
        examples=[[{"train": "all", "epochs": 5, "optimizer": {"name": "sgd", "lr": 0.05}}]],
    ),
    AfterValidator(_name_phases),
]


class CacheSettings(Settings):
    """What frozen stages make of the images is kept meanwhile, so that they need to run only once.

    Where both are too small, less of it or nothing is kept: that costs time and changes no result, but for the last
    bits. `finetune plan` tells.
    """

    memory: float = Field(default=2.0, ge=0, le=1e6)
    """Most memory it may take, in GB (1,000,000,000 bytes), in each process; the GPU's where that trains. 0: none."""
    disk: float = Field(default=20.0, ge=0, le=1e6)
    """Most room on the disk for what does not fit into memory, in GB, in each process; in the folder FINETUNE_CACHE,
    else ~/.cache/finetune, where 1 GB is left free. 0: none."""


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
Balance = Annotated[
    Annotated[
        Literal["sampler", "loss", "logit_adjustment"] | None,
        BeforeValidator(
            lambda value: None if value == "none" else value,
            json_schema_input_type=Literal["none", "sampler", "loss", "logit_adjustment"] | None,
        ),
    ],
    Field(
        description="What training does about classes that are uneven in number, in all phases and in what they are "
        "compared with: sampler draws the classes equally often, as many images an epoch as there are; loss weights "
        "images inversely to the number of their class; logit_adjustment adds the log of each class's share to its "
        "logit while it trains (Menon et al., arXiv:2007.07314); none counts every image alike. keep: best then goes "
        "by balanced accuracy. Left out: none.",
        examples=["logit_adjustment"],
    ),
]
Seed = Annotated[int, Field(ge=0, description="Start of all random numbers: same recipe and seed, same bytes.")]

if TYPE_CHECKING:
    OptionalRow = str
else:
    OptionalRow = Literal[tuple(key for key, row in ADAPT_ROWS.items() if row.optional)]


class _Recipe(Settings):
    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        problems = rule_problems(self.model_dump(mode="json", exclude_none=True))
        if problems:
            raise PydanticCustomError("rule", "{message}", {"message": "; ".join(p.message for p in problems)})
        return self


class PretrainRecipe(_Recipe):
    """Training a model from random weights."""

    kind: Literal["pretrain"] = Field(examples=["pretrain"])
    """Training from random weights."""
    model: Model
    input: Input = None
    data: NamedDataSettings = Field(examples=[{"name": "mnist"}])
    """The images."""
    balance: Balance = None
    phases: Phases
    precision: Precision = "auto"
    sharding: Sharding = None
    cache: Caching = None
    seed: Seed = 0
    test_each_epoch: bool = False
    """Print the test accuracy after each epoch of 100 steps or more, as the article does; nothing is chosen by it."""


class ScratchSettings(Settings):
    """How the comparison model, which starts from random weights, is trained."""

    optimizer: Optimizer | None = Field(default=None, examples=[{"name": "sgd", "lr": 0.05}])
    """The rule that turns gradients into steps. Left out: the last phase's."""
    schedule: Schedule | None = Field(default=None, examples=[{"name": "cosine"}])
    """How the learning rate moves over the whole training. Left out: the last phase's."""


class AdaptRecipe(_Recipe):
    """Fine-tuning weights that exist on other images."""

    kind: Literal["adapt"] = Field(examples=["adapt"])
    """Fine-tuning weights that exist."""
    model: SourceModel | None = Field(default=None, examples=["timm/resnet18"])
    """The architecture of a bare file of weights, which cannot say it itself (--model gives it too), and arguments of a
    timm model."""
    input: Input = None
    data: DataSettings = Field(
        default=DataSettings(), examples=[{"validation": 0.1}], json_schema_extra={"default": {}}
    )
    """The images of the target."""
    head: Literal["auto", "class_means", "random"] = "auto"
    """How the new head starts: auto keeps the rows of class names that source and target share and starts the others
    from class means of the features; class_means and random start all rows that way."""
    balance: Balance = None
    phases: Phases
    compare: Annotated[tuple[OptionalRow, ...], Field(strict=False)] = Field(
        default=("linear_probe", "scratch"), examples=[["linear_probe", "scratch"]]
    )
    """What the result is compared with: the best linear head on frozen features, the same model trained from random
    weights for as long, and interpolated: a mix of the source's and the fine-tuned weights, chosen on validation
    images."""
    retain: float | None = Field(default=None, gt=0, le=1, examples=[0.9])
    """The mix is the most accurate one that keeps this part of the source's accuracy on the source's own images. Left
    out: the one nearest to the source that is as good as the fine-tuned weights."""
    keep: Literal["interpolated"] | None = None
    """Weights that are written: interpolated writes the mix, and makes that row where `compare` does not name it. Left
    out: the fine-tuned ones."""
    scratch: ScratchSettings | None = None
    """Settings of the comparison from random weights. Left out: those of the last phase, which are not always fair to
    random weights."""
    max_error: float | None = Field(default=None, ge=0.0001, lt=1, examples=[0.01])
    """Share of wrong answers to be promised (--max-error): a threshold of probability is looked for above which, with
    95 % confidence, at most this share of answers is wrong; `predict` calls answers below it unsure. Left out: nothing
    is promised."""
    calibration_folds: int | None = Field(default=None, ge=2, le=20, examples=[3])
    """Where fewer than 30 images are held out for validation: so many trainings more, each on all but one part of the
    images, whose answers to that part calibrate the network. Left out: then it is not calibrated."""
    precision: Precision = "auto"
    sharding: Sharding = None
    cache: Caching = None
    seed: Seed = 0

    @property
    def rows(self) -> list[str]:
        """The keys of the rows of the verdict that it asks for, in their order."""
        return wanted_rows(self.compare if self.keep is None else (*self.compare, self.keep))

    def without_rows(self, *, kept: bool = False) -> AdaptRecipe:
        """The recipe without the rows that it names; with `kept`, but for the one whose weights are written."""
        left = {} if kept and self.keep is not None else {"keep": None, "retain": None}
        return self.model_copy(update={"compare": (), **left})


KINDS: dict[str, type[Settings]] = {"pretrain": PretrainRecipe, "adapt": AdaptRecipe}
