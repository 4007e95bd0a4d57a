"""Checks by hash that frozen tensors do not change during a phase."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from finetune.checkpoint.tensor_hash import hash_named, hash_tensor
from finetune.errors import DriftError
from finetune.models.staged import StagedNetwork
from finetune.text import listed
from finetune.train.freeze import trained_parameters, training_modules

BASE_PREFIX = "base_layer."  # peft puts it before the names of weights that have an adapter beside them


class FrozenCheck:
    """Hashes of all tensors that one phase freezes, taken when it begins and compared by `check` when it ends.

    `stages`, `norms` and `adapters` are the phase's; its adapters are in the network at the beginning and at the end.
    `digests` has the sha256 of each frozen tensor by name, as JSON values. `expected` are the digests of an interrupted
    phase that is resumed: DriftError when the frozen tensors are not those it began with.
    """

    def __init__(
        self,
        network: StagedNetwork,
        phase: str,
        stages: Collection[str],
        norms: str = "hold",
        *,
        adapters: bool = False,
        expected: Mapping[str, str] | None = None,
    ) -> None:
        self.network, self.phase, self.stages = network, phase, tuple(stages)
        self.norms, self.adapters = norms, adapters
        self.tensors = self._frozen()
        self.digests = {name: hash_tensor(tensor) for name, tensor in self.tensors.items()}
        self.extra: dict[str, tuple[Tensor, str]] = {}
        if expected is not None and self.digests != expected:
            other = [n for n in {**expected, **self.digests} if expected.get(n) != self.digests.get(n)]
            raise DriftError(
                f"phase {phase}: it would go on with other frozen tensors than it began with: {listed(other)}; what "
                "was kept of it is of another run, or was changed since: start the run again without resuming it"
            )

    def add(self, name: str, tensor: Tensor) -> None:
        """Checks one more tensor, which is no part of the network: the activations of a frozen prefix."""
        self.extra[name] = (tensor, hash_tensor(tensor))

    @property
    def sha256(self) -> str:
        """The hash of all frozen tensors that a checkpoint has, as `hash_named` combines them."""
        return hash_named({name: self.digests[name] for name in self._in_checkpoint()})

    @property
    def count(self) -> int:
        """The number of frozen tensors that a checkpoint has."""
        return len(self._in_checkpoint())

    def check(self) -> None:
        """Raises DriftError, which names every frozen tensor that has changed."""
        now, faults = self._frozen(), []
        for name in {**self.tensors, **now}:
            if name not in now:
                faults.append(f"{name} (is gone)")
            elif name not in self.tensors:
                faults.append(f"{name} (is new)")
            elif hash_tensor(now[name]) != self.digests[name]:
                faults.append(f"{name} (has other numbers)")
            elif now[name] is not self.tensors[name]:
                faults.append(f"{name} (another tensor in its place)")
        faults += [f"{name} (has other numbers)" for name, (t, was) in self.extra.items() if hash_tensor(t) != was]
        if faults:
            raise DriftError(
                f"phase {self.phase}: what it freezes did not stay as it was: {listed(faults)}. Only "
                f"{', '.join(self.stages)} may change in this phase, so the weights would not be what the recipe says. "
                "The network or its optimizer changes these tensors: let their stages train, or, for the statistics "
                "of a normalisation layer, say norms: update. No model of finetune's own should do this: report it"
            )

    def _frozen(self) -> dict[str, Tensor]:
        return frozen_tensors(self.network, self.stages, self.norms, adapters=self.adapters)

    def _in_checkpoint(self) -> list[str]:
        saved = {id(tensor) for tensor in self.network.state_dict(keep_vars=True).values()}
        return [name for name, tensor in self.tensors.items() if id(tensor) in saved]


def frozen_tensors(
    network: StagedNetwork, stages: Collection[str], norms: str, *, adapters: bool = False
) -> dict[str, Tensor]:
    """Every parameter and buffer that a phase in which `stages` train must not change, by its name in a checkpoint.

    `norms` is hold, hold_all or update. With `adapters` everything is frozen but the low-rank adapters and the head.
    """
    free = trained_parameters(network, stages, adapters=adapters)
    training = training_modules(network, stages, norms, adapters=adapters)
    free |= {id(buffer) for module in training for buffer in module.buffers(recurse=False)}
    every = {n: t for n, t in network.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    saved = {id(tensor) for tensor in every.values()}
    every |= {n: t for n, t in network.named_buffers(remove_duplicate=False) if id(t) not in saved}
    return {name.replace(BASE_PREFIX, ""): tensor for name, tensor in every.items() if id(tensor) not in free}
