"""Plans which phases cache the frozen part's activations, up to which stage, and where; and carries the plan out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from finetune.data.augment.affine import Augment
from finetune.data.loader import Batches
from finetune.models.staged import StagedNetwork
from finetune.recipe.schema import Phase
from finetune.run.context import TrainContext
from finetune.text import amount
from finetune.train.activation_cache import FILE, MEMORY, PLACE_NAMES, TEST, TRAIN, VALIDATION, ActivationKey
from finetune.train.balance import SAMPLER
from finetune.train.freeze import frozen_prefix

NOTHING_FROZEN = "nothing frozen"


@dataclass(frozen=True)
class PhaseCache:
    """How a phase caches its frozen part.

    `stages[:start]` run once for each image, or for each of its `views`, instead of at every step; 0: none do. Their
    activations take `size` bytes in `where`, MEMORY or FILE; None: they are not kept. `wanted`: all activations that
    the phase needs in the cache, and where. `why` not all that is frozen runs only once, in words.
    """

    start: int = 0
    views: int | None = None
    where: str | None = None
    size: int = 0
    wanted: dict[ActivationKey, str] = field(default_factory=dict)
    why: str = ""

    @property
    def passes(self) -> int:
        """How often each training image goes through those stages."""
        return (self.views or 1) if self.start else 0

    def __str__(self) -> str:
        """The end of the phase's line on the screen."""
        if not self.start:
            return self.why if self.why == NOTHING_FROZEN else f"not cached: {self.why}"
        times = "once" if self.views is None else f"once for each of {self.views} views"
        place = "" if self.where is None else f" ({amount(self.size)} in {PLACE_NAMES[self.where]})"
        return f"frozen part run {times}{place}" + (f", not all of it: {self.why}" if self.why else "")


