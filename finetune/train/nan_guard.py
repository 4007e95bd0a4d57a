"""Stops training before a non-finite loss changes a weight."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from finetune.train.device import Runtime


class NanGuard(Protocol):
    """Looks at every loss before the update."""

    def sees(self, loss: Tensor) -> bool:
        """Whether this process knows already that its loss is not finite."""

    def bar(self, loss: Tensor, step: int) -> None:
        """Keeps the update from being made where that is known on the device only; `step` counts from 1."""

    def seen(self) -> int | None:
        """The first step whose loss was not finite on the device, if there is one: waits for it."""


def make_nan_guard(optimizer: Optimizer, runtime: Runtime) -> NanGuard:
    """The guard that costs a step nothing: on a GPU a look at a loss would make every step wait for it."""
    on_device = runtime.device.type == "cuda" and not runtime.is_sharded  # only fused optimizers can be barred
    return DeviceNanGuard(optimizer, runtime.device, runtime.group) if on_device else HostNanGuard()


class HostNanGuard:
    """Looks at once."""

    def sees(self, loss: Tensor) -> bool:
        return not bool(loss.isfinite())

    def bar(self, loss: Tensor, step: int) -> None:
        pass

    def seen(self) -> int | None:
        return None


class DeviceNanGuard:
    """Leaves the look to the device: from the first bad loss on, torch's fused optimizers leave the weights alone.

    They skip an update when the tensor `found_inf` that they are given is 1, as torch.amp's GradScaler makes them.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device, group: ProcessGroup = SINGLE_PROCESS) -> None:
        self.group = group
        self.found = torch.zeros((), device=device)
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        optimizer.found_inf = self.found  # type: ignore[attr-defined]

    def sees(self, loss: Tensor) -> bool:
        return False

    def bar(self, loss: Tensor, step: int) -> None:
        bad = self.group.sum((~loss.isfinite()).float()) > 0
        self.first.copy_(torch.where(bad & (self.found == 0), step, self.first))
        self.found.copy_(torch.maximum(self.found, bad.float()))

    def seen(self) -> int | None:
        first = int(self.first)
        return None if first < 0 else first
