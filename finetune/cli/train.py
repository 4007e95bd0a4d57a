"""The commands that train, and the one that says what training would do."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.cli.options import (
    RUN_OPTIONS,
    make_console,
    model_override,
    override,
    print_json,
    resume_options,
    target_override,
    with_options,
)


@click.command()
@with_options("recipe", *RUN_OPTIONS)
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

    console = make_console(quiet, results=not as_json)
    overrides = [*settings, *override("seed", seed)]
    again = resume_options(resume, snapshot_every)
    report = run(recipe, out=out, root=data_root, device=device, overrides=overrides, resume=again, console=console)
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
@with_options("model", "target", "shots", *RUN_OPTIONS)
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

    console = make_console(quiet, results=not as_json)
    overrides = [*model_override(model), *settings, *target_override(target)]
    overrides += [*override("data.shots", shots), *override("seed", seed)]
    report = run(
        source,
        recipe,
        compare=not no_compare,
        out=out,
        root=data_root,
        device=device,
        overrides=overrides,
        resume=resume_options(resume, snapshot_every),
        console=console,
    )
    if as_json and not console.hushed:
        click.echo(report.to_json(), nl=False)


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
    from finetune.report.tables import plan_parts

    overrides = [*model_override(model), *settings, *target_override(target)]
    overrides += [*override("data.shots", shots), *override("seed", seed)]
    console = make_console(results=not as_json)
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
