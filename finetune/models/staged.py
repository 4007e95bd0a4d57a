"""The base class of all networks: an ordered chain of named stages, the last of them the head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


class StagedNetwork(nn.Module, ABC):
    """A network as a chain of stages, input to output. Every parameter belongs to exactly one stage.

    A subclass lists its `stages`, runs one of them in `run_stage`, and lists the submodules of each in
    `stage_modules`. Freezing, layer-wise learning rates and the cache of a frozen prefix are built on these three.
    The last stage is the submodule `head` and nothing else.
    """

    stages: tuple[str, ...]
    head: nn.Linear

    @property
    def cuts(self) -> tuple[int, ...]:
        """The stage indices at which `run` may start or stop, rising; by default every one from 0 to len(stages)."""
        return tuple(range(len(self.stages) + 1))

    def set_head(self, linear: nn.Linear) -> None:
        """Replaces the head."""
        self.head = linear

    def head_tensors(self) -> tuple[str, ...]:
        """The names of the head's weight and bias in `state_dict`."""
        state = self.state_dict(keep_vars=True).items()
        return tuple(name for own in (self.head.weight, self.head.bias) for name, found in state if found is own)

    @abstractmethod
    def run_stage(self, stage: str, x: Tensor) -> Tensor:
        """One stage's output for its input, activation and pooling included."""

    def stage_modules(self, stage: str) -> Sequence[nn.Module]:
        """The submodules that hold the stage's parameters and buffers; by default the one of the same name."""
        return [self.get_submodule(stage)]

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Runs `stages[start:stop]`; `x` is what stage `start` takes (for 0: images, float, N×C×H×W).

        Both ends are among `cuts` (negative ones count from the end, as in a slice).
        """
        for stage in self.stages[start:stop]:
            x = self.run_stage(stage, x)
        return x

    def features(self, x: Tensor) -> Tensor:
        """The head's input: float, N×F, for images N×C×H×W."""
        return self.run(x, stop=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, N×classes, for normalised images, N×C×H×W."""
        return self.run(x)

    def stage_parameters(self, stage: str) -> Iterator[nn.Parameter]:
        """Every parameter of one stage."""
        for module in self.stage_modules(stage):
            yield from module.parameters()


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode in the block; after it every module has the mode it had before."""
    was_training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in was_training.items():
            module.training = mode
