"""Caches activations of the frozen part of a network, in memory or on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.checkpoint.tensor_hash import hash_tensor
from finetune.data.image_dataset import Images
from finetune.data.normalize import Normalizer
from finetune.models.staged import StagedNetwork
from finetune.text import amount
from finetune.train.device import Runtime
from finetune.train.disk_tensor import DiskTensor, channels_last_order
from finetune.train.inference import Rows, batched_apply, eval_batch_size

TRAIN, VALIDATION, TEST = "train", "validation", "test"  # the parts that every run has

MEMORY, FILE = "memory", "file"

PLACE_NAMES = {MEMORY: "memory", FILE: "a file"}  # in words


@dataclass(frozen=True)
class CachePart:
    """Images of a run; `training` images are run in the precision of training, others in float32."""

    images: Images
    training: bool = False


class ActivationKey(NamedTuple):
    """Which images' activations, in front of which stage, and of how many augmented views (None: as they are)."""

    part: str
    cut: int
    views: int | None = None


@dataclass(frozen=True)
class CachedActivations:
    """Activations, one row an image, view after view. `identity` is that of the weights in front of the boundary."""

    identity: str
    rows: Tensor | DiskTensor
    size: int  # bytes


def prefix_hashes(network: StagedNetwork, cuts: Collection[int]) -> dict[int, str]:
    """For each cut the sha256 of all parameters and buffers that `stages[:cut]` may use.

    Those are all but what belongs to the stages from the cut on. It is worked out anew each time: adapters, for
    example, are added to weights behind autograd's back, so nothing short of the numbers can be trusted.
    """
    last = max(cuts, default=0)
    stage_of = _stages_of(network)
    found = [
        (stage, f"{name} {hash_tensor(tensor)}\n")
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]
        if (stage := stage_of.get(id(tensor), 0)) < last
    ]
    return {
        cut: hashlib.sha256("".join(line for stage, line in found if stage < cut).encode()).hexdigest() for cut in cuts
    }


def _stages_of(network: StagedNetwork) -> dict[int, int]:
    """The stage's number for every parameter and buffer, by id, that belongs to one."""
    found: dict[int, int] = {}
    for number, stage in enumerate(network.stages):
        own: list[Tensor] = [*network.stage_parameters(stage)]
        own += [buffer for module in network.stage_modules(stage) for buffer in module.buffers()]
        found |= {id(tensor): number for tensor in own}
    return found


BatchFn = Callable[[Tensor], Tensor]  # makes a network's input of images, or of their places

Placement = dict[ActivationKey, Tensor | DiskTensor]


