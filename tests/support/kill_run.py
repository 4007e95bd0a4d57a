"""Kills a real run again and again, resumes it each time, and compares what it ends with to a run never killed.

    python tests/support/kill_run.py --kills 50 --seed 3 -- pretrain --recipe recipes/digits.yaml --snapshot-every 0

The command is one of finetune's that train, without --out and --resume. It is run once undisturbed. Then, over an older
checkpoint and report, it is started and its whole process group killed (SIGKILL) at a random moment: some while it
opens, many while it trains, some while it saves a snapshot, some while it writes what it ends with; and resumed until
it ends, in as many runs as give the kills asked for. After every kill there must be a checkpoint that loads, the older
or the new one, and a newest snapshot that loads, or none yet; at every end the bytes and the report of the run never
killed, and the older files beside them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from finetune.checkpoint.format import read_checkpoint, write_checkpoint  # noqa: E402
from finetune.run.snapshot import STATE, SnapshotStore  # noqa: E402
from finetune.study.runner import DESIGN  # noqa: E402

NAME = "result"
CHECKPOINT, REPORT = f"{NAME}.safetensors", f"{NAME}.report.json"
MOMENTS = {"opening": 0.2, "training": 0.45, "saving": 0.2, "ending": 0.15}
TIMES = ("seconds", "images_per_second")
LONGEST = 20  # times as long as the undisturbed run, and a run counts as hanging


class Wrong(Exception):
    """What must not be, in one sentence."""


@dataclass
class Whole:
    """The run never killed: what it ended with, and its seconds, of which `opening` went by before its folder was."""

    sha256: str
    report: Any
    seconds: float
    opening: float


@dataclass
class Tally:
    """What happened so far: kills by moment, and runs that came to their end."""

    moments: Counter[str] = field(default_factory=Counter)
    runs: int = 0

    @property
    def kills(self) -> int:
        return self.moments.total()


def start(words: list[str], folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """The command in a process group of its own, its output added to a log in the folder."""
    command = [sys.executable, "-m", "finetune", *words, "--out", CHECKPOINT, *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (folder / "output.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def undisturbed(words: list[str], folder: Path) -> Whole:
    folder.mkdir()
    began, opening = time.monotonic(), None
    process = start(words, folder)
    while process.poll() is None:
        if opening is None and any((folder / "runs" / NAME / name).exists() for name in ("recipe.yaml", DESIGN)):
            opening = time.monotonic() - began
        time.sleep(0.005)
    seconds = time.monotonic() - began
    refuse_failure(process.returncode, folder)
    return Whole(sha256(folder / CHECKPOINT), report(folder), seconds, opening or seconds)


def refuse_failure(code: int | None, folder: Path) -> None:
    if code != 0:
        last = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise Wrong(f"the run ended with {code} by itself; its last words:\n{last}")


def disturbed(words: list[str], folder: Path, whole: Whole, older: str, kills: int, tally: Tally) -> None:
    """One run to its end, killed as often as it happens while the tally has fewer than `kills`."""
    more: tuple[str, ...] = ()
    while True:
        (kind,) = random.choices(list(MOMENTS), list(MOMENTS.values())) if tally.kills < kills else ("never",)
        process = start(words, folder, *more)
        seconds = alive_until(process, kind, folder, whole)
        if seconds is None:
            refuse_failure(process.returncode, folder)
            tally.runs += 1
            at_end(folder, whole, older)
            return
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if kind == "never":
            raise Wrong(f"the run did not end in {seconds:.0f} seconds")
        tally.moments[kind] += 1
        there = after_kill(folder, whole, older)
        print(f"kill {tally.kills} after {seconds:.2f} s ({kind}): {there}", flush=True)
        more = ("--resume",)


def alive_until(process: subprocess.Popen[bytes], kind: str, folder: Path, whole: Whole) -> float | None:
    """Waits for the moment to kill and returns its seconds from the start; None when the run ended before."""
    began, left = time.monotonic(), max(0.2, whole.seconds - whole.opening - done(folder))
    seconds = {
        "opening": random.uniform(0, whole.opening),
        "training": whole.opening + random.uniform(0, left),
        "saving": random.uniform(0, whole.opening + left),
        "ending": 0.0,
        "never": LONGEST * whole.seconds + 60,
    }[kind]
    awaited = {"saving": (folder / "runs" / NAME, "**/snapshots/.*.part"), "ending": (folder, f".{NAME}.*.part")}
    while process.poll() is None:
        if time.monotonic() - began >= seconds and (
            kind not in awaited or any(awaited[kind][0].glob(awaited[kind][1]))
        ):
            time.sleep(random.uniform(0, 0.03) if kind in awaited else 0)
            return time.monotonic() - began
        time.sleep(0.001)
    return None


def done(folder: Path) -> float:
    """The seconds of training that the newest snapshot has."""
    found, _ = SnapshotStore(folder / "runs" / NAME / "snapshots").newest()
    return 0.0 if found is None else float(found.facts["seconds"])


def after_kill(folder: Path, whole: Whole, older: str) -> str:
    """Checks what a killed run leaves, and says what that is."""
    store = SnapshotStore(folder / "runs" / NAME / "snapshots")
    snapshot, faults = store.newest()
    if faults:
        raise Wrong(f"a snapshot is damaged: {faults}")
    for path in folder.rglob("[!.]*.safetensors"):
        if path.name != STATE:  # of a snapshot or of a trial's result
            read_checkpoint(path)  # raises
    current = sha256(folder / CHECKPOINT)  # there is one at every moment
    if current not in (older, whole.sha256):
        raise Wrong(f"{CHECKPOINT} is neither the older nor the new one")
    json.loads((folder / REPORT).read_bytes())
    at = "no snapshot" if snapshot is None else f"snapshot of {snapshot.facts['moment']}"
    return f"{'older' if current == older else 'new'} checkpoint, {at}"


def at_end(folder: Path, whole: Whole, older: str) -> None:
    if (found := sha256(folder / CHECKPOINT)) != whole.sha256:
        raise Wrong(f"the killed run ended with sha256 {found}, the one never killed with {whole.sha256}")
    if report(folder) != whole.report:
        raise Wrong(f"the reports differ beyond their times: {folder / REPORT}")
    asides = [sha256(path) for path in folder.glob(f"{NAME}.was-*.safetensors")]
    if asides != [older] or len(list(folder.glob(f"{NAME}.was-*.report.json"))) != 1:
        raise Wrong("the older checkpoint and report are not beside the new ones, once")
    found = [*folder.rglob(".*.part"), *folder.rglob("lock"), *folder.rglob("stop")]
    if left := [str(path.relative_to(folder)) for path in found]:
        raise Wrong(f"something is left behind: {', '.join(left)}")


def lay_older(folder: Path, whole: Path, number: int) -> str:
    """A checkpoint and a report that are there before the run; returns the checkpoint's sha256."""
    folder.mkdir()
    found = read_checkpoint(whole / CHECKPOINT)
    (folder / REPORT).write_text(json.dumps({"older": number}))
    return write_checkpoint(folder / CHECKPOINT, found.tensors, found.metadata.model_copy(update={"results": {}}))


