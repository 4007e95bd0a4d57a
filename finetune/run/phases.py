"""Runs a recipe's phases: trains, logs rows, saves snapshots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass

from torch import Tensor

from finetune.data.image_dataset import ImageSet
from finetune.errors import NonFiniteError
from finetune.models.staged import StagedNetwork
from finetune.recipe.schema import Phase
from finetune.report.console import Console, PhaseView
from finetune.report.report import EpochRow, FrozenDigest, PhaseSummary
from finetune.report.tables import percent
from finetune.run.cache_plan import CacheManager
from finetune.run.context import TrainContext
from finetune.run.interrupt import InterruptCheckpoint
from finetune.run.output_paths import OutputPaths, append_metrics
from finetune.run.progress import NetworkProgress
from finetune.train import loop
from finetune.train.activation_cache import TRAIN, VALIDATION
from finetune.train.balance import LossBalance, balanced_accuracy
from finetune.train.device import translate_oom
from finetune.train.freeze import set_trainable
from finetune.train.frozen_check import FrozenCheck
from finetune.train.inference import top_class
from finetune.train.linear_probe import fit_linear_head, head_score
from finetune.train.lora import check_adaptable, low_rank_adapters, merged
from finetune.train.meter import Row, Tick, ValidationScore
from finetune.train.optim import make_schedule

MAX_NAMED = 8  # images in one message


def phase_config(
    phase: Phase, stages: tuple[str, ...], steps: int, start: int, balance: LossBalance | None = None
) -> loop.PhaseConfig:
    """A recipe's phase in the plain values that the loop takes."""
    assert phase.optimizer is not None, "a phase with a solver does not go through the loop"
    # Fields of the same name and meaning in both.
    shared = {"name", "label_smoothing", "l2_sp", "clip_norm", "ema", "layer_decay", "norms", "keep"}
    return loop.PhaseConfig(
        stages=stages,
        steps=steps,
        start=start,
        optimizer=phase.optimizer.name,
        arguments=phase.optimizer.model_dump(exclude={"name"}),
        schedule=make_schedule(**phase.schedule.model_dump()),
        adapters=phase.lora is not None,
        balance=balance,
        **phase.model_dump(include=shared),
    )


def check_adapters(network: StagedNetwork, phases: Sequence[Phase]) -> None:
    """Raises SettingError, before any work, for a phase whose adapters could not be made."""
    for phase in phases:
        if phase.lora is not None:
            check_adaptable(network, phase.trained_stages(network.stages))


def phase_adapters(phase: Phase, network: StagedNetwork) -> AbstractContextManager[None]:
    """Adds the phase's adapters, if it has any, while a block runs, and merges them into the weights at its end."""
    if phase.lora is None:
        return nullcontext()
    return low_rank_adapters(network, phase.trained_stages(network.stages), **phase.lora.model_dump())


@dataclass(frozen=True)
class RunLogger:
    """Where a run's rows go: screen, files, and the checkpoint of an interrupted run (None for a mere comparison).

    `after_row(network, epoch, epochs)` may print more of a finished row.
    """

    console: Console
    outputs: OutputPaths
    interrupt_checkpoint: InterruptCheckpoint | None
    after_row: Callable[[StagedNetwork, int, int], None] | None = None


def run_phases(
    network: StagedNetwork, phases: Sequence[Phase], context: TrainContext, logger: RunLogger, progress: NetworkProgress
) -> list[PhaseSummary]:
    """Trains `network` in place through all phases that are not done yet and returns the histories of all."""
    caches = CacheManager(network, phases, context)
    for number in range(len(progress.state.phases), len(phases)):
        phase = phases[number]
        with translate_oom(phase.name, phase.batch_size):
            done = _PhaseRun(caches, number, logger, progress).run()
        caches.exit_phase(number)
        progress.phase_done(*done)
    return progress.state.phases


