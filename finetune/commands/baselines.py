"""The baselines of the verdict: the source as it is, a linear probe, training from scratch; and retention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.data.image_dataset import ImageSet
from finetune.data.registry import is_present, open_dataset
from finetune.distributed.process_group import SINGLE_PROCESS
from finetune.errors import DataError
from finetune.models.classifier import Classifier
from finetune.models.head import ClassMeans, class_means
from finetune.models.registry import build_model
from finetune.models.staged import StagedNetwork
from finetune.recipe.phase_schema import Phase
from finetune.recipe.schema import AdaptRecipe
from finetune.report.report import Retention
from finetune.run.cache_plan import CacheManager
from finetune.run.context import TrainContext
from finetune.run.data import RunData
from finetune.run.phases import RunLogger, run_phases
from finetune.run.progress import SCRATCH, NetworkProgress
from finetune.sources.resolve import Source
from finetune.train.activation_cache import TRAIN, VALIDATION, ActivationCache, ActivationKey, CachePart
from finetune.train.device import seeded
from finetune.train.linear_probe import fit_linear_head


@dataclass(frozen=True)
class SourceFeatures:
    """What the untouched source sees in the images to learn from, as far as it is asked for.

    features: by part, for the linear probe. means: of the classes.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    means: ClassMeans | None = None


