"""Counts a network's parameters, and the multiply-adds of one image through it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models.registry import build_model
from finetune.models.skip_init import build_without_init
from finetune.models.spec import TIMM


@dataclass(frozen=True)
class NetworkCost:
    """The number of parameters, and of multiply-adds for one image; None where they cannot be counted."""

    parameters: int
    multiply_adds: int | None


def network_cost(model: str, arguments: Mapping[str, Any], classes: int, channels: int, size: int) -> NetworkCost:
    """The cost of a network for one image of channels×size×size.

    Multiply-adds are those of convolutions, linear layers and attention, without activations, norms and pooling: half
    of what torch's FlopCounterMode counts. SettingError for a model that does not exist.
    """
    return _count(model, json.dumps(arguments, sort_keys=True), classes, (channels, size, size))


@lru_cache(maxsize=64)
def _count(model: str, arguments_json: str, classes: int, shape: tuple[int, int, int]) -> NetworkCost:
    """`arguments_json` tells 1 from True, which are equal as keys of a cache."""
    # The counter imports torch._dynamo, which takes seconds; with timm's networks it is there already.
    is_timm = model.startswith(TIMM)
    count, build = (_counted_by_torch, build_without_init) if is_timm else (_counted_by_layers, build_model)
    device = torch.device("meta" if is_timm else "cpu")
    with torch.random.fork_rng(devices=[]), device:
        network = build(model, classes, json.loads(arguments_json)).eval()
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            multiply_adds = count(network, torch.zeros(1, *shape))
    return NetworkCost(sum(parameter.numel() for parameter in network.parameters()), multiply_adds)


def _counted_by_torch(network: nn.Module, image: Tensor) -> int | None:
    """Half the floating-point operations that torch counts (https://pytorch.org/docs/stable/utils.html)."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    try:
        with counter:
            network(image)
    except Exception:  # a family's own code may need numbers, which there are none of on the meta device
        return None
    return counter.get_total_flops() // 2 or None


def _counted_by_layers(network: nn.Module, image: Tensor) -> int:
    """The multiply-adds of a network without attention: each output of a layer is a sum over one row of its weight."""
    found = 0

    def add(layer: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal found
        assert isinstance(layer.weight, Tensor)
        found += output.numel() * layer.weight[0].numel()

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(add) for layer in layers]
    network(image)
    for handle in handles:
        handle.remove()
    return found
