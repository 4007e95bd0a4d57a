"""Converts a recipe's phase into plain values: stages, steps, batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from finetune.data.loader import Batches
from finetune.models.staged import StagedNetwork
from finetune.recipe.phase_schema import Phase
from finetune.run.context import TrainContext
from finetune.train import loop
from finetune.train.disk_tensor import DiskTensor
from finetune.train.lora import check_adaptable, low_rank_adapters
from finetune.train.optim import make_schedule


def phase_config(phase: Phase, stages: tuple[str, ...], steps: int, start: int) -> loop.PhaseConfig:
    """A recipe's phase as the loop takes it."""
    assert phase.optimizer is not None, "a phase with a solver does not go through the loop"
    return loop.PhaseConfig(
        name=phase.name,
        stages=stages,
        steps=steps,
        optimizer=phase.optimizer.name,
        arguments=phase.optimizer.model_dump(exclude={"name"}),
        schedule=make_schedule(**phase.schedule.model_dump()),
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
            check_adaptable(network, phase.trained_stages(network.stages))


def phase_adapters(phase: Phase, network: StagedNetwork) -> AbstractContextManager[None]:
    """The phase's adapters beside the weights while a block runs, added to them when it ends; for most phases none."""
    if phase.lora is None:
        return nullcontext()
    return low_rank_adapters(network, phase.trained_stages(network.stages), **phase.lora.model_dump())


def image_batches(phase: Phase, context: TrainContext) -> Batches:
    """The phase's batches of images."""
    train, device = context.data.train, context.runtime.device
    return Batches(
        train.images.to(device),
        train.labels.to(device),
        batch_size=phase.batch_size,
        seed=context.seed,
        normalize=context.normalize,
        augment=context.augment if phase.augment else None,
        classes=len(train.class_names),
        shard=(context.runtime.group.rank, context.runtime.group.size),
        views=phase.views,
    )


def activation_batches(
    phase: Phase, context: TrainContext, kept: Tensor | DiskTensor, views: int | None = None
) -> Batches:
    """The phase's batches of activations, which are kept of each image or of so many views of each."""
    labels = context.data.train.labels.to(context.runtime.device)
    shard = (context.runtime.group.rank, context.runtime.group.size)
    return Batches(kept, labels, batch_size=phase.batch_size, seed=context.seed, shard=shard, views=views)
