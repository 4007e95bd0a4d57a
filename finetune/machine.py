"""What the machine has."""

from __future__ import annotations

import os
from pathlib import Path

CONTAINER = Path("/sys/fs/cgroup/memory.max")  # how much memory a container may take, in bytes, or "max"


def processes() -> int:
    """How many processes train together on this machine, as torchrun tells each; else this one."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(told)) if told.isascii() and told.isdecimal() else 1


def memory(container: Path = CONTAINER) -> int:
    """Bytes of memory that a process can have at most: the machine's, or fewer where a container has a limit."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 << 30
    try:
        limit = container.read_text().strip()
    except OSError:
        limit = "max"
    return min(physical, int(limit) if limit.isdecimal() else physical)