class _PhaseRun:
    """The run of phase `number`."""

    def __init__(self, caches: CacheManager, number: int, logger: RunLogger, progress: NetworkProgress) -> None:
        self.caches, self.number, self.logger, self.progress = caches, number, logger, progress
        self.network, self.phase, self.context = caches.network, caches.phases[number], caches.context
        self.stages = self.phase.trained_stages(self.network.stages)
        place = f"{number + 1}/{len(caches.phases)} " if len(caches.phases) > 1 else ""
        self.title = f"phase {place}{self.phase.name}: {', '.join(self.stages)}"

    def run(self) -> tuple[PhaseSummary, int]:
        """The summary, and the number of epochs."""
        if self.phase.solver is not None:
            return self._solve(), 0
        with phase_adapters(self.phase, self.network):
            return self._train()

    def _solve(self) -> PhaseSummary:
        """Computes the best linear head on the features as they are now; one pass over the images, no epochs."""
        network, phase, console = self.network, self.phase, self.logger.console
        parameters = set_trainable(network, self.stages)
        console.note(f"{self.title} ({parameters:,} parameters), solved on frozen features")
        check = FrozenCheck(network, phase.name, self.stages)
        self.caches.enter_phase(self.number)
        row = run_solver_phase(network, self.context)
        check.check()
        self._log_row(row, 1, PhaseView(console, None, None), f"after phase {phase.name}")
        return self._summary(parameters, True, [_epoch_row(row)], check)

    def _train(self) -> tuple[PhaseSummary, int]:
        network, phase, context, progress = self.network, self.phase, self.context, self.progress
        adapters = phase.lora is not None
        parameters = set_trainable(network, self.stages, adapters=adapters)
        history, state, expected = progress.resume_point()
        if state is not None:  # before anything is computed with the frozen part
            progress.load(network, state.network)
        # What each process has computed for itself (a solved head) may differ in last bits between unlike processors.
        context.runtime.group.broadcast_([*network.parameters(), *network.buffers()])
        check = FrozenCheck(network, phase.name, self.stages, phase.norms, adapters=adapters, expected=expected)
        caching = self.caches.enter_phase(self.number)
        batches = self.caches.batches(self.number, caching)
        if caching.where is not None and isinstance(batches.inputs, Tensor):
            check.add(f"activations of {network.stages[caching.start - 1]}", batches.inputs)
        steps = phase.steps_for(len(context.data.train))
        epochs = -(-steps // batches.steps_per_epoch)
        training = loop.Training(
            network,
            batches,
            phase_config(phase, self.stages, steps, caching.start, context.loss_balance()),
            context.runtime,
            first_epoch=progress.state.epochs,
            validate=_validation(network, context, self.caches.planner.phase_depth(self.number)),
            source=context.source,
        )
        if state is not None:
            with progress.run_folder.misfit_is_told():
                training.restore(state)
            progress.run_folder.restore_rng_state()
        title = f"{self.title} train ({parameters:,} parameters), {steps:,} steps, {caching}"
        with self.logger.console.phase(title, steps) as view, _name_bad_images(context.data.train):
            progress.run_folder.requests.hold()
            for event in training:
                if isinstance(event, Tick):
                    view.tick(event.epoch, event.step, event.loss, event.accuracy, event.images_per_second)
                else:
                    history.append(_epoch_row(event))
                    self._log_row(event, epochs, view, f"after epoch {event.epoch} of {epochs} of phase {phase.name}")
                    if self.logger.after_row is not None:
                        self.logger.after_row(network, event.epoch, epochs)
                progress.maybe_snapshot(training, history, check.digests, row=isinstance(event, Row))
        check.check()
        return self._summary(parameters, caching.start > 0, history, check), epochs

    def _log_row(self, row: Row, epochs: int, view: PhaseView, moment: str) -> None:
        """Writes a finished row to files and screen, and the weights as they are now to the interrupt checkpoint."""
        values = {"phase": self.phase.name, **asdict(row)}
        if row.validation_balanced_accuracy is None:
            del values["validation_balanced_accuracy"]
        if self.context.runtime.group.leader:
            append_metrics(self.logger.outputs, values)
        self.progress.run_folder.record(values)
        validation = "" if row.validation_accuracy is None else f", validation {percent(row.validation_accuracy)}"
        if row.validation_balanced_accuracy is not None:
            validation += f" (balanced {percent(row.validation_balanced_accuracy)})"
        accuracy = f"accuracy {percent(row.train_accuracy)}{validation}"
        view.row(
            f"  epoch {row.epoch}/{epochs}: loss {row.train_loss:.4f}, {accuracy}, "
            f"{row.images_per_second:,.0f} images/s, {row.seconds:.1f} s"
        )
        if self.logger.interrupt_checkpoint is not None:
            plain = self.network if self.phase.lora is None else merged(self.network)  # adapters are in no checkpoint
            self.logger.interrupt_checkpoint.update(plain, moment)

    def _summary(self, parameters: int, cached: bool, history: list[EpochRow], check: FrozenCheck) -> PhaseSummary:
        frozen = FrozenDigest(check.count, check.sha256) if check.count else None
        return PhaseSummary(self.phase.name, list(self.stages), parameters, cached, history, frozen)


def run_solver_phase(network: StagedNetwork, context: TrainContext) -> Row:
    """Gives the network the best linear head for the training images, and returns its loss and accuracies."""
    started = time.perf_counter()
    data, cache = context.data, context.cache
    features = cache.outputs(network, TRAIN, -1).float()
    labels, held_labels = data.train.labels, data.validation.labels
    held = (cache.outputs(network, VALIDATION, -1), held_labels) if len(held_labels) else None
    balance = context.loss_balance(solved=True)
    network.set_head(fit_linear_head(features, labels, len(data.class_names), held, balance))
    context.runtime.place(network)
    loss, predicted = head_score(network.head, features, labels, balance)
    found = None
    if held:
        found = _validation_score(head_score(network.head, *held, balance)[1], held_labels, context)
    accuracy = _accuracy(predicted, labels)
    seconds = time.perf_counter() - started
    validation, balanced = (found.accuracy, found.balanced_accuracy) if found is not None else (None, None)
    return Row(1, loss, accuracy, validation, 0.0, len(labels) / seconds, seconds, balanced)


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted.cpu() == labels).double().mean())


