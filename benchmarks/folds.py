"""How often the 95 % intervals of `adapt --folds` hold the truth, with a real small classifier on real images.

    FINETUNE_DATA_ROOT=... python benchmarks/folds.py [--repetitions 500] [--data kmnist]

All images of a data set are the population. Each repetition draws some of them, divides them by `data.folds`, trains a
classifier for each fold on the others, and makes the intervals of `report.cross_validation`. The truth is the accuracy
on the rest of the population, a mean over all trainings: what such trainings are worth, on (K - 1)/K of so many images.

The classifier is a ridge regression of the classes on pixels averaged to 14×14, of which each training sees a random
half. A difference is that of two such trainings with other halves, which are worth the same, so that every difference
claimed is a false one; and that of one with a half against one with a quarter of the pixels.

Prints one table in Markdown: shares of repetitions in percent, half-widths in points. `naive` is the t interval with
S²/K, `Wilson` that of all answers together as of one training.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
import torch

from finetune.data.folds import fold_numbers
from finetune.data.image_dataset import ImageSet, join
from finetune.data.registry import open_dataset
from finetune.paths import data_root
from finetune.report.cross_validation import FoldSpread, accuracy_over_folds, difference_over_folds
from finetune.report.metrics import Answers
from finetune.report.statistics import wilson

SETTINGS = ((2, 100, 5), (2, 400, 5), (10, 400, 3), (10, 400, 5), (10, 400, 10), (10, 2_000, 5))  # classes, images, K
PARTS = (0.5, 0.5, 0.25)  # of the pixels: two procedures that are worth the same, and a third


def features(images: ImageSet) -> np.ndarray:
    """Pixels averaged to 14×14, as float64 N×196 around 0."""
    pixels = images.images[:].double().mean(1, keepdim=True)
    return torch.nn.functional.avg_pool2d(pixels, 2).flatten(1).numpy() / 255 - 0.2


def train(x: np.ndarray, labels: np.ndarray, classes: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Weights of a ridge regression (197×C) on a random part of the pixels; the others have weight 0."""
    seen = np.append(rng.permutation(x.shape[1])[: round(share * x.shape[1])], x.shape[1])
    given = np.append(x, np.ones((len(x), 1)), 1)
    weights = np.zeros((given.shape[1], classes))
    own = given[:, seen]
    weights[seen] = np.linalg.solve(
        own.T @ own + 3 * np.eye(len(seen)), own.T @ (np.eye(classes)[labels] - 1 / classes)
    )
    return weights


def answer(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (x @ weights[:-1] + weights[-1]).argmax(1)


def repeat(population: ImageSet, x: np.ndarray, count: int, folds: int, rng: np.random.Generator):
    """One repetition: each procedure's answers, the fold of each image, and accuracies on the rest, procedures × K."""
    chosen = rng.permutation(len(population))
    sample, rest = population.subset(chosen[:count]), chosen[count:]
    numbers, _ = fold_numbers(sample, folds)
    labels, every = sample.labels.numpy(), population.labels.numpy()
    own, classes = x[chosen[:count]], len(population.class_names)
    predicted, truth = np.zeros((len(PARTS), count), np.int64), np.zeros((len(PARTS), folds))
    for fold in range(folds):
        learnt = numbers != fold
        for place, share in enumerate(PARTS):
            weights = train(own[learnt], labels[learnt], classes, share, rng)
            predicted[place, ~learnt] = answer(weights, own[~learnt])
            truth[place, fold] = (answer(weights, x[rest]) == every[rest]).mean()
    return [Answers(labels, answers, classes) for answers in predicted], numbers, truth


def measure(population: ImageSet, count: int, folds: int, repetitions: int) -> str:
    """One line of the table."""
    rng, x = np.random.default_rng(1), features(population)
    found = [repeat(population, x, count, folds, rng) for _ in range(repetitions)]
    truth, held, widths = np.stack([own for _, _, own in found]).mean((0, 2)), Counter(), Counter()
    for answers, numbers, _ in found:
        right = answers[0].right
        counts = [(int(right[numbers == fold].sum()), int((numbers == fold).sum())) for fold in range(folds)]
        spread = FoldSpread.of([a / b for a, b in counts], [b for _, b in counts])
        shrink = 1 / np.sqrt(1 + folds / (folds - 1))  # from the corrected standard error to the naive one
        naive = (spread.mean - spread.half_width * shrink, spread.mean + spread.half_width * shrink)
        of_images = wilson(int(right.sum()), count)
        for name, (low, high) in {
            "accuracy": accuracy_over_folds(counts, of_images),
            "naive": naive,
            "wilson": of_images,
        }.items():
            held[name] += low <= truth[0] <= high
            widths[name] += (high - low) / 2
        same, other = (difference_over_folds("accuracy", answers[place], answers[0], numbers) for place in (1, 2))
        held["claims"] += same.p_value < 0.05
        held["difference"] += other.ci95[0] <= truth[0] - truth[2] <= other.ci95[1]
        held["shown"] += other.p_value < 0.05
    shown = {name: f"{100 * count / repetitions:.1f}" for name, count in held.items()}
    half = {name: f"±{100 * width / repetitions:.1f}" for name, width in widths.items()}
    gap = f"{100 * (truth[0] - truth[2]):.1f}"
    return (
        f"| {len(population.class_names)} | {count:,} | {folds} | {100 * truth[0]:.1f} | {shown['accuracy']} "
        f"({half['accuracy']}) | {shown['naive']} ({half['naive']}) | {shown['wilson']} ({half['wilson']}) | "
        f"{shown['difference']} | {gap}, {shown.get('shown', '0.0')} | {shown.get('claims', '0.0')} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--data", default="kmnist")
    given = parser.parse_args()
    parts = open_dataset(given.data, data_root(None))
    whole = join([parts.train, parts.test], given.data)
    print("| classes | images | K | truth | accuracy | naive | Wilson | difference | true gap, shown | false claims |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for classes, count, folds in SETTINGS:
        population = whole.with_classes(whole.class_names[:classes])
        print(measure(population, count, folds, given.repetitions), flush=True)


if __name__ == "__main__":
    main()
