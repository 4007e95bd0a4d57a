"""Collective operations among the processes of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from finetune.errors import ProcessLost

LOST_PEER = "another process of this job has ended or cannot be reached any more"

POLL = 0.05  # seconds between two looks at the store

# What gloo says when the other end of a connection is gone; its messages begin with the place in its source.
_GONE = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe")

_DONE, _SPOKEN = "done", "spoken"


class Notes(Protocol):
    """What all processes can write to and read, as torch's stores can be."""

    def check(self, keys: list[str], /) -> bool: ...

    def set(self, key: str, value: str, /) -> None: ...

    def add(self, key: str, amount: int, /) -> int: ...


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the job: `rank` of `size`; on its own machine it is number `local`.

    Every method but `part`, `first_here` and `speaks` is to be called by all of the group's processes at the same point
    of their work; ProcessLost when one of them does not answer. `store` is where they leave notes meanwhile; `node`
    names the machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    node: str = ""
    backend: str = ""
    store: Notes | None = field(default=None, compare=False, repr=False)

    @property
    def leader(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def shard(self, count: int) -> tuple[int, int]:
        """Which of `count` things in a row are this process's: the first and one past the last; in order of rank."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def all_reduce_max_async(self, *flags: bool) -> Callable[[], list[bool]]:
        """Begins to ask; the function returned waits and says of each flag whether it was raised in any process.

        Between the two, the processes may work and talk of other things.
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
        """Gives floating-point tensors of one device their mean over the processes, in place."""
        every = [] if self.size == 1 else list(tensors)
        if not every:
            return
        total = self.sum(torch.cat([t.detach().flatten().float() for t in every])) / self.size
        with torch.no_grad():
            for tensor, mean in zip(every, torch.split(total, [t.numel() for t in every]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Gives the tensors the leader's values, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            values = tensor.detach().contiguous()
            with translate_lost_peer():
                dist.broadcast(values, src=0)
            with torch.no_grad():
                tensor.copy_(values)

    def all_gather(self, own: Tensor, lengths: Sequence[int]) -> Tensor:
        """All parts in order, in every process, bit for bit.

        lengths: the rows of each of the things that `part` dealt out; `own` has those of this process's, and some.
        """
        if self.size == 1:
            return own
        shape = own.permute(0, 2, 3, 1) if _channels_last(own) else own.contiguous()
        every = shape.new_empty((sum(lengths), *shape.shape[1:]))
        start = 0
        for rank in range(self.size):
            first, end = replace(self, rank=rank).shard(len(lengths))
            rows = every[start : start + sum(lengths[first:end])]
            start += len(rows)
            if rank == self.rank:
                rows.copy_(shape)
            with translate_lost_peer():
                dist.broadcast(rows.view(torch.uint8), src=rank)  # as bytes: gloo does not know every type
        return every.permute(0, 3, 1, 2) if _channels_last(own) else every

    def broadcast_bytes(self, content: bytes | None) -> bytes:
        """The leader's bytes, in every process; the others may give None."""
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
        """The block is run by one process of each machine first, and then by the others: what the first one fetches or
        decodes, the others find. `what` is a name for it, once in a job.
        """
        mark = f"{_DONE}/{what}/{self.node}"
        if self.store is not None and self.local:
            self._wait_for(mark)
        yield
        if self.store is not None and not self.local:
            with translate_lost_peer():
                self.store.set(mark, "")

    def _wait_for(self, mark: str) -> None:
        """Waits without a limit, since what the first one does may take hours; but not for one that has failed."""
        assert self.store is not None
        with translate_lost_peer():
            while not self.store.check([mark]):
                if self.store.check([_SPOKEN]):
                    raise ProcessLost(LOST_PEER)
                time.sleep(POLL)

    def elect_reporter(self, patience: float) -> bool:
        """Whether this process is the one to say why the job has failed. Others are given `patience` seconds before."""
        if self.store is None:
            return True
        try:
            until = time.monotonic() + patience
            while time.monotonic() < until and not self.store.check([_SPOKEN]):
                time.sleep(POLL)
            return self.store.add(_SPOKEN, 1) == 1
        except RuntimeError:  # the store went with the process that held it
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


def _channels_last(tensor: Tensor) -> bool:
    """Whether the colours lie innermost in memory, and not outermost; torch chooses its arithmetic by that."""
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return last and not tensor.is_contiguous()
