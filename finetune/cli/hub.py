"""Commands that push to and pull from the Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from finetune.cli.options import example, make_console, print_json, with_options


@click.command(epilog=example("finetune push checkpoints/bees.safetensors OWNER/NAME --license mit --dry-run"))
@click.argument("checkpoint")
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Makes a new repository private.")
@click.option("--tag", metavar="TAG", help="Names the result, for example v1.")
@click.option("--message", metavar="TEXT", help="The commit's message [default: what the model is].")
@click.option("--create-pr", is_flag=True, help="Proposes the files in a pull request instead.")
@click.option("--license", "licence", metavar="ID", help="The weights' licence, for example mit or cc-by-4.0.")
@click.option(
    "--with",
    "parts",
    type=click.Choice(["onnx"]),
    multiple=True,
    help="Also onnx/model.onnx, for JavaScript too.",
)
@click.option("--data", metavar="DATA", help="Of --with onnx: what to prove it on [default: what it was tested on].")
@click.option("--dry-run", is_flag=True, help="Writes the files to hub/OWNER/NAME, shows them, and sends nothing.")
@click.option("--yes", "replace", is_flag=True, help="Replaces another model that is there, without asking.")
@with_options("data-root", "json", "quiet")
def push(checkpoint: str, repository: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Uploads a checkpoint, its configuration, recipe, report and model card to the Hub, in one commit."""
    from finetune.commands import push as command

    confirm = None
    if sys.stdin.isatty() and sys.stderr.isatty():
        confirm = lambda question: click.confirm(question, err=True)  # noqa: E731
    done = command.push(
        checkpoint, repository, **given, confirm=confirm, console=make_console(quiet, results=not as_json)
    )
    if as_json:
        print_json(done.to_dict())


@click.command(epilog=example("finetune pull OWNER/NAME --out checkpoints/bees.safetensors"))
@click.argument("repository", metavar="OWNER/NAME[@REVISION]")
@with_options("out", "json", "quiet")
def pull(repository: str, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Downloads weights from the Hub, other people's too, compares their hash, and writes them as a checkpoint."""
    from finetune.commands import pull as command

    done = command.pull(repository, out=out, console=make_console(quiet, results=not as_json))
    if as_json:
        print_json(done.to_dict())
