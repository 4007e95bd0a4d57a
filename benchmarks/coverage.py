"""How often the 95 % intervals of `finetune.report.crossed` hold the truth, by simulation.

    python benchmarks/coverage.py [--replicates 2000] [--pairs 0.915:0.93,0.71:0.75,0.985:0.99] [--groups]

Prints one table in Markdown for each pair of true accuracies: for every number of test images, spread between seeds
and number of seeds the share of intervals that hold the truth, and the share of claims where there is no difference.
As a contrast, the same for one run against one run (Newcombe's interval and mid-p McNemar).

The answers are drawn from a probit model: training i of arm k has image j right where

    mu_k + seed_ki + image_j + image_kj + residual_kij > 0

with independent normal terms. The last three have variance 1 together (SHARED, OF_ARM and the rest), so the accuracy of
training i on endless images is Phi(mu_k + seed_ki), and the true accuracy of an arm its mean over seeds. `mu` and the
variance of `seed` are chosen so that this mean is the accuracy asked for, and the standard deviation over seeds of one
training's accuracy the spread asked for, in each arm. Seeds of two arms are independent, so the difference of one pair
of trainings spreads 1.41 times as widely: the hardest case for paired seeds.

One set of 10 seeds × 10,000 images × 3 arms is drawn per replicate, and smaller cells are parts of it. Cells of one
table are therefore not independent of each other; the replicates within a cell are.

With `--groups` the images come in groups of 12. COMMON is the share of every term of an image that its whole group has:
the more, the more a group is right or wrong as a whole. There are 160 groups, or fewer, or 160 of uneven size
(log-normal, from 1 to about 60). Beside each interval and test by groups is the one that takes images for single ones.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from statistics import NormalDist

import numpy as np

from finetune.report.crossed import crossed_difference, crossed_mean
from finetune.report.statistics import accuracy_interval, paired_difference

IMAGES = (150, 2_000, 10_000)
SPREADS = (0.0, 0.5, 1.0, 2.5)  # percentage points
SEEDS = (3, 5, 10)
SHARED, OF_ARM = 0.6, 0.15  # variance of what makes an image hard for both arms, and for one of them
GROUP_SIZE = 12
DESIGNS = ((160, 0.0), (160, 0.8), (40, 0.0), (20, 0.0), (10, 0.0))  # groups; deviation of the log of their sizes
COMMON = (0.3, 0.6, 0.9)
GROUP_SEEDS, GROUP_SPREAD = 5, 0.5
NORMAL = NormalDist()


def seed_deviation(accuracy: float, spread: float) -> float:
    """Standard deviation of the probit of a training's accuracy, which has this mean and this standard deviation."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    low, high = 0.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        probits = NORMAL.inv_cdf(accuracy) * math.sqrt(1 + middle**2) + middle * nodes
        shares = np.array([NORMAL.cdf(probit) for probit in probits])
        wide = math.sqrt(max(float(weights @ shares**2) - float(weights @ shares) ** 2, 0.0)) > spread
        low, high = (low, middle) if wide else (middle, high)
    return high if spread else 0.0


def draw(rng: np.random.Generator, accuracies: list[float], deviations: list[float], seeds: int, images: int):
    """For each arm booleans of shape (seeds, images): what was right."""
    shared = math.sqrt(SHARED) * rng.standard_normal(images, dtype=np.float32)
    for accuracy, deviation in zip(accuracies, deviations, strict=True):
        mean = NORMAL.inv_cdf(accuracy) * math.sqrt(1 + deviation**2)
        of_seed = mean + deviation * rng.standard_normal((seeds, 1))
        of_image = shared + math.sqrt(OF_ARM) * rng.standard_normal(images, dtype=np.float32)
        border = (of_seed + of_image).astype(np.float32) / np.float32(-math.sqrt(1 - SHARED - OF_ARM))
        yield rng.standard_normal((seeds, images), dtype=np.float32) > border


def group_sizes(count: int, deviation: float) -> np.ndarray:
    """Images of each group, about GROUP_SIZE on average: the same every time."""
    normal = np.array([NORMAL.inv_cdf((place + 0.5) / count) for place in range(count)])
    return np.maximum(1, np.rint(GROUP_SIZE * np.exp(deviation * normal - deviation**2 / 2))).astype(np.int64)


def draw_grouped(
    rng: np.random.Generator, accuracies: list[float], deviations: list[float], groups: np.ndarray, common: float
):
    """For each arm booleans of shape (GROUP_SEEDS, images), where images of a group (int, images) are alike."""

    def images(variance: float, *rows: int) -> np.ndarray:
        of_group = rng.standard_normal((*rows, groups.max() + 1))[..., groups]
        own = rng.standard_normal((*rows, len(groups)))
        return math.sqrt(variance) * (math.sqrt(common) * of_group + math.sqrt(1 - common) * own)

    shared = images(SHARED)
    for accuracy, deviation in zip(accuracies, deviations, strict=True):
        mean = NORMAL.inv_cdf(accuracy) * math.sqrt(1 + deviation**2)
        of_seed = mean + deviation * rng.standard_normal((GROUP_SEEDS, 1))
        yield of_seed + shared + images(OF_ARM) + images(1 - SHARED - OF_ARM, GROUP_SEEDS) > 0


