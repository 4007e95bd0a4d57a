"""Batches whose order and augmentation depend only on (seed, epoch, image)."""

from __future__ import annotations

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

from finetune.data.augment.affine import Augment, augment_affine
from finetune.data.augment.mixup import apply_mix
from finetune.data.augment.mixup import sample_mix as mix_drawn
from finetune.data.augment.photo import augment_photo
from finetune.data.normalize import ImageArray, Normalizer

Key = TypeVar("Key")

Found = TypeVar("Found")

AHEAD = 3  # results that wait, at most

THREADS = 2


def prefetch(read: Callable[[Key], Found], keys: Iterable[Key]) -> Generator[Found, None, None]:
    """`read(key)` for every key, in the order of the keys, a few of them ahead in threads.

    An error of `read` comes where its result would have come. When the caller stops early, nothing more is begun.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="read-ahead")
    try:
        waiting = iter(keys)
        begun: deque[Future[Found]] = deque(pool.submit(read, key) for key in islice(waiting, AHEAD))
        while begun:
            found = begun.popleft().result()
            begun.extend(pool.submit(read, key) for key in islice(waiting, 1))
            yield found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


VALUES_PER_BLOCK = 2**20  # numbers


def keyed_generator(*key: object) -> torch.Generator:
    """A generator that depends on the key alone, for example (seed, epoch, "order")."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@dataclass(frozen=True)
class EpochRandomness:
    """What chance decided for one epoch. Tensors are by image, except `order`: which image comes when.

    `first`: the row of the first image among the inputs, which is not 0 where they have several views of the images.
    """

    order: Tensor
    numbers: Tensor | None
    mix: Tensor | None
    first: int = 0


