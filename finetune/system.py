"""Memory, local processes, and process-wide settings (malloc)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

VERSION = "0.1.0"
CONTAINER = Path("/sys/fs/cgroup/memory.max")  # how much memory a container may take, in bytes, or "max"
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's numbers for them (malloc.h)


def configure_process() -> None:
    """Configures how OpenMP threads wait and how malloc keeps memory; call before torch is imported.

    What the environment sets already stays. docs/log.md has the measurements.
    """
    # Threads that go on spinning while they wait take most of the speed on a machine with other work.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if not any(name.startswith("MALLOC_") for name in os.environ) and "GLIBC_TUNABLES" not in os.environ:
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Keeps memory in the process between two steps; glibc else gives it back and then fetches the same pages again."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        keep = ctypes.CDLL(None).mallopt
        keep(TRIM_THRESHOLD, 2**30)
        keep(MMAP_THRESHOLD, 2**25)


_jobs = 1


def share_machine(jobs: int) -> None:
    """Notes that this process is one of so many that `--jobs` started, which share memory and disk."""
    global _jobs
    _jobs = jobs


def local_processes() -> int:
    """The number of processes that train at once on this machine: torchrun's LOCAL_WORLD_SIZE, else those of --jobs."""
    size = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(size)) if size.isascii() and size.isdecimal() else _jobs


def available_memory(container: Path = CONTAINER) -> int:
    """The machine's memory in bytes, or a container's limit where that is less; what is in use is not subtracted."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 << 30
    try:
        limit = container.read_text().strip()
    except OSError:
        limit = "max"
    return min(physical, int(limit) if limit.isdecimal() else physical)


def versions(model: str = "") -> dict[str, str]:
    """The versions of the libraries that the bytes of a checkpoint of `model` depend on."""
    from importlib.metadata import version  # slow to import

    backbones = ("timm",) if model.startswith("timm/") else ()
    libraries = {name: version(name) for name in ("torch", "torchvision", "safetensors", *backbones)}
    return {"finetune": VERSION, **libraries}
