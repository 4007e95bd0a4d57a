"""A frozen prefix is run once: its activations are kept, in memory or in a file, and only the stages after it go on.

What is kept is known by the images, the boundary, and the weights in front of it. So whoever asks what those weights
make of those images finds it, whichever network it is: training, validation, class means, the solver, the test.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from finetune.data.batches import Normaliser
from finetune.data.rowfile import RowFile, last_channels
from finetune.errors import amount
from finetune.models.staged import StagedNetwork
from finetune.training.activations import FILE, MEMORY, PLACES, Kept, Key, Part
from finetune.training.evaluation import Rows, in_batches, most_images
from finetune.training.identity import identities
from finetune.training.runtime import Runtime

Prepare = Callable[[Tensor], Tensor]  # makes a network's input of images, or of their places
Places = dict[Key, Tensor | RowFile]


class Cache:
    """Keeps activations behind frozen stages within `room`: bytes in MEMORY and, in a folder, in a FILE.

    parts: images by name. warn: is told in a line what could not be kept; `room` there is 0 from then on. Use it in a
    `with`: at its end everything is given back. Each of a group's processes runs some of the batches and keeps all
    activations; what one of them cannot keep, none does.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        normalise: Normaliser,
        runtime: Runtime,
        room: Mapping[str, int],
        folder: Path,
        warn: Callable[[str], None],
    ) -> None:
        self.parts, self.normalise, self.runtime = dict(parts), normalise, runtime
        self.room, self.folder, self.warn = dict(room), folder, warn
        self.kept: dict[Key, Kept] = {}
        self._ones: dict[bool, dict[int, Tensor]] = {}

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def size(self, network: StagedNetwork, key: Key) -> int:
        """How many bytes these activations take; found out with one image."""
        one = self._one(network, key)
        return one.numel() * one.element_size() * self._count(key)

    def keep(
        self,
        network: StagedNetwork,
        wanted: Mapping[Key, str],
        prepared: Callable[[int], Prepare] | None = None,
    ) -> bool:
        """Runs images through frozen stages once and keeps what is wanted: where by key, of one part and its views.

        `prepared` gives for each view what makes inputs of the images' places. What is there already is not made
        again. False, after a warning, when something could not be kept.
        """
        identity = identities(network, [key.cut for key in wanted])
        missing = {
            key: where
            for key, where in wanted.items()
            if key not in self.kept or self.kept[key].identity != identity[key.cut]
        }
        self._drop(missing)
        places: Places = {}
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
            self.kept[key] = Kept(identity[key.cut], rows, self.size(network, key))
        return len(places) == len(missing)

    def keep_in_memory(self, network: StagedNetwork, key: Key) -> None:
        """Keeps activations, if memory has room for them; else they are computed whenever they are asked for."""
        used = sum(kept.size for kept in self.kept.values() if isinstance(kept.rows, Tensor))
        if key.cut and used + self.size(network, key) <= self.room[MEMORY]:
            self.keep(network, {key: MEMORY})

    def outputs(self, network: StagedNetwork, part: str, stop: int | None = None) -> Tensor:
        """What `stages[:stop]` give for the images in evaluation mode, from the furthest boundary that is kept."""
        return self.onward(network, part, len(network.stages), stop)()

    def onward(self, network: StagedNetwork, part: str, frozen: int, stop: int | None = None) -> Callable[[], Tensor]:
        """`outputs` for as long as `stages[:frozen]` stay what they are, while those after them may change."""
        end = slice(stop).indices(len(network.stages))[1]
        start, rows = self._furthest(network, part, min(end, frozen))
        if start == end and isinstance(rows, Tensor):
            return lambda: rows
        run, size = self._through(network, part, start, end), self._batch(part)
        return lambda: in_batches(run, network, rows, size, self.runtime.group)

    def release(self, but: Collection[Key] = ()) -> None:
        """Gives back the room of everything `but` these."""
        self._drop([key for key in self.kept if key not in but])

    def _fill(self, network: StagedNetwork, places: Places, prepared: Callable[[int], Prepare] | None) -> None:
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
                    found, done = in_batches(run, network, found, size, group), key.cut
                    written &= self._written(place, view * len(rows) + first, found)
                if not self._agreed(written):
                    files = {key: place for key, place in places.items() if isinstance(place, RowFile)}
                    _close({key: places.pop(key) for key in files})
                    if not places:
                        return

    def _written(self, place: Tensor | RowFile, start: int, found: Tensor) -> bool:
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
        failed, *lost = group.vote(not well, *(not self.room[where] for where in (MEMORY, FILE)))()
        for where, gone in zip((MEMORY, FILE), lost, strict=True):
            if gone and self.room[where]:
                self.room[where] = 0
                self.warn(f"another process has no room for activations in {PLACES[where]}; none keeps them there")
        return not failed

    def _through(
        self, network: StagedNetwork, part: str, start: int, stop: int, prepare: Prepare | None = None
    ) -> Callable[[Tensor], Tensor]:
        """What takes rows of a part from one boundary to another, in its precision; images are prepared first."""
        learnt, device = self.parts[part].learnt, self.runtime.device
        prepare = prepare or (lambda images: self.normalise(images.to(device)))

        def run(rows: Tensor) -> Tensor:
            with self.runtime.arithmetic() if learnt else nullcontext():
                return network.run(prepare(rows) if start == 0 else rows, start, stop)

        return run

    def _furthest(self, network: StagedNetwork, part: str, most: int) -> tuple[int, Rows]:
        """The last boundary, up to `most`, of which this network's activations are there, and those; or the images."""
        there = {key.cut: kept for key, kept in self.kept.items() if key == Key(part, key.cut) and key.cut <= most}
        identity = identities(network, there)
        cuts = [cut for cut, kept in there.items() if kept.identity == identity[cut]]
        return (max(cuts), there[max(cuts)].rows) if cuts else (0, self.parts[part].images)

    def _open(self, network: StagedNetwork, key: Key, where: str, places: Places) -> bool:
        one, count = self._one(network, key), self._count(key)
        try:
            if where == FILE:
                places[key] = RowFile(self.folder, count, one)
            else:
                layout = torch.channels_last if last_channels(one) else torch.contiguous_format
                shape = (count, *one.shape[1:])
                places[key] = torch.empty(shape, dtype=one.dtype, device=one.device, memory_format=layout)
        except (OSError, MemoryError, RuntimeError) as error:  # torch has no exception of its own for the CPU's memory
            self._lose(where, error, self.size(network, key))
            return False
        return True

    def _one(self, network: StagedNetwork, key: Key) -> Tensor:
        """The activations of one image."""
        learnt = self.parts[key.part].learnt
        if learnt not in self._ones:
            found, done, self._ones[learnt] = self.parts[key.part].images[:1], 0, {}
            for cut in network.cuts[1:-1]:
                found = in_batches(self._through(network, key.part, done, cut), network, found, 1)
                self._ones[learnt][cut] = found
                done = cut
        return self._ones[learnt][key.cut]

    def _count(self, key: Key) -> int:
        return len(self.parts[key.part].images) * (key.views or 1)

    def _batch(self, part: str) -> int:
        return most_images(self.normalise.pixels(self.parts[part].images), self.runtime.device)

    def _drop(self, keys: Collection[Key]) -> None:
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


def _close(places: Places) -> None:
    for rows in places.values():
        if isinstance(rows, RowFile):
            rows.close()
