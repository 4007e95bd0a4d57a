"""Under what circumstances a race ran: what the page says below each table."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
RUNS = ("finetune", "recipes", "benchmarks", "checkpoints", "pyproject.toml")


def circumstances(threads: int) -> dict[str, Any]:
    """Date, command, commit, machine, Python and threads of this process's run."""
    words = ["python", Path(sys.argv[0]).resolve().relative_to(PROJECT).as_posix(), *sys.argv[1:]]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(words),
        "commit": _commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory():.0f} GB, {platform.system()}",
        "python": platform.python_version(),
        "threads": threads,
    }


def _commit() -> str:
    """The commit that is checked out, marked where what runs in a race differs from it."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = commit and _git("status", "--porcelain", "--", *RUNS, ":!benchmarks/results")
    return f"{commit}{'-dirty' if changed else ''}" or "unknown"


def _git(*words: str) -> str:
    found = subprocess.run(["git", "-C", str(PROJECT), *words], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
