"""The only training loop. It yields rows; whoever calls it prints and saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.batches import Batches
from finetune.errors import TrainingError
from finetune.models.staged import StagedNetwork
from finetune.training.freeze import set_trainable, trainable, training_mode
from finetune.training.optim import Average, build_optimizer, set_rate, stage_groups
from finetune.training.runtime import Runtime
from finetune.training.schedule import Schedule

TICK = 0.2  # seconds between two signs of life
CURE = "lower the learning rate, add warm-up or set clip_norm"
SHORTEST_ROW = 100  # steps; an epoch of a few images does not deserve a row of its own


@dataclass(frozen=True)
class Phase:
    """One phase in plain values. `stages` train; `start` is the first stage that runs (those before are cached).

    `optimizer` and its `arguments` are torch's own; `schedule` multiplies the learning rate by a function of the part
    done. `steps` is the phase's length; `clip_norm` bounds the gradient's 2-norm; `ema` is the average's decay. With
    `adapters` only low-rank adapters and the head train.
    """

    name: str
    stages: tuple[str, ...]
    steps: int
    optimizer: str
    arguments: Mapping[str, Any]
    schedule: Schedule
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None
    layer_decay: float = 1.0
    norms: str = "hold"
    keep: str = "last"
    start: int = 0
    adapters: bool = False


@dataclass(frozen=True)
class Tick:
    """A sign of life within an epoch: loss and accuracy are of the training images since the last row."""

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float


@dataclass(frozen=True)
class Row:
    """The end of an epoch, or of several very short ones. `learning_rate` is the head-most group's at its last step."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_accuracy: float | None
    learning_rate: float
    images_per_second: float
    seconds: float


def train(
    network: StagedNetwork,
    batches: Batches,
    phase: Phase,
    runtime: Runtime,
    *,
    first_epoch: int = 0,
    validate: Callable[[], float] | None = None,
) -> Iterator[Tick | Row]:
    """Trains in place for `phase.steps` steps. When a Row comes, the network holds the weights that the row speaks of;
    at the last row of a phase with `keep="best"` it holds those of the best row.

    `first_epoch` is the number of epochs that earlier phases used up; order and augmentation go on from there.
    `validate` gives the validation accuracy of the network as it stands. TrainingError when the loss or a weight is not
    finite.
    """
    set_trainable(network, phase.stages, adapters=phase.adapters)
    groups = stage_groups(network, phase.arguments["lr"], phase.layer_decay)
    optimizer = build_optimizer(groups, phase.optimizer, phase.arguments)
    average = Average(trainable(network), phase.ema) if phase.ema else None
    best = Best(network) if phase.keep == "best" else None
    meter = Meter(runtime.device)
    step = epoch = 0
    while step < phase.steps:
        training_mode(network, phase.stages, phase.norms, adapters=phase.adapters)
        for inputs, labels in batches.epoch(first_epoch + epoch):
            set_rate(optimizer, phase.schedule(step / phase.steps))
            _step(network, inputs, labels, phase, runtime, optimizer, meter)
            if average:
                average.update()
            step += 1
            if meter.tick_due():
                yield meter.tick(epoch + 1, step, phase.steps)
            if step == phase.steps:
                break
        epoch += 1
        if meter.steps >= SHORTEST_ROW or step == phase.steps:
            if average:
                average.swap()
            row = meter.row(epoch, step, optimizer.param_groups[-1]["lr"], validate)
            _refuse_lost_weights(network, epoch, step)
            if best:
                best.offer(row)
            if step == phase.steps and best:
                best.restore()
            yield row
            meter.started = time.perf_counter()  # what the caller did with the row was not training
            if average and step < phase.steps:
                average.swap()


def _refuse_lost_weights(network: StagedNetwork, epoch: int, step: int) -> None:
    """The loss is that of the step before; the last step of a row may still break the weights."""
    state = network.state_dict().values()
    if not all(bool(t.isfinite().all()) for t in state if t.is_floating_point()):
        raise TrainingError(f"the weights are no longer finite numbers (epoch {epoch}, after step {step}); {CURE}")


def _step(
    network: StagedNetwork,
    inputs: Tensor,
    labels: Tensor,
    phase: Phase,
    runtime: Runtime,
    optimizer: torch.optim.Optimizer,
    meter: Meter,
) -> None:
    """One step. `labels` are classes (int64, N), or shares of the classes where images are mixed (float, N×classes)."""
    with runtime.autocast():
        logits = network.run(inputs, start=phase.start)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=phase.label_smoothing)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if phase.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(trainable(network), phase.clip_norm)
    optimizer.step()
    meter.add(loss.detach(), logits.detach(), labels)


class Meter:
    """Sums of loss and right answers, kept on the device so that no step waits for them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last_tick = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self.loss = torch.zeros((), device=self.device)
        self.right = torch.zeros((), dtype=torch.int64, device=self.device)
        self.images = self.steps = 0
        self.started = time.perf_counter()

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """`labels`: int64, N, or the shares of the classes, float N×classes, of which the largest counts."""
        self.loss += loss * len(labels)
        self.right += (logits.argmax(1) == (labels if labels.dim() == 1 else labels.argmax(1))).sum()
        self.images += len(labels)
        self.steps += 1

    def tick_due(self) -> bool:
        return time.perf_counter() - self.last_tick >= TICK

    def tick(self, epoch: int, step: int, steps: int) -> Tick:
        loss, accuracy = self._mean_loss(epoch, step), int(self.right) / self.images  # waits for the device
        self.last_tick = time.perf_counter()
        speed = self.images / (self.last_tick - self.started)
        return Tick(epoch, step, steps, loss, accuracy, speed)

    def row(self, epoch: int, step: int, learning_rate: float, validate: Callable[[], float] | None) -> Row:
        """Closes the row: `images_per_second` is of training alone, `seconds` has the validation too."""
        loss, accuracy = self._mean_loss(epoch, step), int(self.right) / self.images
        speed = self.images / (time.perf_counter() - self.started)
        validation = validate() if validate else None
        seconds = time.perf_counter() - self.started
        self._clear()
        return Row(epoch, loss, accuracy, validation, learning_rate, speed, seconds)

    def _mean_loss(self, epoch: int, step: int) -> float:
        loss = float(self.loss) / self.images
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise TrainingError(
                f"the loss is no longer a finite number (epoch {epoch}, at or shortly before step {step}); {CURE}"
            )
        return loss


class Best:
    """Keeps the weights and buffers of the row with the best validation accuracy; the earlier of two equal ones."""

    def __init__(self, network: StagedNetwork) -> None:
        self.network = network
        self.accuracy = -1.0
        self.state: dict[str, Tensor] = {}

    def offer(self, row: Row) -> None:
        assert row.validation_accuracy is not None, "keep: best needs validation images"
        if row.validation_accuracy > self.accuracy:
            self.accuracy = row.validation_accuracy
            self.state = {name: t.detach().clone() for name, t in self.network.state_dict().items()}

    def restore(self) -> None:
        self.network.load_state_dict(self.state)
