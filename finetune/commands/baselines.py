"""How each row of the verdict is made: commonest class, source, linear probe, fine-tuned, mixed, from scratch.

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

from finetune.batching import steps_to_see
from finetune.commands.interpolate import InterpolatedNetwork, Mixer, interpolate
from finetune.commands.source_task import SourceTask, measure_retention
from finetune.models.classifier import Classifier
from finetune.models.head import ClassMeans, class_means, swap_head
from finetune.models.registry import build_model
from finetune.models.staged import StagedNetwork
from finetune.recipe.schema import AdaptRecipe, Phase
from finetune.report.console import Console
from finetune.report.report import Interpolation, PhaseSummary, Retention, Transplant
from finetune.report.rows import ADAPT_ROWS, INTERPOLATED
from finetune.report.stage_answer import StageAnswer
from finetune.run.cache_plan import CacheManager
from finetune.run.context import TrainContext
from finetune.run.finalize import Grading, RowAnswers
from finetune.run.phases import RunLogger, run_phases
from finetune.run.progress import SCRATCH, TRAINED, NetworkProgress, completed_phases
from finetune.run.run_folder import RunFolder
from finetune.run.setup import AdaptSetup
from finetune.text import listed, places_of
from finetune.train.activation_cache import TEST, TRAIN, VALIDATION, ActivationCache, ActivationKey
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


OWN_HEAD = "source head"
NEAREST_MEAN = "nearest class mean"


@dataclass(frozen=True)
class TrainedNetwork:
    """A fine-tuned network, its phases, and which of its tensors were taken over from the source."""

    network: StagedNetwork
    phases: list[PhaseSummary]
    transplant: Transplant


@dataclass
class Adaptation:
    """One adapt: what the rows of its verdict are made from.

    `trained` has by row what was trained for it. `shared` is what the source makes of the images, computed at most
    once. `classifier` is the one that is fine-tuned, a copy of the source's. `data_root` is the folder of the data
    sets. `progress` is of the newest network.
    """

    recipe: AdaptRecipe
    setup: AdaptSetup
    classifier: Classifier
    context: TrainContext
    logger: RunLogger
    run_folder: RunFolder
    shared: SharedWork
    data_root: Path
    trained: dict[str, Any] = field(default_factory=dict)
    progress: NetworkProgress | None = None

    def __post_init__(self) -> None:
        self.caches = CacheManager(self.classifier.network, self.recipe.phases, self.context)

    @property
    def source(self) -> Classifier:
        """The classifier it started from, unchanged."""
        return self.setup.classifier

    @property
    def classes(self) -> tuple[str, ...]:
        return self.setup.data.class_names

    def written(self) -> Classifier:
        """The classifier whose weights the recipe keeps: the fine-tuned one, or the mix."""
        if self.recipe.keep is None:
            return self.classifier
        own, mixed = self.classifier, self.trained[self.recipe.keep].network
        return Classifier(mixed, own.model, own.arguments, own.class_names, own.input)

    def interpolation(self) -> Interpolation | None:
        """How the mix was chosen, where one was made."""
        found: InterpolatedNetwork | None = self.trained.get(INTERPOLATED)
        return found.summary if found is not None else None

    def source_features(self) -> SourceFeatures:
        """Features of the images to learn from, and class means, as far as the recipe asks for them."""
        if self.shared.train is None:
            completed = completed_phases(self.run_folder, TRAINED)
            self.shared.train = extract_source_features(self.source.network, self.caches, completed, self.recipe)
        return self.shared.train

    def source_test_features(self) -> Tensor:
        """What the source's head sees in the test images: float, N×F."""
        if self.shared.test is None:
            self.shared.test = self.context.cache.outputs(self.source.network, TEST, -1)
        return self.shared.test

    def source_task(self) -> SourceTask:
        """What the source was trained for."""
        frozen = self.caches.planner.frozen_depth()
        return SourceTask(self.setup.source, self.source, self.classes, self.context, frozen, self.data_root)

    def answers(self, network: StagedNetwork, grading: Grading) -> RowAnswers:
        """The class that a network gives each test image, with its probabilities."""
        return RowAnswers.of_numbers(self.context.cache.outputs(network, TEST, reduce=grading.reduce))


