"""What a run starts from and the images it is to see, opened and made to fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.commands.fitting import as_shown, classifier_for, fitted_input, follows_images, with_channels
from finetune.commands.material import Material, open_material
from finetune.models.classifier import Classifier
from finetune.models.registry import InputSpec, find_model
from finetune.recipe.schema import AdaptRecipe, PretrainRecipe
from finetune.reporting.console import Console
from finetune.source import Located, Source, open_source


def open_both(source: Located, plan: AdaptRecipe, root: Path, console: Console) -> tuple[Source, Classifier, Material]:
    """The source, its classifier as the recipe's `input` and the images want it, and the images.

    Grey images make a backbone of timm's grey and colour ones make it colourful, unless the recipe gives in_chans; any
    other network has the images turned to what it takes.
    """
    model = plan.model
    chosen = (model.name, model.arguments) if model is not None else (None, {})
    origin = open_source(source, *chosen)
    classifier = origin.classifier
    free = follows_images(classifier.model, chosen[1])
    fixed = origin.metadata is not None
    spec = fitted_input(classifier.input, plan.input, classifier.model, classifier.arguments, fixed=fixed)
    material = open_material(plan.data, root, plan.seed, spec, console, any_channels=free)
    classifier.input = as_shown(spec, plan.input, material.side, material.name)
    classifier = classifier_for(classifier, material.channels) if free else classifier
    return origin, classifier, material


def open_images(plan: PretrainRecipe, root: Path, console: Console) -> tuple[InputSpec, dict[str, Any], Material]:
    """What a pretrain sees, the model's input for it, and the model's arguments: in_chans follows the images too."""
    model, arguments = plan.model.name, dict(plan.model.arguments)
    free = follows_images(model, arguments)
    spec = fitted_input(find_model(model, arguments).input, plan.input, model, arguments)
    material = open_material(plan.data, root, plan.seed, spec, console, any_channels=free)
    spec = as_shown(spec, plan.input, material.side, material.name)
    if free and material.channels != spec.channels:
        return with_channels(spec, material.channels), {**arguments, "in_chans": material.channels}, material
    return spec, arguments, material
