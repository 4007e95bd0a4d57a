"""Runs a network in evaluation mode over many images, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from finetune.data.image_dataset import Images
from finetune.data.normalize import Normalizer
from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup, is_channels_last
from finetune.models.staged import StagedNetwork, eval_mode

# The fewest and the most images in a batch, and the number of pixels that it has in between. A processor is fastest
# while a layer's output stays below 32 MB, from where on glibc fetches memory anew each time: `cnn` runs 250 images at
# once twice as fast as 500.
PROCESSOR, ACCELERATOR = (16, 250, 2**19), (8, 500, 4_000_000)


Reduce = Callable[[Tensor, int], Tensor]
"""What is kept of a batch's outputs, as many rows, from these and the index of the batch's first image.

A million logits a batch need not be kept until all images are done, where a class of each is all that is asked for.
"""


class Rows(Protocol):
    """Images, or activations in memory or on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Tensor: ...


def eval_batch_size(pixels: int, device: torch.device) -> int:
    """The number of images of so many pixels that go through a network at once."""
    least, most, every = PROCESSOR if device.type == "cpu" else ACCELERATOR
    return max(least, min(most, every // pixels))


@torch.no_grad()
def outputs(
    network: StagedNetwork,
    images: Images,
    normalize: Normalizer,
    *,
    stop: int | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    reduce: Reduce | None = None,
) -> Tensor:
    """Outputs of `stages[:stop]` for uint8 images (N×C×H×W) in evaluation mode, on the network's device.

    Or what `reduce` keeps of them.
    """
    size = eval_batch_size(normalize.pixels(images), normalize.scale.device)
    return batched_apply(lambda x: network.run(normalize(x), stop=stop), network, images, size, group, reduce)


def predictions(
    network: StagedNetwork, images: Images, normalize: Normalizer, *, group: ProcessGroup = SINGLE_PROCESS
) -> Tensor:
    """The index of the most probable class for each image: int64, N, on the CPU."""
    return outputs(network, images, normalize, group=group, reduce=top_class).cpu()


def top_class(logits: Tensor, start: int) -> Tensor:
    """A `Reduce` that keeps the index of the most probable class: int64, N."""
    return logits.argmax(1)


@torch.no_grad()
def batched_apply(
    run: Callable[[Tensor], Tensor],
    network: nn.Module,
    rows: Rows,
    size: int,
    group: ProcessGroup = SINGLE_PROCESS,
    reduce: Reduce | None = None,
) -> Tensor:
    """Concatenates `run(rows[i : i + size])` of all batches, or what `reduce` keeps of each, in evaluation mode.

    The processes of a group share the batches out; each gets the whole result.
    """

    def batch(start: int) -> Tensor:
        found = run(rows[start : start + size])
        return found if reduce is None else reduce(found, start)

    with eval_mode(network):
        count = -(-len(rows) // size)
        if count < group.size:  # not a batch for each process: then every process runs all of them
            group = SINGLE_PROCESS
        first, end = group.shard(count)
        starts = range(first * size, min(end * size, len(rows)), size)
        own = _concatenate(map(batch, starts), min(end * size, len(rows)) - first * size)
        return group.all_gather(own, [min(size, len(rows) - i * size) for i in range(count)])


def _concatenate(parts: Iterator[Tensor], count: int) -> Tensor:
    """All parts, of `count` rows together, as torch.cat would give them, but with only one part alive at a time.

    Parts that are kept until the last one is computed would lie between what the network allocates and frees, so that
    the next batch finds no gap as large as the one before had, and memory grows with each batch.
    """
    part = next(parts)
    if len(part) == count:
        return part
    whole, done = empty_rows(count, part), 0
    while True:
        whole[done : done + len(part)] = part
        done += len(part)
        del part
        if done == count:
            return whole
        part = next(parts)


def empty_rows(count: int, like: Tensor) -> Tensor:
    """An uninitialised tensor of `count` rows with the shape, type, device and memory layout of those of `like`."""
    layout = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    shape = (count, *like.shape[1:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
