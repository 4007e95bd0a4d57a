"""Runs a recipe's phases: trains, logs rows, saves snapshots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.image_dataset import ImageSet
from finetune.errors import NonFiniteError
from finetune.models.staged import StagedNetwork
from finetune.recipe.phase_schema import Phase
from finetune.report.console import Console, PhaseView
from finetune.report.report import EpochRow, FrozenDigest, PhaseSummary
from finetune.report.tables import percent
from finetune.run.cache_plan import CacheManager
from finetune.run.context import TrainContext
from finetune.run.interrupt import InterruptCheckpoint
from finetune.run.output_paths import OutputPaths, append_metrics
from finetune.run.phase_config import phase_adapters, phase_config
from finetune.run.progress import NetworkProgress
from finetune.run.run_folder import RunFolder
from finetune.train import loop
from finetune.train.activation_cache import TRAIN, VALIDATION
from finetune.train.device import translate_oom
from finetune.train.freeze import set_trainable
from finetune.train.frozen_check import FrozenCheck
from finetune.train.linear_probe import fit_linear_head
from finetune.train.lora import merged
from finetune.train.meter import Row, Tick


def run_solver_phase(network: StagedNetwork, context: TrainContext) -> Row:
    """Gives the network its best head for the images as they are, and returns what that head makes of them."""
    started = time.perf_counter()
    data, cache = context.data, context.cache
    seen = cache.outputs(network, TRAIN, -1).float()
    labels, held_labels = data.train.labels, data.validation.labels
    held = (cache.outputs(network, VALIDATION, -1), held_labels) if len(held_labels) else None
    network.set_head(fit_linear_head(seen, labels, len(data.class_names), held))
    context.runtime.place(network)
    with torch.no_grad():
        logits = network.head(seen).float().cpu()
        validated = network.head(held[0]).argmax(1).cpu() if held else None
    right = float((logits.argmax(1) == labels).double().mean())
    validation = None if validated is None else float((validated == held_labels).double().mean())
    seconds = time.perf_counter() - started
    loss = float(F.cross_entropy(logits, labels))
    return Row(1, loss, right, validation, 0.0, len(labels) / seconds, seconds)


MAX_NAMED = 8  # images in one message


@dataclass(frozen=True)
class RunLogger:
    """Who hears of a run's rows: screen, files, and the keeper of weights (None for a run that is only a comparison).

    `after_row(network, epoch, epochs)` may print more of a finished row.
    """

    console: Console
    outputs: OutputPaths
    interrupt_checkpoint: InterruptCheckpoint | None
    after_row: Callable[[StagedNetwork, int, int], None] | None = None


def run_phases(
    network: StagedNetwork, phases: Sequence[Phase], context: TrainContext, logger: RunLogger, progress: NetworkProgress
) -> list[PhaseSummary]:
    """Trains `network` in place through all phases that are not over yet and returns the histories of all."""
    caches = CacheManager(network, phases, context)
    for number, phase in enumerate(phases):
        if number < len(progress.state.phases):
            continue
        title = f"phase {number + 1}/{len(phases)} {phase.name}" if len(phases) > 1 else f"phase {phase.name}"
        with translate_oom(phase.name, phase.batch_size):
            done = _run_phase(caches, number, logger, title, progress)
        caches.exit_phase(number)
        progress.phase_done(*done)
    return progress.state.phases


def _run_phase(
    caches: CacheManager, number: int, logger: RunLogger, title: str, progress: NetworkProgress
) -> tuple[PhaseSummary, int]:
    network, phase = caches.network, caches.phases[number]
    if phase.solver is not None:
        return _solve_phase(caches, number, logger, title, progress.run_folder), 0
    with phase_adapters(phase, network):
        return _train_phase(caches, number, logger, title, progress)


def _solve_phase(
    caches: CacheManager, number: int, logger: RunLogger, title: str, run_folder: RunFolder
) -> PhaseSummary:
    """The best linear head on the features as they are now; one pass over the images, no epochs."""
    network, phase = caches.network, caches.phases[number]
    stages = phase.trained_stages(network.stages)
    parameters = set_trainable(network, stages)
    logger.console.note(f"{title}: {', '.join(stages)} ({parameters:,} parameters), solved on frozen features")
    proof = FrozenCheck(network, phase.name, stages)
    caches.enter_phase(number)
    row = run_solver_phase(network, caches.context)
    proof.check()
    _log_row(row, phase, 1, logger, PhaseView(logger.console, None, None), run_folder)
    _update_interrupt_checkpoint(network, phase, logger, f"after phase {phase.name}")
    return PhaseSummary(phase.name, list(stages), parameters, True, [_epoch_row(row)], _frozen_digest(proof))


def _train_phase(
    caches: CacheManager, number: int, logger: RunLogger, title: str, progress: NetworkProgress
) -> tuple[PhaseSummary, int]:
    network, phase, context = caches.network, caches.phases[number], caches.context
    train = context.data.train
    stages = phase.trained_stages(network.stages)
    parameters = set_trainable(network, stages, adapters=phase.lora is not None)
    history, state, expected = progress.resume_point()
    if state is not None:
        network.load_state_dict(state.network)  # before anything is computed with the frozen part
    # What each process has computed for itself (a solved head) may differ in last bits between unlike processors.
    context.runtime.group.broadcast_([*network.parameters(), *network.buffers()])
    proof = FrozenCheck(network, phase.name, stages, phase.norms, adapters=phase.lora is not None, expected=expected)
    caching = caches.enter_phase(number)
    batches = caches.batches(number, caching)
    if caching.where is not None and isinstance(batches.inputs, Tensor):
        proof.keep(f"activations of {network.stages[caching.start - 1]}", batches.inputs)
    steps = phase.steps_for(len(train))
    epochs = -(-steps // batches.steps_per_epoch)
    training = loop.Training(
        network,
        batches,
        phase_config(phase, stages, steps, caching.start),
        context.runtime,
        first_epoch=progress.state.epochs,
        validate=_validation_accuracy(network, context, caches.phase_depth(number)),
    )
    if state is not None:
        training.restore(state)
        progress.run_folder.restore_rng_state()
    title = f"{title}: {', '.join(stages)} train ({parameters:,} parameters), {steps:,} steps, {caching}"
    with logger.console.phase(title, steps) as view, _name_bad_images(train):
        progress.run_folder.requests.hold()
        for event in training:
            if isinstance(event, Tick):
                view.tick(event.epoch, event.step, event.loss, event.accuracy, event.images_per_second)
            else:
                history.append(_epoch_row(event))
                _log_row(event, phase, epochs, logger, view, progress.run_folder)
                _update_interrupt_checkpoint(
                    network, phase, logger, f"after epoch {event.epoch} of {epochs} of phase {phase.name}"
                )
                if logger.after_row is not None:
                    logger.after_row(network, event.epoch, epochs)
            progress.maybe_snapshot(training, history, proof.digests, row=isinstance(event, Row))
    proof.check()
    return PhaseSummary(phase.name, list(stages), parameters, caching.start > 0, history, _frozen_digest(proof)), epochs


def _frozen_digest(proof: FrozenCheck) -> FrozenDigest | None:
    return FrozenDigest(proof.count, proof.sha256) if proof.count else None


def _update_interrupt_checkpoint(network: StagedNetwork, phase: Phase, logger: RunLogger, moment: str) -> None:
    if logger.interrupt_checkpoint is not None:
        plain = network if phase.lora is None else merged(network)  # adapters are no part of a checkpoint
        logger.interrupt_checkpoint.update(plain, moment)


@contextmanager
def _name_bad_images(train: ImageSet) -> Iterator[None]:
    """Adds to an error about a step's images which they are: a few of their files, or places in the data set."""
    try:
        yield
    except NonFiniteError as error:
        if error.images:
            names = [train.files[i] if train.files else str(i) for i in error.images[:MAX_NAMED]]
            more = len(error.images) - len(names)
            rest = f" and {more} more" if more else ""
            error.args = (f"{error}\nthe images of that step, in {train.origin}: {', '.join(names)}{rest}",)
        raise


def _validation_accuracy(network: StagedNetwork, context: TrainContext, frozen: int) -> Callable[[], float] | None:
    """What tells the accuracy on the validation images, while `stages[:frozen]` stay as they are now."""
    labels = context.data.validation.labels
    if not len(labels):
        return None
    logits = context.cache.logits_from_cache(network, VALIDATION, frozen)
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


def _log_row(row: Row, phase: Phase, epochs: int, logger: RunLogger, view: PhaseView, run_folder: RunFolder) -> None:
    values: dict[str, Any] = {"phase": phase.name, **asdict(row)}
    if run_folder.group.leader:
        append_metrics(logger.outputs, values)
    run_folder.record(values)
    validation = "" if row.validation_accuracy is None else f", validation {percent(row.validation_accuracy)}"
    view.row(
        f"  epoch {row.epoch}/{epochs}: loss {row.train_loss:.4f}, accuracy {percent(row.train_accuracy)}{validation}, "
        f"{row.images_per_second:,.0f} images/s, {row.seconds:.1f} s"
    )
