"""Logs of a run beside metrics.jsonl: one interface, and the kinds of log that `--log` may name.

Like metrics.jsonl, a log follows from the run's rows: a run that is resumed writes its log anew from the rows of its
snapshot and goes on, so that no step is there twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from finetune.errors import SettingError
from finetune.report.comparison import sentences
from finetune.report.report import Report
from finetune.text import install_hint

LOGS = {"tensorboard": "TensorboardLog", "trackio": "TrackioLog"}  # by package; its class, in NAME_log.py beside this

Row = Mapping[str, Any]
Picture = npt.NDArray[np.uint8]


class MetricsLog(Protocol):
    """A log of one run. Made from the run's folder and the rows of an earlier attempt, whose log it replaces.

    All of it raises OutputError where nothing can be written.
    """

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers by their names, and makes sure that a killed run has them."""

    def outcome(self, step: int, values: Mapping[str, float], verdict: str, confusion: Picture | None) -> None:
        """Logs what the run came to: accuracies, sentences, and a picture (uint8, H×W×3)."""

    def close(self) -> None:
        """Closes its files."""


class RunLogs:
    """All logs of one run. A step is the number of the row in metrics.jsonl, from 1."""

    def __init__(self, names: Iterable[str], run_folder: Path, rows: Sequence[Row]) -> None:
        self.steps = 0
        self.logs: list[MetricsLog] = [
            getattr(import_module(f"finetune.run.{name}_log"), LOGS[name])(run_folder) for name in names
        ]
        for row in rows:
            self.row(row)

    def row(self, row: Row) -> None:
        """Logs a row of metrics.jsonl."""
        self.steps += 1
        for log in self.logs:
            log.row(self.steps, row_scalars(row))

    def outcome(self, report: Report) -> None:
        """Logs the results of a run that has finished."""
        if not self.logs:
            return
        majority = report.results.get("majority")
        verdict = sentences(report.comparisons, majority.method if majority is not None else None)
        for log in self.logs:
            log.outcome(self.steps, result_scalars(report), "\n\n".join(verdict), confusion_of(report))

    def close(self) -> None:
        for log in self.logs:
            log.close()


def log_outcome(names: Iterable[str], run_folder: Path, report: Report) -> None:
    """Logs what a study came to. It has no rows: each of its trainings logs its own, in its own folder."""
    logs = RunLogs(names, run_folder, ())
    logs.outcome(report)
    logs.close()


def check_logs(names: Iterable[str]) -> tuple[str, ...]:
    """The kinds of log, each once. SettingError for one that there is not, or whose package is not installed."""
    found = tuple(dict.fromkeys(names))
    for name in found:
        if name not in LOGS:
            raise SettingError(f"--log {name}: expected {' or '.join(LOGS)}")
        if find_spec(name) is None:
            raise SettingError(
                f"--log {name}: needs the package {name}, which is not installed; to get it: {install_hint(name)}"
            )
    return found


def row_scalars(row: Row) -> dict[str, float]:
    """The numbers of a row by their names, as in `head/train_loss`: the phase, then the key in metrics.jsonl."""
    numbers = {key: value for key, value in row.items() if key != "epoch" and isinstance(value, (int, float))}
    return {f"{row['phase']}/{key}": float(value) for key, value in numbers.items()}


def result_scalars(report: Report) -> dict[str, float]:
    """The accuracy on the test images of each row of the verdict that was made."""
    return {f"test_accuracy/{name}": result.accuracy for name, result in report.results.items() if result is not None}


def confusion_of(report: Report) -> Picture | None:
    """The confusion matrix of the trained network as a picture (uint8, H×W×3); None without one."""
    from PIL import Image

    from finetune.report.plots import confusion_picture

    own = report.results.get(report.own_row or "")
    if own is None or own.confusion is None:
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "confusion.png"
        confusion_picture(own.confusion, report.target.classes, path)
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
