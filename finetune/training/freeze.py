"""What trains and what is held still. The only place that touches `requires_grad`."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from finetune.models.staged import StagedNetwork


def set_trainable(network: StagedNetwork, stages: Collection[str]) -> int:
    """Lets exactly the parameters of `stages` train, freezes all others, and returns how many numbers train."""
    assert stages and set(stages) <= set(network.stages), f"{stages} are not stages of {network.stages}"
    count = 0
    for stage in network.stages:
        for parameter in network.stage_parameters(stage):
            parameter.requires_grad_(stage in stages)
            count += parameter.numel() if stage in stages else 0
    return count


def training_mode(network: StagedNetwork, stages: Collection[str], norms: str) -> None:
    """Training mode for the stages that train, evaluation mode for the frozen ones: no dropout, no moving buffers.

    With `norms="update"` the normalisation layers of frozen stages go on tracking the statistics of the data.
    """
    network.train()
    for stage in network.stages:
        if stage in stages:
            continue
        for module in network.stage_modules(stage):
            module.eval()
            if norms == "update":
                for layer in module.modules():
                    if isinstance(layer, _NormBase):
                        layer.train()


def frozen_prefix(network: StagedNetwork, stages: Collection[str]) -> int:
    """How many stages, counted from the input, are frozen without a gap."""
    count = 0
    for stage in network.stages:
        if stage in stages:
            break
        count += 1
    return count


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in the network's order."""
    return [p for p in network.parameters() if p.requires_grad]
