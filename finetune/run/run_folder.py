"""The run folder: its lock, what an earlier attempt left in it, snapshots and metrics of one run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from finetune.distributed.sync import MAX_LISTED, broadcast_state, check_same_run
from finetune.errors import DriftError, FinetuneError, NonFiniteError, OutputError, SettingError
from finetune.io.atomic import remove_file, write_atomic
from finetune.io.safe_open import read_regular
from finetune.report.console import Console
from finetune.report.report import Report, read_report
from finetune.report.tables import report_tables
from finetune.run.interrupt import StopRequests
from finetune.run.lock import RunLock
from finetune.run.loggers import RunLogs
from finetune.run.output_paths import OutputPaths, clear_run_folder, rewrite_metrics
from finetune.run.snapshot import NetworkState, PhaseState, ResumeOptions, Snapshot, SnapshotState, SnapshotStore
from finetune.text import first_line, json_diff
from finetune.train.loop import require_like

MAX_FINISHED_BYTES = 100_000_000  # the fingerprint of a run lists its classes
MAX_SNAPSHOT_SHARE = 1 / 20  # of the time, that snapshots at the ends of very short epochs may take


class RunIdentity:
    """What tells one run from another: only an attempt with an equal `fingerprint` is resumed.

    recipe: the resolved recipe, as YAML. fingerprint: all that the result depends on, as JSON values (recipe, data,
    source, versions). environment: what may change the last bits of the result.
    """

    def __init__(self, recipe: str, fingerprint: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        self.recipe = recipe
        self.fingerprint, self.environment = _as_json(fingerprint), _as_json(environment)


class EarlierAttempt(BaseModel):
    """What an earlier attempt left: its report where it finished, else its newest snapshot, else nothing."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    report: Report | None = None
    state: SnapshotState | None = None
    tensors: dict[str, Tensor] = Field(default={}, exclude=True)

    def broadcast(self, group: ProcessGroup) -> EarlierAttempt:
        """Broadcasts what the leader found to all processes."""
        values, tensors = broadcast_state(self.model_dump(mode="json"), self.tensors, group)
        return self if group.leader else EarlierAttempt(**values, tensors=tensors)


