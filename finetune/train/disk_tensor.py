"""A tensor whose rows are kept in a file on disk."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor

from finetune.errors import TrainingError

_UNSUPPORTED = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
}  # of a file system that takes no room ahead


class DiskTensor:
    """`count` rows like those of `like` (1×..., of any type), first written, then read when they are indexed.

    folder: where the file takes its room, all of it at once where the file system can; OSError when there is none. What
    is read comes on the device of `like` and lies in memory as `like` does. It can be read by several threads at once.
    """

    def __init__(self, folder: Path, count: int, like: Tensor) -> None:
        self.folder, self.device, self.dtype = folder, like.device, like.dtype
        self.shape = torch.Size([count, *like.shape[1:]])
        axes = range(like.dim())
        self.order = (
            [axes[0], *axes[2:], axes[1]] if channels_last_order(like) else list(axes)
        )  # from the slowest axis on
        self.row = like[0].numel() * like.element_size()  # bytes
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            _reserve(file.fileno(), count * self.row)
            self.descriptor = os.dup(file.fileno())
        self.close = weakref.finalize(self, os.close, self.descriptor)  # gives the room back; nothing is read after it

    def __len__(self) -> int:
        return self.shape[0]

    def write(self, start: int, rows: Tensor) -> None:
        """Puts rows at the places from `start` on. OSError."""
        assert rows.shape[1:] == self.shape[1:] and rows.dtype == self.dtype and start + len(rows) <= len(self)
        plain = rows.detach().permute(self.order).contiguous().cpu().reshape(-1).view(torch.uint8)
        rest, place = plain.numpy().data, start * self.row
        while rest:
            done = os.pwrite(self.descriptor, rest, place)
            rest, place = rest[done:], place + done

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """The rows of a slice without a step, or at these places (int64, N)."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            runs = [(start, max(0, stop - start))]
        else:
            runs = [(place, 1) for place in index.tolist()]
        total = sum(count for _, count in runs)
        raw = torch.empty(total * self.row, dtype=torch.uint8)
        rest = raw.numpy().data
        for start, count in runs:
            self._read(rest[: count * self.row], start * self.row)
            rest = rest[count * self.row :]
        stored = raw.view(self.dtype).reshape([total, *(self.shape[axis] for axis in self.order[1:])])
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return stored.permute(back).to(self.device)

    def _read(self, rest: memoryview, place: int) -> None:
        try:
            while rest:
                done = os.preadv(self.descriptor, [rest], place)
                if not done:
                    raise OSError(None, "it is shorter than it was")
                rest, place = rest[done:], place + done
        except OSError as error:
            raise TrainingError(
                f"{self.folder}: a file of activations there cannot be read back ({error.strerror}); run the same "
                "again, with another folder in FINETUNE_CACHE or without such files (--set cache.disk=0)"
            ) from None


def channels_last_order(rows: Tensor) -> bool:
    """Whether images or activations N×C×H×W lie in memory as N×H×W×C."""
    return rows.dim() == 4 and not rows.is_contiguous() and rows.is_contiguous(memory_format=torch.channels_last)


def _reserve(descriptor: int, size: int) -> None:
    """Takes the room on the disk, so that it cannot run out later; nothing where a file system cannot do that."""
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
