"""The input of a network as other people's files tell it: a file's own texts, or the config.json beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from finetune.bounds import LARGEST_INPUT, check_ranges
from finetune.errors import CheckpointError, SettingError
from finetune.models.registry import InputSpec, check_size, find_model

if TYPE_CHECKING:
    from finetune.hub.config import HubConfig

_RESIZES = {"center": "shorter_side", "border": "shorter_side", "squash": "squash"}  # timm's crop_mode, and ours


def as_told(model: str, arguments: Mapping[str, Any], texts: Mapping[str, str]) -> InputSpec:
    """The input as the file's own metadata has it, where it has: texts such as mean 0.5, std 0.5, input 224.

    What is no such number, or a size that the model does not take, is as if it were not said.
    """
    spec = find_model(model, arguments).input
    told: dict[str, Any] = {}
    for key in ("mean", "std"):
        values = _decimals(texts.get(key, ""))
        if len(values) in (1, spec.channels) and _in_range(key, values):
            told[key] = values * spec.channels if len(values) == 1 else values
    size = texts.get("input", "")
    if (
        size.isascii()
        and size.isdecimal()
        and len(size) < 5
        and int(size) <= LARGEST_INPUT
        and _takes(model, arguments, int(size))
    ):
        told["size"] = int(size)
    return replace(spec, **told)


def _takes(model: str, arguments: Mapping[str, Any], size: int) -> bool:
    try:
        check_size(model, arguments, size)
    except SettingError:
        return False
    return size > 0


def _decimals(text: str) -> tuple[float, ...]:
    """The numbers of a text such as "0.5" or "0.485, 0.456, 0.406"; none where it is something else."""
    try:
        return tuple(float(part) for part in text.strip("()[] ").split(",", 3))
    except ValueError:
        return ()


def _in_range(key: str, values: Sequence[float]) -> bool:
    try:
        check_ranges(*((values, ()) if key == "mean" else ((), values)))
    except ValueError:
        return False
    return True


def configured(spec: InputSpec, config: HubConfig, where: str) -> InputSpec:
    """The input as a config.json has it. CheckpointError for a value that is of no use."""
    from pydantic import ValidationError

    from finetune.checkpoint import InputMetadata

    said = config.pretrained_cfg
    values = spec.as_dict()
    try:
        if "input_size" in said:
            channels, height, width = said["input_size"]
            if height != width or channels != spec.channels:
                raise CheckpointError(f"{where}: its input_size is {said['input_size']!r:.100}, which is not made here")
            values["size"] = height
        renamed = {"mean": "mean", "std": "std", "interpolation": "interpolation", "crop_pct": "crop"}
        values |= {ours: said[theirs] for theirs, ours in renamed.items() if said.get(theirs) is not None}
        values |= {key: list(map(float, values[key])) for key in ("mean", "std")}
        values["resize"] = _RESIZES.get(said.get("crop_mode") or "center", "shorter_side")
        checked = InputMetadata.model_validate(values | {"crop": float(values["crop"])})
        check_ranges(checked.mean, checked.std)
    except (ValidationError, TypeError, ValueError):
        raise CheckpointError(f"{where}: pretrained_cfg in its config.json does not describe an input") from None
    return InputSpec(**checked.model_dump() | {"mean": tuple(checked.mean), "std": tuple(checked.std)})


def size_that_fits(config: HubConfig, size: int) -> int:
    """The side of the input. timm's export leaves that of the source there when a network was built for another."""
    built = config.model_args.get("img_size")
    try:
        if size != find_model(config.model, config.model_args).input.size:
            check_size(config.model, config.model_args, size)
    except SettingError:
        if built is None:
            raise
        return int(built)
    return size
