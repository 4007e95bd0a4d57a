"""What a network says of images: logits, predictions, features; in float32 and fixed batches, to reproduce."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from finetune.data.batches import Normaliser
from finetune.data.mapped import Images
from finetune.models.staged import StagedNetwork

BATCH = 500  # images, of few pixels; of larger ones fewer
MOST_PIXELS = 4_000_000  # in one batch


def most_images(pixels: int) -> int:
    """How many images of so many pixels go through a network at once."""
    return max(8, min(BATCH, MOST_PIXELS // pixels))


@torch.no_grad()
def outputs(network: StagedNetwork, images: Images, normalise: Normaliser, *, stop: int | None = None) -> Tensor:
    """What `stages[:stop]` give for uint8 images (N×C×H×W), in evaluation mode; on the network's device."""
    return in_batches(lambda x: network.run(x, stop=stop), network, images, normalise)


def features(network: StagedNetwork, images: Images, normalise: Normaliser) -> Tensor:
    """What the head sees: float, N×F."""
    return outputs(network, images, normalise, stop=-1)


def predictions(network: StagedNetwork, images: Images, normalise: Normaliser) -> Tensor:
    """The most probable class's index for each image: int64, N, on the CPU."""
    return outputs(network, images, normalise).argmax(1).cpu()


@torch.no_grad()
def in_batches(
    run: Callable[[Tensor], Tensor], network: StagedNetwork, images: Images, normalise: Normaliser
) -> Tensor:
    """`run` over normalised batches of `images` with the network in evaluation mode, put together again."""
    was_training = {name: module.training for name, module in network.named_modules()}
    network.eval()
    try:
        size = most_images(normalise.pixels(images))
        return torch.cat([run(normalise(images[i : i + size])) for i in range(0, len(images), size)])
    finally:
        for name, module in network.named_modules():
            module.training = was_training[name]
