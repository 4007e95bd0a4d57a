"""The system calls that a run makes on its files, and a fault planted at each.

CALLS was made once from `strace -f -y -e trace=file,desc python -m finetune pretrain ... --html`, twice with the same
names, and lists what each name is called with; close, fcntl, lseek, fstat and ioctl, which only fail with what is open
already broken, are left out. A test holds it against the calls of `os`, which are those of strace one by one.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ERRORS = (errno.EIO, errno.EACCES, errno.ENOSPC)
OUTPUTS = ("checkpoints", "runs")
BY_PATH = ("open", "stat", "lstat", "listdir", "scandir", "mkdir", "rmdir", "unlink", "rename", "replace", "link")
BY_DESCRIPTOR = ("write", "read", "pread", "fsync", "fchmod", "ftruncate")

CALLS = {
    "checkpoints/small.safetensors": "stat open link",
    "checkpoints/small.report.json": "stat open link",
    "checkpoints/small.predictions.csv": "stat open link read",
    "checkpoints/small.report.html": "stat open link",
    "checkpoints": "mkdir stat open listdir fsync",
    "runs": "mkdir stat open",
    "runs/small": "stat mkdir open listdir rename fsync",
    "runs/small/lock": "open pread stat ftruncate write unlink",
    "runs/small.was-TIME": "stat",
    "runs/small/trials": "stat",
    "runs/small/snapshots": "stat listdir mkdir open fsync rmdir",
    "runs/small/metrics.jsonl": "unlink stat open write",
    "runs/small/finished.json": "unlink stat",
    "runs/small/recipe.yaml": "stat",
    "runs/small/.recipe.yaml.TEMPORARY": "open fchmod write fsync replace unlink",
    "runs/small/log.txt": "stat open",
    "runs/small/snapshots/.NUMBER.TEMPORARY": "mkdir open fsync rename lstat scandir rmdir",
    "runs/small/snapshots/.NUMBER.TEMPORARY/state.safetensors": "open fchmod write fsync unlink",
    "runs/small/snapshots/.NUMBER.TEMPORARY/facts.json": "open fchmod write fsync unlink",
    "runs/small/snapshots/.NUMBER.TEMPORARY/manifest.json": "open fchmod write fsync unlink",
    "runs/test-sets.jsonl": "stat open read write",
    "checkpoints/.small.safetensors.TEMPORARY": "open fchmod write fsync replace unlink",
    "checkpoints/.small.report.json.TEMPORARY": "open fchmod write fsync replace unlink",
    "checkpoints/.small.predictions.csv.TEMPORARY": "open fchmod write fsync replace unlink",
    "checkpoints/small.was-HASH.safetensors": "stat",
    "checkpoints/small.was-HASH.report.json": "stat",
    "checkpoints/small.was-HASH.predictions.csv": "stat",
    "runs/small/.finished.json.TEMPORARY": "open fchmod write fsync replace unlink",
    "runs/small/snapshots/NUMBER": "rename",
    "runs/small/interrupted.safetensors": "unlink",
    "checkpoints/.small.report.html.TEMPORARY": "open fchmod write fsync replace unlink",
    "checkpoints/small.report.was-HASH.html": "stat",
    "runs/small.was-TIME/lock": "ftruncate unlink",
}

Site = tuple[str, str]  # a call, and the file's part in the run


def part(path: str) -> str:
    """A path from the outputs on, without the random and the counted parts of names."""
    found = re.search(rf"(?:^|/)((?:{'|'.join(OUTPUTS)})(?:/.*)?)$", path)
    if found is None:
        return ""
    text = re.sub(r"\.[0-9a-f]{8}\.part", ".TEMPORARY", found[1])
    text = re.sub(r"\.was-\d{8}-\d{6}(-\d+)?", ".was-TIME", text)
    text = re.sub(r"\.was-[0-9a-f]{8}(-\d+)?", ".was-HASH", text)
    return re.sub(r"\d{6}", "NUMBER", text)


class Calls:
    """Watches the calls on a run's files; the first one of `site` fails with `code`."""

    def __init__(self, site: Site | None = None, code: int = 0) -> None:
        self.site, self.code = site, code
        self.seen: dict[Site, None] = {}

    @contextmanager
    def watched(self) -> Iterator[Calls]:
        real = {name: getattr(os, name) for name in (*BY_PATH, *BY_DESCRIPTOR)}
        try:
            for name, function in real.items():
                setattr(os, name, self._watch(name, function))
            yield self
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    def _watch(self, name: str, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            where = self._part(name, arguments[0] if arguments else ".", named)
            if where:
                self._meet((name, where))
            return function(*arguments, **named)

        return call

    def _meet(self, site: Site) -> None:
        fresh = site not in self.seen
        self.seen[site] = None
        if fresh and site == self.site:
            raise OSError(self.code, os.strerror(self.code))

    @staticmethod
    def _part(name: str, what: Any, named: dict[str, Any]) -> str:
        try:
            folder = named.get("dir_fd") or named.get("src_dir_fd")
            if isinstance(what, int):
                return part(str(Path(f"/proc/self/fd/{what}").readlink()))
            text = os.fsdecode(what)
            return part(f"{Path(f'/proc/self/fd/{folder}').readlink()}/{text}" if folder is not None else text)
        except (OSError, TypeError):
            return ""
