"""Starts and ends torch.distributed when torchrun started several processes."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from finetune.distributed.error_file import tell_torchrun
from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup, translate_lost_peer
from finetune.errors import FinetuneError, Interrupted, ProcessLost, SettingError, TrainingError
from finetune.text import first_line

TIMEOUT = timedelta(minutes=10)  # for a process that does not answer, though nothing says that it is gone
HINT = "start with torchrun (docs/scaling.md), or unset WORLD_SIZE to train with one process"

# Seconds for which a process that has failed lets another one report first. The leader is preferred, then a process
# with a fault of its own; one that only saw another one vanish knows least.
_OWN_FAULT_DELAY, _PEER_FAULT_DELAY, _STOPPED_DELAY = 1.0, 2.0, 25.0
_jobs = itertools.count()


def read_rank(environment: Mapping[str, str]) -> ProcessGroup | None:
    """This process's place in its job by torchrun's variables; None where they name no other process.

    SettingError where they make no sense.
    """
    size = _number(environment, "WORLD_SIZE", 1) if "WORLD_SIZE" in environment else 1
    if size == 1:
        return None
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise SettingError(f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set; {HINT}")
    rank, local = _number(environment, "RANK", 0), _number(environment, "LOCAL_RANK", 0)
    _number(environment, "MASTER_PORT", 1)
    if rank >= size or local > rank:
        raise SettingError(f"RANK is {rank}, LOCAL_RANK {local} and WORLD_SIZE {size}, which cannot be; {HINT}")
    return ProcessGroup(rank, size, local, environment.get("GROUP_RANK") or socket.gethostname())


def _number(environment: Mapping[str, str], name: str, least: int) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise SettingError(f"{name} is {text!r}, expected a whole number of at least {least}; {HINT}")
    return int(text)


@contextmanager
def distributed_context(device: str) -> Iterator[ProcessGroup]:
    """Connects this process with the others of its job, if there are any, while the block runs.

    `device` is the one asked for: unless it is cpu, GPUs communicate where there are any. The block has to end in all
    processes or in none. When it fails, one process reports; in all others the failure becomes a SystemExit with the
    same exit code.
    """
    place = read_rank(os.environ)
    if place is None:
        yield SINGLE_PROCESS
        return
    if dist.is_initialized():
        raise SettingError(
            "torch.distributed is set up already, which finetune does itself; call it before init_process_group"
        )
    store = _rendezvous(place)
    group = replace(place, backend="nccl" if device != "cpu" and torch.cuda.is_available() else "gloo", store=store)
    try:
        with warnings.catch_warnings():
            if not group.leader:
                warnings.simplefilter("ignore")  # the leader has them too
            # Of axes of length 1, whose strides mean nothing.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            _connect_group(group, store)
            yield group
            group.any(False)  # no process ends well before all have
    except BaseException as error:
        with _ignore_sigterm():
            _destroy()
            end = _exit_error(error, group)
        if end is error:
            raise
        raise end from None
    finally:
        _destroy()


def _rendezvous(group: ProcessGroup) -> Any:
    """One of torch's stores, which all processes can write to, wherever they are."""
    try:
        store, *_ = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    except (RuntimeError, OSError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{int(os.environ['MASTER_PORT'])}"
        raise TrainingError(
            f"process {group.rank} of {group.size}: no way to the others at {address} ({first_line(error)}); "
            "see that the first machine has started, and that this port of it can be reached"
        ) from None
    return PrefixStore(f"finetune/{next(_jobs)}", store)


def _connect_group(group: ProcessGroup, store: Any) -> None:
    # DDP imports it, and what it imports keeps the processes' connections for ever if they are there by then. Their
    # threads would live on while Python ends, and a tensor they free at that moment ends the process by a signal.
    import torch._dynamo

    if group.backend == "nccl":
        torch.cuda.set_device(min(group.local, torch.cuda.device_count() - 1))
    with translate_lost_peer():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if group.backend == "nccl" else "gloo",  # votes and texts go between processors
            store=PrefixStore("torch", store),
            rank=group.rank,
            world_size=group.size,
            timeout=TIMEOUT,
        )


def _destroy() -> None:
    """Closes the connections, which tells at once whoever still waits for this process."""
    if dist.is_initialized():
        gc.collect()  # reference cycles that still hold connections
        dist.destroy_process_group()


def _exit_error(error: BaseException, group: ProcessGroup) -> BaseException:
    """The error, if this process is the one to report it; else a silent SystemExit."""
    stopped = isinstance(error, Interrupted | KeyboardInterrupt)
    delay = 0.0 if group.leader else _STOPPED_DELAY if stopped else _OWN_FAULT_DELAY
    began = time.time()
    if group.elect_reporter(_PEER_FAULT_DELAY if isinstance(error, ProcessLost) else delay):
        if isinstance(error, FinetuneError) and not group.leader:
            message = f"process {group.rank} of {group.size} (on {socket.gethostname()}): {error}"
            error.args = (message, *error.args[1:])
        if isinstance(error, FinetuneError):
            tell_torchrun(f"finetune: {error}", began)
        return error
    # Later than the reporter's, by whole seconds, which are what torchrun compares: it shows the earliest one last.
    tell_torchrun("ended since another process failed, which says why", time.time() + 1)
    code = error.exit_code if isinstance(error, FinetuneError) else 130 if stopped else 1
    return SystemExit(code)


@contextmanager
def _ignore_sigterm() -> Iterator[None]:
    """Ignores SIGTERM in the block: torchrun sends it to the others as soon as one failed, before they can report."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
