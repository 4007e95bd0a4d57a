"""Builds networks without initialising their weights, for weights that are loaded afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finetune.models.registry import build_model
from finetune.models.staged import StagedNetwork

# What torch.nn.init is made of.
_METHODS = ("normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
_FILLING = {getattr(Tensor, name) for name in _METHODS}


class _SkipInit(TorchFunctionMode):
    """Skips torch.nn.init and its methods where they would fill a parameter."""

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
    """`build_model` without initialising parameters: every one of them has to be loaded.

    Buffers have their values. torch's generator need not move.
    """
    with _SkipInit():
        return build_model(name, classes, arguments)
