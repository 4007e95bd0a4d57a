"""The HTML page of a run: its report, the files beside it, and the pictures of its surest mistakes."""

from __future__ import annotations

from pathlib import Path

from finetune.errors import DataError
from finetune.io.outputs import check_output, replace_file
from finetune.io.safe_open import is_file, sha256_of
from finetune.io.text_path import fitting_name
from finetune.report.console import Console
from finetune.report.page import Material, sure_and_wrong
from finetune.report.predictions import Predictions, read_predictions
from finetune.run.output_paths import STUDIES, SUFFIX
from finetune.text import first_line

ENDING = ".html"


def write_page(path: Path, page: str | bytes, console: Console) -> None:
    """Writes a page or a picture; another one that was there is moved aside. OutputError."""
    content = page.encode(errors="backslashreplace") if isinstance(page, str) else page
    replace_file(path, content, console.note)
    console.say(f"wrote {path}")


def page_path(name: str, kind: str) -> Path:
    """Where a command that writes no report writes its page: studies/NAME.KIND.html, once it can. OutputError."""
    return check_output(STUDIES / fitting_name(name, f".{kind}{ENDING}"), "--html", [ENDING])


def files_beside(report: Path) -> Material:
    """The answers in the file beside a report, and the hashes of the files of its run."""
    stem = report.name.removesuffix(".json").removesuffix(".report")
    checkpoint, answers = (report.with_name(stem + ending) for ending in (SUFFIX, ".predictions.csv"))
    sha256 = {own.name: sha256_of(own) for own in (report, checkpoint, answers) if is_file(own)}
    try:
        return Material(read_predictions(answers), sha256=sha256)
    except DataError as error:
        return Material(notes=[f"without answers image by image: {first_line(error)}"], sha256=sha256)


def surest_mistakes(predictions: Predictions, row: str | None = None) -> dict[str, str]:
    """The images that a row, by default the first, was surest and wrong about, and the class that it answered."""
    row = next((key for key in (row, *predictions.rows) if key in predictions.rows), "")
    if not (chosen := sure_and_wrong(predictions, row)):
        return {}
    column = predictions.columns[(row, predictions.seeds(row)[0])]
    return {predictions.images[index]: predictions.class_names[int(column.predicted[index])] for index in chosen}
