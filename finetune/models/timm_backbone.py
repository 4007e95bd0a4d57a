"""Any of timm's classifiers as a staged network: its row in the registry, and the network itself."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from finetune.errors import SettingError
from finetune.models.registry import InputSpec, ModelRow
from finetune.models.staged import StagedNetwork
from finetune.models.timm_chains import cut_places, steps_of
from finetune.models.timm_names import check_taken, check_values, parse_name, taken_arguments
from finetune.models.timm_stages import Layout, layout_of

PROBE = 7  # classes of a network that is only looked at; no layer of timm's but the last has so few outputs
META = torch.device("meta")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_RESIZES = {"center": "shorter_side", "border": "shorter_side", "squash": "squash"}


class TimmNetwork(StagedNetwork):
    """A timm network, submodule `body`, in stages. Its tensors in `state_dict` have timm's own names.

    Takes float images N×C×size×size, gives logits N×classes: bit for bit what timm's network gives.
    """

    def __init__(self, body: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.body = body
        self.layout = layout
        self.stages = layout.stages
        self.places = cut_places(body, layout)
        self.register_state_dict_post_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]
        """The final linear layer, wherever timm keeps it."""
        return self.body.get_submodule(self.layout.head)  # type: ignore[return-value]

    def set_head(self, linear: nn.Linear) -> None:
        """Puts another final layer in place of the one there is, as timm's `reset_classifier` would."""
        parent, _, name = self.layout.head.rpartition(".")
        setattr(self.body.get_submodule(parent), name, linear)
        self.body.num_classes = linear.out_features  # type: ignore[assignment]

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would register a second head beside timm's, past the property.
        assert name != "head", "set_head replaces the head of a timm network"
        super().__setattr__(name, value)

    @property
    def cuts(self) -> tuple[int, ...]:
        """0, the head, the end, and every boundary where the family runs as a plain chain."""
        last = len(self.stages) - 1
        return tuple(sorted({0, *self.places, last, last + 1}))

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """As in `StagedNetwork`; both ends are among `cuts`."""
        last = len(self.stages) - 1
        start, stop, _ = slice(start, stop).indices(len(self.stages))
        assert start in self.cuts and stop in self.cuts, f"{start}:{stop} cannot be cut; cuts are {self.cuts}"
        if start >= stop:
            return x
        if start == last:
            return self.head(x)  # type: ignore[no-any-return]
        if start == 0 and stop >= last:
            return self.body(x) if stop > last else self._captured(self.body, x)
        steps = steps_of(self.body)
        until = len(steps) if stop >= last else self.places[stop]
        for step in steps[self.places[start] if start else 0 : until]:
            x = step.run(x)
        if stop < last:
            return x
        finish: Callable[[Tensor], Tensor] = self.body.forward_head  # type: ignore[assignment]
        return finish(x) if stop > last else self._captured(finish, x)

    def run_stage(self, stage: str, x: Tensor) -> Tensor:
        """One stage's output; only for a stage with a cut at either side."""
        number = self.stages.index(stage)
        return self.run(x, number, number + 1)

    def stage_modules(self, stage: str) -> Sequence[nn.Module]:
        """The largest submodules that lie whole in the stage, as they are now."""
        return [self.body.get_submodule(path) for path, owner in self.layout.modules.items() if owner == stage]

    def stage_parameters(self, stage: str) -> Iterator[nn.Parameter]:
        """Every parameter of one stage, those that no submodule of the stage owns (a class token) among them."""
        for path, parameter in self.body.named_parameters():
            if self.layout.stage_of(path) == stage:
                yield parameter

    def _captured(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What the head is given when `call(x)` runs."""
        seen: list[Tensor] = []
        here = threading.get_ident()  # another thread's pass through the same network is not ours

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if threading.get_ident() == here:
                seen.append(inputs[0])

        handle = self.head.register_forward_pre_hook(note)
        try:
            call(x)
        finally:
            handle.remove()
        (features,) = seen
        return features


def _without_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    ours = f"{prefix}body."
    for name in [name for name in state if name.startswith(ours)]:
        state[prefix + name.removeprefix(ours)] = state.pop(name)


def _with_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, *others: object) -> None:
    for name in [name for name in state if name.startswith(prefix)]:  # always: tresnet's own names start with body.
        state[f"{prefix}body.{name.removeprefix(prefix)}"] = state.pop(name)


def timm_row(name: str, arguments: Mapping[str, Any]) -> ModelRow:
    """The row of timm/ARCH[.TAG] with these arguments. SettingError when there is none, or none that can work here."""
    check_values(name, arguments)
    return _row(name, tuple(sorted(arguments.items())), tuple(type(arguments[key]) for key in sorted(arguments)))


@lru_cache(maxsize=64)
def _row(name: str, given: tuple[tuple[str, Any], ...], types: tuple[type, ...]) -> ModelRow:
    # `types` tells 1 from True and 1.0, which are equal as keys.
    architecture, _ = parse_name(name)
    arguments = dict(given)
    takes = _arguments_of(name)
    body = bare_body(name, PROBE, arguments)
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
        build=partial(_build, name, layout),
        arguments=takes,
        check_size=partial(_check_size, name, given, types),
    )


@lru_cache(maxsize=64)
def _arguments_of(name: str) -> tuple[str, ...]:
    return taken_arguments(bare_body(name, PROBE, {}))


def _build(name: str, layout: Layout, classes: int, arguments: Mapping[str, Any]) -> TimmNetwork:
    check_values(name, arguments)
    return TimmNetwork(_create(name, classes, arguments), layout)


def bare_body(name: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """timm's network without numbers, on the meta device: for names, shapes and sizes. The random state is kept."""
    parse_name(name)
    if arguments:
        check_taken(name, bare_body(name, classes, {}), arguments)
    with torch.random.fork_rng(devices=[]), META:
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
        with torch.no_grad(), warnings.catch_warnings(), META:
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
        cure = f"; --set model.img_size={size} builds it for that size" if _resizes(name, given, size) else ""
        raise SettingError(f"{takes}{cure}: {error}" if not cure else f"{takes}{cure}") from None


def _resizes(name: str, given: tuple[tuple[str, Any], ...], size: int) -> bool:
    if "img_size" not in _arguments_of(name):
        return False
    try:
        timm_row(name, {**dict(given), "img_size": size})
    except SettingError:
        return False
    return True
