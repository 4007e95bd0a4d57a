"""A frozen prefix is run once: its activations are kept, and only the stages after it train."""

from __future__ import annotations

from torch import Tensor

from finetune.data.batches import Normaliser
from finetune.data.mapped import Images
from finetune.models.staged import StagedNetwork
from finetune.training.evaluation import in_batches
from finetune.training.runtime import Runtime

BUDGET = 2 * 1024**3  # bytes of activations that may be kept in memory


def cached_bytes(network: StagedNetwork, image: Tensor, normalise: Normaliser, stop: int, runtime: Runtime) -> int:
    """How many bytes the activations after `stages[:stop]` take for one image (uint8, 1×C×H×W); measured."""
    one = activations(network, image, normalise, stop, runtime)
    return one.numel() * one.element_size()


def activations(network: StagedNetwork, images: Images, normalise: Normaliser, stop: int, runtime: Runtime) -> Tensor:
    """What `stages[:stop]` give for each image in the precision of training: N×..., on the network's device."""

    def run(x: Tensor) -> Tensor:
        with runtime.autocast():
            return network.run(x, stop=stop)

    return in_batches(run, network, images, normalise, runtime.group)
