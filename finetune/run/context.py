"""What all phases of a run share: data, normalization, augmentation, device, activation cache."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.data.augment.affine import Augment
from finetune.data.image_folder_dataset import memory_budget
from finetune.data.normalize import Normalizer
from finetune.distributed.process_group import ProcessGroup
from finetune.models.staged import StagedNetwork
from finetune.paths import cache_folder
from finetune.recipe.schema import AdaptRecipe, AugmentSettings, PretrainRecipe
from finetune.report.console import Console
from finetune.run.data import RunData
from finetune.run.setup import AdaptSetup, RunSetup
from finetune.system import local_processes
from finetune.train.activation_cache import FILE, MEMORY, TEST, TRAIN, VALIDATION, ActivationCache, CachePart
from finetune.train.balance import LossBalance, loss_balance
from finetune.train.device import Runtime

GB = 10**9
MAX_MEMORY, MAX_DISK = 2 * GB, 20 * GB  # where the recipe says nothing
RESERVED_DISK = GB  # bytes of a disk that are left to snapshots and checkpoints


@dataclass(frozen=True)
class TrainContext:
    """Data, normalization, augmentation, device, seed and activation cache of a run, shared by its phases.

    `needs_features`: the source's features of all training images are computed before the first phase. `shares_cache`:
    other trainings go on with the cache after this one. `balance`: the recipe's. `source`: the untouched network that
    an adapt started from.
    """

    data: RunData
    normalize: Normalizer
    augment: Augment | None
    runtime: Runtime
    seed: int
    cache: ActivationCache
    needs_features: bool = False
    shares_cache: bool = False
    balance: str | None = None
    source: StagedNetwork | None = None

    def loss_balance(self, *, solved: bool = False) -> LossBalance | None:
        """What the loss makes of uneven classes; `solved` on all images at once, and not trained on drawn ones."""
        labels, classes = self.data.train.labels, len(self.data.class_names)
        found = loss_balance(self.balance, labels, classes, sampled=not solved)
        return found if found is None or solved else found.placed(self.runtime.device)


def augmentation(settings: AugmentSettings | None) -> Augment | None:
    """The recipe's augmentation in plain values; None when it changes nothing."""
    augment = Augment(**settings.model_dump()) if settings is not None else None
    return augment if augment is not None and augment.changes else None


def make_context(
    recipe: PretrainRecipe | AdaptRecipe,
    setup: RunSetup,
    console: Console,
    *,
    needs_features: bool = False,
    shared: ActivationCache | None = None,
) -> TrainContext:
    """Makes the context of a run's phases, with an empty activation cache as large as recipe and machine allow.

    shared: the cache of an earlier training, to go on with instead; activations of the same images are kept.
    """
    data, runtime = setup.data, setup.runtime
    source = setup.classifier.network if isinstance(setup, AdaptSetup) else None
    normalize = setup.spec.normalizer(runtime.device)
    parts = {
        TRAIN: CachePart(data.train.images, training=True),
        VALIDATION: CachePart(data.validation.images),
        TEST: CachePart(data.test.images),
    }
    augment = augmentation(recipe.data.augment)
    if shared is not None:
        shared.change_parts(parts)
        return TrainContext(
            data, normalize, augment, runtime, recipe.seed, shared, needs_features, True, recipe.balance, source
        )
    folder, given = cache_folder(), recipe.cache
    memory = min(MAX_MEMORY, memory_budget()) if given is None else round(given.memory * GB)
    disk = MAX_DISK if given is None else round(given.disk * GB)
    disk = max(0, min(disk, (_free_bytes(folder) - RESERVED_DISK) // local_processes()))
    room = dict(zip((MEMORY, FILE), _group_minimum(runtime.group, memory, disk), strict=True))
    cache = ActivationCache(parts, normalize, runtime, room, folder, console.warn)
    return TrainContext(
        data, normalize, augment, runtime, recipe.seed, cache, needs_features, False, recipe.balance, source
    )


def _group_minimum(group: ProcessGroup, *numbers: int) -> list[int]:
    """The minimum of each number over all processes, so that all of them decide alike."""
    every = torch.zeros(group.size, len(numbers), dtype=torch.int64)
    every[group.rank] = torch.tensor(numbers)
    return group.sum(every).amin(0).tolist()


def _free_bytes(folder: Path) -> int:
    """Free bytes on the disk where the folder is or will be; MAX_DISK and the reserve where the system does not say."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return MAX_DISK + RESERVED_DISK
