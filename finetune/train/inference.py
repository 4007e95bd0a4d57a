"""Runs a network in evaluation mode over many images, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from finetune.data.image_dataset import Images
from finetune.data.normalize import Normalizer
from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from finetune.models.staged import StagedNetwork
from finetune.train.disk_tensor import DiskTensor, channels_last_order

Rows: TypeAlias = Images | DiskTensor  # images, or activations in memory or in a file

# The least and the most images in a batch, and the pixels that lie between. A processor is quickest while what a layer
# gives stays below 32 MB, from where on glibc fetches memory anew each time: `cnn` runs 250 images at once twice as
# fast as 500.
PROCESSOR, ACCELERATOR = (16, 250, 2**19), (8, 500, 4_000_000)


def eval_batch_size(pixels: int, device: torch.device) -> int:
    """How many images of so many pixels go through a network at once."""
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
) -> Tensor:
    """What `stages[:stop]` give for uint8 images (N×C×H×W), in evaluation mode; on the network's device."""
    size = eval_batch_size(normalize.pixels(images), normalize.scale.device)
    return batched_apply(lambda x: network.run(normalize(x), stop=stop), network, images, size, group)


def features(
    network: StagedNetwork, images: Images, normalize: Normalizer, *, group: ProcessGroup = SINGLE_PROCESS
) -> Tensor:
    """What the head sees: float, N×F."""
    return outputs(network, images, normalize, stop=-1, group=group)


def predictions(
    network: StagedNetwork, images: Images, normalize: Normalizer, *, group: ProcessGroup = SINGLE_PROCESS
) -> Tensor:
    """The most probable class's index for each image: int64, N, on the CPU."""
    return outputs(network, images, normalize, group=group).argmax(1).cpu()


@torch.no_grad()
def batched_apply(
    run: Callable[[Tensor], Tensor], network: StagedNetwork, rows: Rows, size: int, group: ProcessGroup = SINGLE_PROCESS
) -> Tensor:
    """`run` over `size` rows at a time with the network in evaluation mode, put together again."""
    with eval_mode(network):
        count = -(-len(rows) // size)
        if count < group.size:  # not a batch for each: then all of them for all
            group = SINGLE_PROCESS
        first, end = group.shard(count)
        starts = range(first * size, min(end * size, len(rows)), size)
        own = _together((run(rows[i : i + size]) for i in starts), min(end * size, len(rows)) - first * size)
        return group.all_gather(own, [min(size, len(rows) - i * size) for i in range(count)])


def _together(parts: Iterator[Tensor], count: int) -> Tensor:
    """All parts, of `count` rows, as one tensor, as torch.cat would give it.

    Parts that lay about until the last one is there would come to lie between what the network needs and frees, so that
    the next batch finds no room as large as the one before had, and memory grows with each.
    """
    one = next(parts)
    if len(one) == count:
        return one
    layout = torch.channels_last if channels_last_order(one) else torch.contiguous_format
    every = torch.empty((count, *one.shape[1:]), dtype=one.dtype, device=one.device, memory_format=layout)
    done = 0
    while True:
        every[done : done + len(one)] = one
        done += len(one)
        del one
        if done == count:
            return every
        one = next(parts)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode in the block; then every module's mode is what it was."""
    was_training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in was_training.items():
            module.training = mode
