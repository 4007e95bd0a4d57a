"""Stops training before a non-finite loss changes a weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from finetune.train.device import Runtime


class NanGuard:
    """Checks every loss before the update, on the host."""

    def is_bad(self, loss: Tensor) -> bool:
        """Whether this process already knows that its loss is not finite."""
        return not bool(loss.isfinite())

    def block_update(self, loss: Tensor, step: int) -> None:
        """Prevents the update where only the device knows that the loss is not finite; `step` counts from 1."""

    def first_bad_step(self) -> int | None:
        """The first step whose loss was not finite on the device, if there is one; waits for the device."""
        return None


class DeviceNanGuard(NanGuard):
    """Checks on the device, without waiting: from the first bad loss on, torch's fused optimizers change no weight.

    They skip an update when the tensor `found_inf` that they are given is 1, as torch.amp's GradScaler makes them.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device, group: ProcessGroup = SINGLE_PROCESS) -> None:
        self.group = group
        self.found = torch.zeros((), device=device)
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        optimizer.found_inf = self.found  # type: ignore[attr-defined]

    def is_bad(self, loss: Tensor) -> bool:
        return False

    def block_update(self, loss: Tensor, step: int) -> None:
        bad = self.group.sum((~loss.isfinite()).float()) > 0
        self.first.copy_(torch.where(bad & (self.found == 0), step, self.first))
        self.found.copy_(torch.maximum(self.found, bad.float()))

    def first_bad_step(self) -> int | None:
        first = int(self.first)
        return None if first < 0 else first


def make_nan_guard(optimizer: Optimizer, runtime: Runtime) -> NanGuard:
    """The guard that costs a step nothing: on a GPU, reading the loss on the host would make every step wait."""
    on_device = runtime.device.type == "cuda" and not runtime.is_sharded  # only fused optimizers skip updates
    return DeviceNanGuard(optimizer, runtime.device, runtime.group) if on_device else NanGuard()