@dataclass
class SharedWork:
    """Outputs of the untouched source that trainings on the same images share, so that they are computed once.

    train: what the untouched source makes of the images to learn from. test: its features of the test images (float,
    N×F). cache: activations of its frozen stages; None where a training is alone and has its own. where: what a phase's
    `train: auto` comes to.
    """

    train: SourceFeatures | None = None
    test: Tensor | None = None
    cache: ActivationCache | None = None
    where: StageAnswer | None = None


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


@dataclass(frozen=True)
class RowMaker:
    """How one row is made: `train` what it needs, before the test set is opened; then `predict` the test images.

    `predict` gets what the answers are read by, one for all rows.
    """

    predict: Callable[[Adaptation, Grading], RowAnswers]
    train: Callable[[Adaptation], Any] | None = None


def train_rows(adaptation: Adaptation, rows: Sequence[str]) -> None:
    """Trains what these rows need, the fine-tuned network first: what the others do never changes its bytes."""
    for name in sorted(rows, key=lambda row: row != "after"):
        if (train := ROW_MAKERS[name].train) is not None:
            adaptation.trained[name] = train(adaptation)


def answer_rows(adaptation: Adaptation, rows: Sequence[str]) -> dict[str, RowAnswers]:
    """Opens the test set, once, after all training: the answers of each row to the same images."""
    frozen = ActivationKey(TEST, adaptation.caches.planner.frozen_depth())
    adaptation.context.cache.keep_in_memory(adaptation.source.network, frozen)
    grading = Grading.of(adaptation.setup.data.test)
    return {name: ROW_MAKERS[name].predict(adaptation, grading) for name in rows}


def predict_before(adaptation: Adaptation, grading: Grading) -> RowAnswers:
    """The source's own answers: by its head where it knows every class of the target, else by the nearest class mean.

    Its head is offered the target's classes only. Class means are those of the training images' features.
    """
    source, classes = adaptation.source, adaptation.classes
    features, means = adaptation.source_test_features(), adaptation.source_features().means
    if set(classes) <= set(source.class_names):
        rows = torch.tensor(places_of(classes, source.class_names), device=features.device)
        return _head_answers(lambda own: source.network.head(own)[:, rows], features, grading, OWN_HEAD)
    assert means is not None, "class means are computed where the source's head does not know every class"
    weight, bias = means.weight.cpu().T, means.bias.cpu()
    return _head_answers(lambda own: own.double() @ weight + bias, features.cpu(), grading, NEAREST_MEAN)


@torch.no_grad()
def _head_answers(
    head: Callable[[Tensor], Tensor], features: Tensor, grading: Grading, method: str | None = None
) -> RowAnswers:
    """A head's answers to the test images, from their features (float, N×F)."""
    size = grading.head_batch
    parts = [grading.reduce(head(features[i : i + size]), i) for i in range(0, len(features), size)]
    return RowAnswers.of_numbers(torch.cat(parts), method)


def train_linear_probe(adaptation: Adaptation) -> torch.nn.Linear:
    """The best linear head on the source's features, which were computed before the phases."""
    features, data = adaptation.source_features().features, adaptation.setup.data
    held_out = features.get(VALIDATION)
    validation = (held_out, data.validation.labels) if held_out is not None else None
    balance = adaptation.context.loss_balance(solved=True)
    return fit_linear_head(features[TRAIN], data.train.labels, len(data.class_names), validation, balance)


def predict_linear_probe(adaptation: Adaptation, grading: Grading) -> RowAnswers:
    """The linear probe's answers."""
    return _head_answers(adaptation.trained["linear_probe"], adaptation.source_test_features().cpu(), grading)


def train_after(adaptation: Adaptation, name: str = TRAINED) -> TrainedNetwork:
    """Swaps the head of the source's copy and trains it through the recipe's phases; snapshots call it `name`."""
    recipe, network, context = adaptation.recipe, adaptation.classifier.network, adaptation.context
    means = adaptation.source_features().means
    transplant = start_head(network, recipe, means, adaptation.setup)
    _log_head_rows(transplant, recipe, adaptation.classes, adaptation.logger.console)
    adaptation.progress = NetworkProgress(adaptation.run_folder, name, network, before=adaptation.progress)
    phases = run_phases(network, recipe.phases, context, adaptation.logger, adaptation.progress)
    return TrainedNetwork(network, phases, transplant)


