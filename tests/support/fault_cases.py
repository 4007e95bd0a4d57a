"""The operations that faults are planted in (see faulty.py): what was there before, and what has to hold after."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import torch
from faulty import Case, Outcome
from torch import nn

from finetune.checkpoint.format import read_checkpoint
from finetune.io.atomic import append_line, prepared_files, write_atomic
from finetune.models.classifier import Classifier
from finetune.models.spec import InputSpec
from finetune.report.console import Console
from finetune.report.report import Report, TargetSummary
from finetune.run.finalize import save_run
from finetune.run.lock import RunLock
from finetune.run.output_paths import OutputPaths
from finetune.run.snapshot import Snapshot, SnapshotStore

QUIET = Console(quiet=True, results=False)
OLD, NEW = b"old " * 1000, b"new!" * 5000
REFUSED = (
    "cannot be written (No space left on device); make room",
    "cannot be written (Input/output error); the disk",
    "cannot be written (Permission denied); name another place",
    "cannot be written (File too large); its disk",
)


def told(outcome: Outcome) -> None:
    """A refusal is one clear sentence."""
    assert outcome.ended != "refused" or any(text in outcome.message for text in REFUSED), outcome.message
    assert "\n" not in outcome.message and "Errno" not in outcome.message


def seen(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def no_leftovers(folder: Path) -> None:
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")], seen(folder)


# --- one file, and two together ---------------------------------------------------------------------------------------


def older_file(folder: Path) -> None:
    (folder / "a.bin").write_bytes(OLD)


def check_file(folder: Path, outcome: Outcome) -> None:
    told(outcome)
    content = (folder / "a.bin").read_bytes()
    assert content == NEW if outcome.ended == "done" else content in (OLD, NEW)


def settled_file(folder: Path) -> None:
    assert seen(folder) == ["a.bin"] and (folder / "a.bin").read_bytes() == NEW


def write_new(folder: Path) -> None:
    write_atomic(folder / "deep" / "er" / "a.bin", NEW)


def check_new(folder: Path, outcome: Outcome) -> None:
    told(outcome)
    path = folder / "deep" / "er" / "a.bin"
    assert path.read_bytes() == NEW if path.exists() else outcome.ended != "done"


def settled_new(folder: Path) -> None:
    assert seen(folder) == ["deep", "deep/er", "deep/er/a.bin"]


def two_older(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).write_bytes(OLD)


def write_two(folder: Path) -> None:
    with prepared_files({folder / "a": NEW, folder / "b": NEW}):
        pass


def check_two(folder: Path, outcome: Outcome) -> None:
    """A full disk is found before either is replaced; only between the two renames can they differ."""
    told(outcome)
    first, second = ((folder / name).read_bytes() for name in ("a", "b"))
    assert {first, second} <= {OLD, NEW} and (first == NEW or second == OLD)
    assert first == second or (outcome.fault or "").startswith(("replace", "open", "fsync"))
    if (outcome.fault or "").startswith("write"):
        assert (first, second) == (OLD, OLD)


def settled_two(folder: Path) -> None:
    assert seen(folder) == ["a", "b"] and {(folder / name).read_bytes() for name in ("a", "b")} == {NEW}


# --- lines ------------------------------------------------------------------------------------------------------------

LINE = b'{"epoch": 1}\n'


def a_line(folder: Path) -> None:
    (folder / "metrics").write_bytes(LINE)


def another_line(folder: Path) -> None:
    append_line(folder / "metrics", LINE)


def check_lines(folder: Path, outcome: Outcome) -> None:
    """Only a kill in the middle of a write can leave half a line."""
    told(outcome)
    content = (folder / "metrics").read_bytes()
    assert content.startswith(LINE)
    assert content.endswith(b"\n") or outcome.ended == "killed" or "ftruncate" in (outcome.fault or "")


# --- snapshots --------------------------------------------------------------------------------------------------------


def store(folder: Path) -> SnapshotStore:
    return SnapshotStore(folder / "snapshots")


def numbered(step: int) -> Snapshot:
    return Snapshot({"w": torch.full((1000,), float(step)), "rng": torch.arange(9).to(torch.uint8)}, {"step": step})


def step_of(folder: Path) -> int | None:
    """The step of the newest one, which must be what was saved; no damaged one may have been seen on the way."""
    found, faults = store(folder).newest()
    assert faults == [], faults
    if found is None:
        return None
    step = int(found.facts["step"])
    assert found.facts == {"step": step} and torch.equal(found.tensors["w"], numbered(step).tensors["w"])
    return step


def two_snapshots(folder: Path) -> None:
    for step in (1, 2):
        store(folder).save(numbered(step))


def save_next(folder: Path) -> None:
    newest = max((folder / "snapshots").glob("[0-9]*"))  # found without os.open, in which a fault may be planted
    store(folder).save(numbered(json.loads((newest / "facts.json").read_text())["step"] + 1))


def check_snapshots(folder: Path, outcome: Outcome) -> None:
    told(outcome)
    assert step_of(folder) in ((3,) if outcome.ended == "done" else (2, 3))
    assert len(whole(folder)) >= 2
    if outcome.ended == "refused":
        assert outcome.message.endswith("; the snapshots before this one are as they were")


def whole(folder: Path) -> list[str]:
    return [path.name for path in (folder / "snapshots").iterdir() if not path.name.startswith(".")]


def settled_snapshots(folder: Path) -> None:
    no_leftovers(folder)
    assert step_of(folder) in (3, 4) and len(whole(folder)) == 2


def first_snapshot(folder: Path) -> None:
    store(folder).save(numbered(1))


def check_first(folder: Path, outcome: Outcome) -> None:
    told(outcome)
    assert step_of(folder) in ((1,) if outcome.ended == "done" else (None, 1))


def settled_first(folder: Path) -> None:
    no_leftovers(folder)
    assert step_of(folder) == 1


def clear(folder: Path) -> None:
    store(folder).clear()


def check_cleared(folder: Path, outcome: Outcome) -> None:
    """Never is a half-deleted one taken for a damaged one."""
    told(outcome)
    assert step_of(folder) in ((None,) if outcome.ended == "done" else (None, 2))


# --- checkpoint and report --------------------------------------------------------------------------------------------


def outputs(folder: Path) -> OutputPaths:
    return OutputPaths(folder / "model.safetensors", folder / "runs" / "model")


def save_numbered(folder: Path, number: int) -> None:
    """The end of a run, as the commands do it, with weights, a report and predictions that have this number."""
    network: Any = nn.Linear(20, 3)
    nn.init.constant_(network.weight, number)
    nn.init.zeros_(network.bias)
    classifier = Classifier(network, "cnn", {}, ["a", "b", "c"], InputSpec(1, 28, (0.0,), (1.0,)))
    target = TargetSummary("x", ["a", "b", "c"], 1, 0, 1)
    report = Report("pretrain", {}, number, "cpu", {}, 0.0, None, target, None, [], {})
    save_run(classifier, {}, report, str(number).encode(), outputs(folder), QUIET)


Three = tuple[int, int | None, int | None]


def three(checkpoint: Path) -> Three:
    """The numbers of a checkpoint, read whole, and of report and predictions beside it."""
    report, predictions = checkpoint.with_suffix(".report.json"), checkpoint.with_suffix(".predictions.csv")
    number = int(read_checkpoint(checkpoint).tensors["weight"][0, 0])
    beside = json.loads(report.read_bytes())["seed"] if report.exists() else None
    return number, beside, int(predictions.read_bytes()) if predictions.exists() else None


def older_run(folder: Path) -> None:
    save_numbered(folder, 1)


def newer_run(folder: Path) -> None:
    save_numbered(folder, 2)


def asides(folder: Path) -> list[Three]:
    return [three(path) for path in folder.glob("model.was-*.safetensors")]


def check_run(folder: Path, outcome: Outcome) -> None:
    """The old three files can be read at every moment, together; what has the name can be, too."""
    told(outcome)
    current, set_by = three(folder / "model.safetensors"), asides(folder)
    on_the_way = ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2))
    assert current in (((2, 2, 2),) if outcome.ended == "done" else on_the_way)
    assert current == (1, 1, 1) or set_by == [(1, 1, 1)]
    assert len(set_by) <= 1
    if (outcome.fault or "").startswith("write"):
        assert current == (1, 1, 1)


def settled_run(folder: Path) -> None:
    no_leftovers(folder)
    assert three(folder / "model.safetensors") == (2, 2, 2) and asides(folder) == [(1, 1, 1)]
    assert len(seen(folder)) == 6


def newer_run_without_links(folder: Path) -> None:
    """On a file system that has no hard links."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    real, os.link = os.link, refuse
    try:
        newer_run(folder)
    finally:
        os.link = real


