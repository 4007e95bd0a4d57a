"""Builds timm models within limits on size and time."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.errors import SettingError
from finetune.models.spec import TIMM, InputSpec, ModelSpec
from finetune.models.timm.names import accepted_arguments, check_accepted, check_values, parse_name
from finetune.models.timm.network import TimmNetwork
from finetune.models.timm.stages import StageLayout, find_stages
from finetune.system import available_memory
from finetune.text import first_line

# What timm's own largest networks have is behind each (timm 1.0.31).
MAX_PARAMETERS = 10_000_000_000  # 7 billion numbers
MAX_LAYERS = 5_000  # 2,000 tensors that train
MAX_STEPS = 400_000  # 102,000 operations to make it
MAX_BYTES = 2 << 30  # of one tensor while it is made: 436 MB
MAX_TABLES = 1 << 30  # bytes of tensors that no file has: 202 MB
MAX_PASS_BYTES = 16 << 30  # of one tensor while two images pass: 0.5 GB at the networks' own sizes
MAX_SECONDS = 60  # of processor time: a busy machine must not refuse a model
PROBE = 7  # classes of a network built for inspection; no layer of timm's but the last has so few outputs
META = torch.device("meta")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_RESIZES: dict[str, Literal["shorter_side", "squash"]] = {
    "center": "shorter_side",
    "border": "shorter_side",
    "squash": "squash",
}


class ModelTooLarge(RuntimeError):
    """Building or running the network exceeds a limit."""


class _OperationLimits(TorchDispatchMode):
    """Raises ModelTooLarge for too many operations, too much time, or too large a tensor."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most_bytes, self.steps, self.end = most_bytes, 0, time.process_time() + MAX_SECONDS

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ModelTooLarge(f"more than {MAX_STEPS:,} operations")
        if time.process_time() > self.end:
            raise ModelTooLarge(f"more than {MAX_SECONDS} seconds of processor time")
        if isinstance(result, Tensor) and (size := result.numel() * result.element_size()) > self.most_bytes:
            raise ModelTooLarge(f"a tensor of {size:,} bytes; at most {self.most_bytes:,} are made at once")
        return result


@contextmanager
def limited_build(most_bytes: int = MAX_BYTES) -> Iterator[None]:
    """Raises ModelTooLarge inside the block, which builds or runs a network on the meta device, beyond the limits."""
    here, count = threading.get_ident(), 0

    def note(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count
        count += threading.get_ident() == here  # other threads make networks too
        if count > MAX_LAYERS:
            raise ModelTooLarge(f"more than {MAX_LAYERS:,} tensors to train")

    handle = register_module_parameter_registration_hook(note)
    try:
        with _OperationLimits(most_bytes):
            yield
    finally:
        handle.remove()


def check_model_size(name: str, body: nn.Module) -> int:
    """Returns a network's bytes. SettingError for too many parameters, or too large buffers that are in no file."""
    count = sum(p.numel() for p in body.parameters())
    if count > MAX_PARAMETERS:
        raise SettingError(f"model {name!r}: {count:,} parameters; at most {MAX_PARAMETERS:,} can be built")
    kept = body.state_dict().keys()
    sizes = {key: t.numel() * t.element_size() for key, t in (*body.named_parameters(), *body.named_buffers())}
    tables = sum(size for key, size in sizes.items() if key not in kept)
    if tables > MAX_TABLES:
        raise SettingError(f"model {name!r}: {tables:,} bytes of tables; at most {MAX_TABLES:,} can be built")
    return sum(sizes.values())


def timm_spec(name: str, arguments: Mapping[str, Any]) -> ModelSpec:
    """The spec of timm/ARCH[.TAG] with these arguments. SettingError when there is none, or none that can work here."""
    check_values(name, arguments)
    return _make_spec(name, json.dumps(arguments, sort_keys=True))


@lru_cache(maxsize=64)
def _make_spec(name: str, arguments_json: str) -> ModelSpec:
    """`arguments_json` tells 1 from True and 1.0, which are equal as keys of a cache."""
    architecture, _ = parse_name(name)
    arguments = json.loads(arguments_json)
    body = headless_model(name, PROBE, arguments)
    size = check_model_size(name, body)
    try:
        layout = find_stages(body, PROBE)
        spec = _input_spec(body, arguments)
        _check_output(body, layout, spec)
    except SettingError as error:
        raise SettingError(f"model {name!r} cannot be fine-tuned here: {error}") from None
    family = type(body).__module__.rpartition(".")[2]
    return ModelSpec(
        title=f"{architecture} of timm's family {family}",
        source="https://github.com/huggingface/pytorch-image-models",
        stages=layout.stages,
        input=spec,
        build=partial(_build, name, layout, size),
        arguments=accepted_arguments(body),
        check_size=partial(_check_size, name, arguments_json),
    )


def _build(name: str, layout: StageLayout, needs: int, classes: int, arguments: Mapping[str, Any]) -> TimmNetwork:
    """Builds the network, which takes `needs` bytes."""
    check_values(name, arguments)
    if torch.get_default_device() != META and needs > (has := available_memory()):
        raise SettingError(f"model {name!r}: {needs:,} bytes do not fit the memory of this machine, {has:,} bytes")
    return TimmNetwork(_create(name, classes, arguments), layout)


def headless_model(name: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """timm's network on the meta device, for names, shapes and sizes. The random state is kept."""
    parse_name(name)
    if arguments:
        check_accepted(name, headless_model(name, classes, {}), arguments)
    with torch.random.fork_rng(devices=[]), limited_build(), META:
        return _create(name, classes, arguments)


def _create(name: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """timm's network for `classes`, from torch's current generator; nothing is read or fetched."""
    try:
        with warnings.catch_warnings(action="ignore"):  # timm's, about its own use of torch
            architecture = name.removeprefix(TIMM)
            body: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=classes, **arguments)
            return body
    except Exception as error:  # a family's constructor may raise anything for an argument it dislikes
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        said = f" with {given}" if given else ""
        raise SettingError(f"model {name!r} cannot be built{said}: {first_line(error)}") from None


def _input_spec(body: nn.Module, arguments: Mapping[str, Any]) -> InputSpec:
    """How timm's configuration and the arguments prepare an image. SettingError where that cannot be done here."""
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
    resize = _RESIZES[config["crop_mode"]]
    return InputSpec(channels, height, mean, std, config["interpolation"], float(config["crop_pct"]), resize)


def _check_output(body: nn.Module, layout: StageLayout, spec: InputSpec) -> None:
    """SettingError unless the head runs once, on N×features, and its output is the network's."""
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
    """Runs two images in evaluation mode on the meta device. SettingError, with timm's reason, where that fails."""
    body.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"), limited_build(MAX_PASS_BYTES), META:
            return body(torch.empty(2, channels, size, size))
    except Exception as error:  # a family's own code may raise anything for a size it cannot take
        said = first_line(error)
        raise SettingError(f"no pass through it with images of {size}×{size} pixels ({said})") from None


@lru_cache(maxsize=256)
def _check_size(name: str, arguments_json: str, size: int) -> None:
    """SettingError unless the network can run on images of size×size pixels."""
    spec = _make_spec(name, arguments_json).input
    if size == spec.size:
        return
    try:
        _dry_run(headless_model(name, PROBE, json.loads(arguments_json)), spec.channels, size)
    except SettingError as error:
        takes = f"model {name!r} takes images of {spec.size}×{spec.size} pixels, not {size}×{size}"
        raise SettingError(f"{takes}: {error}") from None
