"""The short check before every adapt: twins across parts, and the grouping that file names show.

It looks at pixels and file names, never at the labels of test images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.data.image_dataset import ImageSet
from finetune.data.manifest import list_some
from finetune.data.quality import likely_grouping
from finetune.data.split import image_hashes
from finetune.data.twins import descriptors, find_twins, fit_model, thumbnails
from finetune.report.comparison import Score
from finetune.report.report import WithoutTwins
from finetune.run.data import RunData

MAX_NAMED = 3  # twins named in the note
MAX_TESTED, MAX_LEARNT = 2_000, 20_000  # pictures looked at for near twins: every k-th

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class QuickCheck:
    """What the short check found. notes: for people, a line each. looked_at: indices of the test images looked at.

    twins: those of them that have a twin among the images to learn from.
    """

    notes: tuple[str, ...] = ()
    looked_at: Integers | None = None
    twins: Integers | None = None


def quick_check(data: RunData) -> QuickCheck:
    """Checks a person's own pictures; of a registered set nothing, it is known."""
    if not data.train.files or not len(data.test):
        return QuickCheck()
    learnt = sample_learnt(data, MAX_LEARNT)
    tested = every_kth(len(data.test), MAX_TESTED)
    count, labels = len(learnt.labels), torch.cat([learnt.labels, torch.zeros(len(tested), dtype=torch.int64)])
    thumbs = torch.cat([learnt.thumbs, thumbnails(data.test.images, tested)])
    vectors, places = descriptors(thumbs), np.arange(len(thumbs))
    model = fit_model(thumbs[:count], learnt.labels)
    found = find_twins(thumbs, labels, vectors, places[count:], places[:count], model)
    pairs = np.stack([found.pairs[:, 0], tested[found.pairs[:, 1] - count]], 1)  # learnt, test
    exact = np.intersect1d(exact_twins(data), tested)
    near = np.setdiff1d(pairs[:, 1], exact)
    notes = _twin_notes(data, learnt, pairs[np.isin(pairs[:, 1], near)], len(tested))
    if not any(data.train.groups):
        grouping = likely_grouping(learnt.files, learnt.labels.numpy(), vectors[:count], data.class_names)
        notes += [grouping.sentence(data.name)] if grouping is not None else []
    return QuickCheck(tuple(notes), tested, np.union1d(near, exact))


def _twin_notes(data: RunData, learnt: Sample, pairs: Integers, looked_at: int) -> list[str]:
    """A line on near twins (P×2: of the images learnt, of the test images), the surest of each test image named."""
    _, first = np.unique(pairs[:, 1], return_index=True)
    if not len(first):
        return []
    told = [f"{data.test.files[test]} ~ {learnt.files[own]}" for own, test in pairs[np.sort(first)].tolist()]
    of = f"{looked_at:,} test pictures" + ("" if looked_at == len(data.test) else " looked at")
    have = "has a near twin" if len(first) == 1 else "have near twins"
    return [
        f"{data.name}: {len(first):,} of {of} {have} (shifted, mirrored, brighter, noisier or compressed) among the "
        f"pictures to learn from: {list_some(told, MAX_NAMED)}; accuracy on them flatters, so the report has it "
        "without them too"
    ]


@dataclass(frozen=True)
class Sample:
    """Every k-th training and validation image: thumbnails (N×S×S), labels (int64, N) and the names of their files."""

    thumbs: Tensor
    labels: Tensor
    files: tuple[str, ...]


def sample_learnt(data: RunData, most: int) -> Sample:
    """At most `most` training and validation images together, evenly from both."""
    parts = [part for part in (data.train, data.validation) if len(part)]
    step = max(1, -(-sum(map(len, parts)) // most))
    chosen = [np.arange(0, len(part), step, dtype=np.int64) for part in parts]
    pairs = list(zip(parts, chosen, strict=True))
    return Sample(
        torch.cat([thumbnails(part.images, own) for part, own in pairs]),
        torch.cat([part.labels[own] for part, own in pairs]),
        tuple(part.files[i] for part, own in pairs for i in own.tolist() if part.files),
    )


def exact_twins(data: RunData) -> Integers:
    """The test images that have the pixels of a training or validation image."""
    learnt = [image_hashes(part.images, "twins") for part in (data.train, data.validation) if len(part)]
    found: Integers = np.flatnonzero(np.isin(image_hashes(data.test.images, "twins"), np.concatenate(learnt)))
    return found


def every_kth(count: int, most: int) -> Integers:
    """Indices of at most `most` of `count` pictures, spread over all."""
    return np.arange(0, count, max(1, -(-count // most)), dtype=np.int64)


def without_twins(
    check: QuickCheck, test: ImageSet, measure: Callable[[ImageSet, Integers], Score]
) -> WithoutTwins | None:
    """A row's result on the test images without a twin among those to learn from; None where no image has one.

    measure: the result on a subset of the test images, given with their indices.
    """
    if check.twins is None or check.looked_at is None or not len(check.twins):
        return None
    kept = np.setdiff1d(check.looked_at, check.twins)
    if not len(kept):
        return WithoutTwins(0, None, None)
    result = measure(test.subset(kept), kept)
    return WithoutTwins(len(kept), result.accuracy, result.ci95)
