"""Runs a recipe's phases through the loop: a recipe's words become plain values, rows go to the screen and to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from finetune.commands.keeper import Keeper
from finetune.commands.legs import Leg
from finetune.commands.material import Material
from finetune.commands.outputs import Outputs, append_metrics
from finetune.commands.session import Session
from finetune.commands.solving import solved_head
from finetune.data.augment import Augment
from finetune.data.batches import Batches, Normaliser
from finetune.data.images import ImageSet
from finetune.errors import NonFiniteError
from finetune.models.staged import StagedNetwork
from finetune.recipe.phase import LastStages, Phase, Train
from finetune.recipe.schema import AugmentSettings
from finetune.reporting.console import Console, PhaseView
from finetune.reporting.report import EpochRow, PhaseSummary
from finetune.reporting.tables import percent
from finetune.training import loop
from finetune.training.cache import BUDGET, activations, cached_bytes
from finetune.training.evaluation import predictions
from finetune.training.freeze import frozen_prefix, set_trainable
from finetune.training.lora import adaptable, low_rank_adapters, merged
from finetune.training.meter import Row, Tick
from finetune.training.runtime import Runtime, memory_told
from finetune.training.schedule import schedule

MOST_NAMED = 8  # images in one message


@dataclass(frozen=True)
class Setting:
    """What all phases of a run work with."""

    material: Material
    normalise: Normaliser
    augment: Augment | None
    runtime: Runtime
    seed: int


@dataclass(frozen=True)
class Watch:
    """Who hears of a run's rows: screen, files, and the keeper of weights (None for a run that is only a comparison).

    `after_row(network, epoch, epochs)` may print more of a finished row.
    """

    console: Console
    outputs: Outputs
    keeper: Keeper | None
    after_row: Callable[[StagedNetwork, int, int], None] | None = None


def trained_stages(stages: Sequence[str], train: Train) -> tuple[str, ...]:
    """The stages that a phase's `train` means, in the network's order."""
    if train == "all":
        return tuple(stages)
    if train == "head":
        return tuple(stages[-1:])
    if isinstance(train, LastStages):
        return tuple(stages[-train.last :])
    return tuple(stage for stage in stages if stage in train)


def augmentation(settings: AugmentSettings | None) -> Augment | None:
    """The recipe's augmentation in plain values; None when it changes nothing."""
    augment = Augment(**settings.model_dump()) if settings is not None else None
    return augment if augment is not None and augment.changes else None


