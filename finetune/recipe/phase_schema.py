"""The schema of a recipe's phases, optimizers and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from finetune.recipe.settings import Decay, Settings, Text, expected

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

    name: Literal["sgd"] = Field(description="Stochastic gradient descent.")
    lr: LearningRate
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Part of the last step that is carried into the next.")
    nesterov: bool = Field(
        default=False, description="Look ahead along the momentum (Nesterov); needs momentum above 0."
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="L2 penalty: this times the weight is added to its gradient. Not applied to biases and "
        "normalisation weights (parameters with one axis).",
    )


class AdamW(Settings):
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter, arXiv:1711.05101)."""

    name: Literal["adamw"] = Field(description="Adam with decoupled weight decay.")
    lr: LearningRate
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        default=(0.9, 0.999),
        description="Part kept, each step, of the running means of the gradient and of its square.",
    )
    eps: float = Field(default=1e-8, gt=0, description="Added to the divisor, against division by zero.")
    weight_decay: float = Field(
        default=0.01,
        ge=0,
        description="Each step a weight shrinks by this times the learning rate, as a fraction of itself. Not applied "
        "to biases and normalisation weights (parameters with one axis).",
    )


Optimizer = Annotated[Sgd | AdamW, Field(discriminator="name")]


class Constant(Settings):
    """The same learning rate throughout."""

    name: Literal["constant"] = Field(description="The same learning rate throughout.")


class Cosine(Settings):
    """Rises in a straight line over `warmup`, then falls to 0 along half a cosine."""

    name: Literal["cosine"] = Field(description="Half a cosine down to 0, after an optional rise.")
    warmup: float = Field(
        default=0.0, ge=0, lt=1, description="Fraction of the phase's steps over which the rate rises from 0."
    )


class OneCycle(Settings):
    """Up and down once, from and to nearly 0 (Smith and Topin, arXiv:1708.07120)."""

    name: Literal["one_cycle"] = Field(description="Once up and once down.")
    warmup: float = Field(
        default=0.3, gt=0, lt=1, description="Fraction of the phase's steps over which the rate rises."
    )
    shape: Literal["cosine", "linear"] = Field(
        default="cosine", description="Rise and fall along a cosine, or straight lines."
    )


Fraction = Annotated[float, Field(gt=0, lt=1)]


class Step(Settings):
    """Falls by a factor at given points."""

    name: Literal["step"] = Field(description="Falls by a factor at given points.")
    at: Annotated[tuple[Fraction, ...], Field(strict=False, min_length=1)] = Field(
        description="Where the rate falls, as growing fractions of the phase's steps.", examples=[[0.5, 0.75]]
    )
    factor: float = Field(
        default=0.1, gt=0, lt=1, description="What the rate is multiplied by at each of these points."
    )


Schedule = Annotated[Constant | Cosine | OneCycle | Step, Field(discriminator="name")]

OPTIMIZERS: dict[str, type[Settings]] = {"sgd": Sgd, "adamw": AdamW}

SCHEDULES: dict[str, type[Settings]] = {"constant": Constant, "cosine": Cosine, "one_cycle": OneCycle, "step": Step}

TRAIN_FORMS = "head, all, {last: N} or a list of stage names"


