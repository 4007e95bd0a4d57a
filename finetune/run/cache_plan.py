"""Decides which phases cache the frozen part's activations, up to which stage, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from finetune.data.loader import Batches
from finetune.models.staged import StagedNetwork
from finetune.recipe.phase_schema import Phase
from finetune.run.context import TrainContext
from finetune.run.phase_config import activation_batches, image_batches
from finetune.text import amount
from finetune.train.activation_cache import FILE, MEMORY, PLACE_NAMES, TRAIN, VALIDATION, ActivationKey
from finetune.train.freeze import frozen_prefix

NOTHING_FROZEN = "nothing frozen"

_Placements = dict[tuple[ActivationKey, int], str]  # where activations are from which phase on


@dataclass(frozen=True)
class PhaseCache:
    """How often a phase runs its frozen part.

    `stages[:start]` are run once for each image, or for each of its `views`, instead of at every step; 0: none are.
    What comes out takes `size` bytes in `where`, MEMORY or FILE; None where it is not kept. `wanted`: all activations
    that the phase is to find kept, and where. `why` not all that is frozen is run once, in words.
    """

    start: int = 0
    views: int | None = None
    where: str | None = None
    size: int = 0
    wanted: dict[ActivationKey, str] = field(default_factory=dict)
    why: str = ""

    @property
    def passes(self) -> int:
        """How often each image to learn from goes through those stages."""
        return (self.views or 1) if self.start else 0

    def __str__(self) -> str:
        """As a phase's line says it."""
        if not self.start:
            return self.why if self.why == NOTHING_FROZEN else f"not cached: {self.why}"
        times = "once" if self.views is None else f"once for each of {self.views} views"
        place = "" if self.where is None else f" ({amount(self.size)} in {PLACE_NAMES[self.where]})"
        return f"frozen part run {times}{place}" + (f", not all of it: {self.why}" if self.why else "")