def report(folder: Path) -> Any:
    """The report without its times."""
    return timeless(json.loads((folder / REPORT).read_bytes()))


def timeless(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: timeless(value) for key, value in values.items() if key not in TIMES}
    return [timeless(value) for value in values] if isinstance(values, list) else values


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(usage="kill_run.py [--kills N] [--seed N] [--folder NEW] -- COMMAND OF FINETUNE")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="a new folder to work in, which stays")
    options = parser.parse_args(sys.argv[1:split])
    words = [str(Path(word).resolve()) if Path(word).exists() else word for word in sys.argv[split + 1 :]]
    if not words:
        parser.error("name a command of finetune that trains, after --")
    root = os.environ.get("FINETUNE_DATA_ROOT", "data")
    os.environ["FINETUNE_DATA_ROOT"] = str(Path(root).resolve())
    random.seed(options.seed)
    if options.folder is not None:
        options.folder.mkdir(parents=True)
    place = options.folder or Path(tempfile.mkdtemp(prefix="kill-run-"))
    tally = Tally()
    try:
        whole = undisturbed(words, place / "whole")
        print(f"undisturbed: {whole.seconds:.1f} s, of which opening {whole.opening:.1f} s; {whole.sha256}", flush=True)
        while tally.kills < options.kills:
            folder = place / f"run-{tally.runs + 1}"
            older = lay_older(folder, place / "whole", tally.runs)
            disturbed(words, folder, whole, older, options.kills, tally)
    except Exception as error:
        sys.exit(f"after {tally.kills} kills: {error}\nwhat is there stays in {place}")
    print(f"{tally.kills} kills {dict(tally.moments)}; {tally.runs} runs ended with {whole.sha256}")
    if options.folder is None:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
