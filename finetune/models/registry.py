"""What models there are: one row each, readable without importing torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from finetune.errors import SettingError, name_hint

if TYPE_CHECKING:
    from finetune.models.staged import StagedNetwork


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes a network's input.

    `size` is the side of the square input in pixels; `mean` and `std` are per channel, for values scaled to 0..1. A
    picture is first resized to `working` pixels, both sides of it ("squash") or the shorter one ("shorter_side"), and
    its centre of `size` pixels is taken; `crop` is the one over the other.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop: float = 1.0
    resize: Literal["squash", "shorter_side"] = "squash"

    @property
    def working(self) -> int:
        """The side to which a picture is resized, in pixels."""
        return math.floor(self.size / self.crop)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values, for a checkpoint."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class ModelRow:
    """One kind of network. `build(classes, arguments)` makes it with random weights from torch's current generator."""

    title: str
    source: str
    stages: tuple[str, ...]
    input: InputSpec
    build: Callable[[int, Mapping[str, Any]], StagedNetwork]
    arguments: tuple[str, ...] = ()


def _build_cnn(classes: int, arguments: Mapping[str, Any]) -> StagedNetwork:
    from finetune.models.cnn import ArticleCNN

    return ArticleCNN(classes)


MODELS: dict[str, ModelRow] = {
    "cnn": ModelRow(
        title="the article's small CNN: two convolutions, two linear layers; 421,642 parameters for 10 classes",
        source="docs/concepts.md",
        stages=("conv1", "conv2", "fc1", "head"),
        input=InputSpec(channels=1, size=28, mean=(0.1307,), std=(0.3081,)),
        build=_build_cnn,
    ),
}


def stage_names() -> dict[str, tuple[str, ...]]:
    """Each model's stages, input to output; the last is always `head`."""
    return {name: row.stages for name, row in MODELS.items()}


def model_row(name: str) -> ModelRow:
    """The row called `name`; SettingError with the near names when there is none."""
    if name not in MODELS:
        raise SettingError(f"unknown model {name!r}{name_hint(name, MODELS, 'models')}")
    return MODELS[name]


def build_model(name: str, classes: int, arguments: Mapping[str, Any]) -> StagedNetwork:
    """A network with random weights. SettingError for an unknown name or an argument that the model does not take."""
    row = model_row(name)
    unknown = [key for key in arguments if key not in row.arguments]
    if unknown:
        takes = ", ".join(row.arguments) or "no arguments"
        raise SettingError(f"model {name!r}: unknown argument {', '.join(map(repr, unknown))}; it takes {takes}")
    return row.build(classes, arguments)