class CacheManager:
    """The caching of a network's phases. It depends on the recipe, the images, and the room there is, not on progress.

    So a run that goes on after a stop decides as it did before.
    """

    def __init__(self, network: StagedNetwork, phases: Sequence[Phase], context: TrainContext) -> None:
        self.network, self.phases, self.context, self.cache = network, phases, context, context.cache

    def plan(self) -> list[PhaseCache]:
        """Of every phase. Activations are placed in the order of the phases, as if all were kept to the end."""
        left, placed = dict(self.cache.room), _Placements()
        return [self._caching(number, left, placed) for number in range(len(self.phases))]

    def prefill(self, network: StagedNetwork, number: int) -> None:
        """One pass, with the weights of the start, for all that phase `number` and later ones want of the images."""
        groups = [(TRAIN, None), (VALIDATION, None)]
        while not all(self._keep(network, group, number, 0) for group in groups):
            pass  # something could not be kept, so that now less is wanted

    def shares(self, number: int, caching: PhaseCache) -> bool:
        """Whether an earlier phase's pass over the images is this one's as well."""
        return any(
            earlier.start >= caching.start <= self.frozen_depth(since, number) and earlier.views == caching.views
            for since, earlier in enumerate(self.plan()[:number])
        )

    def enter_phase(self, number: int) -> PhaseCache:
        """Fills what a phase wants and is not kept yet; in the same pass what later ones want of it."""
        while True:
            here = self.plan()[number]
            groups = dict.fromkeys((key.part, key.views) for key in here.wanted)
            if all(self._keep(self.network, group, number, number) for group in groups):
                return here

    def batches(self, number: int, caching: PhaseCache) -> Batches:
        """A phase's batches: of what is kept for it, or of images."""
        phase, context = self.phases[number], self.context
        if caching.where is None:
            return image_batches(phase, context)
        kept = self.cache.kept[ActivationKey(TRAIN, caching.start, caching.views)]
        return activation_batches(phase, context, kept.rows, caching.views)

    def exit_phase(self, number: int) -> None:
        """Gives back what no later phase wants, nor can go on from to what it wants."""
        useful = set()
        for later, caching in enumerate(self.plan()[number + 1 :], number + 1):
            most = self.frozen_depth(number + 1, later)
            for key in caching.wanted:
                there = key in self.cache.kept and key.cut <= most
                before = (ActivationKey(key.part, cut, key.views) for cut in range(1, min(key.cut, most) + 1))
                useful |= {key} if there else set(before)
        self.cache.release(useful)

    def phase_depth(self, number: int) -> int:
        """How many stages a phase leaves as they are, from the input to where the network can be cut; not the head."""
        phase = self.phases[number]
        frozen = frozen_prefix(self.network, phase.trained_stages(self.network.stages))
        return 0 if phase.norms == "update" else frozen

    def frozen_depth(self, first: int = 0, last: int | None = None) -> int:
        """How many stages phase `first` and those after it, before phase `last`, all leave as they are."""
        depths = [self.phase_depth(number) for number in range(first, len(self.phases) if last is None else last)]
        return min([len(self.network.stages) - 1, *depths])

    def _keep(self, network: StagedNetwork, group: tuple[str, int | None], number: int, since: int) -> bool:
        wanted = {key: where for key, where in self._wanted(number, since) if (key.part, key.views) == group}
        prepared = image_batches(self.phases[number], self.context).prepared if group[1] else None
        return not wanted or self.cache.keep(network, wanted, prepared)

    def _wanted(self, number: int, since: int) -> Iterator[tuple[ActivationKey, str]]:
        """What phase `number` and later ones want kept, as far as it is the same ever since phase `since` began."""
        for later, caching in enumerate(self.plan()):
            if later >= number:
                most = self.frozen_depth(since, later)
                yield from ((key, where) for key, where in caching.wanted.items() if key.cut <= most)

    def _caching(self, number: int, left: dict[str, int], placed: _Placements) -> PhaseCache:
        phase, depth = self.phases[number], self.phase_depth(number)
        views = phase.views if self._augmented(phase) else None
        why = self._obstacle(phase, depth)
        found = None if why else self._training_place(number, views, left, placed)
        wanted, start, size = {}, 0, 0
        if found is not None:
            key, where = found
            wanted, start, size = {key: where}, key.cut, self.cache.size(self.network, key)
        elif not why:
            start = depth if phase.solver else 0
        if not why and start < depth:
            why = self._lack(number, start, depth, views)
        cut = start or depth
        if len(self.context.data.validation) and cut:
            key = ActivationKey(VALIDATION, cut)
            kinds = (MEMORY, FILE) if found is not None else (MEMORY,)  # few rows are no reason to fill a disk
            if kept := self._place(key, number, left, placed, kinds):
                wanted[key] = kept
        return PhaseCache(start, views if start else None, found[1] if found is not None else None, size, wanted, why)

    def _training_place(
        self, number: int, views: int | None, left: dict[str, int], placed: _Placements
    ) -> tuple[ActivationKey, str] | None:
        """The last boundary of which activations can be kept and are worth it, and where; None where there is none.

        They are when fewer passes than otherwise come of it. Where the pass is made anyway, memory costs nothing.
        """
        for cut in reversed(self.network.cuts):
            if 0 < cut <= self.phase_depth(number):
                key = ActivationKey(TRAIN, cut, views)
                kinds = (
                    (MEMORY, FILE)
                    if self._gains(number, views)
                    else (MEMORY,)
                    if self._is_made(key, number, placed)
                    else ()
                )
                if where := self._place(key, number, left, placed, kinds):
                    return key, where
        return None

    def _place(
        self, key: ActivationKey, number: int, left: dict[str, int], placed: _Placements, kinds: Sequence[str]
    ) -> str | None:
        """Where a phase finds these activations: with an earlier phase's, or in what room is left; None: nowhere."""
        for (other, since), where in placed.items():
            if other == key and key.cut <= self.frozen_depth(since, number):
                return where
        size = self.cache.size(self.network, key)
        for where in kinds:
            if size <= left[where]:
                left[where] -= size
                placed[key, number] = where
                return where
        return None

    def _is_made(self, key: ActivationKey, number: int, placed: _Placements) -> bool:
        """Whether the images go through these stages in any case, so that their activations cost no pass."""
        if self.phases[number].solver is not None:
            return True
        if self.context.needs_features and key.views is None and key.cut <= self.frozen_depth(0, number):
            return True
        same = [(other, since) for other, since in placed if (other.part, other.views) == (key.part, key.views)]
        return any(key.cut <= min(other.cut, self.frozen_depth(since, number)) for other, since in same)

    def _obstacle(self, phase: Phase, depth: int) -> str:
        """Why nothing of a phase can be run once, however much room there is; "" where something can."""
        trained, stages = phase.trained_stages(self.network.stages), self.network.stages
        if len(trained) == len(stages):
            return NOTHING_FROZEN
        if phase.norms == "update":
            return "norms: update moves the frozen layers"
        if depth == 0:
            first = stages[0] in trained
            return (
                f"{stages[0]}, the first stage, trains" if first else "this network cannot be cut behind what is frozen"
            )
        if self._augmented(phase) and phase.views is None:
            assert self.context.augment is not None
            mixed = " and mixed" if self.context.augment.mixes else "; views: K would keep K passes"
            return f"images are augmented{mixed}"
        return ""

    def _lack(self, number: int, start: int, depth: int, views: int | None) -> str:
        """Why not all that is frozen is run once, though it could be."""
        if not start and not self._gains(number, views) and not self.phases[number].solver:
            return f"no {'view' if views else 'image'} is seen twice"
        size = amount(self.cache.size(self.network, ActivationKey(TRAIN, depth, views)))
        memory, disk = (amount(self.cache.room[where]) for where in (MEMORY, FILE))
        return (
            f"{size} of activations behind {self.network.stages[depth - 1]}, and room for {memory} in memory "
            f"(cache.memory) and {disk} in {self.cache.folder} (cache.disk)"
        )

    def _augmented(self, phase: Phase) -> bool:
        return self.context.augment is not None and phase.augment and phase.solver is None

    def _gains(self, number: int, views: int | None) -> bool:
        """Whether a phase's steps see more images, each as often as it comes, than the passes that fill its cache."""
        phase, images = self.phases[number], len(self.context.data.train)
        return phase.images_seen(images) > images * (views or 1)
