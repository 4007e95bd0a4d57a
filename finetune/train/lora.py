"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) through peft: added for a phase, then merged."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from finetune.errors import SettingError
from finetune.models.staged import StagedNetwork
from finetune.text import install_hint

# By name, as timm has a Linear and a Conv2dSame of its own. Layers that transform their weight before they use it, such
# as weight-standardised convolutions, would compute something else once an adapter is merged into that weight.
PLAIN = ("Linear", "Conv2d", "Conv2dSame")
Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def low_rank_adapters(
    network: StagedNetwork, stages: Collection[str], rank: int, alpha: float, dropout: float
) -> Iterator[None]:
    """Adds adapters to every linear layer and plain convolution of `stages` but the head, while the block runs.

    When the block ends, however it ends, they are merged into the weights, and the network has its modules of before.
    SettingError where peft is not installed or the stages have no layer that can have an adapter.
    """
    places = check_adaptable(network, stages)
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=places)  # type: ignore[arg-type]
    inject_adapter_in_model(config, network)
    del network.peft_config  # with it, peft would warn the next time
    for module in network.modules():
        if isinstance(module, LoraLayer):
            _copy_attributes(module.get_base_layer(), module)
    try:
        yield
    finally:
        _merge(network)


def merged(network: Network) -> Network:
    """A copy of the network with its adapters merged into the weights."""
    copied = copy.deepcopy(network)
    _merge(copied)
    return copied


def _merge(network: nn.Module) -> None:
    from peft.tuners.lora import LoraLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, module.get_base_layer())


def _copy_attributes(layer: nn.Module, adapted: nn.Module) -> None:
    """Copies a layer's plain attributes to the one with an adapter around it: a network may ask for its kernel_size."""
    for name, value in vars(layer).items():
        if not name.startswith("_") and not hasattr(adapted, name):
            setattr(adapted, name, value)


def check_adaptable(network: StagedNetwork, stages: Collection[str]) -> list[str]:
    """The names of the layers of `stages` that get an adapter. SettingError if there are none, or without peft."""
    try:
        import peft.tuners.lora  # noqa: F401
    except ImportError:
        raise SettingError(f"lora: needs the package peft; to get it: {install_hint('lora')}") from None
    places = adapter_places(network, stages)
    if not places:
        raise SettingError(
            f"lora: no linear layer or plain convolution to put an adapter beside in {', '.join(stages)}; "
            "train more stages, or drop lora"
        )
    return places


def adapter_places(network: StagedNetwork, stages: Collection[str]) -> list[str]:
    """The names of the layers of `stages` that can have an adapter, maybe none; needs no peft."""
    roots = [root for stage in stages if stage != network.stages[-1] for root in network.stage_modules(stage)]
    inside = {module for root in roots for module in root.modules()}
    return [name for name, module in network.named_modules() if module in inside and _is_plain(module)]


def _is_plain(module: nn.Module) -> bool:
    if type(module).__name__ not in PLAIN:
        return False
    if isinstance(module, nn.Conv2d):  # peft's adapters have neither groups nor dilation nor another padding
        return module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)
