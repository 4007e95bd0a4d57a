"""Where a run writes: checkpoint, report, run folder; existing outputs are moved aside."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from finetune.errors import OutputError, SettingError
from finetune.io.atomic import append_line, raises_output_error, remove_file, write_atomic
from finetune.io.outputs import check_file_name, check_output, check_writable, move_files_aside, numbered
from finetune.io.safe_open import sha256_of
from finetune.io.text_path import fitting_name, to_path
from finetune.report.console import Console
from finetune.report.report import read_report_values
from finetune.run.lock import LOCK_NAME
from finetune.text import json_diff

SUFFIX = ".safetensors"
TIMES = ("seconds", "images_per_second")  # keys of reports that differ from run to run
RUNS = Path("runs")  # the folder of all run folders, in the current one
STUDIES = Path("studies")  # the folder of reports of many trainings, in the current one
SNAPSHOTS, LOG = "snapshots", "log.txt"  # in a run folder


@dataclass(frozen=True)
class OutputPaths:
    """The paths of one run: `checkpoint` is NAME.safetensors; `run_folder` holds what is written while it trains."""

    checkpoint: Path
    run_folder: Path

    @property
    def report(self) -> Path:
        return self.checkpoint.with_suffix(".report.json")

    @property
    def predictions(self) -> Path:
        return self.checkpoint.with_suffix(".predictions.csv")

    @property
    def recipe(self) -> Path:
        return self.run_folder / "recipe.yaml"

    @property
    def log(self) -> Path:
        return self.run_folder / LOG

    @property
    def metrics(self) -> Path:
        return self.run_folder / "metrics.jsonl"

    @property
    def snapshots(self) -> Path:
        return self.run_folder / SNAPSHOTS

    @property
    def interrupted(self) -> Path:
        return self.run_folder / f"interrupted{SUFFIX}"

    @property
    def finished(self) -> Path:
        return self.run_folder / "finished.json"

    def digest(self) -> str | None:
        """The sha256 of the existing checkpoint, if any."""
        with raises_output_error(self.checkpoint):
            return sha256_of(self.checkpoint) if self.checkpoint.exists() else None


@dataclass(frozen=True)
class StudyPaths:
    """The paths of a study that trains no checkpoint: NAME.KIND.json and, beside it, the same in other formats."""

    report: Path
    kind: str

    @property
    def stem(self) -> str:
        return self.report.name.removesuffix(f".{self.kind}.json")

    @property
    def run_folder(self) -> Path:
        return RUNS / f"{self.stem}.{self.kind}"

    def beside(self, ending: str) -> Path:
        """The path NAME.KIND.`ending`."""
        return self.report.with_suffix(f".{ending}")


def check_study_outputs(
    out: str | Path | None, name: str, kind: str, endings: Sequence[str], inputs: Iterable[str | Path | None] = ()
) -> StudyPaths:
    """The paths of a study, which can all be written; OutputError, SettingError if not. Changes no existing file.

    out: the report's path, by default studies/`name`.`kind`.json. endings: of the files that are written beside it.
    inputs: what the study reads.
    """
    report = out if out is not None else STUDIES / f"{name}.{kind}.json"
    paths = StudyPaths(Path(report), kind)
    check_output(report, "--out", [f".{kind}.json"], inputs=inputs, beside=[*map(paths.beside, (*endings, "html"))])
    _check_run_folder(paths.run_folder)
    return paths


def _check_run_folder(folder: Path) -> None:
    """OutputError where a run could not have its folder."""
    check_writable(folder.parent, "run finetune in a folder that can be written")
    place = to_path(folder, OutputError)
    if not place.is_dir() and (place.exists() or place.is_symlink()):
        raise OutputError(f"{folder}: the run's folder cannot be there, where something else is; name another --out")


def same_results(path: Path, values: Mapping[str, Any]) -> bool:
    """Whether the report that is there says the same as these JSON values, all times aside."""
    try:
        found = read_report_values(path)
    except SettingError:
        return False
    return not json_diff(_without_times(found), _without_times(values))


def _without_times(values: object) -> object:
    """JSON values without TIMES, at any depth."""
    if isinstance(values, Mapping):
        return {key: _without_times(value) for key, value in values.items() if key not in TIMES}
    return [_without_times(value) for value in values] if isinstance(values, list) else values


def check_outputs(
    out: str | Path | None,
    name: str,
    *,
    writes: bool = True,
    runs: bool = True,
    inputs: Iterable[str | Path | None] = (),
) -> OutputPaths:
    """The paths of a run, which can all be written; OutputError if not. Changes no existing file.

    out: the checkpoint's path, by default checkpoints/`name`.safetensors. Only a process that `writes` checks them.
    runs: whether it will have a run folder. inputs: what the run reads.
    """
    checkpoint = out if out is not None else Path("checkpoints") / f"{name}{SUFFIX}"
    check_file_name(checkpoint, "--out", [SUFFIX])
    outputs = OutputPaths(Path(checkpoint), RUNS / Path(checkpoint).stem)
    if writes:
        beside = (outputs.report, outputs.predictions, outputs.report.with_suffix(".html"))
        check_output(checkpoint, "--out", [SUFFIX], inputs=inputs, beside=beside)
        if runs:
            _check_run_folder(outputs.run_folder)
    return outputs


def clear_run_folder(folder: Path, console: Console) -> bool:
    """Moves the run folder aside if it holds more than the lock, and makes an empty one. Returns whether it did."""
    with raises_output_error(folder):
        if not any(path.name != LOCK_NAME for path in folder.iterdir()):
            return False
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(folder.stat().st_mtime))
        names = (fitting_name(folder.name, f".was-{stamp}{numbered(n)}") for n in count(1))
        aside = next(path for path in map(folder.with_name, names) if not path.exists())
        hint = _left_hint(folder)
        folder.rename(aside)
        folder.mkdir()
    console.note(f"{folder} was there already: moved to {aside}{hint}")
    return True


def _left_hint(folder: Path) -> str:
    """What a run folder that is moved aside holds that its command with --resume goes on with; "" where nothing."""
    if trials := list((folder / "trials").glob("*")):
        finished = sum((trial / "result").is_dir() for trial in trials)
        count = f"{finished:,} finished trial{'' if finished == 1 else 's'}"
        return f"; it is a study with {count}, which its own command with --resume would have gone on with"
    unfinished = any((folder / SNAPSHOTS).glob("[0-9]*"))
    return "; it was not finished: --resume would have gone on with it" if unfinished else ""


def rewrite_metrics(outputs: OutputPaths, rows: Sequence[dict[str, Any]]) -> None:
    """Replaces metrics.jsonl by these rows; deletes it where there are none."""
    if rows:
        write_atomic(outputs.metrics, "".join(map(_json_line, rows)).encode())
    else:
        remove_file(outputs.metrics)


def append_metrics(outputs: OutputPaths, row: dict[str, Any]) -> None:
    """Adds a line to metrics.jsonl."""
    append_line(outputs.metrics, _json_line(row).encode())


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def move_aside(outputs: OutputPaths, console: Console) -> None:
    """Gives an older checkpoint, its report and predictions second names, as `move_files_aside` does."""
    files = (outputs.checkpoint, outputs.report, outputs.predictions)
    move_files_aside(files, outputs.checkpoint.name.removesuffix(SUFFIX), console.note)
