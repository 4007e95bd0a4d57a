"""Refuses a training that does not fit the memory of its device, before anything large is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from finetune.errors import SettingError
from finetune.models.registry import build_model
from finetune.models.spec import TIMM, InputSpec
from finetune.models.staged import StagedNetwork
from finetune.recipe.schema import AUTO, AdamW, AdaptRecipe, Phase, PretrainRecipe
from finetune.sources.third_party import meta_network
from finetune.system import available_memory, local_processes
from finetune.text import amount
from finetune.train.device import Runtime
from finetune.train.memory import MemoryEstimate, training_memory

# Beside the network that trains: what an interrupted run would write, and a snapshot on its way to the disk.
COPIES = 2


def shape_network(model: str, arguments: Mapping[str, Any], classes: int) -> StagedNetwork:
    """The network for `training_memory`: without numbers, but for those of finetune's own small ones.

    torch takes two seconds to import what its meta device needs, which timm's networks need anyway.
    """
    return meta_network(model, classes, arguments) if model.startswith(TIMM) else build_model(model, classes, arguments)


def phase_memory(
    network: StagedNetwork, phase: Phase, spec: InputSpec, images: int, runtime: Runtime, *, source: bool
) -> MemoryEstimate:
    """Estimates what each process needs for a phase with `images` training images.

    source: the source's network is kept beside the one that trains.
    """
    optimizer = phase.optimizer
    copies = COPIES + source + (phase.keep == "best")
    size = min(phase.batch_size, images)
    shape = (spec.channels, spec.size, spec.size)
    if optimizer is None:  # solved on features, which no batch keeps
        found = training_memory(network, network.stages[-1:], shape, size, states=0, copies=copies)
        return replace(found, activations=0)
    states = 2 if isinstance(optimizer, AdamW) else int(optimizer.momentum > 0)
    found = training_memory(
        network,
        phase.trained_stages(network.stages),
        shape,
        -(-size // runtime.group.size),
        states=states + (phase.ema is not None),
        copies=copies,
        adapters=phase.lora is not None,
    )
    if runtime.precision == "bfloat16":
        found = replace(found, activations=found.activations // 2)
    if runtime.is_sharded:
        parts = {key: value // runtime.group.size for key, value in vars(found).items()}
        found = MemoryEstimate(**parts | {"activations": found.activations})
    return found


def check_memory(
    recipe: PretrainRecipe | AdaptRecipe,
    model: str,
    arguments: Mapping[str, Any],
    spec: InputSpec,
    classes: int,
    images: int,
    runtime: Runtime,
) -> None:
    """SettingError, with the figures, for the first phase that needs more memory than its device has.

    Phases that say `train: auto` are left out, as long as it is not known what that comes to.
    """
    with torch.random.fork_rng(devices=[]):
        network = shape_network(model, arguments, classes)
    room, device = _room(runtime)
    for phase in _distinct([phase for phase in recipe.phases if phase.train != AUTO]):
        found = phase_memory(network, phase, spec, images, runtime, source=isinstance(recipe, AdaptRecipe))
        if found.total > room:
            size = min(phase.batch_size, images)
            raise SettingError(
                f"phase {phase.name}: training {model} on batches of {size} images of {spec.size}×{spec.size} needs "
                f"about {amount(found.total)} of memory ({memory_words(found)}), and {device} has {amount(room)}; "
                f"{_cure(found, size, room)}, or --force to try all the same"
            )


def memory_words(found: MemoryEstimate) -> str:
    """The parts of an estimate in words."""
    return ", ".join(f"{name} {amount(value)}" for name, value in vars(found).items() if value)


def _distinct(phases: Sequence[Phase]) -> list[Phase]:
    """The phases without those that need what an earlier one needs."""
    found: dict[tuple[object, ...], Phase] = {}
    for phase in phases:
        key = (phase.train, phase.batch_size, phase.optimizer, phase.keep, phase.ema, phase.lora)
        found.setdefault(tuple(map(str, key)), phase)
    return list(found.values())


def _room(runtime: Runtime) -> tuple[int, str]:
    """The bytes of the device that a process may take, and what to call it."""
    if runtime.device.type == "cuda":
        return torch.cuda.get_device_properties(runtime.device).total_memory, "this GPU"
    processes = local_processes()
    share = f"each of {processes} processes on this machine" if processes > 1 else "this machine"
    return available_memory() // processes, share


def _cure(found: MemoryEstimate, size: int, room: int) -> str:
    fits = (room - found.total + found.activations) * size // max(found.activations, 1)
    if fits >= 1:
        return f"set batch_size to {fits} or less, train fewer stages, take smaller images (input.size)"
    return "take a smaller network, train fewer stages"
