"""Counts a network's parameters, and the multiply-adds of one image through it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from finetune.models.registry import find_model


@dataclass(frozen=True)
class NetworkCost:
    """The number of parameters, and of multiply-adds for one image; None where they cannot be counted."""

    parameters: int
    multiply_adds: int | None


def network_cost(model: str, arguments: Mapping[str, Any], classes: int, channels: int, size: int) -> NetworkCost:
    """The cost of a network for one image of channels×size×size, from shapes alone: nothing is computed or loaded.

    Multiply-adds are those of convolutions, linear layers and attention, without activations, norms and pooling: half
    of what torch's FlopCounterMode counts. SettingError for a model that does not exist.
    """
    known = find_model(model, arguments).cost
    if known is not None:  # the counter would import torch._dynamo, which takes seconds
        return NetworkCost(*known(classes))
    return _count(model, json.dumps(arguments, sort_keys=True), classes, (channels, size, size))


@lru_cache(maxsize=64)
def _count(model: str, arguments_json: str, classes: int, shape: tuple[int, int, int]) -> NetworkCost:
    """`arguments_json` tells 1 from True, which are equal as keys of a cache."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from finetune.models.skip_init import build_without_init

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = build_without_init(model, classes, json.loads(arguments_json)).eval()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        counter = FlopCounterMode(display=False)
        try:
            with torch.no_grad(), warnings.catch_warnings(action="ignore"), counter:
                network(torch.empty(1, *shape))
        except Exception:  # a family's own code may need numbers, which there are none of on the meta device
            return NetworkCost(parameters, None)
    return NetworkCost(parameters, counter.get_total_flops() // 2 or None)
