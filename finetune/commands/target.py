"""What the untouched source sees in the images to learn from: class means, and the best linear head on its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finetune.commands.caching import CachePlan
from finetune.commands.material import Material
from finetune.models.head import ClassMeans, class_means
from finetune.models.staged import StagedNetwork
from finetune.recipe.schema import AdaptRecipe
from finetune.training.activations import TRAIN, VALIDATION
from finetune.training.solver import solve_head


@dataclass(frozen=True)
class Frozen:
    """What the untouched source sees in the images to learn from, as far as it is asked for.

    features: by part, for the linear probe. means: of the classes.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    means: ClassMeans | None = None


def looks_at_target(recipe: AdaptRecipe, known: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the source's features of the images to learn from are asked for, where it knows other class names.

    Class means start new rows of a head and answer where the source's head cannot; the probe learns from features.
    """
    return not set(wanted) <= set(known) or recipe.head == "class_means" or "linear_probe" in recipe.compare


def look_at_target(network: StagedNetwork, caches: CachePlan, over: int, plan: AdaptRecipe) -> Frozen:
    """One pass of the untouched source over the images to learn from: for class means and probe, and for the phases.

    `over` phases are over already, in a run that goes on.
    """
    setting = caches.setting
    if not setting.looked:
        return Frozen()
    material, cache = setting.material, setting.cache
    caches.look(network, over)
    features = {TRAIN: cache.outputs(network, TRAIN, -1)}
    means = class_means(features[TRAIN].cpu(), material.train.labels, len(material.class_names))
    if "linear_probe" not in plan.compare:
        return Frozen(means=means)
    if len(material.validation):
        features[VALIDATION] = cache.outputs(network, VALIDATION, -1)
    return Frozen(features, means)


def solved_probe(frozen: Frozen, material: Material) -> torch.nn.Linear:
    """The best linear head on the frozen features that were computed before the phases."""
    held = frozen.features.get(VALIDATION)
    validation = (held, material.validation.labels) if held is not None else None
    return solve_head(frozen.features[TRAIN], material.train.labels, len(material.class_names), validation)
