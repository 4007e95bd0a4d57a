"""Runs the trials of a study in several processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import torch

from finetune.errors import SettingError, TrainingError
from finetune.io.atomic import raises_output_error
from finetune.run.interrupt import SIGNAL_NAMES, StopRequests
from finetune.study.task import Leader, Outcome, Refusal, TrialTask, run_in_process

IDLE_SECONDS = 24 * 3600  # a process that has nothing to do waits for the others


def run_in_processes(
    tasks: Sequence[TrialTask], jobs: int, requests: StopRequests, stop: Path, resume_command: str
) -> Iterator[tuple[str, Outcome]]:
    """Yields the outcomes of tasks by their trial's name as they come; `jobs` run at once and share torch's threads.

    A request to stop is handed on to the processes with the file `stop`: each finishes its step and writes a snapshot.
    StopSignal then; TrainingError when a process is lost; SettingError when one finds other data than this one.
    """
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    count = min(jobs, max(2, len(tasks)))
    # As many threads for each whatever is left to do, so that a resumed study has the same bytes.
    leader = Leader(os.getpid(), stop, count, max(1, torch.get_num_threads() // jobs))
    options = {"inner_max_num_threads": leader.threads, "idle_worker_timeout": IDLE_SECONDS}
    calls = [delayed(_named)(task, leader) for task in tasks]
    lost, ended = False, False
    with _stop_file(stop), _silent_pool():
        requests.hold(partial(_touch, stop))
        try:
            with parallel_config("loky", n_jobs=count, **options):
                pool = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch=count)
                with _ignored_signals():
                    found = pool(calls)
            with closing(found):
                for name, outcome in found:
                    if isinstance(outcome, Refusal):
                        raise SettingError(f"--jobs {jobs}: {outcome.message}\nfinished trials are kept")
                    if outcome is None:
                        lost = True
                    else:
                        yield name, outcome
            ended = True
        except TerminatedWorkerError:
            lost = True
        finally:
            get_reusable_executor().shutdown(wait=True, kill_workers=not ended)
        requests.release()
    if lost:
        raise TrainingError(
            f"a process of --jobs {jobs} was killed; if nobody killed it, memory may have run out: try fewer --jobs; "
            f"finished trials are kept; resume with: {resume_command}"
        )


def _named(task: TrialTask, leader: Leader) -> tuple[str, Outcome | Refusal | None]:
    return task.trial.name, run_in_process(task, leader)


@contextmanager
def _silent_pool() -> Iterator[None]:
    """Leaves out what joblib says while the block runs of processes that are replaced, or ended with their work."""
    with warnings.catch_warnings():
        # A process that has grown by 300 MB is replaced by a new one.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        warnings.filterwarnings("ignore", ".*tasks which were still being processed by the workers", UserWarning)
        warnings.filterwarnings("ignore", ".*tasks have been successfully executed", UserWarning)
        yield


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):  # then a second request ends all at once
        path.touch()


@contextmanager
def _stop_file(path: Path) -> Iterator[None]:
    """Deletes the file before and after the block."""
    with raises_output_error(path):
        path.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _ignored_signals() -> Iterator[None]:
    """Processes that are started in the block ignore what a terminal sends to all: the leader tells them to stop."""
    numbers = [getattr(signal, name) for name in SIGNAL_NAMES if hasattr(signal, name) and name != "SIGTERM"]
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