def start_head(network: StagedNetwork, recipe: AdaptRecipe, means: ClassMeans | None, setup: AdaptSetup) -> Transplant:
    """Gives the network the head for the target's classes that training starts from.

    Returns which of its tensors were kept and which are new.
    """
    wanted = setup.data.class_names
    head, reused = swap_head(
        network.head,
        setup.classifier.class_names,
        wanted,
        means=None if recipe.head == "random" else means,
        keep_rows=recipe.head == "auto",
    )
    network.set_head(head)
    setup.runtime.place(network)
    new = [] if len(reused) == len(wanted) else list(network.head_tensors())
    return Transplant([name for name in network.state_dict() if name not in new], new, reused)


def _log_head_rows(transplant: Transplant, recipe: AdaptRecipe, classes: tuple[str, ...], console: Console) -> None:
    fresh = [name for name in classes if name not in transplant.head_rows_reused]
    if transplant.head_rows_reused:
        console.note(f"head: rows kept for {listed(transplant.head_rows_reused)}")
    if fresh:
        start = "random weights" if recipe.head == "random" else "their class means"
        console.note(f"head: new rows from {start} for {listed(fresh)}")


def scratch_phase(recipe: AdaptRecipe, images: int) -> Phase:
    """The one phase of the scratch run: all stages, as many images in all as the recipe's phases together see.

    A solved head has seen each image once. Everything else is the last phase's, but for a learning rate that falls
    towards the input, which only makes sense for stages that have learnt something, and augmentation, which random
    weights always get where the recipe has any. The recipe's `scratch` may name a fairer optimizer and schedule.
    """
    last = recipe.phases[-1]
    seen = sum(phase.images_seen(images) for phase in recipe.phases)
    changed: dict[str, Any] = {
        "name": "scratch",
        "train": "all",
        "epochs": None,
        "min_steps": None,
        "max_steps": None,
        "steps": steps_to_see(seen, images, last.batch_size),
        "layer_decay": 1.0,
        "augment": True,
        "solver": None,
        "lora": None,
        "l2_sp": None,  # random weights have no source
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
        progress = NetworkProgress(adaptation.run_folder, SCRATCH, network, before=adaptation.progress)
        adaptation.progress = progress
        run_phases(network, [phase], context, replace(adaptation.logger, interrupt_checkpoint=None), progress)
    return network


def train_interpolated(adaptation: Adaptation) -> InterpolatedNetwork:
    """The mix of source and fine-tuned network that is chosen on the validation images."""
    trained: TrainedNetwork = adaptation.trained["after"]
    source, reused = adaptation.source, trained.transplant.head_rows_reused
    kept = all(name in reused for name in adaptation.classes)
    rows = places_of([reused[name] for name in adaptation.classes], source.class_names) if kept else None
    mixer = Mixer(source.network, trained.network, rows)
    return interpolate(mixer, adaptation.source_task(), adaptation.recipe.retain, adaptation.logger.console)


ROW_MAKERS: dict[str, RowMaker] = {
    "majority": RowMaker(lambda adaptation, grading: grading.majority(adaptation.setup.data.train)),
    "before": RowMaker(predict_before),
    "linear_probe": RowMaker(predict_linear_probe, train=train_linear_probe),
    "after": RowMaker(
        lambda adaptation, grading: adaptation.answers(adaptation.trained["after"].network, grading), train=train_after
    ),
    "interpolated": RowMaker(
        lambda adaptation, grading: adaptation.answers(adaptation.trained["interpolated"].network, grading),
        train=train_interpolated,
    ),
    "scratch": RowMaker(
        lambda adaptation, grading: adaptation.answers(adaptation.trained["scratch"], grading), train=train_scratch
    ),
}
assert ROW_MAKERS.keys() == ADAPT_ROWS.keys(), "each row has a maker"


def retention(adaptation: Adaptation) -> Retention | None:
    """Accuracy on the source's own test images before and after; None unless its data set is at hand."""
    mixed: InterpolatedNetwork | None = adaptation.trained.get(INTERPOLATED)
    network = adaptation.classifier.network
    return measure_retention(adaptation.source_task(), network, None if mixed is None else mixed.network)
