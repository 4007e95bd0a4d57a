"""Runs the trials of a study on the workers of a Dask cluster."""

from __future__ import annotations

import logging
import re
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from finetune.errors import SettingError, TrainingError
from finetune.study.task import FailedTrial, Outcome, Refusal, TrialTask, run_on_worker
from finetune.text import first_line, install_hint

_ADDRESS = re.compile(r"dask://([^/\s]+:[0-9]{1,5})/?")
CONNECT_SECONDS = 15.0
POLL_SECONDS = 0.05
MAX_TRIES = 4  # of a trial that the cluster loses without a word, and to fetch a result


def cluster_address(engine: str) -> str:
    """HOST:PORT of dask://HOST:PORT. SettingError."""
    if (found := _ADDRESS.fullmatch(engine)) is None:
        raise SettingError(f"--engine {engine}: expected dask://HOST:PORT, the address that `dask scheduler` prints")
    return found[1]


def run_on_cluster(tasks: Sequence[TrialTask], engine: str, resume_command: str) -> Iterator[tuple[str, Outcome]]:
    """Yields the outcomes of tasks by their trial's name as they come. The trials of a lost worker are run again.

    SettingError where there is no cluster, no worker, or one that cannot run these trials; TrainingError when the
    scheduler is lost.
    """
    study, address = uuid.uuid4().hex, cluster_address(engine)
    with _connected(engine, address) as client:
        tries: Counter[str] = Counter()

        def submit(task: TrialTask) -> Any:
            key = f"{task.trial.name}-{study}-{tries[task.trial.name]}"
            return client.submit(run_on_worker, task, study, key=key, pure=False)

        pending = {submit(task): task for task in tasks}
        try:
            while pending:
                if client.status != "running":
                    raise _GivenUp
                for future in [future for future in pending if future.done()]:
                    task = pending[future]
                    outcome = _outcome(future, address)
                    if isinstance(outcome, _Lost):
                        tries[task.trial.name] += 1
                        if client.status != "running":
                            raise _GivenUp
                        if tries[task.trial.name] < MAX_TRIES:
                            if not outcome.is_there:
                                del pending[future]
                                pending[submit(task)] = task
                            continue
                        outcome = FailedTrial(f"{outcome.why}, {MAX_TRIES} times in all", 1)
                    if isinstance(outcome, Refusal):
                        raise SettingError(f"--engine {engine}: {outcome.message}\nfinished trials are kept")
                    del pending[future]
                    yield task.trial.name, outcome
                time.sleep(POLL_SECONDS)
        except _GivenUp:
            raise TrainingError(
                f"--engine {engine}: the scheduler there no longer answers, or has been restarted; finished trials are "
                f"kept; when it is back, resume with: {resume_command}"
            ) from None
        finally:
            if client.status == "running":
                client.cancel(list(pending))


@dataclass(frozen=True)
class _Lost:
    """A trial without a result, and why; `is_there` is a result that could not be fetched this time."""

    why: str
    is_there: bool = False


def _outcome(future: Any, address: str) -> Outcome | Refusal | _Lost:
    """What a future that is done holds, or why it holds nothing."""
    import asyncio
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    try:
        found: Outcome | Refusal | None = future.result(timeout=CONNECT_SECONDS)
    except (CancelledError, asyncio.CancelledError):
        return _Lost("the cluster cancelled it")
    except KilledWorker as error:
        return FailedTrial(
            f"it was tried on {error.allowed_failures + 1} workers, and each of them ended; memory may have run out "
            f"there: start them with fewer --nworkers, or look into the log of {error.last_worker.address}",
            1,
        )
    except (ImportError, AttributeError) as error:
        return Refusal(
            f"a worker cannot load this finetune ({first_line(error)}); install the same version there, and start it "
            f"again: dask worker {address} --nthreads 1 --nworkers 2"
        )
    except Exception as error:
        if future.status == "error":  # it is the trial's own
            text = f"{type(error).__name__}: {first_line(error)}"
            return FailedTrial(f"a worker could not run it ({text}); its log says more", 1)
        if isinstance(error, OSError):  # TimeoutError is one; a lost worker's trials are pending again soon
            return _Lost(f"its result could not be fetched ({first_line(error)})", is_there=True)
        raise
    return found if found is not None else _Lost("its worker was told to give it up")


class _GivenUp(Exception):
    """The scheduler is lost."""


@contextmanager
def _connected(engine: str, address: str) -> Iterator[Any]:
    """A client of the cluster, which has workers of one thread. SettingError."""
    try:
        from distributed import Client
    except ImportError:
        raise SettingError(
            f"--engine {engine}: needs the package distributed, which is not installed; to get it: "
            f"{install_hint('cluster')}"
        ) from None
    connect: Any = Client  # its signature has no types
    start = f"dask worker {address} --nthreads 1 --nworkers 2"
    with warnings.catch_warnings(), _silent_logs():
        warnings.simplefilter("ignore")  # of versions that differ; those that matter are compared trial by trial
        try:
            client = connect(f"tcp://{address}", timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise SettingError(
                f"--engine {engine}: no Dask scheduler answers there ({first_line(error)}); start one: dask scheduler; "
                f"and workers: {start}"
            ) from None
        try:
            try:
                client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            except TimeoutError:
                raise SettingError(f"--engine {engine}: the cluster has no workers; start some: {start}") from None
            yield client
        finally:
            client.close(timeout=2)


@contextmanager
def _silent_logs() -> Iterator[None]:
    """Leaves out what distributed logs while the block runs: errors are told once, by what is raised."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    disabled = {logger: logger.disabled for logger in map(logging.getLogger, names)}
    for logger in disabled:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, was in disabled.items():
            logger.disabled = was
