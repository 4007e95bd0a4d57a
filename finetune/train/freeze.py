"""What trains and what is held still. The only place that touches `requires_grad`."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from finetune.models.staged import StagedNetwork

ADAPTER = "lora_"  # in the name of every parameter of a low-rank adapter, as peft puts it in


def set_trainable(network: StagedNetwork, stages: Collection[str], *, adapters: bool = False) -> int:
    """Lets exactly the parameters of `stages` train, freezes all others, and returns how many numbers train.

    With `adapters`, of the stages before the head only the low-rank adapters train.
    """
    assert stages and set(stages) <= set(network.stages), f"{stages} are not stages of {network.stages}"
    added = {id(p) for name, p in network.named_parameters() if ADAPTER in name}
    count = 0
    for stage in network.stages:
        whole = stage in stages and (not adapters or stage == network.stages[-1])
        for parameter in network.stage_parameters(stage):
            trains = whole or (stage in stages and id(parameter) in added)
            parameter.requires_grad_(trains)
            count += parameter.numel() if trains else 0
    return count


def training_mode(network: StagedNetwork, stages: Collection[str], norms: str, *, adapters: bool = False) -> None:
    """Training mode for the stages that train, evaluation mode for the frozen ones: no dropout, no moving buffers.

    With `norms="update"` the normalisation layers of frozen stages go on tracking the statistics of the data; with
    "hold_all" not even those of the stages that train do. With
    `adapters` everything but the adapters and the head counts as frozen.
    """
    if adapters:
        _adapters_mode(network, stages)
        return
    for stage in network.stages:
        for module in network.stage_modules(stage):
            module.train(stage in stages)
            if norms == "update" and stage not in stages:
                for layer in module.modules():
                    if isinstance(layer, _NormBase):
                        layer.train()
    _follow_what_is_beneath(network, stages)
    if norms == "hold_all":
        for layer in network.modules():
            if isinstance(layer, _NormBase):
                layer.eval()


def _follow_what_is_beneath(network: StagedNetwork, stages: Collection[str]) -> None:
    """Modules spread over several stages train only when all of what is beneath them does.

    Such a module may drop out by its own mode (timm's ResNet does, before its head).
    """
    owned = {id(m) for stage in network.stages for root in network.stage_modules(stage) for m in root.modules()}
    frozen = {id(p) for stage in network.stages if stage not in stages for p in network.stage_parameters(stage)}
    for module in network.modules():
        if id(module) not in owned:
            module.training = not any(id(p) in frozen for p in module.parameters())


def _adapters_mode(network: StagedNetwork, stages: Collection[str]) -> None:
    network.eval()
    for name, module in network.named_modules():
        if ADAPTER in name:
            module.train()
    for module in network.stage_modules(network.stages[-1]):
        module.train(network.stages[-1] in stages)


def frozen_prefix(network: StagedNetwork, stages: Collection[str]) -> int:
    """How many stages, counted from the input, are frozen without a gap, up to the last place that can be cut."""
    count = 0
    for stage in network.stages:
        if stage in stages:
            break
        count += 1
    return max(cut for cut in network.cuts if cut <= count)


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in the network's order."""
    return [p for p in network.parameters() if p.requires_grad]
