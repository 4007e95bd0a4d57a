"""Running loss and accuracy of a phase: progress ticks and epoch rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup

TICK = 0.2  # seconds between two ticks


@dataclass(frozen=True)
class Tick:
    """Progress within an epoch: loss and accuracy over the training images since the last row."""

    epoch: int
    step: int
    loss: float
    accuracy: float
    images_per_second: float


@dataclass(frozen=True)
class ValidationScore:
    """Accuracy on the validation images, and the balanced one where classes are balanced."""

    accuracy: float
    balanced_accuracy: float | None = None


@dataclass(frozen=True)
class Row:
    """Results of an epoch, or of several very short ones. `learning_rate` is the head's at its last step.

    `validation_balanced_accuracy` is there where classes are balanced.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_accuracy: float | None
    learning_rate: float
    images_per_second: float
    seconds: float
    validation_balanced_accuracy: float | None = None


class Meter:
    """Sums of losses and correct predictions, kept on the device so that no step waits for them.

    Each process of a group sums up its own images; `images` counts those of all.
    """

    def __init__(self, device: torch.device, group: ProcessGroup = SINGLE_PROCESS) -> None:
        self.group = group
        self.loss = torch.zeros((), device=device)
        self.right = torch.zeros((), dtype=torch.int64, device=device)
        self.last_tick = self.started = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self.loss.zero_()
        self.right.zero_()
        self.images = self.steps = 0
        self.earlier = 0.0  # seconds that this row took before it was resumed

    def start(self) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def seconds(self) -> float:
        """Seconds since the row began."""
        return self.earlier + time.perf_counter() - self.started

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, images: int) -> None:
        """Adds a step of `images` over all processes. `loss` is the mean over this process's images, maybe none.

        `labels`: int64, N, or the classes' shares, float, N×classes, of which the largest counts as the class.
        """
        if len(labels):
            self.loss += loss * len(labels)
            self.right += (logits.argmax(1) == (labels if labels.dim() == 1 else labels.argmax(1))).sum()
        self.images += images
        self.steps += 1

    def tick_due(self) -> bool:
        return time.perf_counter() - self.last_tick >= TICK

    def tick(self, epoch: int, step: int) -> Tick:
        loss, accuracy = self._means()  # waits for the device
        self.last_tick = time.perf_counter()
        return Tick(epoch, step, loss, accuracy, self.images / self.seconds())

    def row(self, epoch: int, learning_rate: float, validate: Callable[[], ValidationScore] | None) -> Row:
        """Ends the row. Its `images_per_second` are of training alone, its `seconds` include the validation."""
        loss, accuracy = self._means()
        speed = self.images / self.seconds()
        found = validate() if validate else None
        seconds = self.seconds()
        self._clear()
        validation, balanced = (found.accuracy, found.balanced_accuracy) if found is not None else (None, None)
        return Row(epoch, loss, accuracy, validation, learning_rate, speed, seconds, balanced)

    def _means(self) -> tuple[float, float]:
        loss, right = self.group.sum(torch.tensor([float(self.loss), int(self.right)], dtype=torch.float64)).tolist()
        return loss / self.images, right / self.images

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The sums so far: tensors, with one value a process where there are several, and plain numbers."""
        tensors = {"loss": self.loss, "right": self.right}
        if self.group.size > 1:
            tensors = {n: self.group.all_gather(t.reshape(1), [1] * self.group.size) for n, t in tensors.items()}
        return tensors, {"images": self.images, "steps": self.steps, "seconds": self.seconds()}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Sets the sums to a `state`. From another number of processes, the leader takes all."""
        for name in ("loss", "right"):
            sums = tensors[name].flatten()
            if len(sums) == self.group.size:
                own = sums[self.group.rank]
            else:
                own = sums.sum() if self.group.leader else torch.zeros_like(sums[0])
            getattr(self, name).copy_(own)
        self.images, self.steps, self.earlier = numbers["images"], numbers["steps"], numbers["seconds"]
