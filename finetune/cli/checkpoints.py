"""Commands that read and train nothing: evaluate, check, verify, predict, app, inspect, export."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetune.cli.options import (
    IMAGES,
    OutputFile,
    check_target,
    example,
    json_text,
    make_console,
    print_json,
    print_json_array,
    print_lines,
    print_listing,
    with_options,
)
from finetune.errors import ClaimError, FinetuneError, SettingError
from finetune.io.outputs import check_output
from finetune.io.sanitize import name_in_line, printable

if TYPE_CHECKING:
    from finetune.commands.predict import FilePrediction


@click.command(epilog=example("finetune evaluate mnist --data mnist --confusion confusion.png"))
@click.argument("checkpoint")
@click.option("--data", required=True, metavar="DATA", help=f"Whose test images to use: {IMAGES}")
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
@click.option("--confusion", type=OutputFile(".png"), metavar="PNG", help="Draws the confusion matrix as a picture.")
@click.option(
    "--reliability",
    type=OutputFile(".png"),
    metavar="PNG",
    help="Draws how often answers of a probability are right, before and after calibration.",
)
@click.option(
    "--predictions",
    type=OutputFile(".csv"),
    metavar="CSV",
    help="Writes each image's label, prediction and probability, for compare.",
)
@with_options("data-root", "device", "html", "json", "quiet")
def evaluate(
    checkpoint: str,
    data: str,
    confusion: Path | None,
    reliability: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Accuracy and other metrics with intervals, per class, frequent mistakes, and what its confidence is worth."""
    from finetune.commands import evaluate as command
    from finetune.report.plots import confusion_picture, reliability_picture

    for option, picture in (("--confusion", confusion), ("--reliability", reliability)):
        if picture is not None:
            check_output(picture, option, [".png"], inputs=(checkpoint, data))
    if confusion is not None and reliability is not None and confusion.resolve() == reliability.resolve():
        raise SettingError(f"--reliability {reliability}: --confusion has the same name; give each its own")
    console = make_console(quiet, results=not as_json)
    found = command.evaluate(checkpoint, data, console=console, **options)
    if as_json:
        print_json(found.to_dict())
    else:
        for part in command.shown_parts(found):
            console.show(part)
    if confusion is not None:
        assert found.result.confusion is not None
        confusion_picture(found.result.confusion, found.classes, confusion, console.note)
        console.note(f"wrote {confusion}")
    if reliability is not None:
        reliability_picture(found.reliability, reliability, console.note)
        console.note(f"wrote {reliability}")


