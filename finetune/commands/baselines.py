"""How each row of the verdict is made: source as it is, linear probe, fine-tuned network, training from scratch.

What a row is called and compared with is in `finetune/report/rows.py`; a new row is an entry there and one in
ROW_MAKERS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from finetune.recipe.schema import AdaptRecipe, Phase
from finetune.report.comparison import Comparison, compare
from finetune.report.report import Result, Retention
from finetune.report.rows import ADAPT_ROWS, wanted_rows
from finetune.run.cache_plan import CacheManager
from finetune.run.context import TrainContext
from finetune.run.finalize import correct_mask, score
from finetune.run.phases import RunLogger, run_phases
from finetune.run.progress import SCRATCH, NetworkProgress
from finetune.sources.resolve import Source
from finetune.train.activation_cache import TEST, TRAIN, VALIDATION, ActivationCache, ActivationKey, CachePart
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
    network: StagedNetwork, caches: CacheManager, completed: int, recipe: AdaptRecipe
) -> SourceFeatures:
    """One pass of the untouched source over the images to learn from: for class means and probe, and for the phases.

    `completed`: phases that an earlier attempt finished.
    """
    context = caches.context
    if not context.needs_features:
        return SourceFeatures()
    data, cache = context.data, context.cache
    caches.prefill(network, completed)
    features = {TRAIN: cache.outputs(network, TRAIN, -1)}
    means = class_means(features[TRAIN].cpu(), data.train.labels, len(data.class_names))
    if "linear_probe" not in recipe.compare:
        return SourceFeatures(means=means)
    if len(data.validation):
        features[VALIDATION] = cache.outputs(network, VALIDATION, -1)
    return SourceFeatures(features, means)


OWN_HEAD = "source head"
NEAREST_MEAN = "nearest class mean"
SOURCE_TEST = "source's test"


@dataclass(frozen=True)
class Adaptation:
    """One adapt after its phases: what the rows of its verdict are made from.

    `source` is the classifier it started from, unchanged. `trained` has by row what was trained for it.
    """

    recipe: AdaptRecipe
    source: Classifier
    features: SourceFeatures
    caches: CacheManager
    logger: RunLogger
    progress: NetworkProgress
    trained: dict[str, Any] = field(default_factory=dict)

    @property
    def context(self) -> TrainContext:
        return self.caches.context

    @property
    def source_test_features(self) -> Tensor:
        """What the source's head sees in the test images: float, N×F."""
        return self.context.cache.outputs(self.source.network, TEST, -1)

    def test_predictions(self, network: StagedNetwork) -> Tensor:
        """The class index that a network gives each test image: int64, N."""
        return self.context.cache.outputs(network, TEST).argmax(1).cpu()


@dataclass(frozen=True)
class RowMaker:
    """How one row is made: `train` what it needs, before the test set is opened; then `predict` the test images.

    `predict` returns class indices (int64, N), and how the source answered where that is not always the same.
    """

    predict: Callable[[Adaptation], tuple[Tensor, str | None]]
    train: Callable[[Adaptation], Any] | None = None


def train_rows(adaptation: Adaptation) -> None:
    """Trains what the rows asked for need beside the fine-tuned network."""
    for name in wanted_rows(adaptation.recipe.compare):
        if (train := ROW_MAKERS[name].train) is not None:
            adaptation.trained[name] = train(adaptation)


def measure_rows(adaptation: Adaptation) -> tuple[dict[str, Result | None], dict[str, Comparison | None]]:
    """Opens the test set, once: results by row, and comparisons by after_vs_ROW, all on the same images."""
    test = adaptation.context.data.test
    frozen = ActivationKey(TEST, adaptation.caches.planner.frozen_depth())
    adaptation.context.cache.keep_in_memory(adaptation.source.network, frozen)
    results: dict[str, Result | None] = dict.fromkeys(ADAPT_ROWS)
    correct = {}
    for name in wanted_rows(adaptation.recipe.compare):
        predicted, method = ROW_MAKERS[name].predict(adaptation)
        results[name] = score(test, predicted, method=method, detailed=ADAPT_ROWS[name].detailed)
        correct[name] = correct_mask(test, predicted)
    comparisons = {
        f"after_vs_{name}": compare(correct[name], correct["after"]) if name in correct else None
        for name, row in ADAPT_ROWS.items()
        if row.compared
    }
    return results, comparisons


