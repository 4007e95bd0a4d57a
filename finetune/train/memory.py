"""Estimates the memory that a step of training needs, from a network that may have shapes alone."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from finetune.models.staged import StagedNetwork
from finetune.train.freeze import set_trainable, training_mode

TRIAL_IMAGES = 2  # that pass through the network; batch normalisation cannot train on one


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training needs at once, beside images, libraries and what a layer takes while it computes.

    weights: the network, and the copies of it that are kept for comparisons, averages and interrupted runs. gradients,
    optimizer: of what trains. activations: what the backward pass of one batch needs, in float32.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All four together."""
        return self.weights + self.gradients + self.optimizer + self.activations


def training_memory(
    network: StagedNetwork,
    stages: Collection[str],
    image: tuple[int, int, int],
    batch_size: int,
    *,
    states: int,
    copies: int,
    adapters: bool = False,
) -> MemoryEstimate:
    """Estimates what training `stages` of `network` on batches of images of shape `image` (C×H×W) needs.

    The network may be on the meta device. states: the optimizer's numbers for each that trains (momentum: 1, AdamW: 2).
    copies: of the network, beside the one that trains. adapters: of the stages before the head only low-rank adapters
    train, whose own few numbers are left out.
    """
    set_trainable(network, stages)
    training_mode(network, stages, "hold")
    whole = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    chosen = network.stages[-1:] if adapters else stages
    trained = sum(p.numel() * p.element_size() for stage in chosen for p in network.stage_parameters(stage))
    return MemoryEstimate(
        weights=(1 + copies) * whole,
        gradients=trained,
        optimizer=states * trained,
        activations=_saved_bytes(network, image) * batch_size // TRIAL_IMAGES,
    )


def _saved_bytes(network: StagedNetwork, image: tuple[int, int, int]) -> int:
    """Bytes of all tensors that a forward pass of TRIAL_IMAGES keeps for the backward pass, without the parameters.

    0 for a network whose code does not run without numbers.
    """
    known = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    saved: dict[int, Tensor] = {}  # held, so that no other tensor gets the same address

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in known:
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    device = next(network.parameters()).device
    with (
        contextlib.suppress(Exception),  # a family's own code may raise anything
        warnings.catch_warnings(action="ignore"),
        torch.random.fork_rng(devices=[]),
        device,
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        _FusedAttention(),
    ):
        network(torch.zeros(TRIAL_IMAGES, *image))
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


class _FusedAttention(TorchFunctionMode):
    """Lets attention keep what fused kernels keep, as CPU and GPU have; the meta device's keeps every score."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """Keeps query, key, value and result, as Dao and others (2022) do, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, result)
        return result
