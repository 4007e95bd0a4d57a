"""The training loop: runs one phase and yields its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.data.loader import Batches, keyed_generator
from finetune.distributed.process_group import translate_lost_peer
from finetune.errors import NonFiniteError, SettingError
from finetune.models.staged import StagedNetwork
from finetune.text import listed
from finetune.train.balance import LossBalance, balanced_cross_entropy
from finetune.train.device import Runtime
from finetune.train.freeze import set_trainable, trainable, training_mode
from finetune.train.meter import Meter, Row, Tick, ValidationScore
from finetune.train.nan_guard import make_nan_guard
from finetune.train.optim import (
    Schedule,
    SourcePull,
    WeightAverage,
    build_optimizer,
    check_optimizer,
    load_optimizer,
    optimizer_tensors,
    set_rate,
    stage_groups,
)
from finetune.train.parallel import copy_full, fill_tensor, running_statistics, wrap_parallel

HINT = "lower the learning rate, add warm-up or set clip_norm"
FIRST = "`finetune verify` tells whether those of the source do; after an earlier phase, lower that one's learning rate"
MIN_ROW_STEPS = 100  # epochs of fewer steps share a row


class BestWeights:
    """A copy of the weights and buffers of the row with the best validation accuracy, the first of equal ones.

    Of a row that has it, the balanced accuracy counts.
    """

    def __init__(self, network: StagedNetwork) -> None:
        self.network = network
        self.accuracy = -1.0
        self.state: dict[str, Tensor] = {}

    def offer(self, row: Row) -> None:
        assert row.validation_accuracy is not None, "keep: best needs validation images"
        balanced = row.validation_balanced_accuracy
        accuracy = row.validation_accuracy if balanced is None else balanced
        if accuracy > self.accuracy:
            self.accuracy = accuracy
            self.state = {name: t.detach().clone() for name, t in self.network.state_dict().items()}

    def restore(self) -> None:
        self.network.load_state_dict(self.state)


@dataclass(frozen=True)
class PhaseConfig:
    """One phase in plain values. `stages` train; `start` is the first stage that runs (those before are cached).

    `optimizer` and its `arguments` are torch's own; `schedule` gives the learning rate's factor for the fraction of
    `steps` that is done. `l2_sp` is the strength of a pull towards the source's weights. `clip_norm` bounds the
    gradient's 2-norm; `ema` is the decay of the weights' moving average. With `adapters` only low-rank adapters and the
    head train. `norms` (hold, update or hold_all) is what normalisation layers do, see `freeze.training_modules`;
    `keep` says whether the last or the best weights stay; `layer_decay` lowers the rate by this factor from stage to
    stage towards the input; `balance` is what the loss makes of uneven classes.
    """

    name: str
    stages: tuple[str, ...]
    steps: int
    optimizer: str
    arguments: Mapping[str, Any]
    schedule: Schedule
    label_smoothing: float = 0.0
    l2_sp: float | None = None
    clip_norm: float | None = None
    ema: float | None = None
    layer_decay: float = 1.0
    norms: str = "hold"
    keep: str = "last"
    start: int = 0
    adapters: bool = False
    balance: LossBalance | None = None


@dataclass(frozen=True)
class TrainState:
    """The full state of a phase between two steps, except the RNG state: enough to resume it to the same bytes.

    network: its tensors by name, as they are trained (not the average). tensors: those of optimizer, average, best
    weights and meter. numbers: JSON values. The tensors are copies, on the CPU.
    """

    network: dict[str, Tensor]
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


class Training:
    """The training of one phase; iterating trains `network` in place for `phase.steps` steps and yields Ticks and Rows.

    When it yields a Row, the network has the weights that the row is about; at the last row of a phase with
    `keep="best"` it has those of the best row. Between two events, but not after the last one, `state` copies the state
    of the phase, which `restore` returns to, in another process too.

    In a group, each process iterates its own Training over its share of the batches, and all start with the same
    network; events, `state` and `restore` come in all of them at the same step.

    `first_epoch`: the number of epochs of earlier phases, from where order and augmentation continue. `validate`: gives
    the current score of the network on the validation images. `source`: what `l2_sp` pulls to. NonFiniteError when a
    loss or a weight is not finite; a loss is checked before it changes a weight. SettingError where a step has too few
    images for batch normalisation.
    """

    def __init__(
        self,
        network: StagedNetwork,
        batches: Batches,
        phase: PhaseConfig,
        runtime: Runtime,
        *,
        first_epoch: int = 0,
        validate: Callable[[], ValidationScore] | None = None,
        source: StagedNetwork | None = None,
    ) -> None:
        set_trainable(network, phase.stages, adapters=phase.adapters)
        self.network, self.batches, self.phase, self.runtime = network, batches, phase, runtime
        self.group = runtime.group
        self.first_epoch, self.validate = first_epoch, validate
        self.parallel = wrap_parallel(network, batches, phase.start, runtime)
        self.trained = self.parallel.network
        groups = stage_groups(self.trained, phase.arguments["lr"], phase.layer_decay)
        self.optimizer = build_optimizer(groups, phase.optimizer, phase.arguments, fused=not runtime.is_sharded)
        self.guard = make_nan_guard(self.optimizer, runtime)
        self.average = WeightAverage(trainable(self.trained), phase.ema) if phase.ema else None
        self.pull = _source_pull(self.trained, source, phase.l2_sp) if phase.l2_sp is not None else None
        self.best = BestWeights(network) if phase.keep == "best" else None
        self.meter = Meter(runtime.device, runtime.group)
        self.step = self.epoch = self.batch = 0  # steps and epochs of the phase, batches of the current epoch
        self.tick_due = False
        self.statistics: list[Tensor] = []

    def __iter__(self) -> Iterator[Tick | Row]:
        phase, meter = self.phase, self.meter
        meter.start()
        while self.step < phase.steps:
            training_mode(self.trained, phase.stages, phase.norms, adapters=phase.adapters)
            self.statistics = running_statistics(self.trained)
            for inputs, labels in self.batches.epoch(self.first_epoch + self.epoch, self.batch):
                set_rate(self.optimizer, phase.schedule(self.step / phase.steps))
                self._step(inputs, labels)
                self.step += 1
                self.batch += 1
                if self.step == phase.steps:
                    break
                if self.tick_due:
                    self._raise_if_bad(self.guard.first_bad_step())
                    yield meter.tick(self.epoch + 1, self.step)
            self.epoch, self.batch = self.epoch + 1, 0
            if meter.steps >= MIN_ROW_STEPS or self.step == phase.steps:
                yield self._row()
                meter.start()  # what the caller did with the row was not training
                if self.step < phase.steps:
                    self.parallel.offload()
                    if self.average:
                        self.average.swap()

    def state(self) -> TrainState:
        """The current state; only the leader of a group gets the tensors. NonFiniteError if they are not finite."""
        average, best = self.average, self.best
        swapped = average is not None and average.swapped
        if average is not None and swapped:
            average.swap()
        self._raise_if_bad(self.guard.first_bad_step())
        network = copy_full(self.trained.state_dict(), self.group.leader)
        self._check_finite(network)
        sums, numbers = self.meter.state()
        numbers |= {"step": self.step, "epoch": self.epoch, "batch": self.batch}
        parts = {"optimizer": optimizer_tensors(self.optimizer), "meter": sums}
        if average is not None:
            parts["average"] = {str(place): t for place, t in enumerate(average.values)}
            numbers["averaged"] = average.steps
        if best is not None:
            parts["best"] = best.state
            numbers["best"] = best.accuracy
        tensors = {f"{part}/{name}": t for part, inside in parts.items() for name, t in inside.items()}
        copied = TrainState(network, copy_full(tensors, self.group.leader), numbers)
        if average is not None and swapped:
            average.swap()
        return copied

    def restore(self, state: TrainState) -> None:
        """Returns to the state of another training of the same phase and batches; all of a group have `state`.

        ValueError, before anything changes, for what cannot be such a state.
        """
        self._check_state(state)
        tensors, numbers = state.tensors, state.numbers
        self.parallel.load(state.network)
        load_optimizer(self.optimizer, with_prefix(tensors, "optimizer/"))
        self.step, self.epoch, self.batch = numbers["step"], numbers["epoch"], numbers["batch"]
        self.meter.restore(with_prefix(tensors, "meter/"), numbers)
        if self.average is not None:
            self.average.steps = numbers["averaged"]
            for place, value in enumerate(self.average.values):
                fill_tensor(value, tensors[f"average/{place}"])
        if self.best is not None:
            like = self.network.state_dict()
            self.best.accuracy = numbers["best"]
            self.best.state = {n: torch.empty_like(like[n]).copy_(t) for n, t in with_prefix(tensors, "best/").items()}

    def _check_state(self, state: TrainState) -> None:
        """ValueError for missing or strange tensors and counts."""
        own, numbers = self.trained.state_dict(), state.numbers
        require_like(own, state.network)
        if best := with_prefix(state.tensors, "best/"):  # none before the first row
            require_like(own, best)
        if self.average is not None:
            values = {str(place): t for place, t in enumerate(self.average.values)}
            require_like(values, with_prefix(state.tensors, "average/"))
        check_optimizer(self.optimizer, with_prefix(state.tensors, "optimizer/"))
        meter = {name: t.flatten()[0] for name, t in with_prefix(state.tensors, "meter/").items() if t.numel()}
        require_like({"loss": self.meter.loss, "right": self.meter.right}, meter)
        counts = ["step", "epoch", "batch", "images", "steps", *(["averaged"] if self.average is not None else [])]
        if odd := [name for name in counts if type(numbers.get(name)) is not int or numbers[name] < 0]:
            raise ValueError(f"expected counts from 0: {listed(odd)}")
        if numbers["step"] >= self.phase.steps:
            raise ValueError(f"it is at step {numbers['step']:,}, and the phase has {self.phase.steps:,}")

    def _step(self, inputs: Tensor, labels: Tensor) -> None:
        """One optimizer step. `labels`: classes (int64, N), or for mixed images the classes' shares (N×classes)."""
        phase, group = self.phase, self.group
        own, images = self.batches.local_and_global_count(self.batch)
        self._seed_step()
        with self.runtime.autocast(), self._explain_single_image():
            logits = self.parallel.forward(inputs)
        if group.size > 1 and len(labels) > max(own, 1):  # the rest are other processes' images
            logits, labels = logits[: max(own, 1)], labels[: max(own, 1)]
        loss = balanced_cross_entropy(logits.float(), labels, phase.balance, label_smoothing=phase.label_smoothing)
        wait_for_flags = group.all_reduce_max_async(self.guard.is_bad(loss.detach()), self.meter.tick_due())
        self.optimizer.zero_grad()
        with translate_lost_peer():
            # Gradients are averaged over the processes; this weight makes that the mean over all images of the batch.
            share = loss if group.size == 1 else loss * (own * group.size / images)
            share.backward()  # type: ignore[no-untyped-call]
        bad, self.tick_due = wait_for_flags()
        self._raise_if_bad(self.step + 1 if bad else None)
        self.guard.block_update(loss.detach(), self.step + 1)
        if self.pull is not None:
            self.pull.add_gradient()
        if phase.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(trainable(self.trained), phase.clip_norm)
        self.optimizer.step()
        group.average(self.statistics)
        if self.average:
            self.average.update()
        self.meter.add(loss.detach(), logits.detach()[:own], labels[:own], images)

    @contextmanager
    def _explain_single_image(self) -> Iterator[None]:
        """Raises SettingError where batch normalisation cannot train on the one image of a step."""
        try:
            yield
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            count, size = len(self.batches.labels), self.batches.batch_size
            cure = f"batch_size is {size}: make it 2 or more" if count > 1 else "there is one to learn from: add more"
            raise SettingError(
                f"phase {self.phase.name}: this network's batch normalisation sees one value of each channel of an "
                f"image here, so that a step needs two images or more; {cure}, or hold the statistics (norms: hold_all)"
            ) from None

    def _seed_step(self) -> None:
        """Seeds dropout by step and rank in a group, so that processes differ and no RNG state has to be saved.

        A process on its own continues with its RNG state.
        """
        if self.group.size > 1:
            key = (self.batches.seed, self.first_epoch + self.epoch, self.batch, self.group.rank, "chance")
            torch.manual_seed(keyed_generator(*key).initial_seed())

    def _row(self) -> Row:
        self._raise_if_bad(self.guard.first_bad_step())
        if self.average:
            self.average.swap()
        self.parallel.sync_to_eval_model()
        row = self.meter.row(self.epoch, self.optimizer.param_groups[-1]["lr"], self.validate)
        self._check_finite(self.network.state_dict())
        if self.best:
            self.best.offer(row)
            if self.step == self.phase.steps:
                self.best.restore()
        return row

    def _raise_if_bad(self, step: int | None) -> None:
        """Raises NonFiniteError with the images of the `step` whose loss is not finite, if there is one."""
        if step is None:
            return
        epoch, batch = divmod(step - 1, self.batches.steps_per_epoch)
        at = f"at step {step:,} of {self.phase.steps:,} (epoch {epoch + 1})"
        found = f"the loss is no longer a finite number {at}; stopped before that step changed the weights; {HINT}"
        if step == 1:  # nothing was learnt yet, at whatever rate
            found = f"the loss is not a finite number {at}: the weights that this phase starts from overflow; {FIRST}"
        raise NonFiniteError(
            found,
            images=self.batches.images_of(self.first_epoch + epoch, batch),
        )

    def _check_finite(self, weights: Mapping[str, Tensor]) -> None:
        """Raises NonFiniteError for weights that are not finite: the loss says nothing of the last step's update."""
        bad = [name for name, t in weights.items() if t.is_floating_point() and not bool(t.isfinite().all())]
        if bad:
            raise NonFiniteError(
                f"the weights are no longer finite numbers after step {self.step:,} (epoch {self.epoch + 1}): "
                f"{listed(bad)}; {HINT}"
            )


def _source_pull(trained: StagedNetwork, source: StagedNetwork | None, strength: float) -> SourcePull:
    """The pull of all that trains but the head towards the source."""
    assert source is not None, "l2_sp: there is a source wherever a recipe may have it"
    head, theirs = set(trained.head_tensors()), dict(source.named_parameters())
    own = {name: p for name, p in trained.named_parameters() if p.requires_grad and name not in head}
    return SourcePull(list(own.values()), [theirs[name].detach() for name in own], strength)


def require_like(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """ValueError unless `found` has the names of `wanted`, with the same shapes and types."""
    if odd := sorted(wanted.keys() ^ found.keys()):
        raise ValueError(f"tensors are missing or too many: {listed(odd)}")
    if odd := sorted(n for n, t in found.items() if (t.shape, t.dtype) != (wanted[n].shape, wanted[n].dtype)):
        raise ValueError(f"tensors have another shape or type: {listed(odd)}")


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
