"""What a mix of source and fine-tuned weights keeps of the source's task, beside a pull towards the source (l2_sp).

    FINETUNE_DATA_ROOT=data python benchmarks/interpolation.py [--seeds 5,6,7,8,9] [--l2-sp 0.01]
    FINETUNE_DATA_ROOT=data python benchmarks/interpolation.py --grid 0.001,0.01,0.1,1 [--seeds 0,1]

mnist to kmnist, 100 labelled images a class, by the default recipe. Kept is the share of the accuracy on mnist's test
images that `after` lost and the row did not. With --grid: strengths of l2_sp by validation images, to choose one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import finetune

ROOT = Path(__file__).resolve().parents[1]
SOURCE, RECIPE = ROOT / "checkpoints" / "mnist.safetensors", ROOT / "recipes" / "adapt.yaml"
RETAIN = 0.9


def train(seed: int, **settings: Any) -> Any:
    """The report of one training with these settings of the recipe."""
    given = {"compare": [], **settings}
    return finetune.adapt(SOURCE, "kmnist", RECIPE, shots=100, seed=seed, settings=given, out="found.safetensors")


def shown(values: Sequence[float], unit: str = " %") -> str:
    """Mean and range of fractions, in percent."""
    low, mean, high = (100 * value for value in (min(values), statistics.mean(values), max(values)))
    return f"{mean:.2f}{unit} ({low:.2f} to {high:.2f})"


def compare(seeds: Sequence[int], strength: float | None) -> None:
    """Prints what each row is worth on the target and keeps of the source's task, and the frontier."""
    target, source = defaultdict(list), defaultdict(list)
    weights, frontier = defaultdict(list), defaultdict(list)
    before = []

    def note(row: str, accuracy: float, kept: float) -> None:
        target[row].append(accuracy)
        source[row].append(kept)

    for seed in seeds:
        for retain in (None, RETAIN):
            report = train(seed, compare=["interpolated"], retain=retain)
            row = "interpolated" if retain is None else f"interpolated, retain: {retain:g}"
            if retain is None:
                note("after", report.results["after"].accuracy, report.retention.after)
                before.append(report.retention.before)
                for point in report.interpolation.frontier:
                    frontier[point.weight].append((point.accuracy, point.log_loss, point.source_accuracy))
            note(row, report.results["interpolated"].accuracy, report.retention.interpolated)
            weights[row].append(report.interpolation.weight)
        if strength is not None:
            report = train(seed, **{"phases[1].l2_sp": strength})
            note(f"l2_sp: {strength:g}", report.results["after"].accuracy, report.retention.after)
    print(f"mnist itself before: {100 * before[0]:.2f} %\n")
    print("| | kmnist | against after, points | mnist | kept | weights |\n|---|---|---|---|---|---|")
    for row, values in target.items():
        gained = [own - after for own, after in zip(values, target["after"], strict=True)]
        lost = [(old, after) for old, after in zip(before, source["after"], strict=True)]
        kept = [(own - after) / (old - after) for own, (old, after) in zip(source[row], lost, strict=True)]
        mixes = ", ".join(f"{weight:g}" for weight in weights[row])
        print(f"| {row} | {shown(values)} | {shown(gained, '')} | {shown(source[row])} | {shown(kept)} | {mixes} |")
    print("\n| of the fine-tuned | validation images | log loss | images of the source's data |\n|---|---|---|---|")
    for weight, points in frontier.items():
        accuracies, losses, kept_there = zip(*points, strict=True)
        print(f"| {weight:g} | {shown(accuracies)} | {statistics.mean(losses):.3f} | {shown(kept_there)} |")


def grid(seeds: Sequence[int], strengths: Sequence[float]) -> None:
    """Prints the validation accuracy of each strength of l2_sp, and what is kept of mnist."""
    print("| l2_sp | validation accuracy | mnist |\n|---|---|---|")
    for strength in (None, *strengths):
        reports = [train(seed, **{"phases[1].l2_sp": strength}) for seed in seeds]
        found = [report.phases[-1].epochs[-1].validation_accuracy for report in reports]
        print(f"| {strength} | {shown(found)} | {shown([report.retention.after for report in reports])} |", flush=True)


def numbers(kind: type) -> Any:
    return lambda text: [kind(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=numbers(int))
    parser.add_argument("--l2-sp", type=float)
    parser.add_argument("--grid", type=numbers(float))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if given.grid is not None:
            grid(given.seeds or [0, 1], given.grid)
        else:
            compare(given.seeds or [5, 6, 7, 8, 9], given.l2_sp)


if __name__ == "__main__":
    main()
