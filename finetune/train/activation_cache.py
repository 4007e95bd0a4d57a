"""Caches activations of the frozen part of a network, in memory or on disk."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.checkpoint.tensor_hash import hash_named, hash_tensor
from finetune.data.image_dataset import Images
from finetune.data.normalize import Normalizer
from finetune.distributed.process_group import is_channels_last
from finetune.errors import TrainingError
from finetune.models.staged import StagedNetwork
from finetune.text import amount
from finetune.train.device import Runtime
from finetune.train.inference import Reduce, Rows, batched_apply, empty_rows, eval_batch_size

TRAIN, VALIDATION, TEST = "train", "validation", "test"  # the parts that every run has
MEMORY, FILE = "memory", "file"
PLACE_NAMES = {MEMORY: "memory", FILE: "a file"}  # for messages

# What posix_fallocate fails with on a file system that cannot reserve space.
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class DiskTensor:
    """`count` rows with the shape and type of those of `like` (1×...), in a file: first written, then read by indexing.

    folder: where the file is; its space is reserved at once where the file system can, OSError when there is too
    little. Rows come on the device of `like`, in its memory layout. Several threads may read at once.
    """

    def __init__(self, folder: Path, count: int, like: Tensor) -> None:
        self.folder, self.device, self.dtype = folder, like.device, like.dtype
        self.shape = torch.Size([count, *like.shape[1:]])
        # The axes as they are stored, the slowest first.
        self.order = [0, *range(2, like.dim()), 1] if is_channels_last(like) else list(range(like.dim()))
        self.row_bytes = like[0].numel() * like.element_size()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            _reserve(file.fileno(), count * self.row_bytes)
            self.descriptor = os.dup(file.fileno())
        self.close = weakref.finalize(self, os.close, self.descriptor)  # frees the space; nothing is read after it

    def __len__(self) -> int:
        return self.shape[0]

    def write(self, start: int, rows: Tensor) -> None:
        """Writes rows from index `start` on. OSError when the disk is full."""
        assert rows.shape[1:] == self.shape[1:] and rows.dtype == self.dtype and start + len(rows) <= len(self)
        stored = rows.detach().permute(self.order).contiguous().cpu().reshape(-1).view(torch.uint8)
        rest, offset = stored.numpy().data, start * self.row_bytes
        while rest:
            done = os.pwrite(self.descriptor, rest, offset)
            rest, offset = rest[done:], offset + done

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """The rows of a slice without a step, or at these indices (int64, N)."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            runs = [(start, max(0, stop - start))]
        else:
            runs = [(place, 1) for place in index.tolist()]
        total = sum(count for _, count in runs)
        raw = torch.empty(total * self.row_bytes, dtype=torch.uint8)
        rest = raw.numpy().data
        for start, count in runs:
            self._read(rest[: count * self.row_bytes], start * self.row_bytes)
            rest = rest[count * self.row_bytes :]
        stored = raw.view(self.dtype).reshape([total, *(self.shape[axis] for axis in self.order[1:])])
        return stored.permute([self.order.index(axis) for axis in range(len(self.order))]).to(self.device)

    def _read(self, rest: memoryview, offset: int) -> None:
        try:
            while rest:
                done = os.preadv(self.descriptor, [rest], offset)
                if not done:
                    raise OSError(None, "it is shorter than it was")
                rest, offset = rest[done:], offset + done
        except OSError as error:
            raise TrainingError(
                f"{self.folder}: a file of activations there cannot be read back ({error.strerror}); run the same "
                "again, with another folder in FINETUNE_CACHE or without such files (--set cache.disk=0)"
            ) from None


def _reserve(descriptor: int, size: int) -> None:
    """Reserves space on the disk, so that it cannot run out later; does nothing where a file system cannot."""
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


@dataclass(frozen=True)
class CachePart:
    """Images of a run. `training`: they are run in the precision of training; otherwise, to evaluate, in float32."""

    images: Images
    training: bool = False


