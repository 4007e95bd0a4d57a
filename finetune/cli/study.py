"""Commands that train many times, or compare what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finetune.cli.options import check_target, run_options, with_options
from finetune.errors import FinetuneError
from finetune.text import first_line


@click.command()
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
@click.option("--out", type=click.Path(path_type=Path), help="The report to write [default: studies/NAME.rank.json].")
@with_options("data-root", "device", "set", "resume", "snapshot-every", "json", "quiet")
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
