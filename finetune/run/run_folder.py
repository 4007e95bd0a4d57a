"""The run folder: lock, snapshots, metrics, and resuming an earlier attempt."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from finetune.distributed.sync import MAX_LISTED, broadcast_state, check_same_run
from finetune.errors import DriftError, FinetuneError, NonFiniteError, SettingError
from finetune.io.atomic import write_atomic
from finetune.report.console import Console
from finetune.report.report import Report, parse_report, read_report
from finetune.report.tables import report_tables
from finetune.run.interrupt import StopRequests
from finetune.run.lock import RunLock
from finetune.run.output_paths import SNAPSHOTS, OutputPaths, clear_run_folder, rewrite_metrics
from finetune.run.snapshot import NetworkState, PhaseState, ResumeOptions, Snapshot, SnapshotState, SnapshotStore
from finetune.text import json_diff

MAX_SNAPSHOT_SHARE = 1 / 20  # that snapshots at the ends of very short epochs may take


class RunFolder:
    """Holds the run folder for as long as a block runs.

    run: what the result depends on (recipe, data, source, versions): an attempt with another one is not gone on with.
    machine: what may change its last bits. `found` is what an earlier attempt left, `finished` its report where it came
    to its end. SettingError where that was another run; OutputError where another run holds the folder.

    Of a group's processes the leader alone holds and writes; the others learn from it what was found.
    """

    def __init__(
        self,
        outputs: OutputPaths,
        recipe_text: str,
        run: Mapping[str, Any],
        machine: Mapping[str, Any],
        resume: ResumeOptions,
        console: Console,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.group = group
        self.outputs, self.recipe_text, self.resume, self.console = outputs, recipe_text, resume, console
        self.run, self.machine = _as_json(run), _as_json(machine)
        self.store = SnapshotStore(outputs.run_folder / SNAPSHOTS)
        self.requests = StopRequests()
        self.found: SnapshotState | None = None
        self.tensors: dict[str, Tensor] = {}
        self.finished: Report | None = None
        self.rows: list[dict[str, Any]] = []
        self.moment = ""  # of the newest snapshot, in words
        self.began = self.saved = time.monotonic()
        self.cost = 0.0
        self.stack = ExitStack()

    def __enter__(self) -> RunFolder:
        with self.stack:
            check_same_run(self.run, self.group)
            if self.group.leader:
                self._acquire_lock()
                if self.resume.resume:
                    self._load_snapshot()
                if self.found is None and self.finished is None:
                    self._start_fresh()
                self.console.log = self.outputs.run_folder / "log.txt"
                self._report_status()
            self._broadcast()
            self.stack.enter_context(self.requests)
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stack.close()
        if isinstance(error, FinetuneError) and self.moment:
            goes_on = "" if isinstance(error, (NonFiniteError, DriftError)) else f"; go on with: {self.resume.again}"
            error.args = (f"{error}\nsnapshot: {self.moment}, in {self.store.folder}{goes_on}",)

    def seconds(self) -> float:
        """Of the whole run, earlier attempts included."""
        return (0.0 if self.found is None else self.found.seconds) + time.monotonic() - self.began

    def record(self, row: Mapping[str, Any]) -> None:
        """One more row of metrics.jsonl, which a snapshot remembers."""
        self.rows.append(_as_json(row))

    def due(self, *, row: bool) -> bool:
        """Whether it is time for a snapshot: the seconds are over, or an epoch has ended. The leader knows.

        Where epochs are so short that snapshots would take more than a twentieth of the time, not every one counts.
        """
        since = time.monotonic() - self.saved
        return self.group.leader and (since >= self.resume.every or (row and since >= self.cost / MAX_SNAPSHOT_SHARE))

    def save(
        self,
        current: str,
        networks: Mapping[str, NetworkState],
        tensors: Mapping[str, Tensor],
        phase: PhaseState | None,
        moment: str,
    ) -> None:
        """Writes a snapshot: `tensors` and the state of chance. OutputError when that fails; earlier ones stay."""
        if not self.group.leader:
            self.moment = moment
            return
        began = time.monotonic()
        facts = SnapshotState(
            run=self.run,
            machine=self.machine,
            seconds=self.seconds(),
            rows=self.rows,
            networks=dict(networks),
            current=current,
            phase=phase,
            moment=moment,
        )
        self.store.save(Snapshot({**tensors, **_rng_state()}, facts.model_dump()))
        self.moment = moment
        self.saved = time.monotonic()
        self.cost = self.saved - began

    def restore_rng_state(self) -> None:
        """Puts back the random state of the snapshot that was found."""
        torch.set_rng_state(self.tensors["random/cpu"])
        for place in range(torch.cuda.device_count()):
            if (state := self.tensors.get(f"random/cuda:{place}")) is not None:
                torch.cuda.set_rng_state(state, place)

    def finish(self, digest: str) -> None:
        """The run came to its end: `digest` is its checkpoint's sha256. Snapshots are no longer needed."""
        said = {"run": self.run, "sha256": digest}
        write_atomic(self._end, json.dumps(said, sort_keys=True, ensure_ascii=False, indent=1).encode() + b"\n")
        self._tidy()
        self.moment = ""

    def _tidy(self) -> None:
        """Deletes what only an unfinished run needs."""
        self.store.clear()
        self.outputs.interrupted.unlink(missing_ok=True)  # of an earlier attempt

    @property
    def _end(self) -> Path:
        return self.outputs.run_folder / "finished.json"

    def _acquire_lock(self) -> None:
        lock = self.stack.enter_context(RunLock(self.outputs.run_folder))
        if lock.recovered is not None:
            self.console.note(
                f"{self.outputs.run_folder}: its last run died without a word ({lock.recovered}); if nobody killed it, "
                "memory may have run out"
            )

    def _broadcast(self) -> None:
        """What the leader found is found in all processes."""
        finished = None if self.finished is None else self.finished.to_dict()
        said = {"finished": finished, "found": None if self.found is None else self.found.model_dump()}
        said, self.tensors = broadcast_state(said, self.tensors, self.group)
        if self.group.leader:
            return
        if said["finished"] is not None:
            self.finished = parse_report(json.dumps(said["finished"]).encode())
        if said["found"] is not None:
            self.found = SnapshotState.model_validate(said["found"])
            self.rows, self.moment = self.found.rows, self.found.moment

    def _load_snapshot(self) -> None:
        snapshot, faults = self.store.newest()
        for fault in faults:
            self.console.warn(fault)
        if snapshot is not None:
            try:
                facts = SnapshotState.model_validate(snapshot.facts)
            except ValidationError as error:
                at = ".".join(map(str, error.errors()[0]["loc"]))
                raise SettingError(
                    f"{self.store.folder}: the newest snapshot does not hold at {at}; start anew without --resume"
                ) from None
            self._refuse_another(facts.run)
            self.found, self.tensors, self.rows, self.moment = facts, snapshot.tensors, facts.rows, facts.moment
            rewrite_metrics(self.outputs, self.rows)
        elif self._end.exists():
            self._load_finished()

    def _load_finished(self) -> None:
        """A run that is over is not done again, as long as what it wrote is still there."""
        try:
            said = json.loads(self._end.read_text(encoding="utf-8"))
            run, digest = said["run"], said["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        self._refuse_another(run)
        if digest == self.outputs.digest() and self.outputs.report.exists():
            self.finished = read_report(self.outputs.report)
            self._tidy()  # it may have been killed while it did this

    def _refuse_another(self, run: object) -> None:
        unlike = json_diff(run, self.run)
        if not unlike:
            return
        shown = [f"  {line}" for line in unlike[:MAX_LISTED]]
        more = [f"  and {len(unlike) - MAX_LISTED} more"] if len(unlike) > MAX_LISTED else []
        raise SettingError(
            "\n".join(
                [
                    f"--resume: {self.outputs.run_folder} holds another run, which is not gone on with:",
                    *shown,
                    *more,
                    "put that back to go on, or start anew without --resume, which moves the other run aside",
                ]
            )
        )

    def _start_fresh(self) -> None:
        """A fresh folder: what another attempt left is moved aside, unless it is of this run and had no snapshot."""
        same = self.resume.resume and _read_text(self.outputs.run_folder / "recipe.yaml") == self.recipe_text
        aside = None if same else clear_run_folder(self.outputs, self.console)
        if aside is not None:
            self._acquire_lock()
        rewrite_metrics(self.outputs, [])
        self._end.unlink(missing_ok=True)
        write_atomic(self.outputs.run_folder / "recipe.yaml", self.recipe_text.encode())

    def _report_status(self) -> None:
        """Says what became of an earlier attempt."""
        folder = self.outputs.run_folder
        if self.finished is not None:
            self.console.note(f"{folder}: this run came to its end already; nothing is done")
            for table in report_tables(self.finished):
                self.console.show(table)
        elif self.found is not None:
            self.console.note(f"{folder}: going on from {self.moment}")
            for line in json_diff(self.found.machine, self.machine)[:MAX_LISTED]:
                self.console.warn(f"{line}: the result may differ in its last bits from that of a run never stopped")
        elif self.resume.resume:
            self.console.note(f"{folder}: no snapshot to go on from; beginning at the beginning")


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it, so that what was read can be compared."""
    found: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    return found


def _rng_state() -> dict[str, Tensor]:
    """The random state: of the processor, and of each GPU that has been used."""
    gpus = torch.cuda.get_rng_state_all()
    return {"random/cpu": torch.get_rng_state()} | {f"random/cuda:{i}": state for i, state in enumerate(gpus)}


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