class ActivationKey(NamedTuple):
    """Which part's activations, before stage number `cut`, and of how many augmented views (None: not augmented)."""

    part: str
    cut: int
    views: int | None = None


@dataclass(frozen=True)
class CachedActivations:
    """Activations, one row an image, view after view. `prefix_hash` is that of the weights that computed them."""

    prefix_hash: str
    rows: Tensor | DiskTensor
    size: int  # bytes


def prefix_hashes(network: StagedNetwork, cuts: Collection[int]) -> dict[int, str]:
    """The sha256, for each cut, of all parameters and buffers that `stages[:cut]` may use.

    These are all that do not belong to a later stage. The hashes are computed anew each time: adapters, for example,
    are merged into weights without autograd's version counter noticing, so only the values themselves can be trusted.
    """
    stage_of: dict[int, int] = {}
    for number, stage in enumerate(network.stages):
        modules = network.stage_modules(stage)
        owned = [*network.stage_parameters(stage), *(buffer for module in modules for buffer in module.buffers())]
        stage_of |= {id(tensor): number for tensor in owned}
    every = {name: (stage_of.get(id(t), 0), t) for name, t in [*network.named_parameters(), *network.named_buffers()]}
    last = max(cuts, default=0)
    digests = {name: (number, hash_tensor(tensor)) for name, (number, tensor) in every.items() if number < last}
    return {cut: hash_named({name: d for name, (number, d) in digests.items() if number < cut}) for cut in cuts}


BatchFn = Callable[[Tensor], Tensor]  # makes a network's input from images, or from their indices
Placement = dict[ActivationKey, Tensor | DiskTensor]


