"""How often groups of seeds of one and the same procedure are claimed to differ; 5 % would be right.

    python benchmarks/claims.py [--seeds 60] [--group 5] [--jobs 2] [--folder FOLDER]

Adapts checkpoints/mnist.safetensors to kmnist with 10 labelled images a class, once for each seed: with the same images
for all seeds, and with images of each seed's own choice. Disjoint groups of seeds are compared with each other, as
`adapt --seeds` compares rows, and single runs with each other, as one `adapt` does. Then the same for random divisions
into groups, of which the first is one. Killed, the same command with the same folder goes on.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np

from finetune.commands.adapt import DEFAULT_RECIPE
from finetune.report.comparison import compare, compare_over_seeds
from finetune.report.console import Console
from finetune.report.crossed import unpaired_difference
from finetune.run.options import start_run
from finetune.study.analysis import rights
from finetune.study.design import open_study_recipe, row_trials
from finetune.study.runner import StudyFolder, TrialOptions, completed, run_trials
from finetune.study.trial import TrialRunner

SOURCE = "checkpoints/mnist.safetensors"
DIVISIONS = 100


def answers(folder: Path, seeds: int, jobs: int, *, same_shots: bool) -> tuple[np.ndarray, str]:
    """Whether each seed's training (row) was right about each test image (column), and the machine."""
    with start_run({"console": Console(quiet=True, results=False), "resume": True}) as call:
        recipe = open_study_recipe(SOURCE, DEFAULT_RECIPE, ({}, {"data.name": "kmnist", "data.shots": 10}), call)
        trials = row_trials(SOURCE, recipe, ("after",), range(seeds), shots=10, same_shots=same_shots)
        runner = TrialRunner(call)
        place = folder / ("same" if same_shots else "own")
        with StudyFolder(place, {"same_shots": same_shots}, call) as study:
            results = completed(run_trials(trials, study, TrialOptions(jobs), runner))
        where = next(iter(results.values())).facts.environment
        machine = f"{where['processor']}, {where['threads']} threads, {where['precision']}, torch {where['torch']}"
        return rights(runner.setup(trials[0]).data.test, [r.answers["after"] for r in results.values()]), machine


def claims(table: np.ndarray, size: int, order: np.ndarray) -> tuple[int, int, int]:
    """Of all pairs of groups of `size` seeds, taken in this order: claimed in pairs, claimed unpaired, pairs."""
    groups = [table[order[start : start + size]] for start in range(0, len(order) - size + 1, size)]
    pairs = list(itertools.combinations(groups, 2))
    paired = sum(compare_over_seeds(a, b).verdict != "no difference shown" for a, b in pairs)
    unpaired = sum(unpaired_difference(a, b).p_value < 0.05 for a, b in pairs)
    return paired, unpaired, len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--group", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for same_shots in (True, False):
            table, machine = answers(given.folder or Path(temporary), given.seeds, given.jobs, same_shots=same_shots)
            what = "the same 100 images" if same_shots else "images of each seed's own choice"
            accuracy = 100 * table.mean(1)
            print(f"{what}: {accuracy.mean():.2f} %, standard deviation over seeds {accuracy.std(ddof=1):.2f}")
            single = [compare(a, b).verdict != "no difference shown" for a, b in itertools.combinations(table, 2)]
            print(
                f"  one run against one run: claimed in {sum(single)} of {len(single)} ({100 * np.mean(single):.0f} %)"
            )
            paired, unpaired, pairs = claims(table, given.group, np.arange(given.seeds))
            print(f"  {given.group} seeds against {given.group}: claimed in {paired} of {pairs}, unpaired {unpaired}")
            rng = np.random.default_rng(0)
            every = np.array([claims(table, given.group, rng.permutation(given.seeds)) for _ in range(DIVISIONS)])
            shares = 100 * every[:, :2].sum(0) / every[:, 2].sum()
            print(f"  over {DIVISIONS} random divisions: {shares[0]:.1f} %, unpaired {shares[1]:.1f} %", flush=True)
    print(machine)


if __name__ == "__main__":
    main()
