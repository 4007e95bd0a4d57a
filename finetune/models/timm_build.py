"""From timm/ARCH[.TAG] and arguments to a row of the registry and a network; nothing is read from disk or fetched."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from finetune.errors import SettingError
from finetune.machine import memory
from finetune.models.registry import InputSpec, ModelRow
from finetune.models.timm_backbone import TimmNetwork
from finetune.models.timm_names import check_taken, check_values, parse_name, taken_arguments
from finetune.models.timm_stages import Layout, layout_of
from finetune.models.timm_watch import MOST_PASS_BYTES, check_made, watched

PROBE = 7  # classes of a network that is only looked at; no layer of timm's but the last has so few outputs
META = torch.device("meta")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_RESIZES = {"center": "shorter_side", "border": "shorter_side", "squash": "squash"}


def timm_row(name: str, arguments: Mapping[str, Any]) -> ModelRow:
    """The row of timm/ARCH[.TAG] with these arguments. SettingError when there is none, or none that can work here."""
    check_values(name, arguments)
    return _row(name, tuple(sorted(arguments.items())), tuple(type(arguments[key]) for key in sorted(arguments)))


@lru_cache(maxsize=64)
def _row(name: str, given: tuple[tuple[str, Any], ...], types: tuple[type, ...]) -> ModelRow:
    # `types` tells 1 from True and 1.0, which are equal as keys.
    architecture, _ = parse_name(name)
    arguments = dict(given)
    body = bare_body(name, PROBE, arguments)
    size = check_made(name, body)
    try:
        layout = layout_of(body, PROBE)
        spec = _input(body, arguments)
        _check_output(body, layout, spec)
    except SettingError as error:
        raise SettingError(f"model {name!r} cannot be fine-tuned here: {error}") from None
    family = type(body).__module__.rpartition(".")[2]
    return ModelRow(
        title=f"{architecture} of timm's family {family}",
        source="https://github.com/huggingface/pytorch-image-models",
        stages=layout.stages,
        input=spec,
        build=partial(_build, name, layout, size),
        arguments=taken_arguments(body),
        check_size=partial(_check_size, name, given, types),
    )


def _build(name: str, layout: Layout, size: int, classes: int, arguments: Mapping[str, Any]) -> TimmNetwork:
    """`size` is the bytes that it takes."""
    check_values(name, arguments)
    needs, has = size, memory()
    if needs > has and torch.get_default_device() != META:
        raise SettingError(f"model {name!r}: {needs:,} bytes do not fit the memory of this machine, {has:,} bytes")
    return TimmNetwork(_create(name, classes, arguments), layout)


def bare_body(name: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """timm's network without numbers, on the meta device: for names, shapes and sizes. The random state is kept."""
    parse_name(name)
    if arguments:
        check_taken(name, bare_body(name, classes, {}), arguments)
    with torch.random.fork_rng(devices=[]), watched(), META:
        return _create(name, classes, arguments)


def _create(name: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """timm's network for `classes`, from torch's current generator; nothing is read or fetched."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's, about its own use of torch
            body: nn.Module = timm.create_model(
                name.removeprefix("timm/"), pretrained=False, num_classes=classes, **arguments
            )
            return body
    except Exception as error:  # a family's constructor may raise anything for an argument it dislikes
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise SettingError(f"model {name!r} cannot be built{f' with {given}' if given else ''}: {said}") from None


def _input(body: nn.Module, arguments: Mapping[str, Any]) -> InputSpec:
    from timm.data.config import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(body)  # type: ignore[no-untyped-call]
    channels, height, width = config["input_size"]
    if "img_size" in arguments:
        height = width = arguments["img_size"]
    if height != width:
        raise SettingError(f"it takes pictures of {width}×{height} pixels; only square ones are made here")
    channels = arguments.get("in_chans", channels)
    mean, std = (tuple(map(float, config[key])) for key in ("mean", "std"))
    if channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    if config["interpolation"] not in _INTERPOLATIONS or config["crop_mode"] not in _RESIZES:
        raise SettingError(f"its pictures are resized by {config['interpolation']}, {config['crop_mode']}")
    resize: Any = _RESIZES[config["crop_mode"]]
    return InputSpec(channels, height, mean, std, config["interpolation"], float(config["crop_pct"]), resize)


def _check_output(body: nn.Module, layout: Layout, spec: InputSpec) -> None:
    """SettingError unless the head runs once, on N×features, and what it gives is what the network gives."""
    calls: list[tuple[Tensor, Tensor]] = []
    head = body.get_submodule(layout.head)
    handle = head.register_forward_hook(lambda module, inputs, output: calls.append((inputs[0], output)))
    try:
        result = _dry_run(body, spec.channels, spec.size)
    finally:
        handle.remove()
    if len(calls) != 1 or calls[0][1] is not result:
        raise SettingError("its output is not what its last linear layer gives")
    if calls[0][0].dim() != 2:
        raise SettingError(f"its last linear layer takes {calls[0][0].dim()} axes; images × features are needed")


def _dry_run(body: nn.Module, channels: int, size: int) -> Any:
    """One pass of two images in evaluation mode without numbers; SettingError with what timm says against it."""
    body.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings(), watched(MOST_PASS_BYTES), META:
            warnings.simplefilter("ignore")
            return body(torch.empty(2, channels, size, size))
    except Exception as error:  # a family's own code may raise anything for a size it cannot take
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingError(f"no pass through it with images of {size}×{size} pixels ({said})") from None


@lru_cache(maxsize=256)
def _check_size(name: str, given: tuple[tuple[str, Any], ...], types: tuple[type, ...], size: int) -> None:
    row = _row(name, given, types)
    if size == row.input.size:
        return
    try:
        _dry_run(bare_body(name, PROBE, dict(given)), row.input.channels, size)
    except SettingError as error:
        takes = f"model {name!r} takes images of {row.input.size}×{row.input.size} pixels, not {size}×{size}"
        raise SettingError(f"{takes}: {error}") from None
