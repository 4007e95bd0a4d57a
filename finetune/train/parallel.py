"""Data-parallel training: DistributedDataParallel and FSDP."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from finetune.data.loader import Batches
from finetune.distributed.process_group import ProcessGroup
from finetune.errors import SettingError
from finetune.models.staged import StagedNetwork
from finetune.train.device import Runtime
from finetune.train.freeze import trainable
from finetune.train.inference import eval_mode


def gather_full(tensor: Tensor) -> Tensor:
    """All of the tensor, in each process; one that is not divided as it is."""
    complete = getattr(tensor.detach(), "full_tensor", None)
    return tensor.detach() if complete is None else complete()


@torch.no_grad()
def fill_tensor(tensor: Tensor, values: Tensor) -> None:
    """Copies values of the same shape into a tensor; where it is divided, each process takes its part."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        tensor.copy_(values)
        return
    from torch.distributed.tensor import distribute_tensor

    values = values.to(tensor.device, tensor.dtype)
    tensor.copy_(distribute_tensor(values, mesh, tensor.placements, src_data_rank=None))  # type: ignore[attr-defined]


def copy_full(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole copies on the CPU, of what may go on changing; {} where they are not to be kept.

    Every process has to take part, one tensor after the other, so that none has two whole ones at once on its device.
    """
    found = {}
    for name, tensor in tensors.items():
        complete = gather_full(tensor)
        if keep:
            found[name] = complete.to("cpu", copy=True)
    return found


class StageCalls(nn.Module):
    """`network.run(x, start)` as a module's forward, which is what torch's wrappers run."""

    def __init__(self, network: StagedNetwork, start: int) -> None:
        super().__init__()
        self.network, self.start = network, start

    def forward(self, x: Tensor) -> Tensor:
        return self.network.run(x, start=self.start)


class Parallel(Protocol):
    """`network` is what trains: its parameters are the optimizer's, its modules are in training mode."""

    network: StagedNetwork

    def forward(self, x: Tensor) -> Tensor:
        """Logits; the backward pass through them leaves in every process the gradients of the mean of all losses."""

    def sync_to_eval_model(self) -> None:
        """Gives the network that is judged and saved the weights of the one that trains."""

    def offload(self) -> None:
        """The network that is judged is not needed for a while."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Gives the network that trains the tensors of a `state_dict`."""


class Replicated:
    """Every process has the whole network, and gradients are averaged; with one process, a plain network."""

    def __init__(self, network: StagedNetwork, start: int, group: ProcessGroup) -> None:
        self.network, self.group = network, group
        self.module: nn.Module = StageCalls(network, start)
        self.settled = group.size == 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.settled:
            self._settle(x[:1])
        logits: Tensor = self.module(x)
        return logits

    def sync_to_eval_model(self) -> None:
        """They are one."""

    def offload(self) -> None:
        """They are one."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(state)

    def _settle(self, x: Tensor) -> None:
        """Wraps the module, with one pass before that tells which parameters have no part in it, and one after.

        DDP puts the gradients into other buckets after its first pass, by the order in which they came, and the sums of
        three or more processes depend on it. Now every step that counts, of a resumed phase too, comes after that.
        """
        with eval_mode(self.network):
            _backward(self.module(x))
            unused = any(p.grad is None for p in trainable(self.network))
            _forget(self.network)
            gpu = [x.device.index] if x.device.type == "cuda" else None
            wrapped = nn.parallel.DistributedDataParallel(
                self.module, device_ids=gpu, find_unused_parameters=unused, **_buffers_left_alone()
            )
            _backward(wrapped(x))
            _forget(self.network)
        self.module, self.settled = wrapped, True


def _buffers_left_alone() -> dict[str, Any]:
    """The option of DDP for it, which has another name in newer torch."""
    known = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def _backward(logits: Tensor) -> None:
    logits.float().sum().backward()  # type: ignore[no-untyped-call]


def _forget(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.grad = None


class Sharded:
    """Each process has a part of every weight, gradient and optimizer value (torch's fully_shard).

    What trains is a twin of the network: the network itself stays as it is, and on a GPU goes to the processor's
    memory while it is not shown. `x` is an input to try which modules can be put together one at a time, when they are
    called; what belongs to none of those is put together at the beginning.
    """

    def __init__(self, network: StagedNetwork, start: int, runtime: Runtime, x: Tensor) -> None:
        scalars = [name for name, p in network.named_parameters() if p.dim() == 0]
        if scalars:
            raise SettingError(
                f"sharding fsdp: torch cannot divide parameters that are single numbers, which this model has: "
                f"{', '.join(scalars[:5])}; leave sharding out"
            )
        import torch.distributed as dist
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        self.shown, self.runtime = network, runtime
        self.network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        self.module = StageCalls(self.network, start)
        # Connections of its own: torch keeps those of fully_shard for ever (joining says what that may lead to).
        mesh = DeviceMesh.from_group(dist.new_group(), runtime.device.type)  # type: ignore[arg-type]
        for unit in shard_units(self.network, _make_callable(self.module, self.network, x)):
            fully_shard(unit, mesh=mesh)
        fully_shard(self.module, mesh=mesh)
        self.offload()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x)
        return logits

    @torch.no_grad()
    def sync_to_eval_model(self) -> None:
        self.runtime.place(self.shown)
        own = dict(self.shown.named_parameters()) | dict(self.shown.named_buffers())
        trained = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
        for name, tensor in [*trained, *self.network.named_buffers()]:
            own[name].copy_(gather_full(tensor))

    def offload(self) -> None:
        if self.runtime.device.type == "cuda":
            self.shown.cpu()

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.network.state_dict().items():
            fill_tensor(tensor, state[name])


def _make_callable(module: StageCalls, network: StagedNetwork, x: Tensor) -> set[nn.Module]:
    """The modules that are called as such when the stages run, and give something of their own.

    Not those that give a view of what was computed inside them: who changes such a view in place, as a network may,
    loses the mark by which torch knows in the backward pass when to put the module's weights together again.
    """
    found: set[nn.Module] = set()

    def note(part: nn.Module, inputs: object, output: object) -> None:
        if not any(isinstance(t, Tensor) and t._base is not None for t in tree_leaves(output)):
            found.add(part)

    hooks = [part.register_forward_hook(note) for part in network.modules() if part is not network]
    try:
        with eval_mode(network):
            module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def shard_units(network: StagedNetwork, able: set[nn.Module]) -> Iterator[nn.Module]:
    """What is put together at a time: a stage's module, or the parts of one that is a row of blocks or not `able`."""
    for stage in network.stages:
        for module in network.stage_modules(stage):
            yield from _units(module, able)


def _units(module: nn.Module, able: set[nn.Module]) -> Iterator[nn.Module]:
    if not any(True for _ in module.parameters()):
        return
    inner = list(module.children())
    blocks = isinstance(module, nn.Sequential) and any(True for child in inner for _ in child.children())
    if module in able and not blocks:
        yield module
        return
    for child in inner:
        yield from _units(child, able)


def wrap_parallel(network: StagedNetwork, batches: Batches, start: int, runtime: Runtime) -> Parallel:
    """The passes of a phase whose batches enter at stage `start`."""
    if runtime.is_sharded:
        return Sharded(network, start, runtime, batches.at(0, 0)[0])
    return Replicated(network, start, runtime.group)


def batch_norm_sync(network: nn.Module) -> list[Tensor]:
    """What normalisation layers in training mode remember of the images seen: their own process's alone."""
    layers = [m for m in network.modules() if isinstance(m, _NormBase) and m.training]
    found = [t for layer in layers for t in (layer.running_mean, layer.running_var)]
    return [t for t in found if t is not None]
