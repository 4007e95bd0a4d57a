"""Where a run writes: checkpoint, report, run folder; existing outputs are moved aside."""

from __future__ import annotations

import glob
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from finetune.errors import OutputError, SettingError
from finetune.io.atomic import append_line, link_aside, raises_output_error, write_atomic
from finetune.io.safe_open import sha256_of
from finetune.io.text_path import MAX_NAME_BYTES, fitting_name, to_path
from finetune.report.console import Console
from finetune.report.report import read_report_values
from finetune.run.lock import LOCK_NAME
from finetune.text import json_diff

SUFFIX = ".safetensors"
TIMES = ("seconds", "images_per_second")  # keys of reports that differ from run to run
RUNS = Path("runs")  # the folder of all run folders, in the current one
STUDIES = Path("studies")  # the folder of reports of many trainings, in the current one
ASIDE_ROOM = 40  # bytes of a second name for its mark and its ending
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


def check_study_outputs(out: str | Path | None, name: str, kind: str, endings: Sequence[str]) -> StudyPaths:
    """The paths of a study, which can all be written; OutputError, SettingError if not. Changes no existing file.

    out: the report's path, by default studies/`name`.`kind`.json. endings: of the files that are written beside it.
    """
    report = Path(out) if out is not None else STUDIES / f"{name}.{kind}.json"
    if not report.name.endswith(f".{kind}.json") or report.name == f".{kind}.json":
        raise SettingError(f"--out {report}: expected a file name that ends in .{kind}.json")
    paths = StudyPaths(report, kind)
    for path in (report, *map(paths.beside, endings)):
        if to_path(path, _refused).is_dir():
            raise OutputError(f"--out {report}: {path} is a folder; expected a file name that is free or a file")
    check_writable(report.parent, "name another place with --out")
    check_writable(paths.run_folder.parent, "run finetune in a folder that can be written")
    return paths


def same_results(path: Path, values: Mapping[str, Any]) -> bool:
    """Whether the report that is there says the same as these JSON values, all times aside."""
    found = read_report_values(path)
    return found is not None and not json_diff(_without_times(found), _without_times(values))


def _without_times(values: object) -> object:
    """JSON values without TIMES, at any depth."""
    if isinstance(values, Mapping):
        return {key: _without_times(value) for key, value in values.items() if key not in TIMES}
    return [_without_times(value) for value in values] if isinstance(values, list) else values


def check_outputs(out: str | Path | None, name: str, *, writes: bool = True) -> OutputPaths:
    """The paths of a run, which can all be written; OutputError if not. Changes no existing file.

    out: the checkpoint's path, by default checkpoints/`name`.safetensors. Only a process that `writes` checks them.
    """
    checkpoint = Path(out) if out is not None else Path("checkpoints") / f"{name}{SUFFIX}"
    if checkpoint.suffix != SUFFIX:
        raise SettingError(f"--out {checkpoint}: expected a file name that ends in {SUFFIX}")
    outputs = OutputPaths(checkpoint, RUNS / checkpoint.stem)
    if not writes:
        return outputs
    for path in (outputs.checkpoint, outputs.report, outputs.predictions):
        if to_path(path, _refused).is_dir():
            raise OutputError(f"--out {checkpoint}: {path} is a folder; expected a file name that is free or a file")
    check_writable(checkpoint.parent, "name another place with --out")
    check_writable(outputs.run_folder.parent, "run finetune in a folder that can be written")
    return outputs


def _refused(fault: str) -> OutputError:
    return OutputError(f"--out: {fault}")


def check_writable(folder: Path, hint: str) -> None:
    """Makes a folder. OutputError where no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: cannot write there ({error.strerror}); {hint}") from None


def clear_run_folder(folder: Path, console: Console) -> bool:
    """Moves the run folder aside if it holds more than the lock, and makes an empty one. Returns whether it did."""
    with raises_output_error(folder):
        if not any(path.name != LOCK_NAME for path in folder.iterdir()):
            return False
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(folder.stat().st_mtime))
        names = (fitting_name(folder.name, f".was-{stamp}{_number(n)}") for n in count(1))
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
        with raises_output_error(outputs.metrics):
            outputs.metrics.unlink(missing_ok=True)


def append_metrics(outputs: OutputPaths, row: dict[str, Any]) -> None:
    """Adds a line to metrics.jsonl."""
    append_line(outputs.metrics, _json_line(row).encode())


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def move_aside(outputs: OutputPaths, console: Console) -> None:
    """Gives an older checkpoint, its report and predictions second names, as `move_files_aside` does."""
    files = (outputs.checkpoint, outputs.report, outputs.predictions)
    move_files_aside(files, outputs.checkpoint.name.removesuffix(SUFFIX), console)


def move_files_aside(paths: Sequence[Path], stem: str, console: Console) -> None:
    """Gives older files second names, with the start of the first one's sha256 after `stem`, with which all begin.

    All stay in place until they are replaced, so that there is no moment without them. A second name that an
    interrupted attempt gave to the same content is used again.
    """
    existing = [path for path in paths if path.is_file()]
    if not existing:
        return
    with raises_output_error(existing[0]):
        asides = _second_names(existing, stem)
    for old, aside in asides.items():
        if not aside.exists():
            link_aside(old, aside)
        console.note(f"{old} was there already: moved to {aside.name}")


def is_kept_aside(report: Path) -> bool:
    """Whether a report's content has a second name already, as after an attempt that was cut short. OutputError."""
    name = report.name.removesuffix(".report.json")
    with raises_output_error(report):
        there = report.parent.glob(f"{glob.escape(_aside_stem(name))}.was-*.report.json")
        return not report.is_file() or sha256_of(report) in map(sha256_of, there)


def move_file_aside(path: Path, content: bytes, console: Console) -> None:
    """As `move_aside`, for one file that is about to become `content`; where it is that already, it stays."""
    with raises_output_error(path):
        if not path.is_file() or sha256_of(path) == sha256_of(content):
            return
        [(_, aside)] = _second_names([path], path.stem).items()
    if not aside.exists():
        link_aside(path, aside)
    console.note(f"{path} was there already: moved to {aside.name}")


def _second_names(existing: Sequence[Path], stem: str) -> dict[Path, Path]:
    """For each file a path that is free or has the same content; all with the same middle, so that pairs stay pairs."""
    digests = {old: sha256_of(old) for old in existing}

    def usable(old: Path, aside: Path) -> bool:
        return not aside.exists() or (aside.is_file() and sha256_of(aside) == digests[old])

    middles = (f".was-{digests[existing[0]][:8]}{_number(n)}" for n in count(1))
    start = _aside_stem(stem)
    candidates = ({old: old.with_name(start + m + old.name.removeprefix(stem)) for old in existing} for m in middles)
    return next(asides for asides in candidates if all(usable(*pair) for pair in asides.items()))


def _aside_stem(stem: str) -> str:
    """What second names begin with: the stem, cut where `.was-` and the longest ending would make a name too long."""
    return fitting_name(stem, "", MAX_NAME_BYTES - ASIDE_ROOM)


def _number(number: int) -> str:
    """The end of the number-th name: "", "-2", "-3"."""
    return "" if number == 1 else f"-{number}"
