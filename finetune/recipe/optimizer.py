"""The optimizers a phase can have, and how the learning rate moves over the phase.

The number under `lr` is the highest learning rate of the phase; the schedule multiplies it by a factor from 0 to 1.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.recipe.settings import Decay, Settings

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