# --- the lock ---------------------------------------------------------------------------------------------------------


def lock_and_leave(folder: Path) -> None:
    with RunLock(folder / "runs" / "x", "finetune pretrain"):
        assert json.loads((folder / "runs" / "x" / "lock").read_bytes())["command"] == "finetune pretrain"


def check_lock(folder: Path, outcome: Outcome) -> None:
    """A run that came to its end is not taken for a dead one."""
    told(outcome)
    if outcome.ended == "done":
        with RunLock(folder / "runs" / "x") as lock:
            assert lock.recovered is None


def settled_lock(folder: Path) -> None:
    assert seen(folder) == ["runs", "runs/x"]


DONE = Outcome("done", "", None)
CASES = {
    "a file over an older one": Case(older_file, lambda f: write_atomic(f / "a.bin", NEW), check_file, settled_file),
    "a file in a new folder": Case(lambda _: None, write_new, check_new, settled_new),
    "two files over older ones": Case(two_older, write_two, check_two, settled_two),
    "a line": Case(a_line, another_line, check_lines, lambda _: None),
    "a snapshot over two older ones": Case(two_snapshots, save_next, check_snapshots, settled_snapshots),
    "the first snapshot": Case(lambda _: None, first_snapshot, check_first, settled_first),
    "all snapshots deleted": Case(two_snapshots, clear, check_cleared, lambda f: check_cleared(f, DONE)),
    "checkpoint and report over older ones": Case(older_run, newer_run, check_run, settled_run),
    "checkpoint and report without links": Case(older_run, newer_run_without_links, check_run, settled_run),
    "a lock": Case(lambda _: None, lock_and_leave, check_lock, settled_lock),
}