class LastStages(Settings):
    """The last stages of the model, counted from the output; the head is one of them."""

    last: int = Field(ge=1, description="How many stages, counted from the output; 1 is the head alone.", examples=[2])


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al., arXiv:2106.09685): a weight W learns as W + (alpha / rank)·B·A."""

    rank: int = Field(ge=1, le=1024, description="Rows of A and columns of B.", examples=[8])
    alpha: float = Field(default=16.0, gt=0, description="The adapters' product is scaled by alpha / rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Part of an adapter's input that is dropped.")


def _train_form(value: object) -> str | None:
    if isinstance(value, str):
        return "word"
    if isinstance(value, Mapping | LastStages):
        return "last"
    return "stages" if isinstance(value, list | tuple) else None


def _train_word(value: object) -> object:
    if value not in ("head", "all"):
        raise expected(TRAIN_FORMS)
    return value


Train = Annotated[
    Annotated[Literal["head", "all"], BeforeValidator(_train_word), Tag("word")]
    | Annotated[LastStages, Tag("last")]
    | Annotated[tuple[Text, ...], Field(strict=False, min_length=1), Tag("stages")],
    Discriminator(
        _train_form,
        custom_error_type="expected",
        custom_error_message="expected {what}",
        custom_error_context={"what": TRAIN_FORMS},
    ),
]


def derived_name(train: Literal["head", "all"] | LastStages | tuple[str, ...]) -> str:
    """Names a phase after what it trains: 'head', 'all', 'last-2' or 'conv1+fc1'."""
    if isinstance(train, LastStages):
        return f"last-{train.last}"
    return train if isinstance(train, str) else "+".join(train)


def _name_for(values: dict[str, Any]) -> str:
    return derived_name(values["train"])


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

    train: Train = Field(
        description="What trains: head, all, {last: N} stages counted from the output, or a list of stage names.",
        examples=["all"],
    )
    name: str = Field(
        default_factory=_name_for,
        min_length=1,
        max_length=4096,
        description="Name of the phase in reports, once in a recipe. Left out: head, all, last-2, or conv1+fc1 from "
        "what trains, with -2, -3 and so on added where that name is taken.",
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Length in passes over the training images. Give either epochs or steps.",
        examples=[5],
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Length in optimizer steps (batches). Give either epochs or steps.",
    )
    min_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="With epochs: at least so many optimizer steps, since a pass over a few images teaches little.",
    )
    max_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="With epochs: at most so many optimizer steps, so that a large data set does not take all day.",
    )
    batch_size: int = Field(
        default=64, ge=1, le=1_000_000, description="Images per optimizer step, over all processes together."
    )
    optimizer: Optimizer | None = Field(
        default=None,
        description="The rule that turns gradients into steps. Every phase without a solver has one.",
        examples=[{"name": "sgd", "lr": 0.05}],
    )
    solver: Literal["lbfgs"] | None = Field(
        default=None,
        description="Instead of optimizer and length, for the head alone: lbfgs computes the best linear head on the "
        "frozen features (L2 penalty chosen on the validation images, or over five folds without any).",
    )
    lora: LoraSettings | None = Field(
        default=None,
        description="Train low-rank adapters beside the weights of the stages instead of the weights themselves; the "
        "head trains as usual, and at the phase's end the adapters are added to the weights. Needs the package peft.",
        examples=[{"rank": 8}],
    )
    schedule: Schedule = Field(
        default=Constant(name="constant"),
        description="How the learning rate moves over the phase.",
        examples=[{"name": "cosine"}],
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Part of the target probability that is spread evenly over all classes."
    )
    clip_norm: float | None = Field(
        default=None,
        gt=0,
        description="Gradients are scaled down so that their L2 norm, all together, is at most this.",
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Keep a running average of the weights with this decay per step, and use it.",
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Learning rate of a stage as a fraction of that of the next one towards the head.",
    )
    norms: Literal["hold", "hold_all", "update"] = Field(
        default="hold",
        description="Batch normalisation: hold keeps the running mean and variance of frozen layers and uses them, "
        "hold_all does so in the stages that train too (good for few images), update lets even those of frozen layers "
        "follow the images seen.",
    )
    augment: bool = Field(default=True, description="Whether data.augment applies in this phase.")
    views: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Change each image in so many ways only, the epochs taking them in turn: what frozen stages make "
        "of them is then kept from one turn to the next, as it is of images that are not augmented. Left out: anew in "
        "each epoch, and nothing is kept.",
        examples=[4],
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        description="Weights the phase ends with: those after its last step, or those of the row of the report with "
        "the best accuracy on the validation images (data.validation must not be 0). A row is an epoch, or several "
        "epochs of fewer than 100 steps together.",
    )

    def trained_stages(self, stages: Sequence[str]) -> tuple[str, ...]:
        """The stages that train, of a network's `stages` and in their order."""
        if self.train == "all":
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
        steps = self.epochs * -(-images // self.batch_size)
        steps = max(steps, self.min_steps or steps)
        return min(steps, self.max_steps or steps)

    def images_seen(self, images: int) -> int:
        """How many images the phase sees, each of the `images` as often as it comes; a solver sees each once.

        An epoch shows each image once, and has fewer of them in its last batch.
        """
        if self.solver is not None:
            return images
        epochs, rest = divmod(self.steps_for(images), -(-images // self.batch_size))
        return epochs * images + rest * self.batch_size


def name_phases(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
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
    AfterValidator(name_phases),
]
