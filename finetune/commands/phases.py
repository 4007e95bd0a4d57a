"""Runs a recipe's phases through the loop: rows go to the screen and to files, and snapshots are kept on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from finetune.commands.caching import CachePlan
from finetune.commands.keeper import Keeper
from finetune.commands.legs import Leg
from finetune.commands.outputs import Outputs, append_metrics
from finetune.commands.phase_values import adapters_of, loop_phase, phase_steps, trained_stages
from finetune.commands.session import Session
from finetune.commands.setting import Setting
from finetune.commands.solving import solved_head
from finetune.data.images import ImageSet
from finetune.errors import NonFiniteError
from finetune.models.staged import StagedNetwork
from finetune.recipe.phase import Phase
from finetune.reporting.console import Console, PhaseView
from finetune.reporting.report import EpochRow, Frozen, PhaseSummary
from finetune.reporting.tables import percent
from finetune.training import loop
from finetune.training.activations import VALIDATION
from finetune.training.freeze import set_trainable
from finetune.training.lora import merged
from finetune.training.meter import Row, Tick
from finetune.training.proof import Proof
from finetune.training.runtime import memory_told

MOST_NAMED = 8  # images in one message


@dataclass(frozen=True)
class Watch:
    """Who hears of a run's rows: screen, files, and the keeper of weights (None for a run that is only a comparison).

    `after_row(network, epoch, epochs)` may print more of a finished row.
    """

    console: Console
    outputs: Outputs
    keeper: Keeper | None
    after_row: Callable[[StagedNetwork, int, int], None] | None = None


def run_phases(
    network: StagedNetwork, phases: Sequence[Phase], setting: Setting, watch: Watch, leg: Leg
) -> list[PhaseSummary]:
    """Trains `network` in place through all phases that are not over yet and returns the histories of all."""
    caches = CachePlan(network, phases, setting)
    for number, phase in enumerate(phases):
        if number < len(leg.facts.phases):
            continue
        title = f"phase {number + 1}/{len(phases)} {phase.name}" if len(phases) > 1 else f"phase {phase.name}"
        with memory_told(phase.name, phase.batch_size):
            done = _run_phase(caches, number, watch, title, leg)
        caches.over(number)
        leg.over(*done)
    return leg.facts.phases


def _run_phase(caches: CachePlan, number: int, watch: Watch, title: str, leg: Leg) -> tuple[PhaseSummary, int]:
    network, phase = caches.network, caches.phases[number]
    if phase.solver is not None:
        return _solve_phase(caches, number, watch, title, leg.session), 0
    with adapters_of(phase, network):
        return _train_phase(caches, number, watch, title, leg)


def _solve_phase(caches: CachePlan, number: int, watch: Watch, title: str, session: Session) -> PhaseSummary:
    """The best linear head on the features as they are now; one pass over the images, no epochs."""
    network, phase = caches.network, caches.phases[number]
    stages = trained_stages(network.stages, phase.train)
    parameters = set_trainable(network, stages)
    watch.console.note(f"{title}: {', '.join(stages)} ({parameters:,} parameters), solved on frozen features")
    proof = Proof(network, phase.name, stages)
    caches.begin(number)
    row = solved_head(network, caches.setting)
    proof.check()
    _record(row, phase, 1, watch, PhaseView(watch.console, None, None), session)
    _keep(network, phase, watch, f"after phase {phase.name}")
    return PhaseSummary(phase.name, list(stages), parameters, True, [_epoch_row(row)], _frozen(proof))


def _train_phase(caches: CachePlan, number: int, watch: Watch, title: str, leg: Leg) -> tuple[PhaseSummary, int]:
    network, phase, setting = caches.network, caches.phases[number], caches.setting
    train = setting.material.train
    stages = trained_stages(network.stages, phase.train)
    parameters = set_trainable(network, stages, adapters=phase.lora is not None)
    history, state, begun = leg.taken_up()
    if state is not None:
        network.load_state_dict(state.network)  # before anything is computed with the frozen part
    # What each process has computed for itself (a solved head) may differ in last bits between unlike processors.
    setting.runtime.group.same([*network.parameters(), *network.buffers()])
    proof = Proof(network, phase.name, stages, phase.norms, adapters=phase.lora is not None, begun=begun)
    caching = caches.begin(number)
    batches = caches.batches(number, caching)
    if caching.where is not None and isinstance(batches.inputs, Tensor):
        proof.keep(f"activations of {network.stages[caching.start - 1]}", batches.inputs)
    steps = phase_steps(phase, len(train))
    epochs = -(-steps // batches.steps_per_epoch)
    training = loop.Training(
        network,
        batches,
        loop_phase(phase, stages, steps, caching.start),
        setting.runtime,
        first_epoch=leg.facts.epochs,
        validate=_validation(network, setting, caches.depth(number)),
    )
    if state is not None:
        training.restore(state)
        leg.session.restore_chance()
    title = f"{title}: {', '.join(stages)} train ({parameters:,} parameters), {steps:,} steps, {caching}"
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
            leg.moved(training, history, proof.digests, row=isinstance(event, Row))
    proof.check()
    return PhaseSummary(phase.name, list(stages), parameters, caching.start > 0, history, _frozen(proof)), epochs


def _frozen(proof: Proof) -> Frozen | None:
    return Frozen(proof.count, proof.sha256) if proof.count else None


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


def _validation(network: StagedNetwork, setting: Setting, frozen: int) -> Callable[[], float] | None:
    """What tells the accuracy on the validation images, while `stages[:frozen]` stay as they are now."""
    labels = setting.material.validation.labels
    if not len(labels):
        return None
    logits = setting.cache.onward(network, VALIDATION, frozen)
    return lambda: float((logits().argmax(1).cpu() == labels).double().mean())


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
    if session.group.leader:
        append_metrics(watch.outputs, values)
    session.record(values)
    validation = "" if row.validation_accuracy is None else f", validation {percent(row.validation_accuracy)}"
    view.row(
        f"  epoch {row.epoch}/{epochs}: loss {row.train_loss:.4f}, accuracy {percent(row.train_accuracy)}{validation}, "
        f"{row.images_per_second:,.0f} images/s, {row.seconds:.1f} s"
    )
