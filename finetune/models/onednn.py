"""Convolution and pooling in oneDNN's own memory layout, for training on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_enabled = ContextVar("onednn_layout", default=False)


class Conv2d(nn.Conv2d):
    """torch's convolution, also for inputs in oneDNN's layout: its output then has that layout and their type."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not input.is_mkldnn:
            found: Tensor = super()._conv_forward(input, weight, bias)
            return found
        assert not isinstance(self.padding, str) and self.padding_mode == "zeros"
        weight, bias = weight.to(input.dtype), None if bias is None else bias.to(input.dtype)
        return torch.mkldnn_convolution(  # its stub lacks what the function has
            input, weight, bias, self.padding, self.stride, self.dilation, self.groups
        )


@contextmanager
def use_onednn_layout() -> Iterator[None]:
    """Lets networks that can use oneDNN's layout between their layers do so in the block, on a CPU."""
    token = _enabled.set(True)
    try:
        yield
    finally:
        _enabled.reset(token)


def conv_pool_relu(convolution: nn.Module, x: Tensor) -> Tensor:
    """Convolution, 2×2 max-pooling and ReLU of N×C×H×W; in oneDNN's layout if `x` is or may be brought to it."""
    if not x.is_mkldnn and _enabled.get() and _supported(convolution, x):
        x = x.to(_compute_dtype(x)).to_mkldnn()
    if x.is_mkldnn:
        return F.relu(torch.mkldnn_max_pool2d(convolution(x), [2, 2], [2, 2]))
    # max(relu(x)) and relu(max(x)) are the same numbers; pooling first leaves ReLU a quarter of the work.
    return F.relu(F.max_pool2d(convolution(x), 2))


def to_dense(x: Tensor) -> Tensor:
    """The same numbers in torch's ordinary layout."""
    return x.to_dense() if x.is_mkldnn else x


def _supported(convolution: nn.Module, x: Tensor) -> bool:
    """Whether oneDNN can run it: on a CPU, in a type that it has, by a `Conv2d` that nothing (LoRA) wraps."""
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    plain = type(convolution) is Conv2d and x.device.type == "cpu"
    return there and plain and _compute_dtype(x) in (torch.float32, torch.bfloat16)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The type that autocast computes in, else that of the numbers themselves."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
