"""What the output of a network's first stages depends on, as a short text: equal texts, equal weights."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from torch import Tensor

from finetune.digest import tensor_digest
from finetune.models.staged import StagedNetwork


def identities(network: StagedNetwork, cuts: Collection[int]) -> dict[int, str]:
    """For each cut the sha256 of all parameters and buffers that `stages[:cut]` may use.

    Those are all but what belongs to the stages from the cut on. It is worked out anew each time: adapters, for
    example, are added to weights behind autograd's back, so nothing short of the numbers can be trusted.
    """
    last = max(cuts, default=0)
    stage_of = _stages_of(network)
    found = [
        (stage, f"{name} {tensor_digest(tensor)}\n")
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]
        if (stage := stage_of.get(id(tensor), 0)) < last
    ]
    return {
        cut: hashlib.sha256("".join(line for stage, line in found if stage < cut).encode()).hexdigest() for cut in cuts
    }


def _stages_of(network: StagedNetwork) -> dict[int, int]:
    """The stage's number for every parameter and buffer, by id, that belongs to one."""
    found: dict[int, int] = {}
    for number, stage in enumerate(network.stages):
        own: list[Tensor] = [*network.stage_parameters(stage)]
        own += [buffer for module in network.stage_modules(stage) for buffer in module.buffers()]
        found |= {id(tensor): number for tensor in own}
    return found
