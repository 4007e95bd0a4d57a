"""What trains and what stays frozen in a phase. The only place that touches `requires_grad`."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from finetune.models.staged import StagedNetwork

ADAPTER = "lora_"  # peft puts it into the name of every parameter of a low-rank adapter


def trained_parameters(network: StagedNetwork, stages: Collection[str], *, adapters: bool = False) -> set[int]:
    """The ids of the parameters of `stages`; with `adapters` only of low-rank adapters and of the head."""
    added = {id(p) for name, p in network.named_parameters() if ADAPTER in name}
    return {
        id(p)
        for stage in stages
        for p in network.stage_parameters(stage)
        if not adapters or stage == network.stages[-1] or id(p) in added
    }


def set_trainable(network: StagedNetwork, stages: Collection[str], *, adapters: bool = False) -> int:
    """Lets exactly the parameters of `stages` train, freezes all others, and returns how many numbers train.

    With `adapters`, of the stages before the head only the low-rank adapters train.
    """
    assert stages and set(stages) <= set(network.stages), f"{stages} are not stages of {network.stages}"
    chosen = trained_parameters(network, stages, adapters=adapters)
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return sum(p.numel() for p in trainable(network))


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in the network's order."""
    return [p for p in network.parameters() if p.requires_grad]


def training_modules(
    network: StagedNetwork, stages: Collection[str], norms: str, *, adapters: bool = False
) -> set[nn.Module]:
    """The modules that run in training mode, so that they may drop out and change their own buffers.

    These are all modules of the stages that train. With `norms="update"` the normalisation layers of frozen stages are
    among them; with "hold_all" no normalisation layer is. With `adapters` only the adapters and the head are.
    """
    owned = {s: {m for root in network.stage_modules(s) for m in root.modules()} for s in network.stages}
    head = network.stages[-1]
    if adapters:
        added = {module for name, module in network.named_modules() if ADAPTER in name}
        return added | owned[head] if head in stages else added
    found: set[nn.Module] = set()
    for stage, inside in owned.items():
        found = found | inside if stage in stages else found - inside
    # A module above several stages, such as the network itself, trains only where all parameters beneath it do: it may
    # drop out by its own mode, as timm's ResNet does before its head.
    trained = trained_parameters(network, stages)
    above = set(network.modules()).difference(*owned.values())
    found |= {module for module in above if all(id(p) in trained for p in module.parameters())}
    norm_layers = {module for module in network.modules() if isinstance(module, _NormBase)}
    return found | norm_layers if norms == "update" else found - norm_layers if norms == "hold_all" else found


def training_mode(network: StagedNetwork, stages: Collection[str], norms: str, *, adapters: bool = False) -> None:
    """Training mode for `training_modules`, evaluation mode for all others: no dropout, no moving buffers."""
    training = training_modules(network, stages, norms, adapters=adapters)
    for module in network.modules():
        module.training = module in training


def frozen_prefix(network: StagedNetwork, stages: Collection[str]) -> int:
    """The number of frozen stages in a row from the input on, up to the last place where the network can be cut."""
    count = next((i for i, stage in enumerate(network.stages) if stage in stages), len(network.stages))
    return max(cut for cut in network.cuts if cut <= count)
