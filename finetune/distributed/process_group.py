"""Collective operations among the processes of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from finetune.errors import ProcessLost

LOST_PEER = "another process of this job has ended or cannot be reached any more"
POLL = 0.05  # seconds between two looks at the store

# What gloo says when the other end of a connection is gone; its messages begin with the place in its source.
_GONE = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
_DONE, _REPORTED = "done", "spoken"  # keys in the store


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the job: `rank` of `size`, and `local` rank on its machine.

    Every method but `shard`, `leader_first` and `elect_reporter` must be called by all processes of the group at the
    same point of their work; ProcessLost when one of them does not answer. `store` is where they leave notes for each
    other; `node` names the machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    node: str = ""
    backend: str = ""
    store: Store | None = field(default=None, compare=False, repr=False)

    @property
    def leader(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def shard(self, count: int) -> tuple[int, int]:
        """This process's share of `count` items: the index of the first and one past the last, in order of rank."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def all_reduce_max_async(self, *flags: bool) -> Callable[[], list[bool]]:
        """Starts a vote; the returned function waits and tells of each flag whether any process raised it.

        In between, the processes may compute and use other collectives.
        """
        if self.size == 1:
            return lambda: list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        with translate_lost_peer():
            answer = dist.all_reduce(raised, op=dist.ReduceOp.MAX, async_op=True)

        def wait() -> list[bool]:
            with translate_lost_peer():
                answer.wait()
            return [bool(flag) for flag in raised.tolist()]

        return wait

    def any(self, flag: bool) -> bool:
        """Whether the flag is raised in any process."""
        return self.all_reduce_max_async(flag)()[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        with translate_lost_peer():
            dist.all_reduce(total)
        return total

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Sets floating-point tensors of one device to their mean over the processes, in place."""
        every = [] if self.size == 1 else list(tensors)
        if not every:
            return
        total = self.sum(torch.cat([t.detach().flatten().float() for t in every])) / self.size
        with torch.no_grad():
            for tensor, mean in zip(every, torch.split(total, [t.numel() for t in every]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Sets the tensors to the leader's values, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            values = tensor.detach().contiguous()
            with translate_lost_peer():
                dist.broadcast(values, src=0)
            with torch.no_grad():
                tensor.copy_(values)

    def all_gather(self, own: Tensor, lengths: Sequence[int]) -> Tensor:
        """Concatenates the rows of all processes in order of rank, in every process, bit for bit.

        lengths: the number of rows of each item that `shard` deals out; `own` has the rows of this process's items.
        """
        if self.size == 1:
            return own
        contiguous = own.permute(0, 2, 3, 1) if is_channels_last(own) else own.contiguous()
        every = contiguous.new_empty((sum(lengths), *contiguous.shape[1:]))
        start = 0
        for rank in range(self.size):
            first, end = replace(self, rank=rank).shard(len(lengths))
            rows = every[start : start + sum(lengths[first:end])]
            start += len(rows)
            if rank == self.rank:
                rows.copy_(contiguous)
            with translate_lost_peer():
                dist.broadcast(rows.view(torch.uint8), src=rank)  # as bytes: gloo does not know every type
        return every.permute(0, 3, 1, 2) if is_channels_last(own) else every

    def broadcast_bytes(self, content: bytes | None) -> bytes:
        """Broadcasts the leader's bytes to every process; the others may pass None."""
        if self.size == 1:
            assert content is not None
            return content
        length = torch.tensor([len(content) if content is not None and self.leader else 0])
        with translate_lost_peer():
            dist.broadcast(length, src=0)
            shared = torch.empty(int(length), dtype=torch.uint8)
            if self.leader and content:
                shared = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            if len(shared):
                dist.broadcast(shared, src=0)
        return shared.numpy().tobytes()

    @contextmanager
    def leader_first(self, what: str) -> Iterator[None]:
        """Runs the block in the first process of each machine, and then in the others.

        What the first one downloads or decodes, the others find. `what` names the block, once in a job. The others wait
        without a limit, since that may take hours, but not for a process that has failed.
        """
        mark = f"{_DONE}/{what}/{self.node}"
        if self.store is not None and self.local:
            with translate_lost_peer():
                while not self.store.check([mark]):
                    if self.store.check([_REPORTED]):
                        raise ProcessLost(LOST_PEER)
                    time.sleep(POLL)
        yield
        if self.store is not None and not self.local:
            with translate_lost_peer():
                self.store.set(mark, "")

    def elect_reporter(self, delay: float) -> bool:
        """Whether this process is the one to say why the job has failed. The others get `delay` seconds to be it."""
        if self.store is None:
            return True
        try:
            until = time.monotonic() + delay
            while time.monotonic() < until and not self.store.check([_REPORTED]):
                time.sleep(POLL)
            return self.store.add(_REPORTED, 1) == 1
        except RuntimeError:  # the store is gone with the process that held it
            return True


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def translate_lost_peer() -> Iterator[None]:
    """Turns what torch raises when another process is gone into ProcessLost; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(text in str(error) for text in _GONE):
            raise ProcessLost(LOST_PEER) from None
        raise


def is_channels_last(tensor: Tensor) -> bool:
    """Whether images or activations N×C×H×W lie in memory as N×H×W×C; torch chooses its kernels by that."""
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return last and not tensor.is_contiguous()
