"""Commands that train many times, or compare what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finetune.cli.options import (
    OutputFile,
    check_target,
    example,
    make_console,
    print_json,
    print_report,
    run_options,
    with_options,
)
from finetune.errors import FinetuneError
from finetune.text import first_line


@click.command(epilog=example("finetune curve --from mnist --target kmnist-sample --shots 5,10,20 --seeds 3"))
@click.option(
    "--from", "source", required=True, metavar="SOURCE", help="What to start from, as in adapt; usually a checkpoint."
)
@click.option("--recipe", type=click.Path(path_type=Path), default="recipes/adapt.yaml", show_default=True)
@with_options("model", "target")
@click.option(
    "--shots",
    default="5,10,20,50,100,all",
    show_default=True,
    metavar="N,N,...",
    help="Numbers of labelled images per class to learn from; all: all there are.",
)
@click.option(
    "--seeds",
    default="5",
    show_default=True,
    metavar="N|A,B,...",
    help="How many trainings of each: a count, or seeds.",
)
@click.option("--out", type=OutputFile(".curve.json"), help="The report to write [default: studies/NAME.curve.json].")
@with_options("jobs", "engine", "data-root", "device", "set")
@with_options("resume", "snapshot-every", "html", "force", "json", "quiet")
def curve(source: str, recipe: Path, target: str | None, **given: Any) -> None:
    """Tells how many labels starting from these weights is worth; writes a report, a table and a picture."""
    from finetune.study.curve import curve as study

    check_target(target)
    own = {key: given.pop(key) for key in ("model", "shots", "seeds", "engine")}
    own["jobs"] = given.pop("jobs") or 1
    options = run_options(**given)
    print_report(study(source, target, recipe, **own, **options), given["as_json"], options)


@click.command(epilog=example("finetune rank mnist random:cnn --target kmnist-sample --shots 10"))
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE SOURCE...")
@with_options("target")
@click.option("--recipe", type=click.Path(path_type=Path), default="recipes/adapt.yaml", show_default=True)
@with_options("shots")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="How many sources are fine-tuned, the best by the cheap scores; random weights always are, besides.",
)
@click.option(
    "--seeds",
    default="3",
    show_default=True,
    metavar="N|A,B,...",
    help="How often each of them is fine-tuned: a count, or seeds.",
)
@with_options("same-shots", "jobs", "engine")
@click.option("--out", type=OutputFile(".rank.json"), help="The report to write [default: studies/NAME.rank.json].")
@with_options("data-root", "device", "set", "resume", "snapshot-every", "html", "force", "json", "quiet")
def rank(sources: tuple[str, ...], target: str | None, recipe: Path, **given: Any) -> None:
    """Tells which of several sources to start from: scores all of them cheaply, fine-tunes the best; writes a report.

    A SOURCE is what --from of adapt takes; `random`, the first other source's network with random weights; or
    `random:MODEL`, as in random:cnn. The exit code is 1 where a source could not be ranked and the others were.
    """
    from finetune.study.rank import rank as study

    check_target(target)
    own = {key: given.pop(key) for key in ("top", "seeds", "shots", "same_shots", "engine")}
    own["jobs"] = given.pop("jobs") or 1
    report = study(sources, target, recipe, **own, **run_options(**given))
    if given["as_json"]:
        click.echo(report.to_json(), nl=False)
    if report.failed:
        lost = "".join(f"\n  {candidate.source}: {first_line(candidate.error)}" for candidate in report.failed)
        raise FinetuneError(f"{len(report.failed)} of {len(report.candidates)} sources could not be ranked:{lost}")


@click.command(epilog=example("finetune compare first.predictions.csv second.predictions.csv"))
@click.argument("first", type=click.Path(path_type=Path), metavar="A")
@click.argument("second", type=click.Path(path_type=Path), metavar="[B]", required=False)
@click.option("--row", metavar="ROW", help="Of B [default: after, or its only row].")
@click.option("--against", metavar="ROW", help="Of A [default: the same row]; without B, another row of A.")
@click.option("--metric", default="accuracy", show_default=True, metavar="NAME", help="The metric to say in words.")
@with_options("json")
def compare(first: Path, second: Path | None, row: str | None, against: str | None, metric: str, as_json: bool) -> None:
    """The verdict of B against A from two files of predictions, paired image by image.

    adapt and evaluate --predictions write such files, and so may anybody: a CSV of image,label,prediction, and
    probability if known. The two are of the same images, in any order. All seeds of a row count.
    """
    from finetune.commands import compare as command
    from finetune.report.tables import comparison_parts

    found = command.compare(first, second, row=row, against=against, metric=metric)
    if as_json:
        print_json(found.to_dict())
        return
    console = make_console()
    titles = [command.row_title(side) for side in (found.first, found.second)]
    for part in comparison_parts(found.to_dict(), titles):
        console.show(part)
