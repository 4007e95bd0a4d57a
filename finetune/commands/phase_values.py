"""A recipe's phase in plain values: what trains, for how long, on which batches, behind which part that is run once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from finetune.commands.material import Material
from finetune.data.augment import Augment
from finetune.data.batches import Batches, Normaliser
from finetune.models.staged import StagedNetwork
from finetune.recipe.phase import LastStages, Phase, Train
from finetune.recipe.schema import AugmentSettings
from finetune.training import loop
from finetune.training.cache import BUDGET, activations, cached_bytes
from finetune.training.freeze import frozen_prefix
from finetune.training.lora import adaptable, low_rank_adapters
from finetune.training.runtime import Runtime
from finetune.training.schedule import schedule


@dataclass(frozen=True)
class Setting:
    """What all phases of a run work with."""

    material: Material
    normalise: Normaliser
    augment: Augment | None
    runtime: Runtime
    seed: int


def trained_stages(stages: Sequence[str], train: Train) -> tuple[str, ...]:
    """The stages that a phase's `train` means, in the network's order."""
    if train == "all":
        return tuple(stages)
    if train == "head":
        return tuple(stages[-1:])
    if isinstance(train, LastStages):
        return tuple(stages[-train.last :])
    return tuple(stage for stage in stages if stage in train)


def augmentation(settings: AugmentSettings | None) -> Augment | None:
    """The recipe's augmentation in plain values; None when it changes nothing."""
    augment = Augment(**settings.model_dump()) if settings is not None else None
    return augment if augment is not None and augment.changes else None


def phase_steps(phase: Phase, images: int) -> int:
    """A phase's length in steps; the one place where epochs become steps. A solver takes none."""
    if phase.solver is not None:
        return 0
    if phase.steps is not None:
        return phase.steps
    assert phase.epochs is not None
    steps = phase.epochs * -(-images // phase.batch_size)
    steps = max(steps, phase.min_steps or steps)
    return min(steps, phase.max_steps or steps)


def cache_boundary(network: StagedNetwork, phase: Phase, setting: Setting) -> int:
    """How many stages may be run once for the whole phase: the frozen prefix, or 0 when it has to be run each time."""
    images = setting.material.train.images[:1].to(setting.runtime.device)
    prefix = frozen_prefix(network, trained_stages(network.stages, phase.train))
    if prefix == 0 or (setting.augment is not None and phase.augment) or phase.norms == "update":
        return 0
    size = cached_bytes(network, images, setting.normalise, prefix, setting.runtime)
    return prefix if size * len(setting.material.train) <= BUDGET else 0


def loop_phase(phase: Phase, stages: tuple[str, ...], steps: int, start: int) -> loop.Phase:
    """A recipe's phase as the loop takes it."""
    assert phase.optimizer is not None, "a phase with a solver does not go through the loop"
    return loop.Phase(
        name=phase.name,
        stages=stages,
        steps=steps,
        optimizer=phase.optimizer.name,
        arguments=phase.optimizer.model_dump(exclude={"name"}),
        schedule=schedule(**phase.schedule.model_dump()),
        label_smoothing=phase.label_smoothing,
        clip_norm=phase.clip_norm,
        ema=phase.ema,
        layer_decay=phase.layer_decay,
        norms=phase.norms,
        keep=phase.keep,
        start=start,
        adapters=phase.lora is not None,
    )


def check_adapters(network: StagedNetwork, phases: Sequence[Phase]) -> None:
    """SettingError, before any work, for a phase whose adapters could not be made."""
    for phase in phases:
        if phase.lora is not None:
            adaptable(network, trained_stages(network.stages, phase.train))


def adapters_of(phase: Phase, network: StagedNetwork) -> AbstractContextManager[None]:
    """The phase's adapters beside the weights while a block runs, added to them when it ends; for most phases none."""
    if phase.lora is None:
        return nullcontext()
    return low_rank_adapters(network, trained_stages(network.stages, phase.train), **phase.lora.model_dump())


def phase_batches(network: StagedNetwork, phase: Phase, setting: Setting, start: int) -> Batches:
    """The phase's batches: of images, or of activations behind the first `start` stages."""
    train, device = setting.material.train, setting.runtime.device
    images, labels = train.images.to(device), train.labels.to(device)
    part = (setting.runtime.group.rank, setting.runtime.group.size)
    if start:
        kept = activations(network, images, setting.normalise, start, setting.runtime)
        return Batches(kept, labels, batch_size=phase.batch_size, seed=setting.seed, part=part)
    return Batches(
        images,
        labels,
        batch_size=phase.batch_size,
        seed=setting.seed,
        normalise=setting.normalise,
        augment=setting.augment if phase.augment else None,
        classes=len(train.class_names),
        part=part,
    )
