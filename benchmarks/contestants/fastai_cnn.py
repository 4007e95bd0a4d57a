"""The article's network in a fastai Learner, trained by fit_one_cycle: images/s of the last epoch.

From a DataBlock with as many workers as fastai takes by itself on two cores, or from tensors in memory without or
with two: 1,111 and 1,242 images/s without, 866 and 1,818 with (12,000 images, one thread on a busy machine), which does
not tell, so both are contestants. The network is in channels_last order. float32 only: fastai's to_bf16 casts on CUDA
devices and changes nothing on the CPU.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

from contract import MNIST_MEAN, MNIST_STD, answer, options


def datablock(given: argparse.Namespace) -> Any:
    """fastai's own way: images and categories in a DataBlock, batches normalised by a batch transform."""
    from fastai.vision import all as fastai
    from torchvision.datasets import MNIST

    found = MNIST(given.data, train=True)
    items = list(zip(found.data[: given.limit].numpy(), found.targets[: given.limit].tolist(), strict=True))
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock(fastai.PILImageBW), fastai.CategoryBlock(vocab=list(range(10)))),
        get_x=fastai.ItemGetter(0),
        get_y=fastai.ItemGetter(1),
        splitter=fastai.IndexSplitter([0]),
        batch_tfms=fastai.Normalize.from_stats([MNIST_MEAN], [MNIST_STD], cuda=False),
    )
    return block.dataloaders(items, bs=128, num_workers=given.workers, device="cpu")


def tensors(given: argparse.Namespace) -> Any:
    """Normalised tensors in memory, batched by fastai's DataLoader."""
    from fastai.vision import all as fastai
    from network import mnist_tensors
    from torch.utils.data import TensorDataset

    train = TensorDataset(*mnist_tensors(given.data, train=True, limit=given.limit))
    held = TensorDataset(*mnist_tensors(given.data, train=False, limit=1))
    return fastai.DataLoaders.from_dsets(train, held, bs=128, num_workers=given.workers, device="cpu")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--pipeline", choices=("datablock", "tensors"), default="tensors")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch
    from fastai.vision import all as fastai
    from network import accuracy, article_network, mnist_tensors

    class Clock(fastai.Callback):
        def before_train(self) -> None:
            self.started = time.perf_counter()

        def after_train(self) -> None:
            self.seconds = time.perf_counter() - self.started

    fastai.set_seed(given.seed)
    clock = Clock()
    loaders = datablock(given) if given.pipeline == "datablock" else tensors(given)
    network = article_network().to(memory_format=torch.channels_last)
    learner = fastai.Learner(loaders, network, fastai.CrossEntropyLossFlat(), opt_func=fastai.SGD, cbs=[clock])
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(given.epochs, 0.05)
    speed = len(loaders.train_ds) / clock.seconds
    reached = accuracy(network, *mnist_tensors(given.data, train=False))
    answer(("fastai", "torch"), images_per_second=speed, accuracy=reached)


if __name__ == "__main__":
    main()