class ActivationCache:
    """Keeps activations of frozen stages within `room`: bytes in MEMORY and, in a folder, in a FILE.

    parts: images by name. warn: called with one line when activations could not be kept; `room` there is 0 from then
    on. A context manager that releases everything at its end. Each process of a group runs some of the batches and
    keeps all activations; when one of them cannot keep some, none does.
    """

    def __init__(
        self,
        parts: Mapping[str, CachePart],
        normalize: Normalizer,
        runtime: Runtime,
        room: Mapping[str, int],
        folder: Path,
        warn: Callable[[str], None],
    ) -> None:
        self.parts, self.normalize, self.runtime = dict(parts), normalize, runtime
        self.room, self.folder, self.warn = dict(room), folder, warn
        self._given_room = dict(room)
        self.kept: dict[ActivationKey, CachedActivations] = {}
        self._samples: dict[bool, dict[int, Tensor]] = {}

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def size(self, network: StagedNetwork, key: ActivationKey) -> int:
        """How many bytes these activations take; found out with one image."""
        sample = self._sample(network, key)
        return sample.numel() * sample.element_size() * self._count(key)

    def keep(
        self,
        network: StagedNetwork,
        wanted: Mapping[ActivationKey, str],
        batch_fn: Callable[[int], BatchFn] | None = None,
    ) -> bool:
        """Runs images through frozen stages once and keeps the `wanted` activations: the place, MEMORY or FILE, by key.

        All keys are of one part and one number of views. `batch_fn(view)` gives the function that makes inputs from the
        images' indices. Activations that are kept already are not computed again. Returns False, after a warning, when
        some could not be kept.
        """
        hashes = prefix_hashes(network, [key.cut for key in wanted])
        missing = {
            key: place
            for key, place in wanted.items()
            if key not in self.kept or self.kept[key].prefix_hash != hashes[key.cut]
        }
        self._drop(missing)
        self._free_test(sum(self.size(network, key) for key, place in missing.items() if place == MEMORY))
        placed: Placement = {}
        try:
            opened = all(self._open(network, key, place, placed) for key, place in missing.items())
            if not self._all_succeeded(opened):
                _close(placed)
                return False
            if placed:
                self._fill(network, placed, batch_fn)
        except BaseException:
            _close(placed)
            raise
        for key, rows in placed.items():
            self.kept[key] = CachedActivations(hashes[key.cut], rows, self.size(network, key))
        return len(placed) == len(missing)

    def keep_in_memory(self, network: StagedNetwork, key: ActivationKey) -> None:
        """Keeps activations, if memory has room for them; else they are computed whenever they are asked for."""
        if key.cut and self._memory_used() + self.size(network, key) <= self.room[MEMORY]:
            self.keep(network, {key: MEMORY})

    def outputs(
        self, network: StagedNetwork, part: str, stop: int | None = None, reduce: Reduce | None = None
    ) -> Tensor:
        """Outputs of `stages[:stop]` for the images in evaluation mode, or what `reduce` keeps of them.

        They are computed from the last boundary that is kept.
        """
        return self.logits_from_cache(network, part, len(network.stages), stop, reduce)()

    def logits_from_cache(
        self, network: StagedNetwork, part: str, frozen: int, stop: int | None = None, reduce: Reduce | None = None
    ) -> Callable[[], Tensor]:
        """A function that gives `outputs` for as long as `stages[:frozen]` do not change; later stages may."""
        end = slice(stop).indices(len(network.stages))[1]
        start, rows = self._nearest(network, part, min(end, frozen))
        if start == end and isinstance(rows, Tensor) and reduce is None:
            return lambda: rows
        run, size = self._stage_runner(network, part, start, end), self._batch_size(part)
        return lambda: batched_apply(run, network, rows, size, self.runtime.group, reduce)

    def change_parts(self, parts: Mapping[str, CachePart]) -> None:
        """Replaces the images by those of another training, which gets the full room; keeps what still applies.

        Only activations of the same images, as they are, are kept: views are augmented by the training's own seed.
        """
        same = {part for part, old in self.parts.items() if part in parts and parts[part].images is old.images}
        if self.room != self._given_room:  # a training has run out of it, and one that is alone begins with all of it
            self.room, same = dict(self._given_room), set()
        self.release([key for key in self.kept if key.part in same and key.views is None])
        self.parts, self._samples = dict(parts), {}

    def release(self, but: Collection[ActivationKey] = ()) -> None:
        """Frees all activations `but` these."""
        self._drop([key for key in self.kept if key not in but])

    def _fill(
        self, network: StagedNetwork, placed: Placement, batch_fn: Callable[[int], BatchFn] | None = None
    ) -> None:
        """Runs batch after batch through all boundaries of one part; removes from `placed` what cannot be written."""
        any_key = next(iter(placed))
        part, views = any_key.part, any_key.views
        start, rows = self._nearest(network, part, min(key.cut for key in placed))
        if views is not None:
            start, rows = 0, torch.arange(len(self.parts[part].images))
        size, group = self._batch_size(part), self.runtime.group
        for view in range(views or 1):
            prepare = batch_fn(view) if batch_fn else None
            for first in range(0, len(rows), size * group.size):
                found, done, written = rows[first : first + size * group.size], start, True
                for key, target in sorted(placed.items(), key=lambda item: item[0].cut):
                    run = self._stage_runner(network, part, done, key.cut, prepare)
                    found, done = batched_apply(run, network, found, size, group), key.cut
                    written &= self._write(target, view * len(rows) + first, found)
                if not self._all_succeeded(written):
                    files = {key: target for key, target in placed.items() if isinstance(target, DiskTensor)}
                    _close({key: placed.pop(key) for key in files})
                    if not placed:
                        return

    def _write(self, target: Tensor | DiskTensor, start: int, rows: Tensor) -> bool:
        if isinstance(target, Tensor):
            target[start : start + len(rows)] = rows
            return True
        try:
            target.write(start, rows)
        except OSError as error:
            self._disable(FILE, error, target.row_bytes * len(target))
            return False
        return True

    def _all_succeeded(self, succeeded: bool) -> bool:
        """Whether all processes of the group succeeded. A place that one of them has no room in is given up by all."""
        group = self.runtime.group
        failed, *lost = group.all_reduce_max_async(not succeeded, *(not self.room[place] for place in (MEMORY, FILE)))()
        for place, gone in zip((MEMORY, FILE), lost, strict=True):
            if gone and self.room[place]:
                self.room[place] = 0
                self.warn(f"another process has no room for activations in {PLACE_NAMES[place]}; none keeps them there")
        return not failed

    def _stage_runner(
        self, network: StagedNetwork, part: str, start: int, stop: int, prepare: BatchFn | None = None
    ) -> Callable[[Tensor], Tensor]:
        """A function that runs rows of a part through `stages[start:stop]`, in the part's precision.

        With `start` 0 the rows are images, which `prepare` (by default the normalizer) turns into inputs.
        """
        training, device = self.parts[part].training, self.runtime.device
        prepare = prepare or (lambda images: self.normalize(images.to(device)))

        def run(rows: Tensor) -> Tensor:
            with self.runtime.autocast() if training else nullcontext():
                return network.run(prepare(rows) if start == 0 else rows, start, stop)

        return run

    def _nearest(self, network: StagedNetwork, part: str, most: int) -> tuple[int, Rows]:
        """The last boundary up to `most` whose activations by this network are kept, and those; or 0 and the images."""
        cuts = [key.cut for key in self.kept if key == ActivationKey(part, key.cut) and key.cut <= most]
        for cut, prefix_hash in sorted(prefix_hashes(network, cuts).items(), reverse=True):
            kept = self.kept[ActivationKey(part, cut)]
            if kept.prefix_hash == prefix_hash:
                return cut, kept.rows
        return 0, self.parts[part].images

    def _open(self, network: StagedNetwork, key: ActivationKey, place: str, placed: Placement) -> bool:
        sample, count = self._sample(network, key), self._count(key)
        try:
            placed[key] = DiskTensor(self.folder, count, sample) if place == FILE else empty_rows(count, sample)
        except (OSError, MemoryError, RuntimeError) as error:  # torch has no exception of its own for the CPU's memory
            self._disable(place, error, self.size(network, key))
            return False
        return True

    def _sample(self, network: StagedNetwork, key: ActivationKey) -> Tensor:
        """The activations of one image."""
        training = self.parts[key.part].training
        if training not in self._samples:
            found, done, self._samples[training] = self.parts[key.part].images[:1], 0, {}
            for cut in network.cuts[1:-1]:
                found = batched_apply(self._stage_runner(network, key.part, done, cut), network, found, 1)
                self._samples[training][cut] = found
                done = cut
        return self._samples[training][key.cut]

    def _count(self, key: ActivationKey) -> int:
        return len(self.parts[key.part].images) * (key.views or 1)

    def _batch_size(self, part: str) -> int:
        return eval_batch_size(self.normalize.pixels(self.parts[part].images), self.runtime.device)

    def _memory_used(self) -> int:
        return sum(kept.size for kept in self.kept.values() if isinstance(kept.rows, Tensor))

    def _free_test(self, needed: int) -> None:
        """Frees what an earlier training left of test images, where memory has no room for `needed` bytes beside it."""
        if needed and self._memory_used() + needed > self.room[MEMORY]:
            self._drop([key for key in self.kept if key.part == TEST])

    def _drop(self, keys: Collection[ActivationKey]) -> None:
        _close({key: self.kept.pop(key).rows for key in keys if key in self.kept})

    def _disable(self, place: str, error: Exception, size: int) -> None:
        """Keeps nothing more in a place that turned out to have less room than was thought."""
        if not self.room[place]:
            return
        self.room[place] = 0
        if place == FILE:
            why = getattr(error, "strerror", None) or error
            hint = "name a folder with more room in FINETUNE_CACHE, or do without such files: --set cache.disk=0"
            self.warn(f"{self.folder}: {amount(size)} of activations cannot be kept there ({why}); {hint}")
        else:
            self.warn(f"{amount(size)} of activations do not fit into memory; --set cache.memory=0 asks for none")


def _close(placed: Placement) -> None:
    for rows in placed.values():
        if isinstance(rows, DiskTensor):
            rows.close()
