"""Commands that train many times, or compare what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finetune.cli.options import check_target, print_report, run_options, with_options


@click.command()
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
@click.option("--out", type=click.Path(path_type=Path), help="The report to write [default: studies/NAME.curve.json].")
@with_options("jobs", "engine", "data-root", "device", "set", "resume", "snapshot-every", "json", "quiet")
def curve(source: str, recipe: Path, target: str | None, **given: Any) -> None:
    """Tells how many labels starting from these weights is worth; writes a report, a table and a picture."""
    from finetune.study.curve import curve as study

    check_target(target)
    own = {key: given.pop(key) for key in ("model", "shots", "seeds", "engine")}
    own["jobs"] = given.pop("jobs") or 1
    options = run_options(**given)
    print_report(study(source, target, recipe, **own, **options), given["as_json"], options)
