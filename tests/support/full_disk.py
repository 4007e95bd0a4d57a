"""Runs the operations of fault_cases.py where there is not enough room, for every amount of room up to enough.

Run as `python tests/support/full_disk.py FOLDER`: with files that may not grow beyond a limit. With `mount` as second
argument a small disk of its own is mounted there first and filled; the mount ends with the process, if it runs in
`unshare`.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from faulty import Case, Outcome, Plant, run, told

PAGE = 4096
LIMITS = (0, 1, 100, 300, 1000, 3000, 10_000, 100_000)  # bytes; the last is enough for every case


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes in the block."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def filled(folder: Path, room: int) -> Iterator[None]:
    """The disk has only `room` bytes left in the block."""
    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    filler.write_bytes(b"x" * (free - room))
    assert os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize == room
    try:
        yield
    finally:
        filler.unlink()


def every_room(case: Case, folder: Path) -> Iterator[tuple[str, Outcome]]:
    """Until there is enough. After a refusal nothing half-made takes room."""
    work, disk = folder / "work", "mount" in sys.argv
    for amount in range(0, 100 * PAGE, PAGE) if disk else LIMITS:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        case.prepare(work)
        with filled(folder, amount) if disk else limited(amount):
            outcome = run(partial(case.operate, work), Plant())
        assert not list(work.rglob(".*"))
        case.check(work, outcome)
        case.operate(work)
        case.settled(work)
        yield f"{amount} bytes", outcome
        if outcome.ended == "done":
            return
    raise AssertionError("never enough")


if __name__ == "__main__":
    if "mount" in sys.argv:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", sys.argv[1]], check=True)
    told(every_room)