def _validation_score(predicted: Tensor, labels: Tensor, context: TrainContext) -> ValidationScore:
    balanced = balanced_accuracy(predicted, labels) if context.balance is not None else None
    return ValidationScore(_accuracy(predicted, labels), balanced)


def _validation(network: StagedNetwork, context: TrainContext, frozen: int) -> Callable[[], ValidationScore] | None:
    """A function that gives the score on the validation images for as long as `stages[:frozen]` do not change."""
    labels = context.data.validation.labels
    if not len(labels):
        return None
    predicted = context.cache.logits_from_cache(network, VALIDATION, frozen, reduce=top_class)
    return lambda: _validation_score(predicted(), labels, context)


def _epoch_row(row: Row) -> EpochRow:
    values = asdict(row)
    for name in ("train_accuracy", "validation_balanced_accuracy"):
        del values[name]
    return EpochRow(**values)


@contextmanager
def _name_bad_images(train: ImageSet) -> Iterator[None]:
    """Adds the images of the step to a NonFiniteError: a few of their files, or their places in the data set."""
    try:
        yield
    except NonFiniteError as error:
        if error.images:
            names = [train.files[i] if train.files else str(i) for i in error.images[:MAX_NAMED]]
            more = len(error.images) - len(names)
            rest = f" and {more} more" if more else ""
            error.args = (f"{error}\nthe images of that step, in {train.origin}: {', '.join(names)}{rest}",)
        raise
