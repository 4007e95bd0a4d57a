"""What all phases of a run work with: images, how they are seen and changed, the machine, and room for a cache."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.commands.fitting import view_of
from finetune.commands.material import Material
from finetune.data.augment import Augment
from finetune.data.batches import Normaliser
from finetune.data.photograph_sets import memory_budget
from finetune.data.root import cache_folder
from finetune.machine import processes
from finetune.models.registry import InputSpec
from finetune.recipe.schema import AdaptRecipe, AugmentSettings, PretrainRecipe
from finetune.reporting.console import Console
from finetune.training.activations import FILE, MEMORY, TEST, TRAIN, VALIDATION, Part
from finetune.training.cache import Cache
from finetune.training.group import Group
from finetune.training.runtime import Runtime

GB = 10**9
MOST_MEMORY, MOST_DISK = 2 * GB, 20 * GB  # where the recipe says nothing
RESERVE = GB  # bytes of a disk that are left to snapshots and checkpoints


@dataclass(frozen=True)
class Setting:
    """What all phases of a run work with.

    `looked`: before the first phase all images to learn from go through the network.
    """

    material: Material
    normalise: Normaliser
    augment: Augment | None
    runtime: Runtime
    seed: int
    cache: Cache
    looked: bool = False


def augmentation(settings: AugmentSettings | None) -> Augment | None:
    """The recipe's augmentation in plain values; None when it changes nothing."""
    augment = Augment(**settings.model_dump()) if settings is not None else None
    return augment if augment is not None and augment.changes else None


def open_setting(
    plan: PretrainRecipe | AdaptRecipe,
    material: Material,
    spec: InputSpec,
    runtime: Runtime,
    console: Console,
    *,
    looked: bool = False,
) -> Setting:
    """What the phases of a run work with; its cache is empty, with the room that recipe and machine give it."""
    normalise = view_of(spec, runtime.device)
    parts = {
        TRAIN: Part(material.train.images, learnt=True),
        VALIDATION: Part(material.validation.images),
        TEST: Part(material.test.images),
    }
    folder, given = cache_folder(), plan.cache
    memory = min(MOST_MEMORY, memory_budget()) if given is None else round(given.memory * GB)
    disk = MOST_DISK if given is None else round(given.disk * GB)
    disk = max(0, min(disk, (_free(folder) - RESERVE) // processes()))
    room = dict(zip((MEMORY, FILE), _least(runtime.group, memory, disk), strict=True))
    cache = Cache(parts, normalise, runtime, room, folder, console.warn)
    return Setting(material, normalise, augmentation(plan.data.augment), runtime, plan.seed, cache, looked)


def _least(group: Group, *numbers: int) -> list[int]:
    """The smallest that any process has, of each number, so that all decide alike."""
    every = torch.zeros(group.size, len(numbers), dtype=torch.int64)
    every[group.rank] = torch.tensor(numbers)
    return group.sum(every).amin(0).tolist()


def _free(folder: Path) -> int:
    """Bytes that are free where the folder is or will be; where that cannot be told, trying will tell."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return MOST_DISK + RESERVE