def count_grouped(
    first: float, second: float, design: tuple[int, float], common: float, replicates: int
) -> dict[str, list[float]]:
    """Shares of replicates, by groups and by images, in which intervals hold the truth and a difference is claimed."""
    rng, truth = np.random.default_rng(0), second - first
    groups = np.repeat(np.arange(design[0]), group_sizes(*design))
    accuracies = [first, second, first]
    deviations = [seed_deviation(accuracy, GROUP_SPREAD / 100) for accuracy in accuracies]
    single = [0.0, 0.0, 0.0]  # the accuracy of one training is that of its own weights
    found: dict[str, list[float]] = {}
    for _ in range(replicates):
        arms = list(draw_grouped(rng, accuracies, deviations, groups, common))
        ones = [arm[0] for arm in draw_grouped(rng, accuracies, single, groups, common)]
        for place, given in enumerate((groups, None)):
            seen = {
                "one run: accuracy": holds(accuracy_interval(ones[1], given), second),
                "one run: difference": holds(paired_difference(ones[0], ones[1], given).ci95, truth),
                "one run: claims": paired_difference(ones[0], ones[2], given).mid_p < 0.05,
                f"{GROUP_SEEDS} seeds: accuracy": holds(crossed_mean(arms[1], given).ci95, second),
                f"{GROUP_SEEDS} seeds: difference": holds(crossed_difference(arms[0], arms[1], given).ci95, truth),
                f"{GROUP_SEEDS} seeds: claims": crossed_difference(arms[0], arms[2], given).p_value < 0.05,
            }
            for name, value in seen.items():
                found.setdefault(name, [0.0, 0.0])[place] += value / replicates
    return found


def print_grouped(first: float, second: float, replicates: int) -> None:
    print(
        f"\nTrue accuracies {100 * first:.1f} % and {100 * second:.1f} %, groups of {GROUP_SIZE}, {replicates:,} "
        "replicates a cell; by groups (in brackets: by images):\n"
    )
    for place, (design, common) in enumerate((design, common) for design in DESIGNS for common in COMMON):
        found = count_grouped(first, second, design, common, replicates)
        if not place:
            print("| groups | sizes | common |", " | ".join(found), "|")
            print("|---|---|---|" + "---|" * len(found))
        shares = [f"{100 * own:.1f} ({100 * images:.1f})" for own, images in found.values()]
        print(f"| {design[0]} | {'uneven' if design[1] else 'even'} | {common} |", " | ".join(shares), "|", flush=True)


def holds(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def count(first: float, second: float, spread: float, replicates: int, seed: int) -> Counter:
    """How often what happened: keys are (images, seeds, what)."""
    rng, found, truth = np.random.default_rng(seed), Counter(), second - first
    accuracies = [first, second, first]
    deviations = [seed_deviation(accuracy, spread) for accuracy in accuracies]
    for _ in range(replicates):
        arms = list(draw(rng, accuracies, deviations, max(SEEDS), max(IMAGES)))
        for images in IMAGES:
            for seeds in SEEDS:
                one, two, same = (arm[:seeds, :images] for arm in arms)
                found[images, seeds, "difference"] += holds(crossed_difference(one, two).ci95, truth)
                found[images, seeds, "claims"] += crossed_difference(one, same).p_value < 0.05
                found[images, seeds, "accuracy"] += holds(crossed_mean(two).ci95, second)
            one, two, same = (arm[0, :images] for arm in arms)
            found[images, 1, "difference"] += holds(paired_difference(one, two).ci95, truth)
            found[images, 1, "claims"] += paired_difference(one, same).mid_p < 0.05
    return found


def print_table(first: float, second: float, replicates: int) -> None:
    print(f"\nTrue accuracies {100 * first:.1f} % and {100 * second:.1f} %, {replicates:,} replicates a cell:\n")
    names = [f"{what}, {seeds} seeds" for what in ("difference", "claims", "accuracy") for seeds in SEEDS]
    print("| images | spread |", " | ".join([*names, "one run: Newcombe", "one run: claims"]), "|")
    print("|---|---|" + "---|" * (len(names) + 2))
    counts = {spread: count(first, second, spread / 100, replicates, 0) for spread in SPREADS}
    for images in IMAGES:
        for spread in SPREADS:
            keys = [(images, seeds, what) for what in ("difference", "claims", "accuracy") for seeds in SEEDS]
            keys += [(images, 1, "difference"), (images, 1, "claims")]
            shares = [f"{100 * counts[spread][key] / replicates:.1f}" for key in keys]
            print(f"| {images:,} | {spread} |", " | ".join(shares), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2_000)
    parser.add_argument(
        "--pairs", default="0.915:0.93,0.71:0.75,0.985:0.99", help="true accuracies, comma between pairs"
    )
    parser.add_argument("--groups", action="store_true", help="images in groups of which each is alike")
    given = parser.parse_args()
    for pair in given.pairs.split(","):
        first, second = map(float, pair.split(":"))
        (print_grouped if given.groups else print_table)(first, second, given.replicates)


if __name__ == "__main__":
    main()
