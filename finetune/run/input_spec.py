"""Fits a network's input to the images: size, normalization, channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.errors import SettingError
from finetune.models.classifier import Classifier
from finetune.models.registry import build_model, check_size, find_model
from finetune.models.spec import InputSpec
from finetune.recipe.schema import InputSettings


def resolve_input(
    spec: InputSpec, settings: InputSettings | None, model: str, arguments: Mapping[str, Any], *, fixed: bool = False
) -> InputSpec:
    """The model's own input, changed as a recipe's `input` says. SettingError where the model cannot take that.

    `fixed`: the source decides the model's arguments, so that no message may propose another one.
    """
    given = settings.model_dump(exclude_none=True) if settings is not None else {}
    for key in ("mean", "std"):
        if key in given:
            given[key] = _per_channel(f"input.{key}", given[key], spec.channels)
    if "size" in given and given["size"] != spec.size:
        _check_size(model, arguments, given["size"], fixed)
    return replace(spec, **given)


def input_for_stored_size(spec: InputSpec, settings: InputSettings | None, side: int, name: str) -> InputSpec:
    """The input for images of a registered set, which are stored as side×side pixels and not cropped.

    SettingError where the recipe's `input` asks for a crop or another resizing.
    """
    if side == spec.working:
        return spec
    whole: dict[str, Any] = {"crop": 1.0, "resize": "squash", "interpolation": "bilinear"}
    given = settings.model_dump(exclude_none=True) if settings is not None else {}
    for key, value in whole.items():
        if given.get(key, value) != value:
            raise SettingError(
                f"input.{key}: expected {value}, found {given[key]}: the images of {name} are stored as {side}×{side} "
                "pixels and shown whole; a folder's pictures are resized and cut as the recipe says"
            )
    return replace(spec, **whole)


def channels_follow_images(model: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the network takes as many channels as the images have: it can, and no argument chose a number."""
    return "in_chans" in find_model(model, arguments).arguments and "in_chans" not in arguments


def with_channels(spec: InputSpec, channels: int) -> InputSpec:
    """The input for grey (1) or colour (3): one mean and deviation are repeated, three are averaged."""

    def repeated(values: tuple[float, ...]) -> tuple[float, ...]:
        return (values[0] if len(set(values)) == 1 else sum(values) / len(values),) * channels

    if channels == spec.channels:
        return spec
    return replace(spec, channels=channels, mean=repeated(spec.mean), std=repeated(spec.std))


def with_input_channels(classifier: Classifier, channels: int) -> Classifier:
    """The classifier with its first convolution adapted to grey (1) or colour (3) images, as timm adapts it."""
    if channels == classifier.input.channels:
        return classifier
    from finetune.models.timm.weights import adapt_channels

    arguments = {**classifier.arguments, "in_chans": channels}
    state = adapt_channels(classifier.model, classifier.arguments, classifier.network.state_dict(), channels)
    network = build_model(classifier.model, max(1, len(classifier.class_names)), arguments)
    network.set_head(classifier.network.head)
    network.load_state_dict(state)
    spec = with_channels(classifier.input, channels)
    changed = Classifier(network, classifier.model, arguments, classifier.class_names, spec)
    changed.eval()
    return changed


def _check_size(model: str, arguments: Mapping[str, Any], size: int, fixed: bool) -> None:
    try:
        check_size(model, arguments, size)
    except SettingError as error:
        if fixed or not _can_build(model, {**arguments, "img_size": size}):
            raise
        raise SettingError(f"{error}; --set model.img_size={size} builds it for that size") from None


def _can_build(model: str, arguments: Mapping[str, Any]) -> bool:
    try:
        find_model(model, arguments)
    except SettingError:
        return False
    return True


def _per_channel(key: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    raise SettingError(f"{key}: expected 1 number or {channels}, one per channel, found {len(values)}")
