"""Snapshots: the training state from which a stopped run resumes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from finetune.checkpoint.safetensors_io import read_tensors, safetensors_chunks
from finetune.errors import CheckpointError, OutputError
from finetune.io.atomic import WrittenFile, new_folder, remove_folder, sweep_folders
from finetune.report.report import EpochRow, PhaseSummary


@dataclass(frozen=True)
class ResumeOptions:
    """Whether to go on with an earlier attempt, the seconds between two snapshots, and what to type to go on."""

    resume: bool = False
    every: float = 60.0
    again: str = "the same call with resume=True"


AFRESH = ResumeOptions()


class NetworkState(BaseModel):
    """One network's phases that are over, and the epochs they took in all."""

    model_config = ConfigDict(extra="forbid")

    phases: list[PhaseSummary] = []
    epochs: int = 0


class PhaseState(BaseModel):
    """The phase under way: its rows so far, and the numbers of its training's state; proof: of its frozen tensors."""

    model_config = ConfigDict(extra="forbid")

    history: list[EpochRow]
    numbers: dict[str, int | float]
    proof: dict[str, str]


class SnapshotState(BaseModel):
    """What a snapshot says beside its tensors. `current` is the network under way; `phase` None between two phases.

    `moment` says in words when it was taken.
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


FORMAT = 1

STATE, FACTS, MANIFEST = "state.safetensors", "facts.json", "manifest.json"

_NAME = re.compile(r"[0-9]{6}|[1-9][0-9]{6,11}")

MAX_TENSORS = 200_000  # two networks of thousands each, several times over

_MAX_MANIFEST_LEN = 10_000  # bytes; ours has some 300


@dataclass(frozen=True)
class Snapshot:
    """Tensors by name, and facts as JSON has them: string keys, lists for tuples, no NaN."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class DamagedSnapshot(Exception):
    """What is wrong with a snapshot, in half a sentence; never leaves this file."""


class SnapshotStore:
    """The snapshots of one run, in `folder` under increasing numbers; the newest `keep` stay. One writer at a time."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        assert keep >= 1
        self.folder, self.keep = folder, keep
        self._last = 0  # the highest number so far, deleted ones included
        self._damaged: set[int] = set()

    def save(self, snapshot: Snapshot) -> Path:
        """Writes one more and returns its folder. OutputError, with the earlier ones as they were, when it cannot."""
        facts = json.dumps(snapshot.facts, sort_keys=True, allow_nan=False).encode()
        sweep_folders(self.folder)
        there = self._numbers()
        self._last = max([self._last, *there]) + 1
        place = self._place(self._last)
        try:
            with new_folder(place) as folder:
                files = {
                    STATE: folder.write(STATE, safetensors_chunks(snapshot.tensors)),
                    FACTS: folder.write(FACTS, [facts]),
                }
                folder.write(MANIFEST, [_manifest(files)])
        except OutputError as error:
            raise OutputError(f"{error}; the snapshots before this one are as they were") from None
        self._forget(there)
        return place

    def newest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest whole one, if any, and a sentence for each damaged one that was newer."""
        faults: list[str] = []
        for number in reversed(self._numbers()):
            try:
                return _read(self._place(number)), faults
            except DamagedSnapshot as fault:
                faults.append(f"{self._place(number)}: this snapshot is damaged and was passed over: {fault}")
                self._damaged.add(number)
        return None, faults

    def clear(self) -> None:
        """Deletes all of them, and the folder. OutputError."""
        for number in self._numbers():
            self._last = max(self._last, number)
            remove_folder(self._place(number))
        sweep_folders(self.folder)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _forget(self, older: list[int]) -> None:
        """Deletes those known to be damaged and those too many. One that cannot be deleted now is tried again later."""
        whole = [number for number in older if number not in self._damaged]
        kept = whole[max(0, len(whole) - (self.keep - 1)) :]
        for number in older:
            if number not in kept:
                with contextlib.suppress(OutputError):
                    remove_folder(self._place(number))

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:06}"

    def _numbers(self) -> list[int]:
        """Those that are there, ascending."""
        try:
            names = [entry.name for entry in self.folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if _NAME.fullmatch(name))


def _manifest(files: Mapping[str, WrittenFile]) -> bytes:
    values = {name: {"size": file.size, "sha256": file.sha256} for name, file in files.items()}
    return json.dumps({"format": FORMAT, "files": values}, sort_keys=True).encode()


def _read(folder: Path) -> Snapshot:
    """A snapshot that is what its manifest says, or DamagedSnapshot."""
    sizes = _said(folder)
    values = _json(FACTS, _checked(folder / FACTS, *sizes[FACTS]))
    if not isinstance(values, dict):
        raise DamagedSnapshot(f"{FACTS} has no JSON object")
    size, digest = sizes[STATE]
    _of_size(folder / STATE, lambda found: found == size)
    try:
        _, tensors, found = read_tensors(folder / STATE, lambda header: None, finite=False, most=MAX_TENSORS)
    except CheckpointError as error:
        raise DamagedSnapshot(str(error)) from None
    if found != digest:
        raise DamagedSnapshot(f"{STATE} has other bytes than were written (its sha256 differs)")
    return Snapshot(tensors, values)


def _said(folder: Path) -> dict[str, tuple[int, str]]:
    """The size and sha256 of each file according to the manifest, which is any file until it is checked."""
    path = folder / MANIFEST
    values = _json(MANIFEST, _content(path, lambda size: size <= _MAX_MANIFEST_LEN))
    if not isinstance(values, dict) or not isinstance(values.get("files"), dict):
        raise DamagedSnapshot(f"{MANIFEST} is not a manifest")
    if values.get("format") != FORMAT:
        raise DamagedSnapshot(f"{MANIFEST} has format {values.get('format')!r:.40}, and this finetune reads {FORMAT}")
    said = {}
    for name in (STATE, FACTS):
        match values["files"].get(name):
            case {"size": int(size), "sha256": str(digest)}:
                said[name] = size, digest
            case _:
                raise DamagedSnapshot(f"{MANIFEST} does not give the size and sha256 of {name}")
    return said


def _checked(path: Path, size: int, digest: str) -> bytes:
    content = _content(path, lambda found: found == size)
    if hashlib.sha256(content).hexdigest() != digest:
        raise DamagedSnapshot(f"{path.name} has other bytes than were written (its sha256 differs)")
    return content


def _content(path: Path, fits: Callable[[int], bool]) -> bytes:
    """A file's bytes, read only if it is a plain file and its size fits."""
    _of_size(path, fits)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedSnapshot(f"{path.name} cannot be read ({error.strerror})") from None


def _of_size(path: Path, fits: Callable[[int], bool]) -> None:
    try:
        if not path.is_file():
            raise DamagedSnapshot(f"{path.name} is missing")
        if not fits(path.stat().st_size):
            raise DamagedSnapshot(f"{path.name} has {path.stat().st_size:,} bytes, which is not what was written")
    except OSError as error:
        raise DamagedSnapshot(f"{path.name} cannot be read ({error.strerror})") from None


def _json(name: str, content: bytes) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        return json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise DamagedSnapshot(f"{name} is not JSON") from None
