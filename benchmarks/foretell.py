"""How well `finetune curve` foretells: measured with few labels, then with two and four times as many.

    python benchmarks/foretell.py --from checkpoints/mnist.safetensors --target kmnist --out foretell

Runs the curve with 5 to 100 labelled images a class (`--shots` has others), from these weights and from scratch, and
then goes on to twice and four times the most, which the first curve has foretold. Prints for each what was foretold and
what was measured, and by how much each form of a curve would have missed. The target: the forecast within 1 point, for
both, as the mean over seeds.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import finetune
from finetune.report.learning_curve import FORMS
from finetune.report.rows import row_of
from finetune.study.curve import FARTHER, parse_shots

TARGET = 0.01  # the largest error that is good enough


def main() -> None:
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, default=Path("checkpoints/mnist.safetensors"))
    parser.add_argument("--target", default="kmnist")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/adapt.yaml"))
    parser.add_argument("--shots", default="5,10,20,50,100")
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("foretell"), help="the folder to work in")
    given = parser.parse_args()
    source, recipe = given.source.absolute(), given.recipe.absolute()
    given.out.mkdir(parents=True, exist_ok=True)
    common = {"seeds": given.seeds, "jobs": given.jobs, "quiet": False, "resume": True}
    later = ",".join(str(times * max(parse_shots(given.shots))) for times in FARTHER)
    with contextlib.chdir(given.out):
        before = finetune.curve(source, given.target, recipe, shots=given.shots, **common)
        after = finetune.curve(source, given.target, recipe, shots=f"{given.shots},{later}", **common)
    for line in lines(before, after):
        print(line)


def lines(before: finetune.CurveReport, after: finetune.CurveReport) -> Iterator[str]:
    """What was foretold by `before` against what `after` has measured, as Markdown."""
    measured = {point.images_per_class: point.results for point in after.points}
    labels = np.array([point.images_per_class for point in before.points])
    yield "| row | images a class | foretold (95 % interval) | measured | error, points | interval holds it |"
    yield "|---|---|---|---|---|---|"
    worst = 0.0
    for told in before.forecasts:
        for row, found in told.rows.items():
            truth, (low, high) = measured[told.images_per_class][row].accuracy, found.ci95
            error = found.accuracy - truth
            worst = max(worst, abs(error))
            yield (
                f"| {row_of(row).title} | {told.images_per_class:,.0f} | {100 * found.accuracy:.2f} % "
                f"({100 * low:.2f} to {100 * high:.2f}) | {100 * truth:.2f} % | {100 * error:+.2f} | "
                f"{'yes' if low <= truth <= high else 'no'} |"
            )
    yield ""
    yield f"farthest off: {100 * worst:.2f} points; target {'reached' if worst <= TARGET else 'missed'}"
    yield ""
    yield "| row | form | " + " | ".join(f"error at {told.images_per_class:,.0f}" for told in before.forecasts) + " |"
    yield "|---|---|" + "---|" * len(before.forecasts)
    at = np.array([told.images_per_class for told in before.forecasts])
    for row in before.forecasts[0].rows:
        means = np.array([point.results[row].accuracy for point in before.points])
        truth = np.array([measured[place][row].accuracy for place in at])
        for name, form in FORMS.items():
            errors = form(labels, means[None], at)[0] - truth
            yield f"| {row_of(row).title} | {name} | " + " | ".join(f"{100 * error:+.2f}" for error in errors) + " |"


if __name__ == "__main__":
    main()
