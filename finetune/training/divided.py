"""Tensors of which each process has a part (torch's DTensor): put together, and filled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """All of the tensor, in each process; one that is not divided as it is."""
    complete = getattr(tensor.detach(), "full_tensor", None)
    return tensor.detach() if complete is None else complete()


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Copies values of the same shape into a tensor; where it is divided, each process takes its part."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        tensor.copy_(values)
        return
    from torch.distributed.tensor import distribute_tensor

    values = values.to(tensor.device, tensor.dtype)
    tensor.copy_(distribute_tensor(values, mesh, tensor.placements, src_data_rank=None))  # type: ignore[attr-defined]


def copied(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole copies on the CPU, of what may go on changing; {} where they are not to be kept.

    Every process has to take part, one tensor after the other, so that none has two whole ones at once on its device.
    """
    found = {}
    for name, tensor in tensors.items():
        complete = whole(tensor)
        if keep:
            found[name] = complete.to("cpu", copy=True)
    return found
