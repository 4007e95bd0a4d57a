"""Commands that train, and the one that says what training would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finetune.cli.options import check_target, make_console, print_json, print_report, run_options, with_options


@click.command()
@with_options("recipe", *("out", "data-root", "device", "seed", "set", "resume", "snapshot-every", "json", "quiet"))
def pretrain(recipe: Path, **given: Any) -> None:
    """Trains from scratch; writes a checkpoint and its report."""
    from finetune.commands import pretrain as command

    options = run_options(**given)
    print_report(command.pretrain(recipe, **options), given["as_json"], options)


@click.command()
@click.option(
    "--from",
    "source",
    required=True,
    metavar="SOURCE",
    help="What to start from: a checkpoint, timm:NAME[.TAG], or a bare safetensors file with --model.",
)
@click.option("--recipe", type=click.Path(path_type=Path), default="recipes/adapt.yaml", show_default=True)
@with_options("model", "target", "shots")
@with_options("out", "data-root", "device", "seed", "set", "resume", "snapshot-every", "json", "quiet")
@click.option("--no-compare", is_flag=True, help="Leaves out the linear probe and the run from scratch.")
def adapt(
    source: str, recipe: Path, model: str | None, target: str | None, shots: int | None, no_compare: bool, **given: Any
) -> None:
    """Fine-tunes a checkpoint on a target and tells what that brought; writes a checkpoint and its report."""
    from finetune.commands import adapt as command

    check_target(target)
    options = run_options(**given)
    report = command.adapt(source, target, recipe, model=model, shots=shots, compare=not no_compare, **options)
    print_report(report, given["as_json"], options)


@click.command()
@with_options("recipe")
@click.option("--from", "source", metavar="SOURCE", help="What to start from, for an adapt recipe, as in adapt.")
@with_options("model", "target", "shots", "data-root", "device", "seed", "set", "json")
@click.option(
    "--show-augment",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="Draws training images as the phases would see them.",
)
def plan(recipe: Path, target: str | None, as_json: bool, **given: Any) -> None:
    """Trains nothing: says what each phase would train, at which learning rates, and for how long."""
    from finetune.commands import plan as command
    from finetune.report.tables import plan_parts

    check_target(target)
    own = {key: given.pop(key) for key in ("source", "model", "shots", "show_augment")}
    found = command.plan(recipe, target=target, **own, **run_options(as_json=as_json, **given))
    if as_json:
        print_json(found.to_dict())
        return
    console = make_console()
    for part in plan_parts(found.to_dict()):
        console.show(part)
