"""Calibrates a fine-tuned network: on its validation images, or, where there are none, out of fold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from finetune.checkpoint.confidence import Confidence
from finetune.commands.baselines import Adaptation, SharedWork, needs_source_features, train_after
from finetune.data.folds import fold_numbers
from finetune.data.image_dataset import ImageSet
from finetune.errors import DataError
from finetune.report.console import Console
from finetune.run.confidence import (
    MIN_IMAGES,
    HeldOut,
    calibrate_on_validation,
    fit_confidence,
    no_folds,
    no_promise,
    observe_held_out,
    reference_layers,
)
from finetune.run.context import make_context
from finetune.train.device import seeded


def calibrate_training(adaptation: Adaptation) -> tuple[Confidence | None, list[str]]:
    """What the checkpoint of a fine-tuned network records of its confidence, and what to tell of it."""
    recipe, context = adaptation.recipe, adaptation.context
    network, data, group = adaptation.written().network, context.data, context.runtime.group
    folds = recipe.calibration_folds
    if len(data.validation) >= MIN_IMAGES or folds is None:
        return calibrate_on_validation(network, data, context.normalize, group, recipe.max_error)
    try:
        numbers, _ = fold_numbers(data.train, folds)
    except DataError as error:
        return None, [no_folds(folds, error), *no_promise(recipe.max_error)]
    layers = reference_layers(network, data.train, context.normalize, group)
    parts = [_held_out_fold(adaptation, numbers == fold, fold + 1) for fold in range(folds)]
    return fit_confidence(HeldOut.joined(parts), layers, "folds", recipe.max_error)


def _held_out_fold(adaptation: Adaptation, held: np.ndarray, number: int) -> HeldOut:
    """Trains as the recipe says on all images but those `held` (bool, N), and looks at these."""
    setup, recipe, name = adaptation.setup, adaptation.recipe, f"fold-{number}"
    every: ImageSet = setup.data.train
    train, fold = every.subset(np.flatnonzero(~held)), every.subset(np.flatnonzero(held))
    data = replace(setup.data, train=train, test=setup.data.test.subset([]))  # the test set stays closed
    own_setup = replace(setup, data=data)
    phases = tuple(phase.model_copy(update={"name": f"{phase.name}-{name}"}) for phase in recipe.phases)
    classes = setup.data.class_names
    needs_features = needs_source_features(recipe, setup.classifier.class_names, classes)
    console = Console(quiet=True, results=False)
    context = make_context(recipe, own_setup, console, needs_features=needs_features)
    with seeded(recipe.seed), context.cache:
        own = Adaptation(
            recipe.model_copy(update={"phases": phases, "compare": (), "keep": None}),
            own_setup,
            setup.classifier.with_classes(classes),
            context,
            replace(adaptation.logger, interrupt_checkpoint=None),
            adaptation.run_folder,
            SharedWork(),
            adaptation.data_root,
            progress=adaptation.progress,
        )
        network = train_after(own, name).network
        adaptation.progress = own.progress
        layers = reference_layers(network, train, context.normalize, context.runtime.group)
        return observe_held_out(network, fold, layers, context.normalize, context.runtime.group)
