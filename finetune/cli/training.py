"""The commands that train, and the one that says what training would do."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.cli.shared import console_for, keeping_of, named_model, named_target, override, print_json
from finetune.options import RUN, shared


@click.command()
@shared("recipe", *RUN)
def pretrain(
    recipe: Path,
    out: Path | None,
    data_root: Path | None,
    device: str,
    seed: int | None,
    settings: tuple[str, ...],
    resume: bool,
    snapshot_every: float,
    as_json: bool,
    quiet: bool,
) -> None:
    """Trains from scratch; writes a checkpoint and its report."""
    from finetune.commands.pretrain import pretrain as run

    console = console_for(quiet, results=not as_json)
    overrides = [*settings, *override("seed", seed)]
    keeping = keeping_of(resume, snapshot_every)
    report = run(recipe, out=out, root=data_root, device=device, overrides=overrides, keeping=keeping, console=console)
    if as_json and not console.hushed:
        click.echo(report.to_json(), nl=False)


@click.command()
@click.option(
    "--from",
    "source",
    required=True,
    metavar="SOURCE",
    help="What to start from: a checkpoint, timm:NAME[.TAG], or a bare safetensors file with --model.",
)
@click.option("--recipe", type=click.Path(path_type=Path), default="recipes/adapt.yaml", show_default=True)
@shared("model", "target", "shots", *RUN)
@click.option("--no-compare", is_flag=True, help="Leaves out the linear probe and the run from scratch.")
def adapt(
    source: str,
    recipe: Path,
    model: str | None,
    target: str | None,
    shots: int | None,
    no_compare: bool,
    out: Path | None,
    data_root: Path | None,
    device: str,
    seed: int | None,
    settings: tuple[str, ...],
    resume: bool,
    snapshot_every: float,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fine-tunes a checkpoint on a target and tells what that brought; writes a checkpoint and its report."""
    from finetune.commands.adapt import adapt as run

    console = console_for(quiet, results=not as_json)
    overrides = [*named_model(model), *settings, *named_target(target)]
    overrides += [*override("data.shots", shots), *override("seed", seed)]
    report = run(
        source,
        recipe,
        compare=not no_compare,
        out=out,
        root=data_root,
        device=device,
        overrides=overrides,
        keeping=keeping_of(resume, snapshot_every),
        console=console,
    )
    if as_json and not console.hushed:
        click.echo(report.to_json(), nl=False)


@click.command()
@shared("recipe")
@click.option("--from", "source", metavar="SOURCE", help="What to start from, for an adapt recipe, as in adapt.")
@shared("model", "target", "shots", "data-root", "device", "seed", "set", "json")
@click.option(
    "--show-augment",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="Draws training images as the phases would see them.",
)
def plan(
    recipe: Path,
    source: str | None,
    model: str | None,
    target: str | None,
    shots: int | None,
    data_root: Path | None,
    device: str,
    seed: int | None,
    settings: tuple[str, ...],
    as_json: bool,
    show_augment: Path | None,
) -> None:
    """Trains nothing: says what each phase would train, at which learning rates, and for how long."""
    from finetune.commands.plan import plan as run
    from finetune.reporting.tables import plan_parts

    overrides = [*named_model(model), *settings, *named_target(target)]
    overrides += [*override("data.shots", shots), *override("seed", seed)]
    console = console_for(results=not as_json)
    found = run(
        recipe,
        source=source,
        root=data_root,
        device=device,
        overrides=overrides,
        show_augment=show_augment,
        console=console,
    )
    if as_json:
        print_json(found.to_dict())
    else:
        for part in plan_parts(found.to_dict()):
            console.show(part)
