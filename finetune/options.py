"""The options that mean the same in every command that has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

RUN = ("out", "data-root", "device", "seed", "set", "resume", "snapshot-every", "json", "quiet")
"""Options of the commands that train."""


def shared(*names: str) -> Callable[[Command], Command]:
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
