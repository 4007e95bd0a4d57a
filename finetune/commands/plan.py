"""`finetune plan`: says what a recipe would train and for how long; trains nothing."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import torch

from finetune.commands.auto_stages import resolve_auto
from finetune.commands.baselines import needs_source_features, scratch_phase
from finetune.commands.interpolate import planned_mixes
from finetune.commands.source_task import SourceTask
from finetune.data.augment.affine import Augment
from finetune.data.folds import fold_numbers
from finetune.data.image_dataset import ImageSet
from finetune.data.loader import Batches
from finetune.data.normalize import Normalizer
from finetune.errors import DataError, SettingError
from finetune.io.outputs import check_output
from finetune.models.registry import build_model
from finetune.recipe.schema import AdaptRecipe, Phase, PretrainRecipe
from finetune.report.plots import grid_picture
from finetune.report.report import json_values
from finetune.report.rows import INTERPOLATED
from finetune.report.stage_answer import StageAnswer
from finetune.report.statistics import group_count, mcnemar_detectable, mcnemar_images
from finetune.run.cache_plan import CacheManager, PhaseCache, image_batches
from finetune.run.confidence import MIN_IMAGES, no_folds, no_promise, too_few
from finetune.run.context import TrainContext, make_context
from finetune.run.data import RunData
from finetune.run.memory import phase_memory, shape_network
from finetune.run.options import RunOptions, start_run
from finetune.run.phases import phase_adapters, phase_config
from finetune.run.setup import RecipeLike, RunSetup, find_source, open_adapt, open_pretrain, open_recipe
from finetune.train.abstention import images_needed
from finetune.train.activation_cache import CachePart
from finetune.train.device import seeded, translate_oom
from finetune.train.freeze import set_trainable
from finetune.train.loop import Training
from finetune.train.memory import MemoryEstimate
from finetune.train.optim import stage_groups

GRID_ROWS = GRID_VERSIONS = 8  # of the picture that --show-augment makes
DIFFERING = (0.02, 0.05, 0.1, 0.2)  # shares of the test images
TRIAL_STEPS, TRIAL_IMAGES = 6, 64  # for the estimate of seconds


def augment_grid(
    train: ImageSet,
    normalize: Normalizer,
    augment: Augment | None,
    seed: int,
    *,
    rows: int = GRID_ROWS,
    versions: int = GRID_VERSIONS,
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Some images of `train`, uint8, N×V×H×W×C, and their classes, as `grid_picture` takes them.

    The first version of an image is the evaluation view, the others are what a run with this seed trains on in its
    first epochs, made by the same code, mixing included. The images are the first ones of each class, in turn. `train`
    is all that the run trains on: an image's place decides how it is augmented.
    """
    first: list[list[int]] = [[] for _ in train.class_names]
    for index, label in enumerate(train.labels.tolist()):
        if len(first[label]) < rows:
            first[label].append(index)
    chosen = [own[turn] for turn in range(rows) for own in first if turn < len(own)][:rows]
    device, classes = normalize.scale.device, len(train.class_names)
    labels = train.labels.to(device)
    batches = Batches(
        train.images, labels, batch_size=1, seed=seed, normalize=normalize, augment=augment, classes=classes
    )
    found = []
    for index in chosen:
        seen = [normalize(train.images[torch.tensor([index])].to(device))]
        seen += [batches.at(epoch, index)[0] for epoch in range(versions - 1)]
        found.append(normalize.denormalize(torch.cat(seen)).permute(0, 2, 3, 1).cpu().numpy())
    return np.stack(found), [train.class_names[int(train.labels[index])] for index in chosen]


@dataclass(frozen=True)
class CacheEstimate:
    """The caching of a phase's frozen stages up to `behind`, which run `passes` times instead of at every step.

    Their activations, `bytes` in all, are kept `where`: in memory, in a file, or None. `says` is a sentence on it, or
    on why nothing is cached.
    """

    behind: str | None
    passes: int
    where: str | None
    bytes: int
    says: str


@dataclass(frozen=True)
class PhasePlan:
    """One phase to come. `learning_rates` are each stage's at the schedule's top; `l2_sp` pulls towards the source.

    `seconds` estimates the phase's steps, without validation, and the passes that fill its cache, unless it is that of
    an earlier phase; of a solved head the pass over the images, without what is then solved. `cached`: the frozen
    part is run once, or for each view. `memory`: what a step needs, as far as shapes tell.
    """

    name: str
    trains: list[str]
    frozen: list[str]
    trainable_parameters: int
    learning_rates: dict[str, float]
    l2_sp: float | None
    norms: str
    cached: bool
    cache: CacheEstimate
    augmented: bool
    steps: int
    batch_size: int
    seconds: float
    memory: MemoryEstimate


