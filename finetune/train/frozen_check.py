"""Checks by hash that frozen tensors do not change during a phase."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from finetune.checkpoint.tensor_hash import hash_named, hash_tensor
from finetune.errors import DriftError
from finetune.models.staged import StagedNetwork
from finetune.text import listed
from finetune.train.freeze import ADAPTER

BASE_PREFIX = "base_layer."  # what peft puts before the names of the weights beside which it has put an adapter


class FrozenCheck:
    """What one phase is not to change, from its beginning until `check`.

    `stages`, `norms` and `adapters` are the phase's; its adapters are in the network at the beginning and at the end.
    `digests`, the sha256 of each frozen tensor by name, can be written as JSON. `expected` are those of a phase that
    was     stopped and now goes on: DriftError when it would go on with other tensors than it began with.
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
        self.kept: dict[str, tuple[Tensor, str]] = {}
        if expected is not None and self.digests != expected:
            other = [n for n in {**expected, **self.digests} if expected.get(n) != self.digests.get(n)]
            raise DriftError(
                f"phase {phase}: it would go on with other frozen tensors than it began with: {listed(other)}; what "
                "was kept of it is of another run, or was changed since: start the run again without resuming it"
            )

    def keep(self, name: str, tensor: Tensor) -> None:
        """Holds one tensor more, which is no part of the network: the activations of a frozen prefix."""
        self.kept[name] = (tensor, hash_tensor(tensor))

    @property
    def sha256(self) -> str:
        """Of all frozen tensors that a checkpoint has, as `digest.digest_of` puts them together."""
        return hash_named({name: self.digests[name] for name in self._in_files()})

    @property
    def count(self) -> int:
        """How many tensors that is."""
        return len(self._in_files())

    def check(self) -> None:
        """DriftError that names every frozen tensor that is not what it was."""
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
        faults += [f"{name} (has other numbers)" for name, (t, was) in self.kept.items() if hash_tensor(t) != was]
        if faults:
            raise DriftError(
                f"phase {self.phase}: what it freezes did not stay as it was: {listed(faults)}. Only "
                f"{', '.join(self.stages)} may change in this phase, so the weights would not be what the recipe says. "
                "The network or its optimizer changes these tensors: let their stages train, or, for the statistics "
                "of a normalisation layer, say norms: update. No model of finetune's own should do this: report it"
            )

    def _frozen(self) -> dict[str, Tensor]:
        return frozen_tensors(self.network, self.stages, self.norms, adapters=self.adapters)

    def _in_files(self) -> list[str]:
        written = {id(tensor) for tensor in self.network.state_dict(keep_vars=True).values()}
        return [name for name, tensor in self.tensors.items() if id(tensor) in written]


def frozen_tensors(
    network: StagedNetwork, stages: Collection[str], norms: str, *, adapters: bool = False
) -> dict[str, Tensor]:
    """Every parameter and buffer that a phase in which `stages` train is not to change, by its name in a checkpoint.

    `norms` is hold, hold_all or update, as in `freeze.training_mode`. With `adapters` all is frozen but the low-rank
    adapters and the head; base weights have their plain names.
    """
    free = _free_parameters(network, stages, adapters) | _free_buffers(network, stages, norms, adapters)
    return {name: tensor for name, tensor in _named(network).items() if id(tensor) not in free}


def _named(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that no checkpoint has too."""
    found = {n: t for n, t in network.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    written = {id(tensor) for tensor in found.values()}
    found |= {n: t for n, t in network.named_buffers(remove_duplicate=False) if id(t) not in written}
    return {name.replace(BASE_PREFIX, ""): tensor for name, tensor in found.items()}


def _free_parameters(network: StagedNetwork, stages: Collection[str], adapters: bool) -> set[int]:
    if not adapters:
        return {id(p) for stage in stages for p in network.stage_parameters(stage)}
    added = {id(p) for name, p in network.named_parameters() if ADAPTER in name}
    last = network.stages[-1]
    return added | {id(p) for p in network.stage_parameters(last) if last in stages}


def _free_buffers(network: StagedNetwork, stages: Collection[str], norms: str, adapters: bool) -> set[int]:
    free = _training_modules(network, stages, adapters)
    normal = [module for module in network.modules() if isinstance(module, _NormBase)]
    if norms == "hold_all":
        free -= set(normal)
    elif norms == "update" and not adapters:
        free |= set(normal)
    return {id(buffer) for module in free for buffer in module.buffers(recurse=False)}


def _training_modules(network: StagedNetwork, stages: Collection[str], adapters: bool) -> set[nn.Module]:
    """The modules that run in training mode, and so may write into their buffers."""
    inside = {stage: [m for root in network.stage_modules(stage) for m in root.modules()] for stage in network.stages}
    if adapters:
        added = {module for name, module in network.named_modules() if ADAPTER in name}
        last = network.stages[-1]
        return added | set(inside[last] if last in stages else ())
    owned = {module for modules in inside.values() for module in modules}
    trains = {id(p) for stage in stages for p in network.stage_parameters(stage)}
    # What lies over several stages, such as the whole network, trains where all beneath it does.
    over = {m for m in network.modules() if m not in owned and all(id(p) in trains for p in m.parameters())}
    return over | {module for stage in stages for module in inside[stage]}