@dataclass
class _Allocations:
    """The room that is left while a plan is made, and where activations are placed, from which phase on."""

    left: dict[str, int]
    placed: dict[tuple[ActivationKey, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class CachePlanner:
    """Decides what each phase caches: a pure function of the phases, the numbers of images, and the room.

    It does not depend on progress, so that a resumed run decides as it did before. network: for its stages and cuts.
    size: the bytes that activations take. room: bytes by place. needs_features: before the first phase all training
    images go through the network anyway.
    """

    network: StagedNetwork
    phases: Sequence[Phase]
    train_images: int
    validation_images: int
    augment: Augment | None
    needs_features: bool
    size: Callable[[ActivationKey], int]
    room: Mapping[str, int]
    folder: Path

    def plan(self) -> list[PhaseCache]:
        """The cache of every phase. Activations get room in the order of the phases, as if all were kept to the end."""
        allocations = _Allocations(dict(self.room))
        return [self._plan_phase(number, allocations) for number in range(len(self.phases))]

    def phase_depth(self, number: int) -> int:
        """The number of stages that a phase freezes, from the input to where the network can be cut; not the head."""
        phase = self.phases[number]
        frozen = frozen_prefix(self.network, phase.trained_stages(self.network.stages))
        return 0 if phase.norms == "update" else frozen

    def frozen_depth(self, first: int = 0, last: int | None = None) -> int:
        """The number of stages that phase `first` and all after it, up to but not including `last`, freeze."""
        depths = [self.phase_depth(number) for number in range(first, len(self.phases) if last is None else last)]
        return min([len(self.network.stages) - 1, *depths])

    def shares(self, number: int, caching: PhaseCache) -> bool:
        """Whether an earlier phase's pass over the images serves this phase too."""
        return any(
            earlier.start >= caching.start <= self.frozen_depth(since, number) and earlier.views == caching.views
            for since, earlier in enumerate(self.plan()[:number])
        )

    def wanted_from(self, number: int, since: int) -> Iterator[tuple[ActivationKey, str]]:
        """What phase `number` and later ones want cached and phase `since` can already compute, and where."""
        for later, caching in enumerate(self.plan()):
            if later >= number:
                most = self.frozen_depth(since, later)
                yield from ((key, where) for key, where in caching.wanted.items() if key.cut <= most)

    def useful_after(self, number: int, kept: Collection[ActivationKey]) -> set[ActivationKey]:
        """The activations that phases after `number` want, or can compute what they want from."""
        useful = set()
        for later, caching in enumerate(self.plan()[number + 1 :], number + 1):
            most = self.frozen_depth(number + 1, later)
            for key in caching.wanted:
                before = (ActivationKey(key.part, cut, key.views) for cut in range(1, min(key.cut, most) + 1))
                useful |= {key} if key in kept and key.cut <= most else set(before)
        return useful

    def _plan_phase(self, number: int, allocations: _Allocations) -> PhaseCache:
        phase, depth = self.phases[number], self.phase_depth(number)
        views = phase.views if self._is_augmented(phase) else None
        why = self._obstacle(phase, depth)
        key, where = (None, None) if why else self._place_training(number, views, allocations)
        start = key.cut if key is not None else depth if phase.solver and not why else 0
        wanted = {key: where} if key is not None and where is not None else {}
        if not why and start < depth:
            why = self._shortage(number, start, depth, views)
        if self.validation_images and (start or depth):
            held = ActivationKey(VALIDATION, start or depth)
            # A few validation images alone are no reason to fill a disk.
            if place := self._place(held, number, (MEMORY, FILE) if where else (MEMORY,), allocations):
                wanted[held] = place
        return PhaseCache(start, views if start else None, where, 0 if key is None else self.size(key), wanted, why)

    def _place_training(
        self, number: int, views: int | None, allocations: _Allocations
    ) -> tuple[ActivationKey | None, str | None]:
        """The last boundary whose activations have room and are worth keeping, and the place; or None and None.

        They are worth it when that makes fewer passes. Where the pass is made anyway, only memory is.
        """
        for cut in reversed(self.network.cuts):
            if 0 < cut <= self.phase_depth(number):
                key = ActivationKey(TRAIN, cut, views)
                places: tuple[str, ...] = (MEMORY, FILE)
                if not self._saves_passes(number, views):
                    places = (MEMORY,) if self._is_computed_anyway(key, number, allocations) else ()
                if where := self._place(key, number, places, allocations):
                    return key, where
        return None, None

    def _place(self, key: ActivationKey, number: int, places: Sequence[str], allocations: _Allocations) -> str | None:
        """Where a phase has these activations: with an earlier phase, or in the room left; None: nowhere."""
        for (other, since), where in allocations.placed.items():
            if other == key and key.cut <= self.frozen_depth(since, number):
                return where
        size = self.size(key)
        for where in places:
            if size <= allocations.left[where]:
                allocations.left[where] -= size
                allocations.placed[key, number] = where
                return where
        return None

    def _is_computed_anyway(self, key: ActivationKey, number: int, allocations: _Allocations) -> bool:
        """Whether the images go through these stages in any case, so that keeping their activations costs no pass."""
        if self.phases[number].solver is not None:
            return True
        if self.needs_features and key.views is None and key.cut <= self.frozen_depth(0, number):
            return True
        return any(
            (other.part, other.views) == (key.part, key.views)
            and key.cut <= min(other.cut, self.frozen_depth(since, number))
            for other, since in allocations.placed
        )

    def _obstacle(self, phase: Phase, depth: int) -> str:
        """Why nothing of a phase can run only once, however much room there is; "" where something can."""
        stages = self.network.stages
        trained = phase.trained_stages(stages)
        if len(trained) == len(stages):
            return NOTHING_FROZEN
        if phase.norms == "update":
            return "norms: update moves the frozen layers"
        if depth == 0 and stages[0] in trained:
            return f"{stages[0]}, the first stage, trains"
        if depth == 0:
            return "this network cannot be cut behind what is frozen"
        if self._is_augmented(phase) and phase.views is None:
            assert self.augment is not None
            return f"images are augmented{' and mixed' if self.augment.mixes else '; views: K would keep K passes'}"
        return ""

    def _shortage(self, number: int, start: int, depth: int, views: int | None) -> str:
        """Why not all that is frozen runs only once, though it could."""
        if not start and not self._saves_passes(number, views) and not self.phases[number].solver:
            return f"no {'view' if views else 'image'} is seen twice"
        size = amount(self.size(ActivationKey(TRAIN, depth, views)))
        memory, disk = (amount(self.room[where]) for where in (MEMORY, FILE))
        return (
            f"{size} of activations behind {self.network.stages[depth - 1]}, and room for {memory} in memory "
            f"(cache.memory) and {disk} in {self.folder} (cache.disk)"
        )

    def _is_augmented(self, phase: Phase) -> bool:
        return self.augment is not None and phase.augment and phase.solver is None

    def _saves_passes(self, number: int, views: int | None) -> bool:
        """Whether a phase sees more images, each as often as it comes, than the passes that fill its cache."""
        return self.phases[number].images_seen(self.train_images) > self.train_images * (views or 1)


class CacheManager:
    """Fills and frees the activation cache as a network's phases go by, and makes their batches."""

    def __init__(self, network: StagedNetwork, phases: Sequence[Phase], context: TrainContext) -> None:
        self.network, self.phases, self.context, self.cache = network, phases, context, context.cache
        self.planner = CachePlanner(
            network,
            phases,
            train_images=len(context.data.train),
            validation_images=len(context.data.validation),
            augment=context.augment,
            needs_features=context.needs_features,
            size=partial(self.cache.size, network),
            room=self.cache.room,
            folder=self.cache.folder,
        )

    def prefill(self, network: StagedNetwork, number: int) -> None:
        """Caches, in one pass with the weights of the start, all that phase `number` and later ones can use of it."""
        groups = [(TRAIN, None), (VALIDATION, None)]
        while not all(self._keep(network, group, number, 0) for group in groups):
            pass  # some could not be kept, so that less is wanted now

    def enter_phase(self, number: int) -> PhaseCache:
        """Caches what a phase needs and lacks, and in the same pass what later phases need of it."""
        while True:
            here = self.planner.plan()[number]
            groups = dict.fromkeys((key.part, key.views) for key in here.wanted)
            if all(self._keep(self.network, group, number, number) for group in groups):
                return here

    def batches(self, number: int, caching: PhaseCache) -> Batches:
        """A phase's batches: of cached activations, or of images."""
        phase, context = self.phases[number], self.context
        if caching.where is None:
            return image_batches(phase, context)
        rows = self.cache.kept[ActivationKey(TRAIN, caching.start, caching.views)].rows
        labels, group = context.data.train.labels.to(context.runtime.device), context.runtime.group
        batches = Batches(
            rows,
            labels,
            batch_size=phase.batch_size,
            seed=context.seed,
            views=caching.views,
            balanced=context.balance == SAMPLER,
        )
        return batches.shard(group.rank, group.size)

    def exit_phase(self, number: int) -> None:
        """Frees activations that no later phase can use, but for test images; a shared cache keeps its last ones."""
        if number == len(self.phases) - 1 and self.context.shares_cache:
            return
        of_test = {key for key in self.cache.kept if key.part == TEST}
        self.cache.release(of_test | self.planner.useful_after(number, self.cache.kept))

    def _keep(self, network: StagedNetwork, group: tuple[str, int | None], number: int, since: int) -> bool:
        """Caches what `wanted_from` names of one part and number of views. False: not all of it could be kept."""
        wanted = {
            key: where for key, where in self.planner.wanted_from(number, since) if (key.part, key.views) == group
        }
        prepared = image_batches(self.phases[number], self.context).input_fn if group[1] else None
        return not wanted or self.cache.keep(network, wanted, prepared)


def image_batches(phase: Phase, context: TrainContext) -> Batches:
    """The phase's batches of images."""
    train, runtime = context.data.train, context.runtime
    return Batches(
        train.images.to(runtime.device),
        train.labels.to(runtime.device),
        batch_size=phase.batch_size,
        seed=context.seed,
        normalize=context.normalize,
        augment=context.augment if phase.augment else None,
        classes=len(train.class_names),
        views=phase.views,
        balanced=context.balance == SAMPLER,
    ).shard(runtime.group.rank, runtime.group.size)
