"""Snapshots: the training state from which a stopped run resumes."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from finetune.checkpoint.safetensors_io import read_tensors, safetensors_chunks
from finetune.errors import CheckpointError, OutputError
from finetune.io.atomic import new_folder, remove_folder, sweep_folders
from finetune.io.safe_open import read_regular, sha256_of
from finetune.report.report import EpochRow, PhaseSummary


@dataclass(frozen=True)
class ResumeOptions:
    """Whether to resume an earlier attempt, the seconds between snapshots, and what to type or call to resume."""

    resume: bool = False
    snapshot_every: float = 60.0
    resume_command: str = "the same call with resume=True"


class NetworkState(BaseModel):
    """The completed phases of one network, and the epochs they took in all."""

    model_config = ConfigDict(extra="forbid")

    phases: list[PhaseSummary] = []
    epochs: int = 0


class PhaseState(BaseModel):
    """The phase under way: its rows so far, the numbers of its TrainState, and the hashes of its frozen tensors."""

    model_config = ConfigDict(extra="forbid")

    history: list[EpochRow]
    numbers: dict[str, int | float]
    proof: dict[str, str]


class SnapshotState(BaseModel):
    """The JSON part of a snapshot.

    run: the run's fingerprint. machine: its environment. seconds: training time so far. rows: those of metrics.jsonl.
    current: the network under way. phase: None between two phases. moment: when it was taken, in words.
    """

    model_config = ConfigDict(extra="forbid")

    run: dict[str, Any]
    machine: dict[str, Any]
    seconds: float
    rows: list[dict[str, Any]]
    networks: dict[str, NetworkState]
    current: str
    phase: PhaseState | None
    moment: str


STATE, FACTS, MANIFEST = "state.safetensors", "facts.json", "manifest.json"
FORMAT = 1
MAX_TENSORS = 200_000  # two networks of thousands each, several times over
_MAX_MANIFEST_BYTES = 10_000  # ours has some 300
_NAME = re.compile(r"[0-9]{6}|[1-9][0-9]{6,11}")


@dataclass(frozen=True)
class Snapshot:
    """Tensors by name, and facts as JSON has them: string keys, lists for tuples, no NaN."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class DamagedSnapshot(Exception):
    """What is wrong with a snapshot, in half a sentence; never leaves this file."""


class SnapshotStore:
    """The snapshots of one run in `folder`, numbered upwards; the newest `keep` stay. One writer at a time."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        assert keep >= 1
        self.folder, self.keep = folder, keep
        self._last = 0  # the highest number so far, deleted ones included
        self._damaged: set[int] = set()

    def save(self, snapshot: Snapshot) -> Path:
        """Writes a snapshot and returns its folder. OutputError when it cannot; earlier ones are then unchanged."""
        facts = json.dumps(snapshot.facts, sort_keys=True, allow_nan=False).encode()
        sweep_folders(self.folder)
        earlier = self._numbers()
        self._last = max([self._last, *earlier]) + 1
        place = self._place(self._last)
        try:
            with new_folder(place) as folder:
                written = {
                    STATE: folder.write(STATE, safetensors_chunks(snapshot.tensors)),
                    FACTS: folder.write(FACTS, [facts]),
                }
                files = {name: {"size": file.size, "sha256": file.sha256} for name, file in written.items()}
                folder.write(MANIFEST, [json.dumps({"format": FORMAT, "files": files}, sort_keys=True).encode()])
        except OutputError as error:
            raise OutputError(f"{error}; the snapshots before this one are as they were") from None
        self._prune(earlier)
        return place

    def newest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest undamaged snapshot, if any, and a sentence for each damaged one that is newer."""
        faults: list[str] = []
        for number in reversed(self._numbers()):
            try:
                return _read_snapshot(self._place(number)), faults
            except DamagedSnapshot as fault:
                faults.append(f"{self._place(number)}: this snapshot is damaged and was passed over: {fault}")
                self._damaged.add(number)
        return None, faults

    def clear(self) -> None:
        """Deletes all snapshots and the folder. OutputError."""
        for number in self._numbers():
            self._last = max(self._last, number)
            remove_folder(self._place(number))
        sweep_folders(self.folder)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _prune(self, earlier: list[int]) -> None:
        """Deletes damaged snapshots and those too many; what cannot be deleted now is tried again at the next save."""
        undamaged = [number for number in earlier if number not in self._damaged]
        kept = undamaged[max(0, len(undamaged) - (self.keep - 1)) :]
        for number in earlier:
            if number not in kept:
                with contextlib.suppress(OutputError):
                    remove_folder(self._place(number))

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:06}"

    def _numbers(self) -> list[int]:
        """The numbers of the snapshots in the folder, ascending."""
        try:
            names = [entry.name for entry in self.folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if _NAME.fullmatch(name))


def _read_snapshot(folder: Path) -> Snapshot:
    """Reads a snapshot whose files are those of its manifest. DamagedSnapshot where they are not."""
    (state_size, state_sha256), (facts_size, facts_sha256) = _read_manifest(folder)
    with _os_error_is_damage(FACTS):
        content = read_regular(folder / FACTS, facts_size)
    _check_hash(FACTS, sha256_of(content), facts_sha256)
    facts = _parse_object(FACTS, content)
    with _os_error_is_damage(STATE):
        size = (folder / STATE).stat().st_size
    if size != state_size:
        raise DamagedSnapshot(f"{STATE} has {size:,} bytes, and {state_size:,} were written")
    try:
        _, tensors, sha256 = read_tensors(folder / STATE, lambda header: None, finite=False, most=MAX_TENSORS)
    except CheckpointError as error:
        raise DamagedSnapshot(str(error)) from None
    _check_hash(STATE, sha256, state_sha256)
    return Snapshot(tensors, facts)


def _read_manifest(folder: Path) -> list[tuple[int, str]]:
    """The size and sha256 of STATE and of FACTS according to the manifest, which may be any file."""
    with _os_error_is_damage(MANIFEST):
        content = read_regular(folder / MANIFEST, _MAX_MANIFEST_BYTES)
    values = _parse_object(MANIFEST, content)
    if values.get("format") != FORMAT:
        raise DamagedSnapshot(f"{MANIFEST} has format {values.get('format')!r:.40}, and this finetune reads {FORMAT}")
    files, entries = values.get("files"), []
    for name in (STATE, FACTS):
        match files.get(name) if isinstance(files, dict) else None:
            case {"size": int(size), "sha256": str(sha256)}:
                entries.append((size, sha256))
            case _:
                raise DamagedSnapshot(f"{MANIFEST} does not give the size and sha256 of {name}")
    return entries


def _check_hash(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise DamagedSnapshot(f"{name} has other bytes than were written (its sha256 differs)")


@contextmanager
def _os_error_is_damage(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DamagedSnapshot(f"{name} cannot be read ({error.strerror})") from None


def _parse_object(name: str, content: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        values = json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise DamagedSnapshot(f"{name} is not JSON") from None
    if not isinstance(values, dict):
        raise DamagedSnapshot(f"{name} has no JSON object")
    return values
