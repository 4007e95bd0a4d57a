"""How much memory a process of a test took, and programs that tests run in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def peak() -> int:
    """The most bytes of memory that this process has had so far. (`ru_maxrss` counts the parent's too.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def alone(code: str, *words: object) -> str:
    """Runs Python code, which finds `words` in sys.argv[1:], in a process of its own; returns what it printed."""
    places = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
