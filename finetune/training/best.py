"""The best row of a phase so far."""

from __future__ import annotations

from torch import Tensor

from finetune.models.staged import StagedNetwork
from finetune.training.meter import Row


class Best:
    """Keeps the weights and buffers of the row with the best validation accuracy; the earlier of two equal ones."""

    def __init__(self, network: StagedNetwork) -> None:
        self.network = network
        self.accuracy = -1.0
        self.state: dict[str, Tensor] = {}

    def offer(self, row: Row) -> None:
        assert row.validation_accuracy is not None, "keep: best needs validation images"
        if row.validation_accuracy > self.accuracy:
            self.accuracy = row.validation_accuracy
            self.state = {name: t.detach().clone() for name, t in self.network.state_dict().items()}

    def restore(self) -> None:
        self.network.load_state_dict(self.state)
