"""Batches whose order and augmentation depend only on (seed, epoch, image)."""

from __future__ import annotations

import copy
import hashlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from finetune.batching import batches_per_epoch
from finetune.data.augment.affine import Augment, augment_affine
from finetune.data.augment.mixup import apply_mix, sample_mix
from finetune.data.augment.photo import augment_photo
from finetune.data.normalize import ImageArray, Normalizer

Key = TypeVar("Key")
Result = TypeVar("Result")
AHEAD = 3  # results that wait, at most
THREADS = 2
VALUES_PER_BLOCK = 2**20  # numbers prepared in one go


def prefetch(
    read: Callable[[Key], Result], keys: Iterable[Key], *, threads: int = THREADS, ahead: int = AHEAD
) -> Generator[Result, None, None]:
    """Yields `read(key)` for every key, in order, computed in threads up to `ahead` keys early.

    An error of `read` is raised where its result would have come. When the caller stops early, no new read begins.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    try:
        remaining = iter(keys)
        begun: deque[Future[Result]] = deque(pool.submit(read, key) for key in islice(remaining, ahead))
        while begun:
            result = begun.popleft().result()
            begun.extend(pool.submit(read, key) for key in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def keyed_generator(*key: object) -> torch.Generator:
    """A random generator seeded by the key alone, for example (seed, epoch, "order")."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def balanced_draws(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """The images (int64, N) of an epoch with every class of `labels` (int64, N) equally often, give or take one.

    Draws are counted over all epochs, and the classes take turns; so do the images of a class, in an order that is
    shuffled each time round. Over many epochs the images of a class thus come equally often, and an epoch's draws are a
    function of (labels, seed, epoch).
    """
    count, classes = len(labels), torch.unique(labels).tolist()
    drawn = torch.empty(count, dtype=torch.int64)
    for turn, label in enumerate(classes):
        images = (labels == label).nonzero().squeeze(1)
        start = (turn - epoch * count) % len(classes)  # of the epoch's draws, the first that is of this class
        if start >= count:
            continue
        positions = torch.arange(start, count, len(classes))
        rounds = (epoch * count + positions) // len(classes)  # how often the class has come before
        first, last = int(rounds[0]) // len(images), int(rounds[-1]) // len(images)
        orders = [
            torch.randperm(len(images), generator=keyed_generator(seed, label, lap, "balance"))
            for lap in range(first, last + 1)
        ]
        drawn[positions] = images[torch.cat(orders)[rounds - first * len(images)]]
    return drawn


@dataclass(frozen=True)
class EpochRandomness:
    """The random choices of one epoch. Tensors have one row an image, except `order`: which image comes when.

    first_row: of the first image among the inputs, which is not 0 where they have several views of the images. drawn:
    where an image may come several times an epoch, changed anew each time, the image of each draw; then the tensors
    have one row a draw, and `order` says which draw comes when.
    """

    order: Tensor
    numbers: Tensor | None
    mix: Tensor | None
    first_row: int = 0
    drawn: Tensor | None = None

    def images(self, rows: Tensor) -> Tensor:
        """The images of these rows: the rows themselves unless they are draws."""
        return rows if self.drawn is None else self.drawn.to(rows.device)[rows]


class Batches:
    """Batches of (inputs, labels), epoch by epoch, whose order and augmentation depend only on (seed, epoch, image).

    `inputs` are uint8 images to be normalized and augmented, or, with `normalize=None`, activations that are passed on
    as they are. Inputs that are not a tensor are read a few batches ahead. Batches come on the device of `labels`. The
    last batch of an epoch may be smaller, but one of a single image joins the one before; every image comes exactly
    once an epoch. Labels are int64, N; where `augment` mixes images they are float32, N×classes, the share of each
    class, and `classes` has to be given.

    balanced: the classes come equally often instead, each epoch having as many draws as there are images. The images of
    a class come in turn, in an order that is shuffled each time round, from epoch to epoch; see `balanced_draws`.

    With `views`, images are augmented in that many ways only: epoch e like epoch e mod `views`. Activations are then
    those of all views, one view after the other.
    """

    def __init__(
        self,
        inputs: Tensor | ImageArray,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        normalize: Normalizer | None = None,
        augment: Augment | None = None,
        classes: int | None = None,
        views: int | None = None,
        balanced: bool = False,
    ) -> None:
        assert len(inputs) == len(labels) * (views if views and normalize is None else 1) > 0
        assert augment is None or normalize is not None, "activations cannot be augmented"
        assert augment is None or not augment.mixes or classes is not None, "mixed targets need the number of classes"
        assert augment is None or not augment.mixes or views is None, "mixed images have no views"
        self.inputs, self.labels = inputs, labels
        self.batch_size, self.seed, self.classes = batch_size, seed, classes
        self.normalize, self.augment, self.views = normalize, augment, views
        self.balanced = balanced
        self.rank, self.world_size = 0, 1

    def shard(self, rank: int, world_size: int) -> Batches:
        """The batches of one of several processes: of each batch a run of its images.

        All processes together have the batch as it would be. One with fewer than two images gets others' too, since
        batch normalisation may need two; they come last, and `local_and_global_count` tells how many are its own.
        """
        own = copy.copy(self)
        own.rank, own.world_size = rank, world_size
        return own

    @property
    def steps_per_epoch(self) -> int:
        return batches_per_epoch(len(self.labels), self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, from number `first` on (0: all). `epoch` counts over the whole run, all phases."""
        random = self._random(epoch)
        rows = (self._rows(random, *self._own_range(batch)) for batch in range(first, self.steps_per_epoch))
        if isinstance(self.inputs, Tensor):
            while some := list(islice(rows, 1 if random.mix is not None else self._batches_per_block())):
                row = torch.cat(some)
                images, labels = self._batch(self.inputs[random.images(row) + random.first_row], row, random)
                counts = [len(own) for own in some] if random.mix is None else [len(labels)]
                yield from zip(torch.split(images, counts), torch.split(labels, counts), strict=True)
            return
        with closing(prefetch(lambda row: (self._read(row, random), row), rows)) as batches:
            for inputs, row in batches:
                yield self._batch(inputs, row, random)

    def _batches_per_block(self) -> int:
        """How many batches are prepared in one go: fewer, larger operations, that still fit into a cache."""
        one = self.inputs.shape[1:] if self.normalize is None else (self.normalize.pixels(self.inputs),)
        return max(1, VALUES_PER_BLOCK // (self.batch_size * math.prod(one)))

    def local_and_global_count(self, batch: int) -> tuple[int, int]:
        """How many images of a batch this process has, perhaps none, and how many all processes have together."""
        start, stop, size = self._shard_range(batch)
        return stop - start, size

    def _shard_range(self, batch: int) -> tuple[int, int, int]:
        """Start and stop of this process's images in the epoch's order, and the size of the whole batch."""
        begin = batch * self.batch_size
        last = batch == self.steps_per_epoch - 1
        size = len(self.labels) - begin if last else self.batch_size
        return begin + size * self.rank // self.world_size, begin + size * (self.rank + 1) // self.world_size, size

    def _own_range(self, batch: int) -> tuple[int, int]:
        """The same without the size; in a group at least two images where the batch has them, the spare ones last."""
        start, stop, size = self._shard_range(batch)
        return start, max(stop, start + min(size, 2)) if self.world_size > 1 else stop

    def images_of(self, epoch: int, batch: int) -> list[int]:
        """The indices of the images in a batch of an epoch, over all processes."""
        start, random = batch * self.batch_size, self._random(epoch)
        stop = None if batch == self.steps_per_epoch - 1 else start + self.batch_size
        return [int(image) for image in random.images(random.order[start:stop])]

    def at(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """One image (1×...) and its label as `epoch` has them; not where classes are balanced."""
        assert not self.balanced, "an epoch may have an image several times, or not at all"
        random = self._random(epoch)
        position = int((random.order == index).nonzero())
        row = self._rows(random, position, position + 1)
        return self._batch(self._read(row, random), row, random)

    def input_fn(self, epoch: int) -> Callable[[Tensor], Tensor]:
        """A function from image indices to the inputs that `epoch` has for them; not where images are mixed."""
        random = self._random(epoch)
        assert random.mix is None, "a mixed image is not one image's input"
        assert random.drawn is None, "a draw is not an image"
        return lambda rows: self._batch(self._read(rows, random), rows, random)[0]

    def _random(self, epoch: int) -> EpochRandomness:
        count, device = len(self.labels), self.labels.device
        order = torch.randperm(count, generator=keyed_generator(self.seed, epoch, "order"))
        view = epoch % self.views if self.views else epoch
        numbers = mix = None
        if self.augment is not None and self.augment.numbers:
            generator = keyed_generator(self.seed, view, "augment")
            numbers = torch.rand(count, self.augment.numbers, generator=generator).to(device)
        if self.augment is not None and self.augment.mixes:
            mix = sample_mix(count, self.augment, keyed_generator(self.seed, epoch, "mix")).to(device)
        drawn = None
        if self.balanced:
            drawn = balanced_draws(self.labels.cpu(), self.seed, epoch)
            if self.views or (numbers is None and mix is None):
                order, drawn = drawn[order], None  # an image is the same however often it comes
        order = order.to(self.inputs.device) if isinstance(self.inputs, Tensor) else order
        first_row = view * count if self.views and self.normalize is None else 0
        return EpochRandomness(order, numbers, mix, first_row, drawn)

    def _rows(self, random: EpochRandomness, start: int, stop: int) -> Tensor:
        """The images at these positions of the order; where images are mixed, also the one after them."""
        order = random.order
        rows = order[start:stop] if stop <= len(order) else order[torch.arange(start, stop) % len(order)]
        return rows if random.mix is None else torch.cat([rows, order[[stop % len(order)]]])

    def _read(self, rows: Tensor, random: EpochRandomness) -> Tensor:
        found = self.inputs[random.images(rows) + random.first_row]
        return found.pin_memory() if self.labels.is_cuda and not found.is_cuda else found

    def _batch(self, inputs: Tensor, rows: Tensor, random: EpochRandomness) -> tuple[Tensor, Tensor]:
        """Normalized and augmented inputs, and the labels of these rows, on the device of all labels."""
        device = self.labels.device
        rows = rows.to(device)
        numbers = None if random.numbers is None else random.numbers[rows]
        images, labels = (
            self._augmented(inputs.to(device, non_blocking=True), numbers),
            self.labels[random.images(rows)],
        )
        if random.mix is None:
            return images, labels
        assert self.classes is not None
        return apply_mix(images[:-1], images[1:], (labels[:-1], labels[1:]), random.mix[rows[:-1]], self.classes)

    def _augmented(self, inputs: Tensor, numbers: Tensor | None) -> Tensor:
        normalize, augment = self.normalize, self.augment
        if normalize is None:
            return inputs
        if numbers is None or augment is None:
            return normalize(inputs)
        if not augment.is_photo:
            return augment_affine(normalize(inputs), numbers, augment, normalize.offset)
        pixels = normalize.crop_source(inputs) if augment.crop else normalize.center_view(inputs)
        height, width = pixels.shape[-2:] if normalize.size is None else (normalize.size, normalize.size)
        return augment_photo(pixels, numbers, augment, (height, width), normalize.scale, normalize.offset)
