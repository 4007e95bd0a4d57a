"""What the commands share: typed options become settings of a recipe, and results become text."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from finetune.errors import SettingError, UserError
from finetune.strangers.printable import escaped_json, printable

if TYPE_CHECKING:
    from finetune.commands.facts import Keeping
    from finetune.reporting.console import Console


def console_for(quiet: bool = False, results: bool = True) -> Console:
    from finetune.reporting.console import Console

    return Console(quiet=quiet, results=results)


def keeping_of(resume: bool, every: float) -> Keeping:
    """How a run's snapshots are kept; what to type to go on is what was typed, and --resume."""
    from finetune.commands.facts import Keeping

    words = sys.argv[1:] if resume else [*sys.argv[1:], "--resume"]
    program = "finetune" if os.environ.get("WORLD_SIZE", "1") == "1" else "torchrun ... -m finetune"
    return Keeping(resume, every, f"{program} {shlex.join(words)}")


def override(key: str, value: object) -> list[str]:
    return [] if value is None else [f"{key}={json.dumps(value, ensure_ascii=False)}"]


def named_model(name: str | None) -> list[str]:
    return override("model.name", name)


def named_target(name: str | None) -> list[str]:
    """`--target` as a setting; a name that is not known is reported as what was typed."""
    if name is None:
        return []
    from finetune.data.catalog import find_dataset
    from finetune.data.photographs import is_photographs

    try:
        if not is_photographs(name):
            find_dataset(name)
    except UserError as error:
        raise SettingError(f"--target {name}: {error}") from None
    return override("data.name", name)


def print_json(values: object) -> None:
    click.echo(escaped_json(json.dumps(values, indent=1, ensure_ascii=False)))


def print_listing(values: dict[str, Any], as_json: bool = False) -> None:
    from finetune.reporting.tables import mapping_lines

    if as_json:
        print_json(values)
    else:
        print_lines(mapping_lines(values))


def print_lines(lines: list[str]) -> None:
    for line in lines:
        click.echo(printable(line))
