"""`finetune plan`: what a recipe would do, without training anything."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from finetune.commands.compare import scratch_phase
from finetune.commands.fitting import view_of
from finetune.commands.opening import open_both, open_images
from finetune.commands.phase_values import (
    Setting,
    adapters_of,
    augmentation,
    cache_boundary,
    loop_phase,
    phase_batches,
    phase_steps,
    trained_stages,
)
from finetune.commands.recipes import RecipeLike, open_recipe
from finetune.commands.show_augment import augment_grid
from finetune.data.root import data_root
from finetune.errors import SettingError
from finetune.models.registry import build_model
from finetune.models.staged import StagedNetwork
from finetune.recipe.phase import Phase
from finetune.recipe.schema import AdaptRecipe
from finetune.reporting.console import Console
from finetune.reporting.pictures import grid_picture
from finetune.source import locate
from finetune.training.evaluation import features
from finetune.training.freeze import set_trainable
from finetune.training.loop import Training
from finetune.training.optim import stage_groups
from finetune.training.runtime import choose_runtime, memory_told, seeded

TRIAL_STEPS = 6
TRIAL_IMAGES = 64


@dataclass(frozen=True)
class PhasePlan:
    """One phase to come. `learning_rates` are each stage's at the schedule's top.

    `seconds` estimates the phase's steps, without validation; of a solved head the pass over the images, without what
    is then solved. `cached`: the frozen part is run once.
    """

    name: str
    trains: list[str]
    frozen: list[str]
    trainable_parameters: int
    learning_rates: dict[str, float]
    norms: str
    cached: bool
    augmented: bool
    steps: int
    batch_size: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """All phases, the scratch comparison among them if it is asked for, and the images they would see."""

    kind: str
    model: str
    data: str
    train: int
    validation: int
    test: int
    phases: list[PhasePlan]

    def to_dict(self) -> dict[str, Any]:
        """For programs: the same as JSON values."""
        return asdict(self)


def plan(
    recipe: RecipeLike,
    *,
    source: str | Path | None = None,
    root: str | Path | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    show_augment: str | Path | None = None,
    console: Console | None = None,
) -> Plan:
    """What each phase would train, at which rates, for how long. An adapt recipe needs `source`.

    `show_augment` names a picture to be made of training images as the phases would see them. Seconds are measured on a
    few steps of a copy whose weights are thrown away. Errors as for pretrain and adapt.
    """
    console = console or Console(quiet=True, results=False)
    found = locate(source, note=console.note, bars=not console.quiet) if source is not None else None
    read = open_recipe(recipe, overrides, source=found.architecture if found is not None else None)
    if isinstance(read, AdaptRecipe) and source is None:
        raise SettingError(
            "an adapt recipe depends on its source: name one, for example --from checkpoints/mnist.safetensors"
        )
    if not isinstance(read, AdaptRecipe) and source is not None:
        raise SettingError(
            "--from goes with an adapt recipe; this is a pretrain recipe, which starts from random weights"
        )
    runtime = choose_runtime(device, read.precision)
    arguments: Mapping[str, Any]
    if isinstance(read, AdaptRecipe):
        assert found is not None
        _, classifier, material = open_both(found, read, data_root(root), console)
        model, arguments, spec = classifier.model, classifier.arguments, classifier.input
    else:
        spec, arguments, material = open_images(read, data_root(root), console)
        model = read.model.name
    normalise = view_of(spec, runtime.device)
    setting = Setting(material, normalise, augmentation(read.data.augment), runtime, read.seed)
    if show_augment is not None:
        grid = augment_grid(material.train, normalise, setting.augment, read.seed)
        grid_picture(*grid, Path(show_augment))
        console.note(f"wrote {show_augment}")
    phases = list(read.phases)
    if isinstance(read, AdaptRecipe) and "scratch" in read.compare:
        phases.append(scratch_phase(read, len(material.train)))
    with seeded(read.seed):
        network = build_model(model, len(material.class_names), arguments)
        runtime.place(network)
        planned = [_phase_plan(network, phase, setting) for phase in phases]
    return Plan(
        kind=read.kind,
        model=model,
        data=material.name,
        train=len(material.train),
        validation=len(material.validation),
        test=len(material.test),
        phases=planned,
    )


def _phase_plan(network: StagedNetwork, phase: Phase, setting: Setting) -> PhasePlan:
    stages = trained_stages(network.stages, phase.train)
    solved = phase.solver is not None
    with adapters_of(phase, network):
        parameters = set_trainable(network, stages, adapters=phase.lora is not None)
        groups = stage_groups(network, phase.optimizer.lr, phase.layer_decay) if phase.optimizer is not None else []
        steps = phase_steps(phase, len(setting.material.train))
        start = 0 if solved else cache_boundary(network, phase, setting)
        seconds = _of_a_pass(network, setting) if solved else _estimate(network, phase, stages, steps, start, setting)
    return PhasePlan(
        name=phase.name,
        trains=list(stages),
        frozen=[stage for stage in network.stages if stage not in stages],
        trainable_parameters=parameters,
        learning_rates={group.stage: group.lr for group in groups},
        norms=phase.norms if phase.lora is None else "hold_all",
        cached=solved or start > 0,
        augmented=setting.augment is not None and phase.augment and not solved,
        steps=steps,
        batch_size=phase.batch_size,
        seconds=seconds,
    )


def _of_a_pass(network: StagedNetwork, setting: Setting) -> float:
    """Seconds for the features of all images to learn from, scaled up from those of a few."""
    images = setting.material.train.images[:TRIAL_IMAGES].to(setting.runtime.device)
    features(network, images[:1], setting.normalise)  # warms up
    began = time.perf_counter()
    features(network, images, setting.normalise)
    return (time.perf_counter() - began) * len(setting.material.train) / len(images)


def _estimate(
    network: StagedNetwork, phase: Phase, stages: tuple[str, ...], steps: int, start: int, setting: Setting
) -> float:
    """Seconds for the phase: the cache's pass, if any, and a few timed steps, at a learning rate of 0, scaled up."""
    trial = copy.deepcopy(network)
    began = time.perf_counter()
    batches = phase_batches(trial, phase, setting, start)
    filling = time.perf_counter() - began
    for count in (1, min(steps, TRIAL_STEPS)):  # the first step warms up and is not counted
        began = time.perf_counter()
        planned = loop_phase(phase, stages, count, start)
        still = replace(
            planned, keep="last", arguments={**planned.arguments, "lr": 0.0}
        )  # nothing to choose or to break
        with memory_told(phase.name, phase.batch_size):
            for _ in Training(trial, batches, still, setting.runtime):
                pass
    return filling + (time.perf_counter() - began) * steps / min(steps, TRIAL_STEPS)
