"""Ends the making of a network without numbers where the real one would take what no honest network takes.

Arguments come from recipes and other people's files. Most of what is too large shows in the parameters, which a file
has to have; but timm also makes tables and copies that are in no file, and thousands of layers take their time even
without numbers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.errors import SettingError

# What timm's own largest networks have is behind each (timm 1.0.31).
MOST_PARAMETERS = 10_000_000_000  # 7 billion numbers
MOST_LAYERS = 5_000  # 2,000 tensors that train
MOST_STEPS = 400_000  # 102,000 operations to make it
MOST_BYTES = 2 << 30  # of one tensor while it is made: 436 MB
MOST_TABLES = 1 << 30  # bytes of tensors that no file has: 202 MB
MOST_PASS_BYTES = 16 << 30  # of one tensor while two images pass: 0.5 GB at the networks' own sizes
MOST_SECONDS = 60


class TooMuch(RuntimeError):
    """The network takes more than it may."""


class _Watch(TorchDispatchMode):
    def __init__(self, most_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most_bytes, self.steps, self.end = most_bytes, 0, time.monotonic() + MOST_SECONDS

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise TooMuch(f"more than {MOST_STEPS:,} operations")
        if time.monotonic() > self.end:
            raise TooMuch(f"more than {MOST_SECONDS} seconds")
        if isinstance(result, torch.Tensor) and result.numel() * result.element_size() > self.most_bytes:
            size = result.numel() * result.element_size()
            raise TooMuch(f"a tensor of {size:,} bytes; at most {self.most_bytes:,} are made at once")
        return result


@contextmanager
def watched(most_bytes: int = MOST_BYTES) -> Iterator[None]:
    """Raises TooMuch inside the block, which makes or runs a network without numbers, as soon as that is too much."""
    here, count = threading.get_ident(), 0

    def note(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count
        count += threading.get_ident() == here  # other threads make networks too
        if count > MOST_LAYERS:
            raise TooMuch(f"more than {MOST_LAYERS:,} tensors to train")

    handle = register_module_parameter_registration_hook(note)
    try:
        with _Watch(most_bytes):
            yield
    finally:
        handle.remove()


def check_made(name: str, body: nn.Module) -> int:
    """The bytes of a network. SettingError where its numbers, or tables that are in no file, are too many."""
    count = sum(p.numel() for p in body.parameters())
    if count > MOST_PARAMETERS:
        raise SettingError(f"model {name!r}: {count:,} parameters; at most {MOST_PARAMETERS:,} can be built")
    kept = body.state_dict().keys()
    sizes = {key: t.numel() * t.element_size() for key, t in (*body.named_parameters(), *body.named_buffers())}
    tables = sum(size for key, size in sizes.items() if key not in kept)
    if tables > MOST_TABLES:
        raise SettingError(f"model {name!r}: {tables:,} bytes of tables; at most {MOST_TABLES:,} can be built")
    return sum(sizes.values())