@dataclass(frozen=True)
class Power:
    """What the test images can show of one training against another, with 80 % power.

    Where they answer the share `differing` of the images differently: the smallest difference of accuracy, a fraction
    (None: none), and the test images that a difference of one point would take.
    """

    differing: float
    detectable: float | None
    images_for_one_point: int


def test_power(images: int) -> list[Power]:
    """For so many test images, at several shares of images that two trainings answer differently."""
    return [
        Power(share, mcnemar_detectable(round(share * images), images), mcnemar_images(round(share * images), images))
        for share in DIFFERING
    ]


@dataclass(frozen=True)
class CalibrationPlan:
    """What a temperature, a promise and a novelty score would be fitted on.

    how: images held out for `validation`, or `folds` of the training images after so many `trainings` more; None where
    nothing is fitted. images: how many these are. max_error: what is to be promised, None for nothing; images_needed:
    that this takes at least, if none of their answers is wrong. says: sentences on it.
    """

    how: str | None
    images: int
    trainings: int
    max_error: float | None
    images_needed: int | None
    says: list[str]


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
    calibration: CalibrationPlan
    power: list[Power] = field(default_factory=list)
    groups: int | None = None
    """Groups of test images, which `power` leaves out; None where no two images share one."""
    where: StageAnswer | None = None
    """What `train: auto` comes to; None where no phase has it."""
    mixes: str | None = None
    """What the row `interpolated` would try, in words; None where it is not asked for."""

    def to_dict(self) -> dict[str, Any]:
        """For programs: the same as JSON values."""
        return json_values(asdict(self))


def plan(
    recipe: RecipeLike,
    source: str | Path | None = None,
    target: str | None = None,
    *,
    model: str | None = None,
    shots: int | None = None,
    show_augment: str | Path | None = None,
    **options: Unpack[RunOptions],
) -> Plan:
    """What each phase would train, at which rates, for how long. An adapt recipe needs `source`.

    `show_augment` names a picture to be made of training images as the phases would see them. Seconds are measured on a
    few steps of a copy whose weights are thrown away. The rest, and errors, are as for pretrain and adapt.
    """
    with start_run(options, source, target, recipe) as call:
        if show_augment is not None:
            check_output(show_augment, "--show-augment", [".png"], inputs=call.reads)
        located = find_source(source, call) if source is not None else None
        overrides = call.overrides({"model.name": model}, {"data.name": target, "data.shots": shots})
        checked = open_recipe(recipe, overrides, located.architecture if located is not None else None)
        if isinstance(checked, AdaptRecipe) and located is None:
            raise SettingError(
                "an adapt recipe depends on its source: name one, for example --from checkpoints/mnist.safetensors"
            )
        if isinstance(checked, PretrainRecipe) and located is not None:
            raise SettingError(
                "--from goes with an adapt recipe; this is a pretrain recipe, which starts from random weights"
            )
        needs_features, answer, mixes = False, None, None
        setup: RunSetup
        if isinstance(checked, AdaptRecipe):
            assert located is not None
            setup = opened = open_adapt(located, checked, call)
            checked, answer = resolve_auto(checked, opened, call)
            needs_features = needs_source_features(checked, opened.classifier.class_names, setup.data.class_names)
            phases = [*checked.phases]
            phases += [scratch_phase(checked, len(setup.data.train))] if "scratch" in checked.compare else []
        else:
            setup, phases = open_pretrain(checked, call), [*checked.phases]
        context = make_context(checked, setup, call.console, needs_features=needs_features)
        if isinstance(checked, AdaptRecipe) and INTERPOLATED in checked.rows:
            task = SourceTask(opened.source, opened.classifier, opened.data.class_names, context, 0, call.data_root)
            mixes = planned_mixes(task, checked.retain)
        if show_augment is not None:
            grid = augment_grid(setup.data.train, context.normalize, context.augment, checked.seed)
            grid_picture(*grid, Path(show_augment), call.console.note)
            call.console.note(f"wrote {show_augment}")
        return replace(_plan_phases(checked, phases, setup, context), where=answer, mixes=mixes)


def _plan_phases(
    recipe: PretrainRecipe | AdaptRecipe, phases: list[Phase], setup: RunSetup, context: TrainContext
) -> Plan:
    data = setup.data
    with seeded(recipe.seed):
        network = build_model(setup.model, len(data.class_names), setup.arguments)
        setup.runtime.place(network)
        caches = CacheManager(network, phases, context)
        shapes = shape_network(setup.model, setup.arguments, len(data.class_names))
        planned = [
            _phase_plan(
                caches,
                number,
                phase_memory(shapes, phase, setup.spec, len(data.train), setup.runtime, source=recipe.kind == "adapt"),
            )
            for number, phase in enumerate(phases)
        ]
    return Plan(
        kind=recipe.kind,
        model=setup.model,
        data=data.name,
        train=len(data.train),
        validation=len(data.validation),
        test=len(data.test),
        phases=planned,
        calibration=_calibration_plan(recipe, data),
        power=test_power(len(data.test)) if recipe.kind == "adapt" else [],
        groups=group_count(data.test.group_indices()),
    )


