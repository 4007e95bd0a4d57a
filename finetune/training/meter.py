"""How a phase is going: sums over its steps become signs of life and rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TICK = 0.2  # seconds between two signs of life


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


class Meter:
    """Sums of loss and right answers, kept on the device so that no step waits for them."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.right = torch.zeros((), dtype=torch.int64, device=device)
        self.last_tick = self.started = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self.loss.zero_()
        self.right.zero_()
        self.images = self.steps = 0
        self.earlier = 0.0  # seconds of this row that another process trained

    def start(self) -> None:
        """The clock begins to run."""
        self.started = time.perf_counter()

    def seconds(self) -> float:
        """Of the row under way."""
        return self.earlier + time.perf_counter() - self.started

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """`labels`: int64, N, or the shares of the classes, float N×classes, of which the largest counts."""
        self.loss += loss * len(labels)
        self.right += (logits.argmax(1) == (labels if labels.dim() == 1 else labels.argmax(1))).sum()
        self.images += len(labels)
        self.steps += 1

    def tick_due(self) -> bool:
        return time.perf_counter() - self.last_tick >= TICK

    def tick(self, epoch: int, step: int, steps: int) -> Tick:
        loss, accuracy = float(self.loss) / self.images, int(self.right) / self.images  # waits for the device
        self.last_tick = time.perf_counter()
        return Tick(epoch, step, steps, loss, accuracy, self.images / self.seconds())

    def row(self, epoch: int, learning_rate: float, validate: Callable[[], float] | None) -> Row:
        """Closes the row: `images_per_second` is of training alone, `seconds` has the validation too."""
        loss, accuracy = float(self.loss) / self.images, int(self.right) / self.images
        speed = self.images / self.seconds()
        validation = validate() if validate else None
        seconds = self.seconds()
        self._clear()
        return Row(epoch, loss, accuracy, validation, learning_rate, speed, seconds)
