"""Reports of runs that nobody ran, with numbers that are drawn, for the tests of what is made of reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from finetune.report.comparison import compare, compare_over_seeds
from finetune.report.metrics import MetricValue
from finetune.report.predictions import Column, Predictions
from finetune.report.report import (
    EpochRow,
    FrozenDigest,
    PhaseSummary,
    Report,
    Result,
    Retention,
    SeedScore,
    SourceSummary,
    TargetSummary,
)
from finetune.report.report import TestSetUse as Opened
from finetune.report.statistics import Confusion, per_class


def phases(epochs: int = 3, start: float = 1.0) -> list[PhaseSummary]:
    """Two phases, of which the first trains the head alone."""
    rows = [EpochRow(n + 1, start / (n + 1), 0.5 + 0.1 * n, 0.1 / (n + 1), 100.0, 1.0) for n in range(epochs)]
    frozen = FrozenDigest(4, "f" * 64)
    return [
        PhaseSummary("head", ["head"], 10, True, rows, frozen),
        PhaseSummary("all", ["stem", "head"], 99, False, rows),
    ]


def answers(classes: int, images: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and answers (int64, N), of which about this share are right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    return labels, np.where(rng.random(images) < share, labels, rng.integers(0, classes, images))


def result(labels: np.ndarray, named: Sequence[np.ndarray], names: Sequence[str], detailed: bool = False) -> Result:
    """The result of trainings on the same images."""
    right = np.concatenate([own == labels for own in named])
    found = Result.of(right)
    if len(named) > 1:
        each = [
            SeedScore(k, int((own == labels).sum()), len(own), float((own == labels).mean()))
            for k, own in enumerate(named)
        ]
        found = replace(found, per_seed=each)
    if detailed:
        every = np.tile(labels, len(named)), np.concatenate(named)
        scores = {name: dict(own) for name, own in per_class(*every, names).items()}
        counts = Confusion.of(*every, len(names))
        error = MetricValue(0.0321, (0.02, 0.05))
        found = replace(found, per_class=scores, confusion=counts, metrics={"calibration_error": error})
    return found


def adapt_report(names: Sequence[str], *, images: int = 400, seeds: int = 1, target: str = "moths") -> Report:
    """The report of an adapt to these classes."""
    before = [answers(len(names), images, 0.5, k) for k in range(seeds)]
    after = [answers(len(names), images, 0.9, 50 + k) for k in range(seeds)]
    labels, rows = after[0][0], {"before": [own for _, own in before], "after": [own for _, own in after]}
    right = {row: np.stack([own == labels for own in found]) for row, found in rows.items()}
    if seeds == 1:
        comparison = compare(right["before"][0], right["after"][0])
    else:
        comparison = compare_over_seeds(right["before"], right["after"])
    return Report(
        kind="adapt",
        recipe={"kind": "adapt", "data": {"name": target}},
        seed=0,
        device="cpu",
        environment={"torch": "2"},
        seconds=12.0,
        source=SourceSummary(path="moths.safetensors", sha256="a" * 64, model="cnn", dataset="m", accuracy=0.9),
        target=TargetSummary(target, list(names), 800, 80, images, ["3 pictures could not be read"]),
        transplant=None,
        phases=phases(),
        results={row: result(labels, found, names, row == "after") for row, found in rows.items()},
        comparisons={"after_vs_before": comparison, "after_vs_scratch": None},
        retention=Retention("mnist", 0.98, 0.5),
        seeds=list(range(seeds)),
        test_set=Opened("b" * 64, 0, [], 0),
        phases_per_seed={str(k): phases(start=1.0 + k) for k in range(seeds)} if seeds > 1 else {},
    )


def predictions(names: Sequence[str], images: int = 400, files: Sequence[str] = ()) -> Predictions:
    """The answers that `adapt_report` of one seed has in its row `after`, with drawn probabilities."""
    labels, named = answers(len(names), images, 0.9, 50)
    chances = np.random.default_rng(0).uniform(0.2, 1, images)
    called = tuple(files[k] if k < len(files) else f"{k}.png" for k in range(images))
    return Predictions(called, labels, tuple(names), {("after", None): Column(named, chances)})