def needs_source_features(recipe: AdaptRecipe, known: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the source's features of the images to learn from are asked for, where it knows other class names.

    Class means start new rows of a head and answer where the source's head cannot; the probe learns from features.
    """
    return not set(wanted) <= set(known) or recipe.head == "class_means" or "linear_probe" in recipe.compare


def extract_source_features(
    network: StagedNetwork, caches: CacheManager, over: int, plan: AdaptRecipe
) -> SourceFeatures:
    """One pass of the untouched source over the images to learn from: for class means and probe, and for the phases.

    `over` phases are over already, in a run that goes on.
    """
    context = caches.context
    if not context.needs_features:
        return SourceFeatures()
    data, cache = context.data, context.cache
    caches.prefill(network, over)
    features = {TRAIN: cache.outputs(network, TRAIN, -1)}
    means = class_means(features[TRAIN].cpu(), data.train.labels, len(data.class_names))
    if "linear_probe" not in plan.compare:
        return SourceFeatures(means=means)
    if len(data.validation):
        features[VALIDATION] = cache.outputs(network, VALIDATION, -1)
    return SourceFeatures(features, means)


def linear_probe(frozen: SourceFeatures, data: RunData) -> torch.nn.Linear:
    """The best linear head on the frozen features that were computed before the phases."""
    held = frozen.features.get(VALIDATION)
    validation = (held, data.validation.labels) if held is not None else None
    return fit_linear_head(frozen.features[TRAIN], data.train.labels, len(data.class_names), validation)


OWN_HEAD = "source head"

NEAREST_MEAN = "nearest class mean"

SOURCE_TEST = "source's test"


def before_predictions(
    head: torch.nn.Linear,
    source_classes: tuple[str, ...],
    classes: tuple[str, ...],
    features: Tensor,
    means: ClassMeans | None,
) -> tuple[Tensor, str]:
    """What the source says of frozen `features` (N×F) untouched, as target class indices, and the method used.

    Its own head answers where it knows every class of the target (its other classes are not offered); else the nearest
    mean of the target's training features does, of which `means` are then given.
    """
    if set(classes) <= set(source_classes):
        rows = torch.tensor([source_classes.index(name) for name in classes], device=features.device)
        with torch.no_grad():
            return head(features)[:, rows].argmax(1).cpu(), OWN_HEAD
    assert means is not None, "features are looked at where the source cannot answer itself"
    logits = features.cpu().double() @ means.weight.cpu().T + means.bias.cpu()
    return logits.argmax(1), NEAREST_MEAN


def scratch_phase(recipe: AdaptRecipe, images: int) -> Phase:
    """The one phase of the scratch run: all stages, as many images in all as the recipe's phases together see.

    A solved head has seen each image once. Everything else is the last phase's, but for a learning rate that falls
    towards the input, which only makes sense for stages that have learnt something, and augmentation, which random
    weights always get where the recipe has any. The recipe's `scratch` may name a fairer optimizer and schedule.
    """
    last = recipe.phases[-1]
    seen = sum(phase.images_seen(images) for phase in recipe.phases)
    epochs, rest = divmod(seen, images)
    steps = max(1, epochs * -(-images // last.batch_size) + round(rest / last.batch_size))
    changed: dict[str, Any] = {
        "name": "scratch",
        "train": "all",
        "epochs": None,
        "min_steps": None,
        "max_steps": None,
        "steps": steps,
        "layer_decay": 1.0,
        "augment": True,
        "solver": None,
        "lora": None,
        "views": None,  # nothing is frozen
        "norms": "hold",  # random weights have no statistics to hold on to
    }
    if recipe.scratch is not None:
        given = {"optimizer": recipe.scratch.optimizer, "schedule": recipe.scratch.schedule}
        changed |= {key: value for key, value in given.items() if value is not None}
    return last.model_copy(update=changed)


def train_scratch(
    recipe: AdaptRecipe, classifier: Classifier, context: TrainContext, logger: RunLogger, after: NetworkProgress
) -> StagedNetwork:
    """The source's architecture, trained on the target from random weights with the same budget and seed.

    `after` is the leg before it, whose network a snapshot has to hold too.
    """
    data = context.data
    with seeded(recipe.seed):
        network = build_model(classifier.model, len(data.class_names), classifier.arguments)
        context.runtime.place(network)
        phase = scratch_phase(recipe, len(data.train))
        progress = NetworkProgress(after.run_folder, SCRATCH, network, before=after)
        run_phases(network, [phase], context, replace(logger, interrupt_checkpoint=None), progress)
    return network


def retention(
    source: Source, classifier: Classifier, adapted: StagedNetwork, context: TrainContext, root: Path, untouched: int
) -> Retention | None:
    """Accuracy on the source's own test images before and after; None unless its data set is at hand.

    Where the adapted head knows every class of the source, it answers (its other classes are not offered); else the
    source's head is put back on the adapted stages, which shows whether the features still serve the old task. The
    `untouched` first stages are the same in both, and are run once.
    """
    test = _source_test(source, root)
    group = context.runtime.group
    if group.any(test is None):  # on some machine: then who has it looks alone
        group = SINGLE_PROCESS
    if test is None:
        return None
    names, classes = classifier.class_names, context.data.class_names
    original = classifier.network
    runtime, kept = replace(context.runtime, group=group), context.cache
    with ActivationCache(
        {SOURCE_TEST: CachePart(test.images)}, context.normalize, runtime, kept.room, kept.folder, kept.warn
    ) as cache:
        cache.keep_in_memory(original, ActivationKey(SOURCE_TEST, untouched))
        before = float((cache.outputs(original, SOURCE_TEST).argmax(1).cpu() == test.labels).double().mean())
        if set(names) <= set(classes):
            found = cache.outputs(adapted, SOURCE_TEST)[:, [classes.index(name) for name in names]].argmax(1).cpu()
        else:
            with torch.no_grad():
                found = original.head(cache.outputs(adapted, SOURCE_TEST, -1)).argmax(1).cpu()
    assert source.dataset is not None
    return Retention(source.dataset, before, float((found == test.labels).double().mean()))


def _source_test(source: Source, root: Path) -> ImageSet | None:
    name = source.dataset
    try:
        if name is None or not is_present(name, root):
            return None
        test = open_dataset(name, root, download=False).test.with_classes(source.classifier.class_names)
    except DataError:
        return None
    own = source.metadata.data.get("test") if source.metadata is not None else None
    same = not isinstance(own, dict) or own.get("fingerprint") in (None, test.fingerprint())
    return test if same else None  # a folder may be called like a data set