def predict_before(adaptation: Adaptation) -> tuple[Tensor, str]:
    """The source's own answers: by its head where it knows every class of the target, else by the nearest class mean.

    Its head is offered the target's classes only. Class means are those of the training images' features.
    """
    source, classes = adaptation.source, adaptation.context.data.class_names
    features, means = adaptation.source_test_features, adaptation.features.means
    if set(classes) <= set(source.class_names):
        rows = torch.tensor([source.class_names.index(name) for name in classes], device=features.device)
        with torch.no_grad():
            return source.network.head(features)[:, rows].argmax(1).cpu(), OWN_HEAD
    assert means is not None, "class means are computed where the source's head does not know every class"
    logits = features.cpu().double() @ means.weight.cpu().T + means.bias.cpu()
    return logits.argmax(1), NEAREST_MEAN


def train_linear_probe(adaptation: Adaptation) -> torch.nn.Linear:
    """The best linear head on the source's features, which were computed before the phases."""
    features, data = adaptation.features.features, adaptation.context.data
    held_out = features.get(VALIDATION)
    validation = (held_out, data.validation.labels) if held_out is not None else None
    return fit_linear_head(features[TRAIN], data.train.labels, len(data.class_names), validation)


def predict_linear_probe(adaptation: Adaptation) -> tuple[Tensor, None]:
    """The class that the linear probe gives each test image."""
    with torch.no_grad():
        return adaptation.trained["linear_probe"](adaptation.source_test_features.cpu()).argmax(1), None


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


def train_scratch(adaptation: Adaptation) -> StagedNetwork:
    """The source's architecture, trained on the target from random weights with the same budget and seed."""
    recipe, source, context = adaptation.recipe, adaptation.source, adaptation.context
    with seeded(recipe.seed):
        network = build_model(source.model, len(context.data.class_names), source.arguments)
        context.runtime.place(network)
        phase = scratch_phase(recipe, len(context.data.train))
        progress = NetworkProgress(adaptation.progress.run_folder, SCRATCH, network, before=adaptation.progress)
        run_phases(network, [phase], context, replace(adaptation.logger, interrupt_checkpoint=None), progress)
    return network


ROW_MAKERS: dict[str, RowMaker] = {
    "before": RowMaker(predict_before),
    "linear_probe": RowMaker(predict_linear_probe, train=train_linear_probe),
    "after": RowMaker(lambda adaptation: (adaptation.test_predictions(adaptation.caches.network), None)),
    "scratch": RowMaker(
        lambda adaptation: (adaptation.test_predictions(adaptation.trained["scratch"]), None), train=train_scratch
    ),
}
assert ROW_MAKERS.keys() == ADAPT_ROWS.keys(), "each row has a maker"


def retention(source: Source, adaptation: Adaptation, root: Path) -> Retention | None:
    """Accuracy on the source's own test images before and after; None unless its data set is at hand.

    Where the adapted head knows every class of the source, it answers (its other classes are not offered); else the
    source's head is put back on the adapted stages, which shows whether the features still serve the old task.
    """
    context, adapted = adaptation.context, adaptation.caches.network
    test = _source_test(source, root)
    group = context.runtime.group
    if group.any(test is None):  # on some machine: then who has it looks alone
        group = SINGLE_PROCESS
    if test is None:
        return None
    names, classes = adaptation.source.class_names, context.data.class_names
    original, frozen = adaptation.source.network, adaptation.caches.planner.frozen_depth()
    runtime, kept = replace(context.runtime, group=group), context.cache
    with ActivationCache(
        {SOURCE_TEST: CachePart(test.images)}, context.normalize, runtime, kept.room, kept.folder, kept.warn
    ) as cache:
        cache.keep_in_memory(original, ActivationKey(SOURCE_TEST, frozen))
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