class Batches:
    """One epoch after another of (inputs, labels) from tensors that stay in memory, or from images that are read.

    `inputs` are uint8 images to be normalised and augmented, or, with `normalise=None`, activations that are passed on
    as they are. Images that are not a tensor are read a few batches ahead. Batches come on the device of `labels`. The
    last batch of an epoch may be smaller; every image comes exactly once an epoch. Labels are int64, N; where `augment`
    mixes images they are float32, N×classes, the share of each class, and `classes` has to be given.

    With `views` chance changes the images in so many ways only: epoch e as it would epoch e mod `views`. Activations
    are then those of all views, one view after the other.

    With `shard` (r, s) these are the batches of the r-th of s processes, from 0: of each batch a run of its images, so
    that all s together have the batch as it would be. Where there is no image for a process, it gets another's, which
    `weights` tells.
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
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        assert len(inputs) == len(labels) * (views if views and normalize is None else 1) > 0
        assert augment is None or normalize is not None, "activations cannot be augmented"
        assert augment is None or not augment.mixes or classes is not None, "mixed targets need the number of classes"
        assert augment is None or not augment.mixes or views is None, "mixed images have no views"
        self.inputs, self.labels = inputs, labels
        self.batch_size, self.seed, self.classes = batch_size, seed, classes
        self.normalize, self.augment = normalize, augment
        self.views, self.shard = views, shard

    @property
    def images_per_epoch(self) -> int:
        return len(self.labels)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from number `first` (0: all), in the epoch's own order.

        `epoch` counts over the whole run, phases included.
        """
        draw = self._draw(epoch)
        rows = (self._rows(draw, *self._places(batch)) for batch in range(first, self.steps_per_epoch))
        if isinstance(self.inputs, Tensor):
            while some := list(islice(rows, 1 if draw.mix is not None else self._at_once())):
                row = torch.cat(some)
                images, labels = self._batch(self.inputs[row + draw.first], row, draw)
                counts = [len(own) for own in some] if draw.mix is None else [len(labels)]
                yield from zip(torch.split(images, counts), torch.split(labels, counts), strict=True)
            return
        with closing(prefetch(lambda row: (self._read(row + draw.first), row), rows)) as batches:
            for inputs, row in batches:
                yield self._batch(inputs, row, draw)

    def _at_once(self) -> int:
        """How many batches are prepared in one go, for the sake of few and larger operations: as fit into a cache."""
        one = self.inputs.shape[1:] if self.normalize is None else (self.normalize.pixels(self.inputs),)
        return max(1, VALUES_PER_BLOCK // (self.batch_size * math.prod(one)))

    def weights(self, batch: int) -> tuple[int, int]:
        """How many images of an epoch's batch count here, which may be none, and how many there are in it in all."""
        start, stop, whole = self._run(batch)
        return stop - start, whole

    def _run(self, batch: int) -> tuple[int, int, int]:
        """The first place of this process's part of a batch in the epoch's order, one past its last, and the batch's
        size."""
        begin, (rank, size) = batch * self.batch_size, self.shard
        whole = min(self.batch_size, len(self.labels) - begin)
        return begin + whole * rank // size, begin + whole * (rank + 1) // size, whole

    def _places(self, batch: int) -> tuple[int, int]:
        start, stop, _ = self._run(batch)
        if start < stop:
            return start, stop
        spare = min(start, len(self.labels) - 1)
        return spare, spare + 1

    def images_of(self, epoch: int, batch: int) -> list[int]:
        """Which images a batch of an epoch has."""
        start = batch * self.batch_size
        return [int(image) for image in self._draw(epoch).order[start : start + self.batch_size]]

    def at(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """One image (1×...) and its label as `epoch` has them."""
        draw = self._draw(epoch)
        place = int((draw.order == index).nonzero())
        row = self._rows(draw, place, place + 1)
        return self._batch(self._read(row + draw.first), row, draw)

    def prepared(self, epoch: int) -> Callable[[Tensor], Tensor]:
        """What gives the inputs of images by their places, as `epoch` has them; not where images are mixed."""
        draw = self._draw(epoch)
        assert draw.mix is None, "a mixed image is not one image's input"
        return lambda rows: self._batch(self._read(rows + draw.first), rows, draw)[0]

    def _draw(self, epoch: int) -> EpochRandomness:
        count, device = len(self.labels), self.labels.device
        order = torch.randperm(count, generator=keyed_generator(self.seed, epoch, "order"))
        view = epoch % self.views if self.views else epoch
        first = view * count if self.views and self.normalize is None else 0
        numbers = mix = None
        if self.augment is not None and self.augment.numbers:
            drawn = torch.rand(count, self.augment.numbers, generator=keyed_generator(self.seed, view, "augment"))
            numbers = drawn.to(device)
        if self.augment is not None and self.augment.mixes:
            mix = mix_drawn(count, self.augment, keyed_generator(self.seed, epoch, "mix")).to(device)
        order = order.to(self.inputs.device) if isinstance(self.inputs, Tensor) else order
        return EpochRandomness(order, numbers, mix, first)

    def _rows(self, draw: EpochRandomness, start: int, stop: int) -> Tensor:
        """The images at these places of the order; where images are mixed, also the one after them."""
        rows = draw.order[start:stop]
        return rows if draw.mix is None else torch.cat([rows, draw.order[[stop % len(draw.order)]]])

    def _read(self, rows: Tensor) -> Tensor:
        found = self.inputs[rows]
        return found.pin_memory() if self.labels.is_cuda and not found.is_cuda else found

    def _batch(self, inputs: Tensor, rows: Tensor, draw: EpochRandomness) -> tuple[Tensor, Tensor]:
        device = self.labels.device
        rows = rows.to(device)
        images = self._prepared(
            inputs.to(device, non_blocking=True), None if draw.numbers is None else draw.numbers[rows]
        )
        labels = self.labels[rows]
        if draw.mix is None:
            return images, labels
        assert self.classes is not None
        return apply_mix(images[:-1], images[1:], (labels[:-1], labels[1:]), draw.mix[rows[:-1]], self.classes)

    def _prepared(self, inputs: Tensor, numbers: Tensor | None) -> Tensor:
        normalize, augment = self.normalize, self.augment
        if normalize is None:
            return inputs
        if numbers is None or augment is None:
            return normalize(inputs)
        if not augment.of_photographs:
            return augment_affine(normalize(inputs), numbers, augment, normalize.offset)
        pixels = normalize.crop_source(inputs) if augment.crop else normalize.center_view(inputs)
        height, width = pixels.shape[-2:] if normalize.size is None else (normalize.size, normalize.size)
        return augment_photo(pixels, numbers, augment, (height, width), normalize.scale, normalize.offset)