def _calibration_plan(recipe: PretrainRecipe | AdaptRecipe, data: RunData) -> CalibrationPlan:
    folds, max_error = None, None
    if isinstance(recipe, AdaptRecipe):
        folds, max_error = recipe.calibration_folds, recipe.max_error
    how, images, trainings, said = "validation", len(data.validation), 0, ""
    if images < MIN_IMAGES and folds is not None:
        how, images, trainings = "folds", len(data.train), folds
        try:
            fold_numbers(data.train, folds)
        except DataError as error:
            said = no_folds(folds, error)
    if images < MIN_IMAGES and not said:
        said = too_few(images)
    needed = None if max_error is None else images_needed(max_error, 0)
    if said:
        return CalibrationPlan(None, 0, 0, max_error, needed, [said, *no_promise(max_error)])
    on = f"{images:,} validation images"
    if how == "folds":
        on = f"the answers to {images:,} images out of fold, which takes {trainings} trainings more"
    says = [f"calibrated on {on}"]
    if max_error is not None and needed is not None:
        enough = "there are" if images >= needed else "there are only"
        says.append(
            f"at most {100 * max_error:g} % wrong takes at least {needed:,} of them without a mistake, to be promised; "
            f"{enough} {images:,}"
        )
    return CalibrationPlan(how, images, trainings, max_error, needed, says)


def _phase_plan(caches: CacheManager, number: int, memory: MemoryEstimate) -> PhasePlan:
    network, phase, context = caches.network, caches.phases[number], caches.context
    stages = phase.trained_stages(network.stages)
    caching = caches.planner.plan()[number]
    with phase_adapters(phase, network):
        parameters = set_trainable(network, stages, adapters=phase.lora is not None)
        groups = stage_groups(network, phase.optimizer.lr, phase.layer_decay) if phase.optimizer is not None else []
        steps = phase.steps_for(len(context.data.train))
        seconds = _estimate(caches, number, caching, stages, steps)
    return PhasePlan(
        name=phase.name,
        trains=list(stages),
        frozen=[stage for stage in network.stages if stage not in stages],
        trainable_parameters=parameters,
        learning_rates={group.stage: group.lr for group in groups},
        l2_sp=phase.l2_sp,
        norms=phase.norms if phase.lora is None else "hold_all",
        cached=caching.start > 0,
        cache=CacheEstimate(
            network.stages[caching.start - 1] if caching.start else None,
            caching.passes,
            caching.where,
            caching.size,
            str(caching),
        ),
        augmented=context.augment is not None and phase.augment and phase.solver is None,
        steps=steps,
        batch_size=phase.batch_size,
        seconds=seconds,
        memory=memory,
    )


def _estimate(caches: CacheManager, number: int, caching: PhaseCache, stages: tuple[str, ...], steps: int) -> float:
    """Seconds for the phase, from a pass of a few images and a few timed steps at a learning rate of 0, scaled up."""
    phase, context = caches.phases[number], caches.context
    batches, passing = _time_steps(caches, number, caching)
    if phase.solver is not None:
        return passing
    trial = copy.deepcopy(caches.network)
    seconds = 0.0
    for count in (1, min(steps, TRIAL_STEPS)):  # the first step warms up and is not counted
        began = time.perf_counter()
        planned = phase_config(phase, stages, count, caching.start, context.loss_balance())
        still = replace(
            planned, keep="last", l2_sp=None, arguments={**planned.arguments, "lr": 0.0}
        )  # nothing to choose or to break
        with translate_oom(phase.name, phase.batch_size):
            for _ in Training(trial, batches, still, context.runtime):
                pass
        seconds = time.perf_counter() - began
    return passing + seconds * steps / min(steps, TRIAL_STEPS)


def _time_steps(caches: CacheManager, number: int, caching: PhaseCache) -> tuple[Batches, float]:
    """Batches like the phase's, of a few images where activations are kept, and seconds for the passes it makes.

    Those that an earlier phase has made are not counted again.
    """
    phase, context = caches.phases[number], caches.context
    if not caching.start:
        return image_batches(phase, context), 0.0
    train = context.data.train
    count = min(len(train), max(phase.batch_size, TRIAL_IMAGES))
    caches.cache.parts["trial"] = CachePart(train.images[:count], training=True)
    began = time.perf_counter()
    kept = caches.cache.outputs(caches.network, "trial", caching.start)
    seconds = (time.perf_counter() - began) * caching.passes * len(train) / count
    labels = train.labels[:count].to(kept.device)
    batches = Batches(kept, labels, batch_size=phase.batch_size, seed=context.seed)
    return batches, 0.0 if caches.planner.shares(number, caching) else seconds
