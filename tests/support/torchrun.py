"""torchrun on this machine, with an end to every test that hangs, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tiny import ROOT, SUPPORT

LIMIT = 240.0  # seconds; a start takes some eight on two cores


@contextlib.contextmanager
def started(*words: object, processes: int = 2, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """torchrun under way. When the block ends, however it does, so do torchrun and all its processes."""
    paths = [str(ROOT), str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    job = subprocess.Popen(
        [*launcher, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        yield job
    finally:
        workers = workers_of(job)
        for pid in [job.pid, *workers]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.communicate()


def run(*words: object, processes: int = 2, cwd: Path | None = None) -> tuple[int, str, str]:
    """torchrun to its end: exit code, standard output, and standard error without what torchrun itself says."""
    with started(*words, processes=processes, cwd=cwd) as job:
        out, err = job.communicate(timeout=LIMIT)
    return job.returncode, out, ours(err)


def ours(err: str) -> str:
    """Of a job's standard error, what finetune says: all before the traceback and summary of torchrun."""
    kept = err.partition('Traceback (most recent call last):\n  File "<frozen runpy>"')[0].splitlines()
    return "\n".join(line for line in kept if line and not re.match(r"[WE]\d{4} |\*{5}|Setting OMP_NUM_THREADS", line))


def workers_of(job: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started, by rank; none where there is no /proc or torchrun has ended."""
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    try:
        every = [int(pid) for pid in children.read_text().split()]
    except OSError:
        return []
    return sorted(filter(lambda pid: _rank(pid) is not None, every), key=lambda pid: _rank(pid) or 0)


def _rank(pid: int) -> int | None:
    try:
        values = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = [value for value in values if value.startswith(b"RANK=")]
    return int(found[0][5:]) if found else None
