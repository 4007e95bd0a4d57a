"""Options and output that the commands share."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from finetune.errors import SettingError, UserError
from finetune.io.sanitize import escaped_json, printable

if TYPE_CHECKING:
    from finetune.report.console import Console
    from finetune.run.snapshot import ResumeOptions


Command = TypeVar("Command", bound=Callable[..., Any])

RUN_OPTIONS = ("out", "data-root", "device", "seed", "set", "resume", "snapshot-every", "json", "quiet")
"""Options of the commands that train."""


def with_options(*names: str) -> Callable[[Command], Command]:
    """Adds the options of these names, which mean the same wherever they appear."""
    options = {
        "recipe": click.option("--recipe", type=click.Path(path_type=Path), required=True, help="The recipe file."),
        "out": click.option(
            "--out",
            type=click.Path(path_type=Path),
            help="The checkpoint to write [default: checkpoints/NAME.safetensors].",
        ),
        "data-root": click.option(
            "--data-root",
            type=click.Path(path_type=Path),
            help="The folder of the data sets [default: $FINETUNE_DATA_ROOT, else ./data].",
        ),
        "device": click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda[:N] or mps."),
        "seed": click.option("--seed", type=click.IntRange(min=0), help="Instead of the recipe's seed."),
        "set": click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Changes one value of the recipe, for example phases[0].epochs=3. May be repeated.",
        ),
        "resume": click.option(
            "--resume", is_flag=True, help="Goes on with the run of that name that was stopped, to the same result."
        ),
        "snapshot-every": click.option(
            "--snapshot-every",
            type=click.FloatRange(min=0),
            default=60.0,
            show_default=True,
            metavar="SECONDS",
            help="Between two snapshots within an epoch, from which --resume goes on.",
        ),
        "model": click.option(
            "--model", metavar="NAME", help="The architecture of a bare file of weights, for example timm/resnet18."
        ),
        "target": click.option(
            "--target", metavar="DATA", help="What to adapt to: a data set's name, a folder of pictures, or a CSV file."
        ),
        "shots": click.option("--shots", type=click.IntRange(min=1), help="Labelled images per class to learn from."),
        "json": click.option("--json", "as_json", is_flag=True, help="Prints JSON for programs on standard output."),
        "quiet": click.option("--quiet", is_flag=True, help="Prints no progress."),
    }

    def add(command: Command) -> Command:
        for name in reversed(names):
            command = options[name](command)
        return command

    return add


def make_console(quiet: bool = False, results: bool = True) -> Console:
    from finetune.report.console import Console

    return Console(quiet=quiet, results=results)


def resume_options(resume: bool, every: float) -> ResumeOptions:
    """How a run's snapshots are kept; what to type to go on is what was typed, and --resume."""
    from finetune.run.snapshot import ResumeOptions

    words = sys.argv[1:] if resume else [*sys.argv[1:], "--resume"]
    program = "finetune" if os.environ.get("WORLD_SIZE", "1") == "1" else "torchrun ... -m finetune"
    return ResumeOptions(resume, every, f"{program} {shlex.join(words)}")


def override(key: str, value: object) -> list[str]:
    return [] if value is None else [f"{key}={json.dumps(value, ensure_ascii=False)}"]


def model_override(name: str | None) -> list[str]:
    return override("model.name", name)


def target_override(name: str | None) -> list[str]:
    """`--target` as a setting; a name that is not known is reported as what was typed."""
    if name is None:
        return []
    from finetune.data.manifest import is_image_path
    from finetune.data.registry import find_dataset

    try:
        if not is_image_path(name):
            find_dataset(name)
    except UserError as error:
        raise SettingError(f"--target {name}: {error}") from None
    return override("data.name", name)


def print_json(values: object) -> None:
    click.echo(escaped_json(json.dumps(values, indent=1, ensure_ascii=False)))


def print_listing(values: dict[str, Any], as_json: bool = False) -> None:
    from finetune.report.tables import mapping_lines

    if as_json:
        print_json(values)
    else:
        print_lines(mapping_lines(values))


def print_lines(lines: list[str]) -> None:
    for line in lines:
        click.echo(printable(line))
