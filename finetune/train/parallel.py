"""Data-parallel training: DistributedDataParallel and FSDP."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from finetune.data.loader import Batches
from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from finetune.errors import SettingError
from finetune.models.staged import StagedNetwork, eval_mode
from finetune.train.device import Runtime
from finetune.train.freeze import trainable


def gather_full(tensor: Tensor) -> Tensor:
    """The whole tensor, in each process; a tensor that is not sharded is returned as it is."""
    full_tensor = getattr(tensor.detach(), "full_tensor", None)
    return tensor.detach() if full_tensor is None else full_tensor()


@torch.no_grad()
def fill_tensor(tensor: Tensor, values: Tensor) -> None:
    """Copies values of the same shape into a tensor; of a sharded one, each process fills its shard."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        tensor.copy_(values)
        return
    from torch.distributed.tensor import distribute_tensor

    values = values.to(tensor.device, tensor.dtype)
    tensor.copy_(distribute_tensor(values, mesh, tensor.placements, src_data_rank=None))  # type: ignore[attr-defined]


def copy_full(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Copies tensors to the CPU, shards put together; returns {} in a process that does not `keep` them.

    Every process has to take part, one tensor after the other, so that no device holds two whole ones at once.
    """
    copies = {}
    for name, tensor in tensors.items():
        whole = gather_full(tensor)
        if keep:
            copies[name] = whole.to("cpu", copy=True)
    return copies


class StageCalls(nn.Module):
    """`network.run(x, start)` as a module's forward, which is what torch's wrappers call."""

    def __init__(self, network: StagedNetwork, start: int) -> None:
        super().__init__()
        self.network, self.start = network, start

    def forward(self, x: Tensor) -> Tensor:
        return self.network.run(x, start=self.start)


class Replicated:
    """Data-parallel training with the whole network in every process; with one process, the plain network.

    `network` is what trains: its parameters are the optimizer's, its modules are in training mode.
    """

    def __init__(self, network: StagedNetwork, start: int, group: ProcessGroup) -> None:
        self.network = network
        self.module: nn.Module = StageCalls(network, start)
        self.wrapped = group.size == 1

    def forward(self, x: Tensor) -> Tensor:
        """Logits, whose backward pass leaves in every process the gradients of the mean of all losses."""
        if not self.wrapped:
            self._wrap(x[:1])
        logits: Tensor = self.module(x)
        return logits

    def sync_to_eval_model(self) -> None:
        """Copies the trained weights to the network that is evaluated and saved; here they are the same."""

    def offload(self) -> None:
        """Frees the device's memory of the network that is evaluated, which is not needed for a while."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Loads a `state_dict` into the network that trains."""
        self.network.load_state_dict(state)

    def _wrap(self, x: Tensor) -> None:
        """Wraps the module in DDP, with one pass before that finds unused parameters, and one after.

        DDP rearranges its gradient buckets after its first pass, by the order in which gradients came, and the sums of
        three or more processes depend on it. So every step that counts, of a resumed phase too, comes after that.
        """
        with eval_mode(self.network):
            _dry_backward(self.module(x))
            unused = any(p.grad is None for p in trainable(self.network))
            self.network.zero_grad()
            gpu = [x.device.index] if x.device.type == "cuda" else None
            known = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
            name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # older torch
            options: dict[str, Any] = {name: False}
            wrapped = nn.parallel.DistributedDataParallel(
                self.module, device_ids=gpu, find_unused_parameters=unused, **options
            )
            _dry_backward(wrapped(x))
            self.network.zero_grad()
        self.module, self.wrapped = wrapped, True


def _dry_backward(logits: Tensor) -> None:
    logits.float().sum().backward()  # type: ignore[no-untyped-call]


class Sharded(Replicated):
    """Data-parallel training with a shard of every weight, gradient and optimizer value in each process (FSDP2).

    What trains is a copy of the network; the network itself is for evaluation, and on a GPU it is in the host's memory
    meanwhile. `x` is an input to find out which modules can be gathered one at a time, when they are called; everything
    else is gathered at the beginning of a pass.
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

        super().__init__(copy.deepcopy(network).to(memory_format=torch.contiguous_format), start, SINGLE_PROCESS)
        self.eval_model, self.runtime = network, runtime
        # A group of its own: torch never frees the connections of fully_shard (see _connect_group in launch).
        mesh = DeviceMesh.from_group(dist.new_group(), runtime.device.type)  # type: ignore[arg-type]
        for unit in shard_units(self.network, _callable_modules(self.module, self.network, x)):
            fully_shard(unit, mesh=mesh)
        fully_shard(self.module, mesh=mesh)
        self.offload()

    @torch.no_grad()
    def sync_to_eval_model(self) -> None:
        self.runtime.place(self.eval_model)
        own = dict(self.eval_model.named_parameters()) | dict(self.eval_model.named_buffers())
        trained = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
        for name, tensor in [*trained, *self.network.named_buffers()]:
            own[name].copy_(gather_full(tensor))

    def offload(self) -> None:
        if self.runtime.device.type == "cuda":
            self.eval_model.cpu()

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.network.state_dict().items():
            fill_tensor(tensor, state[name])


def _callable_modules(module: nn.Module, network: StagedNetwork, x: Tensor) -> set[nn.Module]:
    """The modules that are called as such when the stages run, and whose output is not a view.

    A network may change a view of what was computed inside a module in place; then the view loses the mark by which
    torch knows in the backward pass when to gather the module's weights again.
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
    """The modules that are gathered one at a time: a stage's, or the parts of one that has blocks or is not `able`."""
    for stage in network.stages:
        for module in network.stage_modules(stage):
            yield from _units(module, able)


def _units(module: nn.Module, able: set[nn.Module]) -> Iterator[nn.Module]:
    if not any(True for _ in module.parameters()):
        return
    children = list(module.children())
    has_blocks = isinstance(module, nn.Sequential) and any(True for child in children for _ in child.children())
    if module in able and not has_blocks:
        yield module
        return
    for child in children:
        yield from _units(child, able)


def wrap_parallel(network: StagedNetwork, batches: Batches, start: int, runtime: Runtime) -> Replicated:
    """What runs and differentiates a phase whose batches enter at stage `start`."""
    if runtime.is_sharded:
        return Sharded(network, start, runtime, next(batches.epoch(0))[0][:1])
    return Replicated(network, start, runtime.group)


def running_statistics(network: nn.Module) -> list[Tensor]:
    """The running statistics of normalisation layers in training mode, which know their own process's images only."""
    layers = [m for m in network.modules() if isinstance(m, _NormBase) and m.training]
    found = [t for layer in layers for t in (layer.running_mean, layer.running_var)]
    return [t for t in found if t is not None]
