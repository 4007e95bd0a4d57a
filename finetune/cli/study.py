"""Commands about several trainings at once: compare."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.cli.options import make_console, print_json, with_options


@click.command()
@click.argument("first", type=click.Path(path_type=Path), metavar="A")
@click.argument("second", type=click.Path(path_type=Path), metavar="[B]", required=False)
@click.option("--row", metavar="ROW", help="Of B [default: after, or its only row].")
@click.option("--against", metavar="ROW", help="Of A [default: the same row]; without B, another row of A.")
@click.option("--metric", default="accuracy", show_default=True, metavar="NAME", help="The metric to say in words.")
@with_options("json")
def compare(first: Path, second: Path | None, row: str | None, against: str | None, metric: str, as_json: bool) -> None:
    """The verdict of B against A from two files of predictions, paired image by image.

    adapt and evaluate --predictions write such files, and so may anybody: a CSV of image,label,prediction, and
    probability if known. The two are of the same images, in any order. All seeds of a row count.
    """
    from finetune.commands import compare as command
    from finetune.report.tables import comparison_parts

    found = command.compare(first, second, row=row, against=against, metric=metric)
    if as_json:
        print_json(found.to_dict())
        return
    console = make_console()
    titles = [command.row_title(side) for side in (found.first, found.second)]
    for part in comparison_parts(found.to_dict(), titles):
        console.show(part)
