"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) through peft: in for a phase, then merged."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn

from finetune.errors import SettingError
from finetune.models.staged import StagedNetwork


@contextmanager
def low_rank_adapters(
    network: StagedNetwork, stages: Collection[str], rank: int, alpha: float, dropout: float
) -> Iterator[None]:
    """Adapters beside every linear layer and ungrouped convolution of `stages`, the head's excepted.

    When the block ends, however it ends, they are added to the weights and the network is what it was before, with
    other numbers. SettingError where peft is not installed or the stages have no layer that can have an adapter.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError:
        raise SettingError("lora: needs the package peft: `pip install peft`") from None
    places = _adaptable(network, stages)
    if not places:
        raise SettingError(
            f"lora: {', '.join(stages)} have no linear layer or plain convolution to put adapters beside; "
            "train more stages, or drop lora"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=places,
    )
    inject_adapter_in_model(config, network)
    try:
        yield
    finally:
        for name, module in list(network.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge()
                parent, _, last = name.rpartition(".")
                setattr(network.get_submodule(parent), last, module.get_base_layer())


def _adaptable(network: StagedNetwork, stages: Collection[str]) -> list[str]:
    inside = {
        module
        for stage in stages
        if stage != network.stages[-1]
        for part in network.stage_modules(stage)
        for module in part.modules()
    }
    return [
        name
        for name, module in network.named_modules()
        if module in inside
        and (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
    ]