@click.command(epilog=example("finetune check --target pictures/ --write clean.csv"))
@click.option("--target", required=True, metavar="DATA", help=f"What to check: {IMAGES}")
@click.option("--from", "source", metavar="SOURCE", help="Whose features tell labels, as in adapt [default: pixels].")
@click.option(
    "--write",
    type=OutputFile(".csv"),
    metavar="CSV",
    help="Writes a table of the pictures without the suspects, to be used as --target; changes no picture.",
)
@with_options("model", "data-root", "device", "set", "html", "json", "quiet")
def check(target: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Twins, doubtful labels, groups and odd pictures of a data set, before anything is trained on it."""
    from finetune.commands import check as command
    from finetune.report.check_report import check_parts

    check_target(target)
    console = make_console(quiet, results=not as_json)
    found = command.check(target, console=console, **options)
    if as_json:
        print_json(found.to_dict())
        return
    for part in check_parts(found.to_dict()):
        console.show(part)


@click.command(epilog=example("finetune report checkpoints/mnist-kmnist-sample.report.json"))
@click.argument("report", type=click.Path(path_type=Path), metavar="REPORT.json")
@click.option("--out", type=OutputFile(".html"), metavar="HTML", help="The page [default: REPORT.html].")
@click.option(
    "--plot",
    type=OutputFile(".svg", ".png"),
    metavar="SVG",
    help="Also draws its accuracies, or its curve, as a picture: .svg or .png.",
)
@click.option("--data", metavar="DATA", help="Where the pictures of your own data set are, to be shown.")
@with_options("data-root")
def report(report: Path, **options: Any) -> None:
    """One HTML page of a report: the verdict, plots, tables, mistakes; to be looked at without a network."""
    from finetune.commands import report as command

    command.html_report(report, console=make_console(), **options)


@click.command(epilog=example("finetune verify checkpoints/mnist-kmnist-sample.safetensors --data kmnist-sample"))
@click.argument("checkpoint")
@click.option("--data", metavar="DATA", help="Whose test images to measure its accuracy on again, as in evaluate.")
@click.option("--fetch", is_flag=True, help="Asks the Hub for parents that are not here.")
@with_options("data-root", "device", "json", "quiet")
def verify(checkpoint: str, data: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Whether what a checkpoint says of itself holds: its tensors, recipe, results, parents and report.

    Each claim is ok, FAILED, or not checked, with the reason. Ends with 1 when a claim failed and with 2 when the file
    cannot be read at all.
    """
    from finetune.commands import verify as command
    from finetune.report.tables import verification_lines

    found = command.verify(checkpoint, data, console=make_console(quiet, results=not as_json), **options)
    if as_json:
        print_json(found.to_dict())
    else:
        print_lines(verification_lines(found.to_dict()))
    if not found.holds:
        raise ClaimError(f"{checkpoint} does not hold what it says: {', '.join(found.failed)} FAILED")


@click.command(epilog=example("finetune predict mnist digit.png more-digits/ --top 3"))
@click.argument("checkpoint")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes to name per picture.")
@click.option("--tta", type=click.Choice(["flip"]), help="Averages over the picture and its mirror image.")
@click.option("--jsonl", is_flag=True, help="Prints a line of JSON for each picture as soon as it is known.")
@click.option("--logits", is_flag=True, help="With --json or --jsonl: every class's logit, in the checkpoint's order.")
@click.option("--strict", is_flag=True, help="Stops at the first picture that cannot be read.")
@click.option("--batch", type=click.IntRange(min=1), help="Pictures at once [default: as many as suit their size].")
@click.option("--null", is_flag=True, help="Paths on standard input are divided by zero bytes, as by find -print0.")
@with_options("device", "json", "quiet")
def predict(checkpoint: str, images: tuple[str, ...], quiet: bool, **options: Any) -> None:
    """Label and probability for pictures: files, folders, shards, or - for paths on standard input.

    One answer for each picture, in the order given; of one that cannot be read it is the error, and the command ends
    with 1. `unsure` stands before the best guess where it is below the threshold of the checkpoint's promise (adapt
    --max-error), `unlike those trained on` behind an answer that means little; standard error says why.
    """
    from finetune.commands import predict as command

    flip, strict = options.pop("tta") == "flip", options.pop("strict")
    as_json, jsonl = options.pop("as_json"), options.pop("jsonl")
    if as_json and jsonl:
        raise SettingError("--json and --jsonl: a list, or a line for each picture; leave one of the two out")
    if options["logits"] and not (as_json or jsonl):
        raise SettingError("--logits: goes with --json or --jsonl")
    found = command.predict(checkpoint, images, flip=flip, bars=not quiet, **options)
    seen = _Seen(found, strict)
    if as_json:
        print_json_array(prediction.to_dict() for prediction in seen)
    else:
        for prediction in seen:
            click.echo(json_text(prediction.to_dict()) if jsonl else _sight_line(prediction))
    if seen.unlike and not quiet:
        more = f"; so it is with {seen.unlike - 1} more" if seen.unlike > 1 else ""
        click.echo(printable(f"{seen.first_unlike}: its answer means little{more}"), err=True)
    if seen.refused is not None:
        raise FinetuneError(f"{seen.refused.file}: {seen.refused.error}")
    if seen.bad:
        raise FinetuneError(f"{seen.bad:,} of {seen.count:,} pictures could not be read; their lines say why")


@click.command(epilog=example("finetune calibrate mnist --data mnist --max-error 0.005 --out sure.safetensors"))
@click.argument("checkpoint")
@click.option("--data", required=True, metavar="DATA", help=f"Whose images to calibrate on, not its test's: {IMAGES}")
@with_options("max-error")
@click.option(
    "--out", type=OutputFile(".safetensors"), metavar="FILE", help="[default: NAME-calibrated.safetensors beside it]"
)
@with_options("data-root", "device", "json", "quiet")
def calibrate(checkpoint: str, data: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Makes probabilities true: a temperature, and on request a threshold below which `predict` says `unsure`.

    Fitted on images that the checkpoint has not learnt from; the weights stay the same. `adapt` and `pretrain` do this
    by themselves on the images that they hold out for validation.
    """
    from finetune.commands import calibrate as command

    console = make_console(quiet, results=not as_json)
    found = command.calibrate(checkpoint, data, console=console, **options)
    if as_json:
        print_json(found.to_dict())
    else:
        print_lines(found.lines())


class _Seen:
    """Hands predictions on and counts them; with `strict` it ends before the first that is an error, `refused`."""

    def __init__(self, predictions: Iterator[FilePrediction], strict: bool) -> None:
        self.predictions, self.strict = predictions, strict
        self.count = self.bad = self.unlike = 0
        self.first_unlike = ""
        self.refused: FilePrediction | None = None

    def __iter__(self) -> Iterator[FilePrediction]:
        for prediction in self.predictions:
            if self.strict and prediction.error is not None:
                self.refused = prediction
                return
            self.count += 1
            self.bad += prediction.error is not None
            if prediction.unlike is not None:
                self.unlike += 1
                self.first_unlike = self.first_unlike or f"{prediction.file} is {prediction.unlike}"
            yield prediction


def _sight_line(prediction: FilePrediction) -> str:
    from finetune.report.tables import sight_line

    file = name_in_line(prediction.file, terminal=sys.stdout.isatty())
    error = None if prediction.error is None else printable(prediction.error)
    unsure, unlike = bool(prediction.unsure), prediction.unlike is not None
    return sight_line(file, prediction.top, error, unsure=unsure, unlike=unlike)


@click.command(epilog=example("finetune app mnist"))
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT [CHECKPOINT2]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Who can reach it: by default this machine only.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 takes any free one.")
@with_options("device")
def app(checkpoints: tuple[str, ...], **options: Any) -> None:
    """A page on this machine to draw on, or to show pictures to a checkpoint, or to two side by side.

    Needs gradio, the extra `app`. Nothing leaves the machine.
    """
    if len(checkpoints) > 2:
        raise SettingError(f"expected one checkpoint or two, found {len(checkpoints)}")
    from finetune.commands import app as command

    command.app(checkpoints, note=click.echo, **options)


@click.command(epilog=example("finetune inspect mnist"))
@click.argument("checkpoint")
@with_options("json", "quiet")
def inspect(checkpoint: str, as_json: bool, quiet: bool) -> None:
    """What is in a checkpoint: model, classes, input, recipe, data, results, lineage."""
    from finetune.commands import inspect as command

    print_listing(command.inspect(checkpoint, bars=not quiet), as_json)


@click.command(epilog=example("finetune export mnist --to onnx --out digits.onnx"))
@click.argument("checkpoint")
@click.option("--to", type=click.Choice(["onnx", "torch-export"]), required=True, help="The kind of file.")
@click.option("--raw", is_flag=True, help="It takes the network's own input, float tensors, instead of pictures.")
@click.option("--int8", is_flag=True, help="Also writes NAME.int8.onnx, quantized, and judges it against the first.")
@click.option("--data", metavar="DATA", help=f"What to prove it on [default: what it was tested on]: {IMAGES}")
@click.option(
    "--out", type=OutputFile(".onnx", ".pt2"), metavar="FILE", help="[default: NAME.onnx or NAME.pt2 beside CHECKPOINT]"
)
@with_options("data-root", "json", "quiet")
def export(checkpoint: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """A file for other programs, ONNX or torch.export, kept only if it answers as the checkpoint does.

    It takes pictures as they are decoded, and has the labels in it. On real pictures its logits must be within 1e-4 of
    the checkpoint's and no class another one; else nothing is written, and the command ends with 1. NAME.export.json
    has the proof and the times. ONNX needs the extra `onnx`.
    """
    from finetune.commands import export as command

    found = command.export_checkpoint(checkpoint, console=make_console(quiet, results=not as_json), **options)
    if as_json:
        print_json(found.to_dict())
