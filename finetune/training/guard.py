"""A loss that is not finite stops the run before it changes a weight."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer


class Guard(Protocol):
    """Looks at every loss between the backward pass and the update."""

    def lost(self, loss: Tensor, step: int) -> int | None:
        """The first step (from 1) whose loss is not finite, if that is known by now; its update must not be made."""

    def seen(self) -> int | None:
        """The same, for certain: waits for the device."""


def build_guard(optimizer: Optimizer, device: torch.device) -> Guard:
    """The guard that costs a step nothing: on a GPU a look at a loss would make every step wait for it."""
    return DeviceGuard(optimizer, device) if device.type == "cuda" else HostGuard()


class HostGuard:
    """Looks at once."""

    def lost(self, loss: Tensor, step: int) -> int | None:
        return None if bool(loss.isfinite()) else step

    def seen(self) -> int | None:
        return None


class DeviceGuard:
    """Leaves the look to the device: from the first bad loss on, torch's fused optimizers leave the weights alone.

    They skip an update when the tensor `found_inf` that they are given is 1, as torch.amp's GradScaler makes them.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.found = torch.zeros((), device=device)
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        optimizer.found_inf = self.found  # type: ignore[attr-defined]

    def lost(self, loss: Tensor, step: int) -> int | None:
        bad = ~loss.isfinite()
        self.first.copy_(torch.where(bad & (self.found == 0), step, self.first))
        self.found.copy_(torch.maximum(self.found, bad.float()))
        return None

    def seen(self) -> int | None:
        first = int(self.first)
        return None if first < 0 else first
