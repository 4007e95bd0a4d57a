"""A trial on its way to another process and back: what is sent, how it is run there, and what comes back."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune.distributed.process_group import SINGLE_PROCESS
from finetune.errors import FinetuneError, Interrupted
from finetune.paths import ROOT_VARIABLE
from finetune.report.console import Console
from finetune.run.interrupt import StopRequests, StopSignal
from finetune.run.options import RunCall
from finetune.run.snapshot import ResumeOptions
from finetune.study.trial import Trial, TrialResult, TrialRunner
from finetune.system import configure_process, keep_freed_memory, share_machine
from finetune.text import json_diff
from finetune.train.device import is_out_of_memory

MAX_LISTED = 8  # differences in one message
WATCH_SECONDS = 0.2  # between two looks at the process that runs the study


@dataclass(frozen=True)
class FailedTrial:
    """Why a trial came to no result: an error's message and exit code, which a process hands to another."""

    message: str
    exit_code: int

    def error(self) -> FinetuneError:
        """The error again, of the process that runs the study."""
        found = FinetuneError(self.message)
        found.exit_code = self.exit_code
        return found


Outcome = TrialResult | FailedTrial


@dataclass(frozen=True)
class Refusal:
    """Why a process can run no trial of this study as it has to be run: other data, versions, source or threads."""

    message: str


@dataclass(frozen=True)
class TrialTask:
    """A trial as another process gets it, in plain values.

    expected: the fingerprint that the trial has in the process that asks for it. folder: of the trial, where the
    machine is the same. data_root: of that process, absolute. logs: that the training writes. force: as in RunOptions.
    """

    trial: Trial
    expected: dict[str, Any]
    folder: Path
    data_root: Path
    device: str
    resume: ResumeOptions
    logs: tuple[str, ...] = ()
    force: bool = False


@dataclass(frozen=True)
class Leader:
    """The process of this machine that runs the study, and how those that it started share the machine.

    stop: the file that it writes to make them stop. threads: torch's, of each.
    """

    process: int
    stop: Path
    jobs: int
    threads: int


def run_or_fail(runner: TrialRunner, trial: Trial, folder: Path) -> Outcome:
    """Runs a trial; an error that is raised on purpose is its outcome. Interrupted."""
    try:
        return runner.run(trial, folder)
    except Interrupted:
        raise
    except FinetuneError as error:
        return FailedTrial(str(error), error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return FailedTrial("out of memory; fewer --jobs, classes or other programs, or smaller images, need less", 1)


class ProcessState:
    """What a process that runs one task after the other keeps between them: its runner, so that trials share work."""

    def __init__(self) -> None:
        self.study: tuple[Any, ...] = ()
        self.runner: TrialRunner | None = None
        self.busy = False
        self.watched: Leader | None = None

    def runner_of(self, study: tuple[Any, ...], call: RunCall) -> TrialRunner:
        """The runner of this study; that of another study is dropped, with all that it has opened."""
        if self.runner is None or self.study != study:
            self.study, self.runner = study, TrialRunner(call)
        return self.runner


_PROCESS = ProcessState()


def run_in_process(task: TrialTask, leader: Leader) -> Outcome | Refusal | None:
    """Runs a task in a process of this machine; None where it was asked to stop."""
    if _PROCESS.watched != leader and os.getpid() != leader.process:
        configure_process()
        share_machine(leader.jobs)
        torch.set_num_threads(leader.threads)
        _PROCESS.watched = leader
        threading.Thread(target=_watch, args=(leader,), daemon=True).start()
    try:
        with StopRequests():
            _PROCESS.busy = True
            if leader.stop.exists():
                return None
            call = _call(task, task.data_root)
            return _run(task, _PROCESS.runner_of((leader, task.data_root), call), task.folder)
    except (StopSignal, Interrupted):
        return None
    finally:
        _PROCESS.busy = False


def _watch(leader: Leader) -> None:
    """Ends this process when the leader is gone, and stops its training when the leader asks for it."""
    asked = False
    while os.getppid() == leader.process:
        if not asked and _PROCESS.busy and leader.stop.exists():
            asked = True
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(WATCH_SECONDS)
    os._exit(1)  # as the leader was: snapshots on disk count, and the kernel frees the trial's lock


class CancelConsole(Console):
    """Shows nothing, and ends a trial that nobody waits for at its next row."""

    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        super().__init__(quiet=True, results=False)
        self.is_cancelled = is_cancelled

    def note(self, text: str) -> None:
        if self.is_cancelled():
            raise KeyboardInterrupt


def run_on_worker(task: TrialTask, study: str) -> Outcome | Refusal | None:
    """Runs a task on a worker of a Dask cluster, in a folder of its own; None where nobody waits for it any more.

    Data sets are looked for in this machine's $FINETUNE_DATA_ROOT, else in the folder that the leader has them in.
    """
    from distributed import get_worker

    keep_freed_memory()  # Dask starts workers with MALLOC_TRIM_THRESHOLD_=65536, which takes half of the speed
    worker = get_worker()
    if worker.state.nthreads != 1:
        return Refusal(
            f"{socket.gethostname()}: a worker has {worker.state.nthreads} threads, and trainings in one process would "
            "share torch's random numbers; expected workers of one thread, which this starts two of: "
            f"dask worker {worker.scheduler.address.rpartition('://')[2]} --nthreads 1 --nworkers 2"
        )
    key = worker.get_current_task()

    def is_cancelled() -> bool:
        known = worker.state.tasks.get(key)
        return known is None or known.state == "cancelled"

    root = Path(os.environ.get(ROOT_VARIABLE) or task.data_root)
    runner = _PROCESS.runner_of((study,), _call(task, root))
    runner.call = replace(runner.call, console=CancelConsole(is_cancelled))
    try:
        with tempfile.TemporaryDirectory(dir=worker.local_directory, ignore_cleanup_errors=True) as folder:
            return _run(task, runner, Path(folder))
    except (KeyboardInterrupt, Interrupted):
        return None
    except OSError as error:
        return FailedTrial(f"{socket.gethostname()}: {worker.local_directory}: {error.strerror or error}", 1)


def _call(task: TrialTask, root: Path) -> RunCall:
    console = Console(quiet=True, results=False)
    return RunCall(SINGLE_PROCESS, console, None, root, task.device, (), task.resume, logs=task.logs, force=task.force)


def _run(task: TrialTask, runner: TrialRunner, folder: Path) -> Outcome | Refusal:
    """The outcome of a task where source, data and versions are those that the leader has."""
    host = f"{socket.gethostname()} (process {os.getpid()})"
    try:
        found = runner.fingerprint(task.trial)
    except FinetuneError as error:
        return Refusal(
            f"{host}: cannot open what the trial needs: {error}\nit looked for files in {Path.cwd()} and for data sets "
            f"in {runner.call.data_root.absolute()}"
        )
    if differences := json_diff(found, task.expected):
        shown = "".join(f"\n  {line}" for line in differences[:MAX_LISTED])
        return Refusal(f"{host}: source, data or versions are others than here:{shown}")
    return run_or_fail(runner, task.trial, folder)
