"""Runs one contestant once, as a process of its own: time, memory, its figures, or why there are none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from contest import Contestant
from environments import OURS, python_of

HERE = Path(__file__).resolve().parent
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
SHOWN = 3  # last lines of standard error that tell a failure


@dataclass(frozen=True)
class Ground:
    """What is the same for all: where the images are, where what was prepared is, how many threads."""

    data: Path
    work: Path
    threads: int


def run(contestant: Contestant, ground: Ground, seed: int, limit: int, *, small: bool = False) -> dict[str, Any]:
    """A row's `figures` (seconds, cpu_seconds, peak_bytes and its own), `versions`, and `failure` (None: it went well).

    peak_bytes is the largest resident set of the process and of those it waited for, each alone. It starts from that of
    this process, so this one imports little. After `limit` seconds it is killed, with what it has started.
    """
    script = HERE / "contestants" / contestant.script
    command = [str(python_of(contestant.environment)), str(script), "--data", str(ground.data)]
    command += ["--work", str(ground.work), "--seed", str(seed), "--threads", str(ground.threads)]
    command += [*contestant.arguments, *(contestant.small if small else ())]
    try:
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            code, figures = _process(command, _surroundings(contestant, ground), limit, output, errors)
            printed, said = _text(output), _text(errors)
    except OSError as error:
        return _failed(f"could not be started: {error}")
    if figures["seconds"] >= limit:
        return _failed(f"not done after {limit:,} s")
    if code != 0:
        return _failed(f"exit code {code}: {_end(said)}")
    try:
        found = json.loads(printed.splitlines()[-1])
        versions = found.pop("versions")
        return {
            "figures": {**figures, **{k: float(v) for k, v in found.items()}},
            "versions": versions,
            "failure": None,
        }
    except (IndexError, KeyError, ValueError, TypeError, AttributeError):
        return _failed(f"its last line is not a JSON object of figures: {_end(printed)}")


def _process(
    command: list[str], environment: dict[str, str], limit: int, output: IO[bytes], errors: IO[bytes]
) -> tuple[int, dict[str, float]]:
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors, start_new_session=True)
    timer = threading.Timer(limit, _kill, [process.pid])
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    except BaseException:
        _kill(process.pid)
        process.wait()
        raise
    finally:
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    _kill(process.pid)  # what it has left behind
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    figures = {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_bytes": float(peak)}
    return process.returncode, figures


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _surroundings(contestant: Contestant, ground: Ground) -> dict[str, str]:
    """The environment: the same threads for all, no GPU, nothing fetched, nothing of the caller's Python."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OMP_", "GOMP_"))}
    ours = {"PYTHONPATH": str(HERE.parent)} if contestant.environment == OURS else {}
    return {
        **kept,
        **dict.fromkeys(THREAD_VARIABLES, str(ground.threads)),
        **ours,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def _failed(reason: str) -> dict[str, Any]:
    return {"figures": {}, "versions": {}, "failure": reason}


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _end(text: str) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[-SHOWN:]) or "nothing was printed"
