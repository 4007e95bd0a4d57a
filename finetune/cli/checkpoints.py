"""Commands that read and train nothing: evaluate, check, verify, predict, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finetune.cli.options import check_target, make_console, print_json, print_lines, print_listing, with_options
from finetune.errors import ClaimError, DataError


@click.command()
@click.argument("checkpoint")
@click.option(
    "--data", required=True, metavar="DATA", help="Whose test images to use: a data set, a folder or a CSV file."
)
@click.option(
    "--on-bad-image",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="Pictures that cannot be read: list them and stop, or go on without them.",
)
@click.option(
    "--group",
    metavar="PATTERN",
    help="Which pictures belong together, as data.group of recipes; left out: as in the checkpoint's training.",
)
@click.option(
    "--confusion", type=click.Path(path_type=Path), metavar="PNG", help="Draws the confusion matrix as a picture."
)
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="Writes each image's label, prediction and probability, for compare.",
)
@with_options("data-root", "device", "html", "json")
def evaluate(checkpoint: str, data: str, confusion: Path | None, as_json: bool, **options: Any) -> None:
    """Accuracy and other metrics with intervals, per class, and the most frequent mistakes."""
    from finetune.commands import evaluate as command
    from finetune.report.plots import confusion_picture

    console = make_console(results=not as_json)
    found = command.evaluate(checkpoint, data, console=console, **options)
    if confusion is not None:
        confusion_picture(found.result.confusion or [], found.classes, confusion)
        console.note(f"wrote {confusion}")
    if as_json:
        print_json(found.to_dict())
        return
    for part in command.shown_parts(found):
        console.show(part)


@click.command()
@click.option(
    "--target",
    required=True,
    metavar="DATA",
    help="What to check: a data set's name, a folder of pictures, or a CSV file.",
)
@click.option("--from", "source", metavar="SOURCE", help="Whose features tell labels, as in adapt [default: pixels].")
@click.option(
    "--write",
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="Writes a table of the pictures without the suspects, to be used as --target; changes no picture.",
)
@with_options("model", "data-root", "device", "set", "html", "json")
def check(target: str, as_json: bool, **options: Any) -> None:
    """Twins, doubtful labels, groups and odd pictures of a data set, before anything is trained on it."""
    from finetune.commands import check as command
    from finetune.report.check_report import check_parts

    check_target(target)
    console = make_console(results=not as_json)
    found = command.check(target, console=console, **options)
    if as_json:
        print_json(found.to_dict())
        return
    for part in check_parts(found.to_dict()):
        console.show(part)


@click.command()
@click.argument("report", type=click.Path(path_type=Path), metavar="REPORT.json")
@click.option("--out", type=click.Path(path_type=Path), metavar="HTML", help="The page [default: REPORT.html].")
@click.option("--data", metavar="DATA", help="Where the pictures of your own data set are, to be shown.")
@with_options("data-root")
def report(report: Path, **options: Any) -> None:
    """One HTML page of a report: the verdict, plots, tables, mistakes; to be looked at without a network."""
    from finetune.commands import report as command

    command.html_report(report, console=make_console(), **options)


@click.command()
@click.argument("checkpoint")
@click.option("--data", metavar="DATA", help="Whose test images to measure its accuracy on again, as in evaluate.")
@click.option("--fetch", is_flag=True, help="Asks the Hub for parents that are not here.")
@with_options("data-root", "device", "json")
def verify(checkpoint: str, data: str | None, as_json: bool, **options: Any) -> None:
    """Whether what a checkpoint says of itself holds: its tensors, recipe, results, parents and report.

    Each claim is ok, FAILED, or not checked, with the reason. Ends with 1 when a claim failed and with 2 when the file
    cannot be read at all.
    """
    from finetune.commands import verify as command
    from finetune.report.tables import verification_lines

    found = command.verify(checkpoint, data, console=make_console(results=not as_json), **options)
    if as_json:
        print_json(found.to_dict())
    else:
        print_lines(verification_lines(found.to_dict()))
    if not found.holds:
        raise ClaimError(f"{checkpoint} does not hold what it says: {', '.join(found.failed)} FAILED")


@click.command()
@click.argument("checkpoint")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes to name per picture.")
@click.option("--tta", type=click.Choice(["flip"]), help="Averages over the picture and its mirror image.")
@with_options("device", "json")
def predict(checkpoint: str, images: tuple[str, ...], top: int, tta: str | None, device: str, as_json: bool) -> None:
    """Label and probability for pictures: files, folders, or - for paths on standard input."""
    from finetune.commands import predict as command
    from finetune.report.tables import sight_line

    found = []
    for prediction in command.predict(checkpoint, images, top=top, flip=tta == "flip", device=device, bars=True):
        found.append(prediction)
        if not as_json and prediction.error is None:
            click.echo(sight_line(prediction.file, prediction.top))
    if as_json:
        print_json([prediction.to_dict() for prediction in found])
    bad = [prediction.error for prediction in found if prediction.error is not None]
    if bad:
        raise DataError("\n  ".join([f"{len(bad)} of {len(found)} pictures could not be read:", *bad]))


@click.command()
@click.argument("checkpoint")
@with_options("json")
def inspect(checkpoint: str, as_json: bool) -> None:
    """What is in a checkpoint: model, classes, input, recipe, data, results, lineage."""
    from finetune.commands import inspect as command

    print_listing(command.inspect(checkpoint, bars=True), as_json)
