"""What trials come to: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from finetune.data.image_dataset import ImageSet
from finetune.report.comparison import distinct
from finetune.report.crossed import crossed_mean
from finetune.report.metrics import measure_over_seeds
from finetune.report.report import Result, SeedScore
from finetune.report.statistics import Confusion
from finetune.run.finalize import RowAnswers, correct_mask, metric_answers, score


def rights(test: ImageSet, answers: Sequence[RowAnswers]) -> npt.NDArray[np.bool_]:
    """Whether each training (row) was right about each test image (column)."""
    return np.stack([correct_mask(test, found.predicted) for found in answers])


def result_over_seeds(test: ImageSet, answers: Sequence[RowAnswers], seeds: Sequence[int], row: str) -> Result:
    """A row's result over seeds: mean accuracy and its interval over other trainings and images.

    `correct` and `total` are summed over the seeds, and so are classes and confusion.
    """
    each = [score(test, found, row=row) for found in answers]
    per_seed = [
        SeedScore(seed, own.correct, own.total, own.accuracy, own.effective_images)
        for seed, own in zip(seeds, each, strict=True)
    ]
    table, groups = distinct(rights(test, answers)), test.group_indices()
    tables = [own.confusion for own in each if own.confusion is not None]
    first, total = each[0], sum(own.total for own in each)
    correct = sum(own.correct for own in each)
    return Result(
        correct=correct,
        total=total,
        accuracy=correct / total,
        ci95=first.ci95 if len(table) == 1 else crossed_mean(table, groups).ci95,
        groups=first.groups,
        effective_images=first.effective_images if len(table) == 1 else None,
        method=first.method,
        per_class=_summed_classes(each),
        confusion=Confusion.total(tables) if tables else None,
        per_seed=per_seed,
        metrics=measure_over_seeds([metric_answers(test, found) for found in answers], test.class_names),
    )


def _summed_classes(results: Sequence[Result]) -> dict[str, dict[str, int | float | None]] | None:
    if results[0].per_class is None:
        return None
    found = {}
    for name in results[0].per_class:
        own = [result.per_class[name] for result in results if result.per_class is not None]
        correct, total = sum(one["correct"] for one in own), sum(one["total"] for one in own)
        found[name] = {"correct": correct, "total": total, "accuracy": correct / total if total else None}
    return found
