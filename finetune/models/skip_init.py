"""Builds networks without initialising their weights, for weights that are loaded afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finetune.models.registry import build_model
from finetune.models.staged import StagedNetwork

_METHODS = ("normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")

_FILLING = {getattr(Tensor, name) for name in _METHODS}


class _SkipInit(TorchFunctionMode):
    """Leaves parameters as they are where torch.nn.init, or the methods it is made of, would fill them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLING or getattr(func, "__module__", None) == nn.init.__name__:
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, nn.Parameter):
                return filled
        return func(*args, **kwargs)


def build_without_init(name: str, classes: int, arguments: Mapping[str, Any]) -> StagedNetwork:
    """As `build_model`, but its parameters are whatever lay in memory: every one of them has to be loaded.

    Buffers are as they should be. torch's generator need not move.
    """
    with _SkipInit():
        return build_model(name, classes, arguments)
