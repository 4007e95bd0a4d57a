"""Families of timm that run as a plain chain, step by step, so that they can be cut between two stages.

A family that is not here is cut before its first stage and before its head only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from finetune.models.timm_stages import Layout


@dataclass(frozen=True)
class Step:
    """A part of a network's `forward_features`: `run` takes what the step before gave. `paths` is what it uses."""

    paths: tuple[str, ...]
    run: Callable[[Tensor], Tensor]


def _modules(body: nn.Module, *paths: str) -> list[Step]:
    return [Step((path,), body.get_submodule(path)) for path in paths]


def _children(body: nn.Module, path: str) -> list[Step]:
    return _modules(body, *(f"{path}.{name}" for name, _ in body.get_submodule(path).named_children()))


def _resnet(body: nn.Module) -> list[Step]:
    return _modules(body, "conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")


def _efficientnet(body: nn.Module) -> list[Step]:
    return [*_modules(body, "conv_stem", "bn1"), *_children(body, "blocks"), *_modules(body, "conv_head", "bn2")]


def _mobilenetv3(body: nn.Module) -> list[Step]:
    return [*_modules(body, "conv_stem", "bn1"), *_children(body, "blocks")]


def _convnext(body: nn.Module) -> list[Step]:
    return [*_modules(body, "stem"), *_children(body, "stages"), *_modules(body, "norm_pre")]


def _regnet(body: nn.Module) -> list[Step]:
    return _modules(body, "stem", "s1", "s2", "s3", "s4", "final_conv")


def _vision_transformer(body: Any) -> list[Step]:
    def embed(x: Tensor) -> Tensor:
        embedded: Tensor = body.norm_pre(body.patch_drop(body._pos_embed(body.patch_embed(x))))
        return embedded

    bare = tuple(name for name, _ in body.named_parameters(recurse=False))
    first = Step(("patch_embed", *bare, "patch_drop", "norm_pre"), embed)
    return [first, *_children(body, "blocks"), *_modules(body, "norm")]


# The exact class: a class derived from one of these may run otherwise.
CHAINS: dict[type[nn.Module], Callable[[nn.Module], list[Step]]] = {
    ConvNeXt: _convnext,
    EfficientNet: _efficientnet,
    MobileNetV3: _mobilenetv3,
    RegNet: _regnet,
    ResNet: _resnet,
    VisionTransformer: _vision_transformer,
}


def steps_of(body: nn.Module) -> list[Step]:
    """The steps of `forward_features`, in order; none for a family that is not in the table."""
    make = CHAINS.get(type(body))
    return make(body) if make else []


def cut_places(body: nn.Module, layout: Layout) -> dict[int, int]:
    """{stage index: number of the step it starts at} for every boundary between stages that falls between two steps."""
    steps = steps_of(body)
    if not steps:
        return {}
    spans = [_span(body, step.paths, layout) for step in steps]
    used = [path for step in steps for path in step.paths]
    rest = [name for name, _ in body.named_parameters() if not any(f"{name}.".startswith(f"{p}.") for p in used)]
    spans.append(_span(body, rest, layout))  # forward_head
    known = [(number, span) for number, span in enumerate(spans) if span]
    places = {}
    for stage in range(1, len(layout.stages) - 1):  # the cut before the head is what the head is given, not a step
        before = [number for number, span in known if span[0] < stage]
        after = [number for number, span in known if span[1] >= stage]
        if before and after and max(before) < min(after):
            places[stage] = min(after)
    return places


def _span(body: nn.Module, paths: Sequence[str], layout: Layout) -> tuple[int, int] | None:
    """The first and last stage among the parameters under `paths`; None when there are none."""
    names = [name for name, _ in body.named_parameters() if any(f"{name}.".startswith(f"{path}.") for path in paths)]
    stages = [layout.stages.index(stage) for name in names if (stage := layout.stage_of(name))]
    return (min(stages), max(stages)) if stages else None