def phase_steps(phase: Phase, images: int) -> int:
    """A phase's length in steps; the one place where epochs become steps. A solver takes none."""
    if phase.solver is not None:
        return 0
    if phase.steps is not None:
        return phase.steps
    assert phase.epochs is not None
    steps = phase.epochs * -(-images // phase.batch_size)
    steps = max(steps, phase.min_steps or steps)
    return min(steps, phase.max_steps or steps)


def cache_boundary(network: StagedNetwork, phase: Phase, setting: Setting) -> int:
    """How many stages may be run once for the whole phase: the frozen prefix, or 0 when it has to be run each time."""
    images = setting.material.train.images[:1].to(setting.runtime.device)
    prefix = frozen_prefix(network, trained_stages(network.stages, phase.train))
    if prefix == 0 or (setting.augment is not None and phase.augment) or phase.norms == "update":
        return 0
    size = cached_bytes(network, images, setting.normalise, prefix, setting.runtime)
    return prefix if size * len(setting.material.train) <= BUDGET else 0


def loop_phase(phase: Phase, stages: tuple[str, ...], steps: int, start: int) -> loop.Phase:
    """A recipe's phase as the loop takes it."""
    assert phase.optimizer is not None, "a phase with a solver does not go through the loop"
    return loop.Phase(
        name=phase.name,
        stages=stages,
        steps=steps,
        optimizer=phase.optimizer.name,
        arguments=phase.optimizer.model_dump(exclude={"name"}),
        schedule=schedule(**phase.schedule.model_dump()),
        label_smoothing=phase.label_smoothing,
        clip_norm=phase.clip_norm,
        ema=phase.ema,
        layer_decay=phase.layer_decay,
        norms=phase.norms,
        keep=phase.keep,
        start=start,
        adapters=phase.lora is not None,
    )


def run_phases(
    network: StagedNetwork, phases: Sequence[Phase], setting: Setting, watch: Watch, leg: Leg
) -> list[PhaseSummary]:
    """Trains `network` in place through all phases that are not over yet and returns the histories of all."""
    for number, phase in enumerate(phases, 1):
        if number <= len(leg.facts.phases):
            continue
        title = f"phase {number}/{len(phases)} {phase.name}" if len(phases) > 1 else f"phase {phase.name}"
        with memory_told(phase.name, phase.batch_size):
            done = _run_phase(network, phase, setting, watch, title, leg)
        leg.over(*done)
    return leg.facts.phases


def _run_phase(
    network: StagedNetwork, phase: Phase, setting: Setting, watch: Watch, title: str, leg: Leg
) -> tuple[PhaseSummary, int]:
    if phase.solver is not None:
        return _solve_phase(network, phase, setting, watch, title, leg.session), 0
    with adapters_of(phase, network):
        return _train_phase(network, phase, setting, watch, title, leg)


def check_adapters(network: StagedNetwork, phases: Sequence[Phase]) -> None:
    """SettingError, before any work, for a phase whose adapters could not be made."""
    for phase in phases:
        if phase.lora is not None:
            adaptable(network, trained_stages(network.stages, phase.train))


def adapters_of(phase: Phase, network: StagedNetwork) -> AbstractContextManager[None]:
    """The phase's adapters beside the weights while a block runs, added to them when it ends; for most phases none."""
    if phase.lora is None:
        return nullcontext()
    return low_rank_adapters(network, trained_stages(network.stages, phase.train), **phase.lora.model_dump())


def _solve_phase(
    network: StagedNetwork, phase: Phase, setting: Setting, watch: Watch, title: str, session: Session
) -> PhaseSummary:
    """The best linear head on the features as they are now; one pass over the images, no epochs."""
    stages = trained_stages(network.stages, phase.train)
    parameters = set_trainable(network, stages)
    watch.console.note(f"{title}: {', '.join(stages)} ({parameters:,} parameters), solved on frozen features")
    row = solved_head(network, setting.material, setting.normalise, setting.runtime)
    _record(row, phase, 1, watch, PhaseView(watch.console, None, None), session)
    _keep(network, phase, watch, f"after phase {phase.name}")
    return PhaseSummary(phase.name, list(stages), parameters, True, [_epoch_row(row)])


def _train_phase(
    network: StagedNetwork, phase: Phase, setting: Setting, watch: Watch, title: str, leg: Leg
) -> tuple[PhaseSummary, int]:
    train = setting.material.train
    stages = trained_stages(network.stages, phase.train)
    parameters = set_trainable(network, stages, adapters=phase.lora is not None)
    history, state = leg.taken_up()
    if state is not None:
        network.load_state_dict(state.network)  # before anything is computed with the frozen part
    start = cache_boundary(network, phase, setting)
    batches = phase_batches(network, phase, setting, start)
    steps = phase_steps(phase, len(train))
    epochs = -(-steps // batches.steps_per_epoch)
    how = "frozen part run once" if start else "nothing frozen" if len(stages) == len(network.stages) else "not cached"
    training = loop.Training(
        network,
        batches,
        loop_phase(phase, stages, steps, start),
        setting.runtime,
        first_epoch=leg.facts.epochs,
        validate=_validation(network, setting),
    )
    if state is not None:
        training.restore(state)
        leg.session.restore_chance()
    title = f"{title}: {', '.join(stages)} train ({parameters:,} parameters), {steps:,} steps, {how}"
    with watch.console.phase(title, steps) as view, _images_named(train):
        leg.session.requests.hold()
        for event in training:
            if isinstance(event, Tick):
                view.tick(event.epoch, event.step, event.loss, event.accuracy, event.images_per_second)
            else:
                history.append(_epoch_row(event))
                _record(event, phase, epochs, watch, view, leg.session)
                _keep(network, phase, watch, f"after epoch {event.epoch} of {epochs} of phase {phase.name}")
                if watch.after_row is not None:
                    watch.after_row(network, event.epoch, epochs)
            leg.moved(training, history, row=isinstance(event, Row))
    return PhaseSummary(phase.name, list(stages), parameters, start > 0, history), epochs


def _keep(network: StagedNetwork, phase: Phase, watch: Watch, moment: str) -> None:
    if watch.keeper is not None:
        plain = network if phase.lora is None else merged(network)  # adapters are no part of a checkpoint
        watch.keeper.keep(plain, moment)


@contextmanager
def _images_named(train: ImageSet) -> Iterator[None]:
    """Adds to an error about a step's images which they are: a few of their files, or places in the data set."""
    try:
        yield
    except NonFiniteError as error:
        if error.images:
            names = [train.files[i] if train.files else str(i) for i in error.images[:MOST_NAMED]]
            more = len(error.images) - len(names)
            rest = f" and {more} more" if more else ""
            error.args = (f"{error}\nthe images of that step, in {train.origin}: {', '.join(names)}{rest}",)
        raise


def phase_batches(network: StagedNetwork, phase: Phase, setting: Setting, start: int) -> Batches:
    """The phase's batches: of images, or of activations behind the first `start` stages."""
    train, device = setting.material.train, setting.runtime.device
    images, labels = train.images.to(device), train.labels.to(device)
    if start:
        kept = activations(network, images, setting.normalise, start, setting.runtime)
        return Batches(kept, labels, batch_size=phase.batch_size, seed=setting.seed)
    return Batches(
        images,
        labels,
        batch_size=phase.batch_size,
        seed=setting.seed,
        normalise=setting.normalise,
        augment=setting.augment if phase.augment else None,
        classes=len(train.class_names),
    )


def _validation(network: StagedNetwork, setting: Setting) -> Callable[[], float] | None:
    held = setting.material.validation
    if not len(held):
        return None
    images, labels = held.images.to(setting.runtime.device), held.labels

    def validate() -> float:
        return float((predictions(network, images, setting.normalise) == labels).double().mean())

    return validate


def _epoch_row(row: Row) -> EpochRow:
    return EpochRow(
        epoch=row.epoch,
        train_loss=row.train_loss,
        validation_accuracy=row.validation_accuracy,
        learning_rate=row.learning_rate,
        images_per_second=row.images_per_second,
        seconds=row.seconds,
    )


def _record(row: Row, phase: Phase, epochs: int, watch: Watch, view: PhaseView, session: Session) -> None:
    values: dict[str, Any] = {"phase": phase.name, **asdict(row)}
    append_metrics(watch.outputs, values)
    session.record(values)
    validation = "" if row.validation_accuracy is None else f", validation {percent(row.validation_accuracy)}"
    view.row(
        f"  epoch {row.epoch}/{epochs}: loss {row.train_loss:.4f}, accuracy {percent(row.train_accuracy)}{validation}, "
        f"{row.images_per_second:,.0f} images/s, {row.seconds:.1f} s"
    )
