"""Commands that train, and the one that says what training would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finetune.cli.options import (
    SOURCES,
    OutputFile,
    check_target,
    example,
    make_console,
    print_json,
    print_report,
    refuse_without_seeds,
    run_options,
    with_options,
)
from finetune.errors import SettingError


@click.command(epilog=example("finetune pretrain --recipe recipes/digits.yaml"))
@with_options("recipe", "out", "data-root", "device", "seed", "set")
@with_options("resume", "snapshot-every", "log", "html", "force", "json", "quiet")
def pretrain(recipe: Path, **given: Any) -> None:
    """Trains from scratch; writes a checkpoint and its report."""
    from finetune.commands import pretrain as command

    options = run_options(**given)
    print_report(command.pretrain(recipe, **options), given["as_json"], options)


@click.command(epilog=example("finetune adapt --from mnist --target kmnist-sample --shots 10 --seeds 3"))
@click.option(
    "--from",
    "source",
    required=True,
    metavar="SOURCE",
    help=f"What to start from: {SOURCES}",
)
@click.option("--recipe", type=click.Path(path_type=Path), default="recipes/adapt.yaml", show_default=True)
@with_options("model", "target", "shots", "out", "data-root", "device", "seed", "set")
@with_options("resume", "snapshot-every", "log", "html", "force", "json", "quiet")
@click.option("--no-compare", is_flag=True, help="Leaves out the linear probe and the run from scratch.")
@with_options("metric", "seeds", "folds", "same-shots", "jobs", "engine", "max-error")
@click.option(
    "--keep",
    type=click.Choice(["interpolated", "first", "average"]),
    help="Which weights to write in place of the fine-tuned ones: interpolated, a mix with the source's that is chosen "
    "on validation images. With --seeds also the first seed's [default], or the average of all seeds' if that is no "
    "worse on the validation images.",
)
def adapt(source: str, recipe: Path, target: str | None, no_compare: bool, **given: Any) -> None:
    """Fine-tunes a checkpoint on a target and tells what that brought; writes a checkpoint and its report."""
    check_target(target)
    own = {key: given.pop(key) for key in ("model", "shots", "metric", "max_error")} | {"compare": not no_compare}
    study = {key: given.pop(key) for key in ("seeds", "folds", "same_shots", "jobs", "engine", "keep")}
    options = run_options(**given)
    if study["seeds"] is None and study["keep"] == "interpolated":
        own["keep"] = study.pop("keep")
    if study["seeds"] is None:
        refuse_without_seeds(study)
    elif study.pop("folds") is not None:
        raise SettingError(
            "--folds and --seeds: expected one of them; --folds trains each fold with a seed of its own already"
        )
    chosen = {key: value for key, value in study.items() if value is not None and value is not False}
    if study.get("folds") is not None:
        from finetune.study.folds import adapt_folds

        report = adapt_folds(source, target, recipe, **chosen, **own, **options)
    elif study["seeds"] is None:
        from finetune.commands import adapt as command

        report = command.adapt(source, target, recipe, **own, **options)
    else:
        from finetune.study.seeds import adapt_seeds

        if given["seed"] is not None:
            raise SettingError("--seed and --seeds: expected one of them; --seeds 0,1,2 names several")
        report = adapt_seeds(source, target, recipe, **chosen, **own, **options)
    print_report(report, given["as_json"], options)


@click.command(epilog=example("finetune where --from mnist --target kmnist-sample --shots 10"))
@click.option("--from", "source", required=True, metavar="SOURCE", help="What to start from, as in adapt.")
@click.option("--recipe", type=click.Path(path_type=Path), default="recipes/adapt.yaml", show_default=True)
@with_options("model", "target", "shots")
@click.option("--out", type=OutputFile(".yaml"), help="The recipe to write [default: recipes/where-NAME.yaml].")
@with_options("data-root", "device", "seed", "set", "force", "json", "quiet")
def where(source: str, recipe: Path, target: str | None, **given: Any) -> None:
    """Trains nothing: says which stages to train, and why, and writes a recipe with them for adapt."""
    from finetune.commands import where as command

    check_target(target)
    own = {key: given.pop(key) for key in ("model", "shots")}
    options = run_options(**given)
    found = command.where(source, target, recipe, **own, **options)
    if given["as_json"] and options["console"] is not None and not options["console"].hushed:
        print_json(found.to_dict())


@click.command(epilog=example("finetune plan --recipe recipes/adapt.yaml --from mnist --target kmnist-sample"))
@with_options("recipe")
@click.option("--from", "source", metavar="SOURCE", help="What to start from, for an adapt recipe, as in adapt.")
@with_options("model", "target", "shots", "data-root", "device", "seed", "set", "force", "json")
@click.option(
    "--show-augment",
    type=OutputFile(".png"),
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
