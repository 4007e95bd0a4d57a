"""Makes the row `interpolated`: mixes of source and fine-tuned network are scored, and one of them is chosen."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor

from finetune.commands.source_task import AskedSource, SourceTask
from finetune.models.staged import StagedNetwork
from finetune.report.console import Console
from finetune.report.report import FrontierPoint, Interpolation
from finetune.report.tables import percent
from finetune.train.activation_cache import VALIDATION
from finetune.train.interpolation import WEIGHTS, Mix, best_retaining, mixed_state, nearest_equivalent, score_mix


@dataclass(frozen=True)
class InterpolatedNetwork:
    """The mix that was chosen, and how."""

    network: StagedNetwork
    summary: Interpolation


class Mixer:
    """A network whose weights are set to one mix after the other.

    head_rows: the places of the target's classes in the source's head, where all of them kept their row from it; then
    the head is mixed too. None: it is the fine-tuned one.
    """

    def __init__(self, source: StagedNetwork, adapted: StagedNetwork, head_rows: list[int] | None) -> None:
        self.network = copy.deepcopy(adapted)
        self.source, self.adapted = source.state_dict(), adapted.state_dict()
        self.head = adapted.head_tensors()
        self.source_head: dict[str, Tensor] | None = None
        if head_rows is not None:
            self.source_head = {name: self.source[name][head_rows] for name in self.head}

    def set(self, weight: float) -> StagedNetwork:
        """The network with this share of the fine-tuned one."""
        self.network.load_state_dict(mixed_state(self.source, self.adapted, weight, self.head, self.source_head))
        return self.network


def interpolate(mixer: Mixer, task: SourceTask, retain: float | None, console: Console) -> InterpolatedNetwork:
    """Scores every mix on the validation images and on images of the source, where these are at hand; chooses one.

    retain: the part of the source's accuracy that the chosen mix has to keep; where the source's images are not at hand
    it is chosen as without.
    """
    found = task.held_out_images()
    images, part = found if found is not None else (None, None)
    opened = nullcontext(None) if images is None else task.asked(images, task.context.runtime.group)
    with opened as asked:
        before = asked.before() if asked is not None else None
        mixes = _score_mixes(mixer, task, asked)
    if retain is not None and before is not None:
        chosen = best_retaining(mixes, retain * before)
    else:
        chosen = nearest_equivalent(mixes)
    summary = Interpolation(
        weight=chosen.weight,
        retain=retain,
        images=len(task.context.data.validation),
        source_images=None if images is None else len(images),
        source_part=part,
        source_before=before,
        note=task.missing() if images is None else None,
        frontier=[
            FrontierPoint(mix.weight, mix.accuracy, float(mix.log_losses.mean()), mix.source_accuracy) for mix in mixes
        ],
    )
    _note(summary, console)
    return InterpolatedNetwork(mixer.set(chosen.weight), summary)


def planned_mixes(task: SourceTask, retain: float | None) -> str:
    """What would be tried on which images, in words, before anything is trained."""
    found = task.held_out_images()
    tried = f"{len(WEIGHTS)} mixes of the source's weights and 0, 0.1, ... to 1 of the fine-tuned ones"
    chosen = f"one is chosen on {len(task.context.data.validation):,} validation images"
    if found is None:
        return f"{tried}; {chosen} alone, as {task.missing()}"
    images, part = found
    learnt = "" if part == "validation" else " (training images, which it has learnt from)"
    kept = f"{len(images):,} images of the source's data{learnt}"
    if retain is None:
        return f"{tried}; {chosen}; {kept} show what each keeps of its task"
    return f"{tried}; {chosen}, of those that keep {percent(retain)} of the source's accuracy on {kept}"


def _score_mixes(mixer: Mixer, task: SourceTask, asked: AskedSource | None) -> list[Mix]:
    cache, labels = task.context.cache, task.context.data.validation.labels
    mixes = []
    for weight in WEIGHTS:
        network = mixer.set(weight)
        kept = asked.accuracy(network) if asked is not None else None
        mixes.append(score_mix(weight, cache.outputs(network, VALIDATION), labels, kept))
    return mixes


def _note(summary: Interpolation, console: Console) -> None:
    if summary.retain is not None and summary.source_before is None:
        console.warn(f"retain: {percent(summary.retain)} of the source's accuracy cannot be asked for: {summary.note}")
    console.note(f"interpolated: {summary.sentence}")