class ActivationCache:
    """Keeps activations behind frozen stages within `room`: bytes in MEMORY and, in a folder, in a FILE.

    parts: images by name. warn: is told in a line what could not be kept; `room` there is 0 from then on. Use it in a
    `with`: at its end everything is given back. Each of a group's processes runs some of the batches and keeps all
    activations; what one of them cannot keep, none does.
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
        self.kept: dict[ActivationKey, CachedActivations] = {}
        self._ones: dict[bool, dict[int, Tensor]] = {}

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def size(self, network: StagedNetwork, key: ActivationKey) -> int:
        """How many bytes these activations take; found out with one image."""
        one = self._one(network, key)
        return one.numel() * one.element_size() * self._count(key)

    def keep(
        self,
        network: StagedNetwork,
        wanted: Mapping[ActivationKey, str],
        prepared: Callable[[int], BatchFn] | None = None,
    ) -> bool:
        """Runs images through frozen stages once and keeps what is wanted: where by key, of one part and its views.

        `prepared` gives for each view what makes inputs of the images' places. What is there already is not made
        again. False, after a warning, when something could not be kept.
        """
        identity = prefix_hashes(network, [key.cut for key in wanted])
        missing = {
            key: where
            for key, where in wanted.items()
            if key not in self.kept or self.kept[key].identity != identity[key.cut]
        }
        self._drop(missing)
        places: Placement = {}
        try:
            opened = all(self._open(network, key, where, places) for key, where in missing.items())
            if not self._agreed(opened):
                _close(places)
                return False
            if places:
                self._fill(network, places, prepared)
        except BaseException:
            _close(places)
            raise
        for key, rows in places.items():
            self.kept[key] = CachedActivations(identity[key.cut], rows, self.size(network, key))
        return len(places) == len(missing)

    def keep_in_memory(self, network: StagedNetwork, key: ActivationKey) -> None:
        """Keeps activations, if memory has room for them; else they are computed whenever they are asked for."""
        used = sum(kept.size for kept in self.kept.values() if isinstance(kept.rows, Tensor))
        if key.cut and used + self.size(network, key) <= self.room[MEMORY]:
            self.keep(network, {key: MEMORY})

    def outputs(self, network: StagedNetwork, part: str, stop: int | None = None) -> Tensor:
        """What `stages[:stop]` give for the images in evaluation mode, from the furthest boundary that is kept."""
        return self.logits_from_cache(network, part, len(network.stages), stop)()

    def logits_from_cache(
        self, network: StagedNetwork, part: str, frozen: int, stop: int | None = None
    ) -> Callable[[], Tensor]:
        """`outputs` for as long as `stages[:frozen]` stay what they are, while those after them may change."""
        end = slice(stop).indices(len(network.stages))[1]
        start, rows = self._furthest(network, part, min(end, frozen))
        if start == end and isinstance(rows, Tensor):
            return lambda: rows
        run, size = self._through(network, part, start, end), self._batch(part)
        return lambda: batched_apply(run, network, rows, size, self.runtime.group)

    def release(self, but: Collection[ActivationKey] = ()) -> None:
        """Gives back the room of everything `but` these."""
        self._drop([key for key in self.kept if key not in but])

    def _fill(self, network: StagedNetwork, places: Placement, prepared: Callable[[int], BatchFn] | None) -> None:
        """Fills places of one part, a batch at a time through all boundaries; takes out what cannot be written."""
        any_key = next(iter(places))
        part, views = any_key.part, any_key.views
        start, rows = self._furthest(network, part, min(key.cut for key in places))
        if views is not None:
            start, rows = 0, torch.arange(len(self.parts[part].images))
        size, group = self._batch(part), self.runtime.group
        for view in range(views or 1):
            prepare = prepared(view) if prepared else None
            for first in range(0, len(rows), size * group.size):
                found, done, written = rows[first : first + size * group.size], start, True
                for key, place in sorted(places.items(), key=lambda item: item[0].cut):
                    run = self._through(network, part, done, key.cut, prepare)
                    found, done = batched_apply(run, network, found, size, group), key.cut
                    written &= self._written(place, view * len(rows) + first, found)
                if not self._agreed(written):
                    files = {key: place for key, place in places.items() if isinstance(place, DiskTensor)}
                    _close({key: places.pop(key) for key in files})
                    if not places:
                        return

    def _written(self, place: Tensor | DiskTensor, start: int, found: Tensor) -> bool:
        if isinstance(place, Tensor):
            place[start : start + len(found)] = found
            return True
        try:
            place.write(start, found)
        except OSError as error:
            self._lose(FILE, error, place.row * len(place))
            return False
        return True

    def _agreed(self, well: bool) -> bool:
        """Whether it went well in all processes of the group. What one of them has no room for, none has."""
        group = self.runtime.group
        failed, *lost = group.all_reduce_max_async(not well, *(not self.room[where] for where in (MEMORY, FILE)))()
        for where, gone in zip((MEMORY, FILE), lost, strict=True):
            if gone and self.room[where]:
                self.room[where] = 0
                self.warn(f"another process has no room for activations in {PLACE_NAMES[where]}; none keeps them there")
        return not failed

    def _through(
        self, network: StagedNetwork, part: str, start: int, stop: int, prepare: BatchFn | None = None
    ) -> Callable[[Tensor], Tensor]:
        """What takes rows of a part from one boundary to another, in its precision; images are prepared first."""
        learnt, device = self.parts[part].training, self.runtime.device
        prepare = prepare or (lambda images: self.normalize(images.to(device)))

        def run(rows: Tensor) -> Tensor:
            with self.runtime.autocast() if learnt else nullcontext():
                return network.run(prepare(rows) if start == 0 else rows, start, stop)

        return run

    def _furthest(self, network: StagedNetwork, part: str, most: int) -> tuple[int, Rows]:
        """The last boundary, up to `most`, of which this network's activations are there, and those; or the images."""
        there = {
            key.cut: kept for key, kept in self.kept.items() if key == ActivationKey(part, key.cut) and key.cut <= most
        }
        identity = prefix_hashes(network, there)
        cuts = [cut for cut, kept in there.items() if kept.identity == identity[cut]]
        return (max(cuts), there[max(cuts)].rows) if cuts else (0, self.parts[part].images)

    def _open(self, network: StagedNetwork, key: ActivationKey, where: str, places: Placement) -> bool:
        one, count = self._one(network, key), self._count(key)
        try:
            if where == FILE:
                places[key] = DiskTensor(self.folder, count, one)
            else:
                layout = torch.channels_last if channels_last_order(one) else torch.contiguous_format
                shape = (count, *one.shape[1:])
                places[key] = torch.empty(shape, dtype=one.dtype, device=one.device, memory_format=layout)
        except (OSError, MemoryError, RuntimeError) as error:  # torch has no exception of its own for the CPU's memory
            self._lose(where, error, self.size(network, key))
            return False
        return True

    def _one(self, network: StagedNetwork, key: ActivationKey) -> Tensor:
        """The activations of one image."""
        learnt = self.parts[key.part].training
        if learnt not in self._ones:
            found, done, self._ones[learnt] = self.parts[key.part].images[:1], 0, {}
            for cut in network.cuts[1:-1]:
                found = batched_apply(self._through(network, key.part, done, cut), network, found, 1)
                self._ones[learnt][cut] = found
                done = cut
        return self._ones[learnt][key.cut]

    def _count(self, key: ActivationKey) -> int:
        return len(self.parts[key.part].images) * (key.views or 1)

    def _batch(self, part: str) -> int:
        return eval_batch_size(self.normalize.pixels(self.parts[part].images), self.runtime.device)

    def _drop(self, keys: Collection[ActivationKey]) -> None:
        _close({key: self.kept.pop(key).rows for key in keys if key in self.kept})

    def _lose(self, where: str, error: Exception, size: int) -> None:
        """There is less room than was thought: none any more."""
        if not self.room[where]:
            return
        self.room[where] = 0
        if where == FILE:
            why = getattr(error, "strerror", None) or error
            cure = "name a folder with more room in FINETUNE_CACHE, or do without such files: --set cache.disk=0"
            self.warn(f"{self.folder}: {amount(size)} of activations cannot be kept there ({why}); {cure}")
        else:
            self.warn(f"{amount(size)} of activations do not fit into memory; --set cache.memory=0 asks for none")


def _close(places: Placement) -> None:
    for rows in places.values():
        if isinstance(rows, DiskTensor):
            rows.close()
