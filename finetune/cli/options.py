"""Options and output that the commands share."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from finetune.errors import SettingError, UserError
from finetune.io.outputs import check_file_name
from finetune.io.sanitize import escaped_json, printable

if TYPE_CHECKING:
    from finetune.report.console import Console
    from finetune.report.curve_report import CurveReport
    from finetune.report.report import Report
    from finetune.run.options import RunOptions


class OutputFile(click.Path):
    """The path of a file to write, whose name ends in one of `endings`."""

    def __init__(self, *endings: str) -> None:
        super().__init__(path_type=Path)
        self.endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        # Before it is a Path, which forgets a slash at the end.
        check_file_name(os.fspath(value), param.opts[0] if param is not None else "output", self.endings)
        return super().convert(value, param, ctx)


class FiniteFloat(click.FloatRange):
    """A number in a range. Neither nan, which is in every range of click's, nor inf."""

    name = "number"  # in messages; click's is "float range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return found


Command = TypeVar("Command", bound=Callable[..., Any])

SOURCES = (
    "a checkpoint, mnist (the one that comes with finetune), hub:OWNER/NAME[@REVISION], timm:NAME[.TAG], or a bare "
    "safetensors file with --model."
)
IMAGES = (
    "a data set's name, a folder of pictures, a table (CSV), a folder of Parquet or tar shards, or "
    "hub-data:OWNER/NAME[@REVISION]."
)


def example(line: str) -> str:
    """The end of a command's help: a line that can be typed as it stands."""
    return f"\b\nExample:\n  {line}"


OPTIONS = {
    "recipe": click.option("--recipe", type=click.Path(path_type=Path), required=True, help="The recipe file."),
    "out": click.option(
        "--out",
        type=OutputFile(".safetensors"),
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
        type=FiniteFloat(min=0),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="Between two snapshots within an epoch, from which --resume goes on.",
    ),
    "log": click.option(
        "--log",
        type=click.Choice(["tensorboard", "trackio"]),
        multiple=True,
        help="Writes the run's numbers there too, beside metrics.jsonl. May be repeated.",
    ),
    "model": click.option(
        "--model", metavar="NAME", help="The architecture of a bare file of weights, for example timm/resnet18."
    ),
    "target": click.option("--target", metavar="DATA", help=f"What to adapt to: {IMAGES}"),
    "shots": click.option("--shots", type=click.IntRange(min=1), help="Labelled images per class to learn from."),
    "seeds": click.option(
        "--seeds", metavar="N|A,B,...", help="Trains once for each seed: a count, or the seeds; 5 is a good number."
    ),
    "folds": click.option(
        "--folds",
        type=int,
        metavar="K",
        help="Cross-validates: tests each picture once, by a training on the other folds; then trains on all of them.",
    ),
    "same-shots": click.option(
        "--same-shots", is_flag=True, help="All seeds learn from the labelled images that the first one chooses."
    ),
    "jobs": click.option(
        "--jobs", type=click.IntRange(min=1), help="Trainings at once on this machine, which share its threads."
    ),
    "engine": click.option(
        "--engine", metavar="dask://HOST:PORT", help="Trains on the workers of a Dask cluster (extra `cluster`)."
    ),
    "metric": click.option(
        "--metric",
        default="accuracy",
        show_default=True,
        help="What the verdict is about: accuracy, balanced_accuracy, macro_f1, auroc, log_loss, ...",
    ),
    "max-error": click.option(
        "--max-error",
        type=FiniteFloat(),
        metavar="SHARE",
        help="Promises, with 95 % confidence, at most this share of wrong answers, such as 0.01: `predict` says "
        "`unsure` where it cannot.",
    ),
    "html": click.option("--html", is_flag=True, help="Also writes the report as one HTML page, to be looked at."),
    "force": click.option(
        "--force", is_flag=True, help="Trains even where the memory of this machine seems too small."
    ),
    "json": click.option("--json", "as_json", is_flag=True, help="Prints JSON for programs on standard output."),
    "quiet": click.option("--quiet", is_flag=True, help="Prints no progress and no remarks."),
}


def with_options(*names: str) -> Callable[[Command], Command]:
    """Adds the options of these names, which mean the same wherever they appear."""

    def add(command: Command) -> Command:
        for name in reversed(names):
            command = OPTIONS[name](command)
        return command

    return add


def make_console(quiet: bool = False, results: bool = True) -> Console:
    from finetune.report.console import Console

    return Console(quiet=quiet, results=results)


def run_options(
    *, as_json: bool = False, quiet: bool = False, settings: tuple[str, ...] = (), **given: Any
) -> RunOptions:
    """The typed options of a command that trains, as RunOptions has them.

    To resume, a person types the same again, and --resume. With --json nothing but the JSON is printed.
    """
    words = sys.argv[1:] if given.get("resume") else [*sys.argv[1:], "--resume"]
    program = "finetune" if os.environ.get("WORLD_SIZE", "1") == "1" else "torchrun ... -m finetune"
    own = {"settings": settings, "resume_command": f"{program} {shlex.join(words)}"}
    return cast("RunOptions", {**given, **own, "console": make_console(quiet, results=not as_json)})


def refuse_without_seeds(study: Mapping[str, Any]) -> None:
    """SettingError for options of a study without --seeds or, where they go with it, --folds."""
    folds = study["folds"] is not None
    own = {key: value for key, value in study.items() if key not in ("folds", *(("jobs", "engine") if folds else ()))}
    if given := [f"--{key.replace('_', '-')}" for key, value in own.items() if value]:
        where = "--seeds, not with --folds" if folds else "--seeds, for example --seeds 5"
        if not folds and {"jobs", "engine"} & {key for key, value in own.items() if value}:
            where += ", or --folds"
        raise SettingError(f"{', '.join(given)}: goes with {where}")


def check_target(name: str | None) -> None:
    """SettingError that repeats what was typed when --target is neither pictures nor a data set's name."""
    if name is None:
        return
    from finetune.data.openers import check_images_name, is_image_path
    from finetune.data.registry import find_dataset

    try:
        check_images_name(name)
        if not is_image_path(name):
            find_dataset(name)
    except UserError as error:
        raise SettingError(f"--target {name}: {error}") from None


def print_report(report: Report | CurveReport, as_json: bool, options: RunOptions) -> None:
    """Prints a report's JSON with --json; of several processes that train together only the first one does."""
    console = options["console"]
    if as_json and console is not None and not console.hushed:
        click.echo(report.to_json(), nl=False)


def json_text(values: object, indent: int | None = None) -> str:
    """JSON in which a name is what it is: what cannot be shown, and bytes that are no UTF-8, are escaped."""
    return escaped_json(json.dumps(values, indent=indent, ensure_ascii=False))


def print_json(values: object) -> None:
    click.echo(json_text(values, indent=1))


def print_json_array(values: Iterable[object]) -> None:
    """Prints what `print_json` does of a list, each of its values as it comes."""
    before = "["
    for value in values:
        click.echo(f"{before}\n{textwrap.indent(json_text(value, indent=1), ' ')}", nl=False)
        before = ","
    click.echo("[]" if before == "[" else "\n]")


def print_listing(values: dict[str, Any], as_json: bool = False) -> None:
    from finetune.report.tables import mapping_lines

    if as_json:
        print_json(values)
    else:
        print_lines(mapping_lines(values))


def print_lines(lines: list[str]) -> None:
    for line in lines:
        click.echo(printable(line))
