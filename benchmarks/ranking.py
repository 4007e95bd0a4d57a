"""Measures whether `finetune rank` orders sources rightly, and whether its cheap scores are cheap.

    python benchmarks/ranking.py [--repeats 5] [--seeds 3] [--truth 20] SOURCE ...

for example `python benchmarks/ranking.py checkpoints/mnist.safetensors fashion.safetensors digits.safetensors random`.
The target is kmnist with 10 labelled images a class, FINETUNE_DATA_ROOT says where. All sources are fine-tuned each
time. What is finished is kept in the current folder, so that the same command goes on after an interruption.

How it counts, fixed before the first run:

- The truth is the order of the mean accuracies over `--truth` seeds (0, 1, ...) on the same test images. A pair is
  decided where the 95 % interval of the mean of its differences over the seeds (Student's, paired) leaves out 0.
- A repeat has seeds of its own (1000, 1001, ...), which the truth has not. It is right where all decided pairs are in
  the truth's order, by mean accuracy; strictly right where all pairs are.
- A false claim is a pair with the best whose adjusted p-value is below 0.05 against the sign of the truth.
- The cheap part is the seconds of all cheap scores over those of all fine-tuning. A score picks rightly where the two
  sources (random weights aside) that it puts first have the truth's best of them among them; and orders rightly, where
  all decided pairs are in the truth's order.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from scipy.stats import t as student

import finetune
from finetune.report.ranking import RankReport

TARGET, SHOTS, FIRST_SEED = "kmnist", 10, 1000
Pair = tuple[str, str]


def ranking(sources: Sequence[str], seeds: Sequence[int], name: str) -> RankReport:
    """Ranks with all sources fine-tuned; goes on where it was stopped."""
    out = Path("studies") / f"{name}.rank.json"
    given = {"top": len(sources), "seeds": seeds, "shots": SHOTS, "out": out, "resume": True, "device": "cpu"}
    return finetune.rank(sources, TARGET, **given)


def accuracies(report: RankReport) -> dict[str, list[float]]:
    """By source, of each seed."""
    return {own.name: [one.accuracy for one in own.per_seed] for own in report.candidates}


def decided_pairs(truth: dict[str, list[float]]) -> dict[Pair, tuple[float, float, bool]]:
    """For each pair, the better one first: the mean difference, half its 95 % interval, and whether that decides it."""
    found = {}
    means = {name: statistics.mean(values) for name, values in truth.items()}
    for better, worse in combinations(sorted(truth, key=means.__getitem__, reverse=True), 2):
        each = [a - b for a, b in zip(truth[better], truth[worse], strict=True)]
        half = float(student.ppf(0.975, len(each) - 1)) * statistics.stdev(each) / math.sqrt(len(each))
        mean = statistics.mean(each)
        found[better, worse] = mean, half, mean > half
    return found


def in_order(pairs: Sequence[Pair], scores: dict[str, float]) -> bool:
    return all(scores[better] > scores[worse] for better, worse in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--truth", type=int, default=20)
    given = parser.parse_args()
    truth_report = ranking(given.sources, range(given.truth), "truth")
    truth = accuracies(truth_report)
    pairs = decided_pairs(truth)
    print(f"truth, {given.truth} seeds: " + ", ".join(f"{n} {100 * statistics.mean(a):.2f}" for n, a in truth.items()))
    for (better, worse), (mean, half, decides) in pairs.items():
        print(f"  {better} - {worse}: {100 * mean:+.2f} ± {100 * half:.2f}{'' if decides else ', not decided'}")
    decided = [pair for pair, (*_, decides) in pairs.items() if decides]
    counts = dict.fromkeys(("right", "strictly right", "false claims", "best in the tied set"), 0)
    cheap: dict[str, list[int]] = {key: [0, 0] for key in ("probe", "knn", "logme")}
    seconds = {"scores": 0.0, "fine_tuning": 0.0}
    for repeat in range(given.repeats):
        first = FIRST_SEED + repeat * given.seeds
        report = ranking(given.sources, range(first, first + given.seeds), f"repeat-{repeat}")
        found = {own.name: own.accuracy for own in report.candidates}
        counts["right"] += in_order(decided, found)
        counts["strictly right"] += in_order(list(pairs), found)
        counts["best in the tied set"] += next(iter(pairs))[0] in report.tied
        counts["false claims"] += sum((own.name, report.best) in pairs for own in report.candidates if not own.tied)
        pretrained = [own for own in report.candidates if not own.random]
        best = max((own.name for own in pretrained), key=lambda name: statistics.mean(truth[name]))
        for key, (picks, orders) in cheap.items():
            scores = {own.name: getattr(own.scores, key) for own in report.candidates}
            two = sorted((own.name for own in pretrained), key=scores.__getitem__, reverse=True)[:2]
            cheap[key] = [picks + (best in two), orders + in_order(decided, scores)]
        seconds = {key: value + report.seconds[key] for key, value in seconds.items()}
        print(f"repeat {repeat}: " + ", ".join(f"{n} {100 * a:.2f}" for n, a in found.items()), flush=True)
        print(f"  {report.conclusion}; {report.seconds['scores']:.1f} s + {report.seconds['fine_tuning']:.1f} s")
    print(", ".join(f"{key}: {count} of {given.repeats}" for key, count in counts.items()))
    for key, (picks, orders) in cheap.items():
        print(f"{key}: the best is among its first two in {picks}, all decided pairs in order in {orders}")
    print(f"cheap part: {seconds['scores'] / seconds['fine_tuning']:.3f} of the time of fine-tuning")


if __name__ == "__main__":
    main()
