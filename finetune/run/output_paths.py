"""Where a run writes: checkpoint, report, run folder; existing outputs are moved aside."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import OutputError, SettingError
from finetune.io.atomic import append_line, link_aside, write_atomic
from finetune.report.console import Console

SUFFIX = ".safetensors"

LOCK = "lock"

SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class OutputPaths:
    """The places of one run. `checkpoint` is NAME.safetensors; the run folder holds what is written on the way."""

    checkpoint: Path
    run_folder: Path

    @property
    def report(self) -> Path:
        return self.checkpoint.with_suffix(".report.json")

    def digest(self) -> str | None:
        """The sha256 of the checkpoint that is there already, if any."""
        if not self.checkpoint.exists():
            return None
        with _read_errors(self.checkpoint):
            return hashlib.sha256(self.checkpoint.read_bytes()).hexdigest()

    @property
    def metrics(self) -> Path:
        return self.run_folder / "metrics.jsonl"

    @property
    def interrupted(self) -> Path:
        return self.run_folder / f"interrupted{SUFFIX}"


def check_outputs(out: str | Path | None, name: str, *, writes: bool = True) -> OutputPaths:
    """Makes sure before any work that everything can be written; changes nothing that is there. OutputError if not.

    Without `writes` it is left to the process that does.
    """
    checkpoint = Path(out) if out is not None else Path("checkpoints") / f"{name}{SUFFIX}"
    if checkpoint.suffix != SUFFIX:
        raise SettingError(f"--out {checkpoint}: expected a file name that ends in {SUFFIX}")
    outputs = OutputPaths(checkpoint, Path("runs") / checkpoint.stem)
    if not writes:
        return outputs
    for path in (outputs.checkpoint, outputs.report):
        if path.is_dir():
            raise OutputError(f"--out {checkpoint}: {path} is a folder; expected a file name that is free or a file")
    _check_writable(checkpoint.parent, "name another place with --out")
    _check_writable(outputs.run_folder.parent, "run finetune in a folder that can be written")
    return outputs


def clear_run_folder(outputs: OutputPaths, console: Console) -> Path | None:
    """Moves the run folder aside if there is anything of a run in it, and returns where it is now."""
    folder = outputs.run_folder
    with _read_errors(folder):
        if not any(path.name != LOCK for path in folder.iterdir()):
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(folder.stat().st_mtime))
        aside = folder.with_name(_free(folder.parent, f"{folder.name}.was-{stamp}", ("",)))
        unfinished = any((folder / SNAPSHOTS).glob("[0-9]*"))
        folder.rename(aside)
        folder.mkdir()
    hint = "; it was not finished: --resume would have gone on with it" if unfinished else ""
    console.note(f"{folder} was there already: moved to {aside}{hint}")
    return aside


def rewrite_metrics(outputs: OutputPaths, rows: Sequence[dict[str, Any]]) -> None:
    """metrics.jsonl with these rows and no others; no file where there are none."""
    if rows:
        write_atomic(outputs.metrics, "".join(_line(row) for row in rows).encode())
    else:
        with _read_errors(outputs.metrics):
            outputs.metrics.unlink(missing_ok=True)


def append_metrics(outputs: OutputPaths, row: dict[str, Any]) -> None:
    """One more line of metrics.jsonl."""
    append_line(outputs.metrics, _line(row).encode())


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def move_aside(outputs: OutputPaths, console: Console) -> None:
    """Gives an older checkpoint and its report second names, with the start of the first one's sha256.

    Both stay in place until they are replaced, so that there is no moment without them. Where an attempt that was
    killed has left the same content under such a name, that is used.
    """
    there = [path for path in (outputs.checkpoint, outputs.report) if path.is_file()]
    if not there:
        return
    with _read_errors(there[0]):
        asides = _link_aside(there, outputs.checkpoint.name.removesuffix(SUFFIX))
    for old, aside in asides.items():
        if not aside.exists():
            link_aside(old, aside)
        console.note(f"{old} was there already: moved to {aside.name}")


def _link_aside(there: Sequence[Path], stem: str) -> dict[Path, Path]:
    """By file a name that is free or has the same content; with the same middle for all, so that pairs stay pairs."""
    digests = {old: _digest(old) for old in there}
    middle, number = f".was-{digests[there[0]][:8]}", 1
    while True:
        ending = middle if number == 1 else f"{middle}-{number}"
        asides = {old: old.with_name(stem + ending + old.name.removeprefix(stem)) for old in there}
        if all(
            not aside.exists() or (aside.is_file() and _digest(aside) == digests[old]) for old, aside in asides.items()
        ):
            return asides
        number += 1


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(folder: Path, stem: str, endings: Sequence[str]) -> str:
    """`stem`, or the first of stem-2, stem-3, ... that is taken with none of the endings, so that pairs stay pairs."""
    candidate, number = stem, 1
    while any((folder / f"{candidate}{ending}").exists() for ending in endings):
        number += 1
        candidate = f"{stem}-{number}"
    return candidate


def _check_writable(folder: Path, cure: str) -> None:
    with _read_errors(folder, cure):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def _read_errors(path: Path, cure: str = "make room or run finetune in another folder") -> Iterator[None]:
    """Turns a failed write in the block into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot write there ({error.strerror}); {cure}") from None
