"""A timm model as a StagedNetwork."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from finetune.models.staged import StagedNetwork
from finetune.models.timm.stages import StageLayout, block_sequence, cut_points


class TimmNetwork(StagedNetwork):
    """A timm network, submodule `body`, in stages. Its tensors in `state_dict` have timm's own names.

    Takes float images N×C×size×size, gives logits N×classes: bit for bit what timm's network gives.
    """

    def __init__(self, body: nn.Module, layout: StageLayout) -> None:
        super().__init__()
        self.body = body
        self.layout = layout
        self.stages = layout.stages
        self.step_of_cut = cut_points(body, layout)
        self.register_state_dict_post_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]
        """The final linear layer, wherever timm keeps it."""
        return self.body.get_submodule(self.layout.head)  # type: ignore[return-value]

    def set_head(self, linear: nn.Linear) -> None:
        """Replaces the final layer, as timm's `reset_classifier` would."""
        parent, _, name = self.layout.head.rpartition(".")
        setattr(self.body.get_submodule(parent), name, linear)
        self.body.num_classes = linear.out_features  # type: ignore[assignment]

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would register a second head beside timm's, past the property.
        assert name != "head", "set_head replaces the head of a timm network"
        super().__setattr__(name, value)

    @property
    def cuts(self) -> tuple[int, ...]:
        """0, the head, the end, and every boundary where the family runs as a plain chain."""
        last = len(self.stages) - 1
        return tuple(sorted({0, *self.step_of_cut, last, last + 1}))

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """As in `StagedNetwork`; both ends are among `cuts`."""
        last = len(self.stages) - 1
        start, stop, _ = slice(start, stop).indices(len(self.stages))
        assert start in self.cuts and stop in self.cuts, f"{start}:{stop} cannot be cut; cuts are {self.cuts}"
        if start >= stop:
            return x
        if start == last:
            return self.head(x)  # type: ignore[no-any-return]
        if start == 0 and stop >= last:
            return self.body(x) if stop > last else self._captured(self.body, x)
        steps = block_sequence(self.body)
        until = len(steps) if stop >= last else self.step_of_cut[stop]
        for step in steps[self.step_of_cut[start] if start else 0 : until]:
            x = step.run(x)
        if stop < last:
            return x
        finish: Callable[[Tensor], Tensor] = self.body.forward_head  # type: ignore[assignment]
        return finish(x) if stop > last else self._captured(finish, x)

    def run_stage(self, stage: str, x: Tensor) -> Tensor:
        """One stage's output; only for a stage with a cut at either side."""
        number = self.stages.index(stage)
        return self.run(x, number, number + 1)

    def stage_modules(self, stage: str) -> Sequence[nn.Module]:
        """The largest submodules that lie whole in the stage, as they are now."""
        return [self.body.get_submodule(path) for path, owner in self.layout.modules.items() if owner == stage]

    def stage_parameters(self, stage: str) -> Iterator[nn.Parameter]:
        """Every parameter of one stage, those that no submodule of the stage owns (a class token) among them."""
        for path, parameter in self.body.named_parameters():
            if self.layout.stage_of(path) == stage:
                yield parameter

    def _captured(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The head's input while `call(x)` runs."""
        seen: list[Tensor] = []
        here = threading.get_ident()  # another thread's pass through the same network is not ours

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if threading.get_ident() == here:
                seen.append(inputs[0])

        handle = self.head.register_forward_pre_hook(note)
        try:
            call(x)
        finally:
            handle.remove()
        (features,) = seen
        return features


def _without_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    ours = f"{prefix}body."
    for name in [name for name in state if name.startswith(ours)]:
        state[prefix + name.removeprefix(ours)] = state.pop(name)


def _with_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, *others: object) -> None:
    for name in [name for name in state if name.startswith(prefix)]:  # always: tresnet's own names start with body.
        state[f"{prefix}body.{name.removeprefix(prefix)}"] = state.pop(name)
