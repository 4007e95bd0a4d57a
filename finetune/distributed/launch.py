"""Starts and ends torch.distributed when torchrun started several processes."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup, translate_lost_peer
from finetune.errors import FinetuneError, Interrupted, ProcessLost, SettingError, TrainingError

TIMEOUT = timedelta(minutes=10)  # with a process that does not answer, though nothing says that it is gone

HINT = "start with torchrun (docs/scaling.md), or unset WORLD_SIZE to train with one process"

# Seconds for which a process that has failed lets another one speak first. The leader's word counts most, then that of
# one with a fault of its own; who only saw another one vanish knows least.
_OWN_FAULT, _OTHERS_FAULT, _STOPPED = 1.0, 2.0, 25.0

_jobs = itertools.count()


@dataclass(frozen=True)
class RankInfo:
    """What the environment says of this process: its rank of `size`, its number on the machine, where to meet."""

    rank: int
    size: int
    local: int
    node: str
    address: str


def find_rank_info(environment: Mapping[str, str]) -> RankInfo | None:
    """torchrun's variables; None where they say of no other process. SettingError where they make no sense."""
    size = _number(environment, "WORLD_SIZE", 1) if "WORLD_SIZE" in environment else 1
    if size == 1:
        return None
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise SettingError(f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set; {HINT}")
    rank, local = _number(environment, "RANK", 0), _number(environment, "LOCAL_RANK", 0)
    port = _number(environment, "MASTER_PORT", 1)
    if rank >= size or local > rank:
        raise SettingError(f"RANK is {rank}, LOCAL_RANK {local} and WORLD_SIZE {size}, which cannot be; {HINT}")
    node = environment.get("GROUP_RANK") or socket.gethostname()
    return RankInfo(rank, size, local, node, f"{environment['MASTER_ADDR']}:{port}")


def _number(environment: Mapping[str, str], name: str, least: int) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise SettingError(f"{name} is {text!r}, expected a whole number of at least {least}; {HINT}")
    return int(text)


@contextmanager
def distributed_context(device: str) -> Iterator[ProcessGroup]:
    """The block is run as one of the job's processes, if there are others; they share one message when it fails.

    In a process that is not to speak, a failure ends as SystemExit with the failure's exit code. `device` is what was
    asked for: without `cpu`, GPUs talk to each other where there are any. The block has to end in all processes or in
    none.
    """
    place = find_rank_info(os.environ)
    if place is None:
        yield SINGLE_PROCESS
        return
    if dist.is_initialized():
        raise SettingError(
            "torch.distributed is set up already, which finetune does itself; call it before init_process_group"
        )
    store = _rendezvous(place)
    group = ProcessGroup(place.rank, place.size, place.local, place.node, _backend(device), store)
    try:
        with warnings.catch_warnings():
            if not group.leader:
                warnings.simplefilter("ignore")  # the leader has them too
            # Of axes of length 1, whose strides mean nothing.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            _connect_group(group, store)
            yield group
            group.any(False)  # nobody ends well before all have
    except BaseException as error:
        with _ignore_sigterm():
            _destroy()
            end = _exit_error(error, group)
        if end is error:
            raise
        raise end from None
    finally:
        _destroy()


def _backend(device: str) -> str:
    return "nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"


def _rendezvous(place: RankInfo) -> Any:
    """A store of torch's, which all processes can write to, wherever they are."""
    try:
        store, *_ = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    except (RuntimeError, OSError, ValueError) as error:
        raise TrainingError(
            f"process {place.rank} of {place.size}: no way to the others at {place.address} ({_first_line(error)}); "
            "see that the first machine has started, and that this port of it can be reached"
        ) from None
    return PrefixStore(f"finetune/{next(_jobs)}", store)


def _connect_group(group: ProcessGroup, store: Any) -> None:
    # DDP imports it, and what it imports keeps the processes' connections for ever if they are there by then. Their
    # threads would live on while Python ends, and a tensor they give back at that moment ends the process by a signal.
    import torch._dynamo

    if group.backend == "nccl":
        torch.cuda.set_device(min(group.local, torch.cuda.device_count() - 1))
    with translate_lost_peer():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl"
            if group.backend == "nccl"
            else "gloo",  # votes and texts go from processor to processor
            store=PrefixStore("torch", store),
            rank=group.rank,
            world_size=group.size,
            timeout=TIMEOUT,
        )


def _destroy() -> None:
    """Who still waits for this process is told at once, by the end of the connection."""
    if dist.is_initialized():
        gc.collect()  # of what still refers to the connections in circles
        dist.destroy_process_group()


def _exit_error(error: BaseException, group: ProcessGroup) -> BaseException:
    """The error, if this process is the one to tell it; else a silent end."""
    stopped = isinstance(error, Interrupted | KeyboardInterrupt)
    patience = 0.0 if group.leader else _STOPPED if stopped else _OWN_FAULT
    if group.elect_reporter(_OTHERS_FAULT if isinstance(error, ProcessLost) else patience):
        if isinstance(error, FinetuneError) and not group.leader:
            told = f"process {group.rank} of {group.size} (on {socket.gethostname()}): {error}"
            error.args = (told, *error.args[1:])
        return error
    code = error.exit_code if isinstance(error, FinetuneError) else 130 if stopped else 1
    return SystemExit(code)


@contextmanager
def _ignore_sigterm() -> Iterator[None]:
    """torchrun ends the others with SIGTERM as soon as one has failed; what is to be said is said first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
