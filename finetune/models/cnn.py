"""The small CNN of the article; docs/concepts.md walks through it layer by layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from finetune.models.onednn import Conv2d, conv_pool_relu, to_dense
from finetune.models.staged import StagedNetwork


class ArticleCNN(StagedNetwork):
    """Two 3×3 convolutions (1→32→64, padding 1), each with ReLU and 2×2 max-pooling; linear 3136→128→classes.

    Takes float images N×1×28×28, gives logits N×classes. Layers start as torch's defaults start them.
    """

    stages = ("conv1", "conv2", "fc1", "head")

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(1, 32, kernel_size=3, padding=1)
        self.conv2 = Conv2d(32, 64, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.head = nn.Linear(128, classes)

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        return to_dense(super().run(x, start, stop))

    def run_stage(self, stage: str, x: Tensor) -> Tensor:
        match stage:
            case "conv1":
                return conv_pool_relu(self.conv1, x)
            case "conv2":
                return conv_pool_relu(self.conv2, x)
            case "fc1":
                return F.relu(self.fc1(to_dense(x).flatten(1)))
            case _:
                return self.head(x)  # type: ignore[no-any-return]
