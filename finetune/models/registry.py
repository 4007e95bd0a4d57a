"""The registry of models, readable without importing torch; timm's are looked up when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.errors import SettingError
from finetune.models.spec import TIMM, InputSpec, ModelSpec
from finetune.text import name_hint

if TYPE_CHECKING:
    from finetune.models.staged import StagedNetwork


_MAX_LEN = 200  # characters of a name that are repeated


def _build_cnn(classes: int, arguments: Mapping[str, Any]) -> StagedNetwork:
    from finetune.models.cnn import ArticleCNN

    return ArticleCNN(classes)


MODELS: dict[str, ModelSpec] = {
    "cnn": ModelSpec(
        title="the article's small CNN: two convolutions, two linear layers; 421,642 parameters for 10 classes",
        source="docs/concepts.md",
        stages=("conv1", "conv2", "fc1", "head"),
        input=InputSpec(channels=1, size=28, mean=(0.1307,), std=(0.3081,)),
        build=_build_cnn,
        cost=lambda classes: (420_352 + 129 * classes, 4_239_872 + 128 * classes),
    ),
}


def stage_names() -> dict[str, tuple[str, ...]]:
    """The stages of each model but timm's, input to output; the last is always `head`."""
    return {name: spec.stages for name, spec in MODELS.items()}


def is_model(name: str) -> bool:
    """Whether `name` may be a model: one of MODELS, or timm/NAME, which is not looked up."""
    return name in MODELS or name.startswith(TIMM)


def find_model(name: str, arguments: Mapping[str, Any] | None = None) -> ModelSpec:
    """The spec of model `name`, "cnn" or "timm/ARCH[.TAG]", with `arguments`.

    SettingError for an unknown name, with near ones; for an argument that the model does not take; and for a timm model
    that cannot work here. timm and torch are imported for a timm name only.
    """
    arguments = arguments or {}
    if name.startswith(TIMM):
        from finetune.models.timm.build import timm_spec

        return timm_spec(name, arguments)
    if name not in MODELS:
        near = name_hint(name, MODELS, "models")
        raise SettingError(
            f"unknown model {name[:_MAX_LEN]!r}{near}, and timm/NAME: see `finetune models 'timm/*net*'`"
        )
    spec = MODELS[name]
    if unknown := [key for key in arguments if key not in spec.arguments]:
        takes = ", ".join(spec.arguments) or "no arguments"
        raise SettingError(f"model {name!r}: unknown argument {', '.join(map(repr, unknown))}; it takes {takes}")
    return spec


def build_model(name: str, classes: int, arguments: Mapping[str, Any]) -> StagedNetwork:
    """Builds a network with random weights from torch's current generator. SettingError as in `find_model`."""
    return find_model(name, arguments).build(classes, arguments)


def check_size(name: str, arguments: Mapping[str, Any], size: int) -> None:
    """SettingError, with the size that it takes, when images of size×size pixels do not fit the model."""
    spec = find_model(name, arguments)
    if spec.check_size is not None:
        spec.check_size(size)
    elif size != (own := spec.input.size):
        raise SettingError(f"model {name!r} takes images of {own}×{own} pixels, not {size}×{size}")


def list_models(pattern: str) -> list[str]:
    """The names that `pattern` (with * and ?) matches, timm's with their `timm/`."""
    from fnmatch import fnmatchcase

    found = [name for name in MODELS if fnmatchcase(name, pattern)]
    if pattern.startswith(TIMM):
        from finetune.models.timm.names import timm_names

        found += timm_names(pattern.removeprefix(TIMM))
    return found
