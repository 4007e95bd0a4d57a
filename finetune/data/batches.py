"""Batches of resident data whose order and augmentation are a function of (seed, epoch, image), and of nothing else."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from finetune.data.augment import Augment, augmented
from finetune.data.mapped import Images


def generator(*key: object) -> torch.Generator:
    """A generator that depends on the key alone, for example (seed, epoch, "order")."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Normaliser:
    """Turns uint8 images (N×C×H×W) into a network's input: float, scaled to 0..1, less `mean`, over `std`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.scale = (1 / (255 * torch.tensor(std, dtype=torch.float32))).reshape(-1, 1, 1).to(device)
        self.offset = (-torch.tensor(mean) / torch.tensor(std)).reshape(-1, 1, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.offset, images.float(), self.scale)


class Batches:
    """One epoch after another of (inputs, labels) from tensors that stay in memory.

    `inputs` are uint8 images to be normalised and augmented, or, with `normalise=None`, activations that are passed on
    as they are. The last batch of an epoch may be smaller; every image comes exactly once an epoch.
    """

    def __init__(
        self,
        inputs: Images,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        normalise: Normaliser | None = None,
        augment: Augment | None = None,
    ) -> None:
        assert len(inputs) == len(labels) > 0
        assert augment is None or normalise is not None, "activations cannot be augmented"
        self.inputs, self.labels = inputs, labels
        self.batch_size, self.seed = batch_size, seed
        self.normalise, self.augment = normalise, augment

    @property
    def images_per_epoch(self) -> int:
        return len(self.labels)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, in an order of its own. `epoch` counts over the whole run, phases included."""
        count, device = len(self.labels), self.inputs.device
        order = torch.randperm(count, generator=generator(self.seed, epoch, "order")).to(device)
        numbers = None
        if self.augment is not None and self.augment.numbers:
            drawn = torch.rand(count, self.augment.numbers, generator=generator(self.seed, epoch, "augment"))
            numbers = drawn.to(device)
        for start in range(0, count, self.batch_size):
            index = order[start : start + self.batch_size]
            yield (
                self._prepared(self.inputs[index], numbers[index] if numbers is not None else None),
                self.labels[index],
            )

    def _prepared(self, inputs: Tensor, numbers: Tensor | None) -> Tensor:
        if self.normalise is None:
            return inputs
        images = self.normalise(inputs)
        if numbers is None or self.augment is None:
            return images
        return augmented(images, numbers, self.augment, self.normalise.offset)