class SnapshotTimer:
    """Decides when a snapshot is due: `interval` seconds after the one before, or at the end of an epoch.

    Where epochs are so short that this would take more than MAX_SNAPSHOT_SHARE of the time, some ends are left out.
    """

    def __init__(self, interval: float) -> None:
        self.interval, self.cost, self.saved = interval, 0.0, time.monotonic()

    def due(self, *, epoch_ended: bool) -> bool:
        since = time.monotonic() - self.saved
        return since >= self.interval or (epoch_ended and since >= self.cost / MAX_SNAPSHOT_SHARE)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Times the block, which saves a snapshot."""
        began = time.monotonic()
        yield
        self.saved = time.monotonic()
        self.cost = self.saved - began


class RunFolder:
    """Locks a run's folder while a block runs, finds what to resume, and saves snapshots.

    `earlier` is the attempt to resume, or its report where it finished. SettingError where --resume finds another run;
    OutputError where another process holds the folder. Of a group's processes only the leader locks, reads and writes;
    the others get `earlier` from it.
    """

    def __init__(
        self,
        outputs: OutputPaths,
        identity: RunIdentity,
        resume: ResumeOptions,
        console: Console,
        group: ProcessGroup = SINGLE_PROCESS,
        logs: tuple[str, ...] = (),
    ) -> None:
        self.outputs, self.identity, self.resume, self.console, self.group = outputs, identity, resume, console, group
        self.earlier = EarlierAttempt()
        self.requests = StopRequests()
        self.rows: list[dict[str, Any]] = []
        self.moment = ""  # of the newest snapshot, in words
        self.store, self.timer = SnapshotStore(outputs.snapshots), SnapshotTimer(resume.snapshot_every)
        self.began = time.monotonic()
        self.log_names, self.logs = logs, RunLogs((), outputs.run_folder, ())
        self.stack = ExitStack()

    def __enter__(self) -> RunFolder:
        with self.stack:
            check_same_run(self.identity.fingerprint, self.group)
            if self.group.leader:
                self._acquire_lock()
                if self.resume.resume:
                    self.earlier = self._load_snapshot() or self._load_finished() or self.earlier
                if self.earlier.state is not None:
                    rewrite_metrics(self.outputs, self.earlier.state.rows)
                elif self.earlier.report is None:
                    self._start_fresh()
                self.console.log = self.outputs.log
                self._report_status()
            self.earlier = self.earlier.broadcast(self.group)
            if self.earlier.state is not None:
                self.rows, self.moment = self.earlier.state.rows, self.earlier.state.moment
            if self.group.leader and self.finished is None:
                self.logs = RunLogs(self.log_names, self.outputs.run_folder, self.rows)
                self.stack.callback(self.logs.close)
            self.stack.enter_context(self.requests)
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stack.close()
        if isinstance(error, FinetuneError) and self.moment:
            hopeless = isinstance(error, (NonFiniteError, DriftError))
            hint = "" if hopeless else f"; resume with: {self.resume.resume_command}"
            error.args = (f"{error}\nsnapshot: {self.moment}, in {self.store.folder}{hint}",)

    @property
    def finished(self) -> Report | None:
        """The report of the run where it has finished already."""
        return self.earlier.report

    def seconds(self) -> float:
        """The time of the whole run, earlier attempts included."""
        earlier = 0.0 if self.earlier.state is None else self.earlier.state.seconds
        return earlier + time.monotonic() - self.began

    def record(self, row: Mapping[str, Any]) -> None:
        """Remembers a row of metrics.jsonl, for the next snapshot, and logs it."""
        self.rows.append(dict(row))
        self.logs.row(row)

    def due(self, *, row: bool) -> bool:
        """Whether it is time for a snapshot, after a `row` or between rows; only the leader of a group knows."""
        return self.group.leader and self.timer.due(epoch_ended=row)

    def save(
        self,
        current: str,
        networks: Mapping[str, NetworkState],
        tensors: Mapping[str, Tensor],
        phase: PhaseState | None,
        moment: str,
    ) -> None:
        """Writes a snapshot of `tensors` and the random state. OutputError when it fails; earlier ones stay."""
        if self.group.leader:
            with self.timer.measure():
                state = SnapshotState(
                    run=self.identity.fingerprint,
                    machine=self.identity.environment,
                    seconds=self.seconds(),
                    rows=self.rows,
                    networks=dict(networks),
                    current=current,
                    phase=phase,
                    moment=moment,
                )
                self.store.save(Snapshot({**tensors, **rng_state()}, state.model_dump()))
        self.moment = moment

    def restore_rng_state(self) -> None:
        """Puts back the random state of the snapshot that is resumed, as far as its GPUs are there."""
        with self.misfit_is_told():
            require_like({"random/cpu": torch.get_rng_state()}, _only(self.earlier.tensors, "random/cpu"))
            torch.set_rng_state(self.earlier.tensors["random/cpu"])
            for index in range(torch.cuda.device_count()):
                if (state := self.earlier.tensors.get(f"random/cuda:{index}")) is not None:
                    torch.cuda.set_rng_state(state, index)

    @contextmanager
    def misfit_is_told(self) -> Iterator[None]:
        """SettingError for a ValueError or RuntimeError of the block, which restores what the snapshot holds."""
        try:
            yield
        except (ValueError, RuntimeError) as error:
            raise SettingError(
                f"{self.store.folder}: the newest snapshot does not fit this run: {first_line(error)}; delete it to go "
                "on from the one before it, or start anew without --resume"
            ) from None

    def finish(self, digest: str, report: Report) -> None:
        """Logs what the run came to, notes that it has finished with a checkpoint of this sha256, deletes snapshots."""
        self.logs.outcome(report)
        values = {"run": self.identity.fingerprint, "sha256": digest}
        text = json.dumps(values, sort_keys=True, ensure_ascii=False, indent=1)
        write_atomic(self.outputs.finished, f"{text}\n".encode())
        self.delete_unfinished()

    def delete_unfinished(self) -> None:
        """Deletes what only an unfinished run needs, as far as it goes."""
        self.moment = ""
        try:
            self.store.clear()
            remove_file(self.outputs.interrupted)  # of an earlier attempt
        except OutputError as error:
            self.console.warn(f"left over, though the run has finished: {error}")

    def _acquire_lock(self) -> None:
        lock = self.stack.enter_context(RunLock(self.outputs.run_folder))
        if lock.recovered is not None:
            self.console.note(
                f"{self.outputs.run_folder}: its last run died without a word ({lock.recovered}); if nobody killed it, "
                "memory may have run out"
            )

    def _load_snapshot(self) -> EarlierAttempt | None:
        """The newest undamaged snapshot of this run, if any."""
        snapshot, faults = self.store.newest()
        for fault in faults:
            self.console.warn(fault)
        if snapshot is None:
            return None
        try:
            state = SnapshotState.model_validate(snapshot.facts)
        except ValidationError as error:
            at = ".".join(map(str, error.errors()[0]["loc"]))
            raise SettingError(
                f"{self.store.folder}: the newest snapshot does not hold at {at}; start anew without --resume"
            ) from None
        self._refuse_other_run(state.run)
        return EarlierAttempt(state=state, tensors=snapshot.tensors)

    def _load_finished(self) -> EarlierAttempt | None:
        """The report of this run where it has finished, and its checkpoint and report are still there."""
        try:
            values = json.loads(read_regular(self.outputs.finished, MAX_FINISHED_BYTES))
            run, digest = values["run"], values["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self._refuse_other_run(run)
        if digest != self.outputs.digest() or not self.outputs.report.exists():
            return None
        report = read_report(self.outputs.report)
        self.delete_unfinished()  # it may have been killed while it did this
        return EarlierAttempt(report=report)

    def _refuse_other_run(self, fingerprint: object) -> None:
        differences = json_diff(fingerprint, self.identity.fingerprint)
        if differences:
            more = [f"and {len(differences) - MAX_LISTED} more"] if len(differences) > MAX_LISTED else []
            shown = "".join(f"  {line}\n" for line in [*differences[:MAX_LISTED], *more])
            raise SettingError(
                f"--resume: {self.outputs.run_folder} holds a different run, which cannot be resumed:\n{shown}"
                "put that back to resume it, or start anew without --resume, which moves the other run aside"
            )

    def _start_fresh(self) -> None:
        """Empties the folder: another attempt is moved aside, unless --resume found this run without a snapshot."""
        if not (self.resume.resume and self._holds_same_recipe()) and clear_run_folder(
            self.outputs.run_folder, self.console
        ):
            self._acquire_lock()
        rewrite_metrics(self.outputs, [])
        remove_file(self.outputs.finished)
        write_atomic(self.outputs.recipe, self.identity.recipe.encode())

    def _holds_same_recipe(self) -> bool:
        try:
            recipe = self.identity.recipe.encode()
            return read_regular(self.outputs.recipe, len(recipe)) == recipe
        except OSError:
            return False

    def _report_status(self) -> None:
        """Says what is resumed, or that the run has finished already."""
        folder, state = self.outputs.run_folder, self.earlier.state
        if self.finished is not None:
            self.console.note(f"{folder}: this run has already finished; nothing to do")
            for table in report_tables(self.finished):
                self.console.show(table)
        elif state is not None:
            self.console.note(f"{folder}: resuming from {state.moment}")
            for line in json_diff(state.machine, self.identity.environment)[:MAX_LISTED]:
                self.console.warn(f"{line}: the result may differ in its last bits from that of a run never stopped")
        elif self.resume.resume:
            self.console.note(f"{folder}: no snapshot to resume from; starting from the beginning")


def _only(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {name: tensors[name]} if name in tensors else {}


def rng_state() -> dict[str, Tensor]:
    """The random state of the processor and of each GPU, by the names of a snapshot's tensors."""
    gpus = torch.cuda.get_rng_state_all()
    return {"random/cpu": torch.get_rng_state()} | {f"random/cuda:{i}": state for i, state in enumerate(gpus)}


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON would give them back, for a comparison with what was read."""
    found: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    return found
