"""Runs the trials of a study on the workers of a Dask cluster."""

from __future__ import annotations

import logging
import re
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from finetune.errors import SettingError, TrainingError
from finetune.study.task import FailedTrial, Outcome, Refusal, TrialTask, run_on_worker
from finetune.text import first_line

_ADDRESS = re.compile(r"dask://([^/\s]+:[0-9]{1,5})/?")
CONNECT_SECONDS = 15.0
POLL_SECONDS = 0.05


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
        pending = {
            client.submit(run_on_worker, task, study, key=f"{task.trial.name}-{study}", pure=False): task
            for task in tasks
        }
        try:
            while pending:
                _refuse_lost(client, engine, resume_command)
                for future in [future for future in pending if future.done()]:
                    outcome = _outcome(future, engine, address)
                    if isinstance(outcome, Refusal):
                        raise SettingError(f"--engine {engine}: {outcome.message}\nfinished trials are kept")
                    if outcome is not None:
                        yield pending.pop(future).trial.name, outcome
                time.sleep(POLL_SECONDS)
        finally:
            if client.status == "running":
                client.cancel(list(pending))


def _outcome(future: Any, engine: str, address: str) -> Outcome | Refusal | None:
    """What a finished future holds; None where it is lost with its worker or the scheduler, which the caller sees."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    try:
        found: Outcome | Refusal | None = future.result(timeout=CONNECT_SECONDS)
    except (CancelledError, TimeoutError, OSError):
        return None
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
    return found


def _refuse_lost(client: Any, engine: str, resume_command: str) -> None:
    if client.status != "running":
        raise TrainingError(
            f"--engine {engine}: the scheduler there no longer answers; finished trials are kept; when it is back, "
            f"resume with: {resume_command}"
        )


@contextmanager
def _connected(engine: str, address: str) -> Iterator[Any]:
    """A client of the cluster, which has workers of one thread. SettingError."""
    try:
        from distributed import Client
    except ImportError:
        raise SettingError(
            f"--engine {engine}: needs the package distributed, which is not installed; to get it: "
            "pip install 'finetune[cluster]'"
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
