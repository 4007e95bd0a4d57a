"""`finetune plan`: what a recipe would do, without training anything."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from finetune.commands.caching import CachePlan, Caching
from finetune.commands.compare import scratch_phase
from finetune.commands.opening import open_both, open_images
from finetune.commands.phase_values import adapters_of, image_batches, loop_phase, phase_steps, trained_stages
from finetune.commands.recipes import RecipeLike, open_recipe
from finetune.commands.setting import open_setting
from finetune.commands.show_augment import augment_grid
from finetune.commands.target import looks_at_target
from finetune.data.batches import Batches
from finetune.data.root import data_root
from finetune.errors import SettingError
from finetune.models.registry import build_model
from finetune.recipe.schema import AdaptRecipe
from finetune.reporting.console import Console
from finetune.reporting.pictures import grid_picture
from finetune.source import locate
from finetune.training.activations import Part
from finetune.training.freeze import set_trainable
from finetune.training.loop import Training
from finetune.training.optim import stage_groups
from finetune.training.runtime import choose_runtime, memory_told, seeded

TRIAL_STEPS = 6
TRIAL_IMAGES = 64


@dataclass(frozen=True)
class CachePlanned:
    """What of a phase's frozen stages is run `passes` times and not at every step: those up to the one named `behind`.

    What comes out, `bytes` in all, is kept `where`: in memory or in a file; None: nowhere. `says`: all that, or why
    not, in words.
    """

    behind: str | None
    passes: int
    where: str | None
    bytes: int
    says: str


@dataclass(frozen=True)
class PhasePlan:
    """One phase to come. `learning_rates` are each stage's at the schedule's top.

    `seconds` estimates the phase's steps, without validation, and the passes that fill its cache, unless it is that of
    an earlier phase; of a solved head the pass over the images, without what is then solved. `cached`: the frozen
    part is run once, or for each view.
    """

    name: str
    trains: list[str]
    frozen: list[str]
    trainable_parameters: int
    learning_rates: dict[str, float]
    norms: str
    cached: bool
    cache: CachePlanned
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
        looked = looks_at_target(read, classifier.class_names, material.class_names)
    else:
        spec, arguments, material = open_images(read, data_root(root), console)
        model, looked = read.model.name, False
    setting = open_setting(read, material, spec, runtime, console, looked=looked)
    if show_augment is not None:
        grid = augment_grid(material.train, setting.normalise, setting.augment, read.seed)
        grid_picture(*grid, Path(show_augment))
        console.note(f"wrote {show_augment}")
    phases = list(read.phases)
    if isinstance(read, AdaptRecipe) and "scratch" in read.compare:
        phases.append(scratch_phase(read, len(material.train)))
    with seeded(read.seed):
        network = build_model(model, len(material.class_names), arguments)
        runtime.place(network)
        caches = CachePlan(network, phases, setting)
        planned = [_phase_plan(caches, number) for number in range(len(phases))]
    return Plan(
        kind=read.kind,
        model=model,
        data=material.name,
        train=len(material.train),
        validation=len(material.validation),
        test=len(material.test),
        phases=planned,
    )


def _phase_plan(caches: CachePlan, number: int) -> PhasePlan:
    network, phase, setting = caches.network, caches.phases[number], caches.setting
    stages = trained_stages(network.stages, phase.train)
    caching = caches.cachings()[number]
    with adapters_of(phase, network):
        parameters = set_trainable(network, stages, adapters=phase.lora is not None)
        groups = stage_groups(network, phase.optimizer.lr, phase.layer_decay) if phase.optimizer is not None else []
        steps = phase_steps(phase, len(setting.material.train))
        seconds = _estimate(caches, number, caching, stages, steps)
    return PhasePlan(
        name=phase.name,
        trains=list(stages),
        frozen=[stage for stage in network.stages if stage not in stages],
        trainable_parameters=parameters,
        learning_rates={group.stage: group.lr for group in groups},
        norms=phase.norms if phase.lora is None else "hold_all",
        cached=caching.start > 0,
        cache=CachePlanned(
            network.stages[caching.start - 1] if caching.start else None,
            caching.passes,
            caching.where,
            caching.size,
            str(caching),
        ),
        augmented=setting.augment is not None and phase.augment and phase.solver is None,
        steps=steps,
        batch_size=phase.batch_size,
        seconds=seconds,
    )


def _estimate(caches: CachePlan, number: int, caching: Caching, stages: tuple[str, ...], steps: int) -> float:
    """Seconds for the phase, from a pass of a few images and a few timed steps at a learning rate of 0, scaled up."""
    phase, setting = caches.phases[number], caches.setting
    batches, passing = _tried(caches, number, caching)
    if phase.solver is not None:
        return passing
    trial = copy.deepcopy(caches.network)
    seconds = 0.0
    for count in (1, min(steps, TRIAL_STEPS)):  # the first step warms up and is not counted
        began = time.perf_counter()
        planned = loop_phase(phase, stages, count, caching.start)
        still = replace(
            planned, keep="last", arguments={**planned.arguments, "lr": 0.0}
        )  # nothing to choose or to break
        with memory_told(phase.name, phase.batch_size):
            for _ in Training(trial, batches, still, setting.runtime):
                pass
        seconds = time.perf_counter() - began
    return passing + seconds * steps / min(steps, TRIAL_STEPS)


def _tried(caches: CachePlan, number: int, caching: Caching) -> tuple[Batches, float]:
    """Batches like the phase's, of a few images where activations are kept, and seconds for the passes it makes.

    Those that an earlier phase has made are not counted again.
    """
    phase, setting = caches.phases[number], caches.setting
    if not caching.start:
        return image_batches(phase, setting), 0.0
    train = setting.material.train
    count = min(len(train), max(phase.batch_size, TRIAL_IMAGES))
    caches.cache.parts["trial"] = Part(train.images[:count], learnt=True)
    began = time.perf_counter()
    kept = caches.cache.outputs(caches.network, "trial", caching.start)
    seconds = (time.perf_counter() - began) * caching.passes * len(train) / count
    labels = train.labels[:count].to(kept.device)
    batches = Batches(kept, labels, batch_size=phase.batch_size, seed=setting.seed)
    return batches, 0.0 if caches.shares(number, caching) else seconds
