"""Plants a fault at every write of an operation, one after the other.

Run as `python tests/support/faulty.py FOLDER`, for all of `fault_cases.CASES`, with one thread: a fault that kills has
a fork of this process for itself, which costs milliseconds.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

WATCHED = ("open", "write", "fsync", "fchmod", "ftruncate", "replace", "rename", "link", "unlink", "mkdir", "rmdir")
FULL, BROKEN, DENIED, UNSURE = "full disk", "broken disk", "no permission", "done, and said to have failed"
STOPPED, KILLED, KILLED_AFTER = "Ctrl-C", "killed in it", "killed after it"
KINDS = (FULL, BROKEN, DENIED, UNSURE, STOPPED, KILLED, KILLED_AFTER)


@dataclass(frozen=True)
class Outcome:
    """How the operation ended: `fault` names the call that was hit, or is None where there were fewer calls."""

    ended: str  # "done", "refused" (OutputError), "stopped" (Ctrl-C), "killed"
    message: str
    fault: str | None


@dataclass(frozen=True)
class Case:
    """`prepare` makes a folder what it was before; `operate` is what faults are planted in.

    `check` is told the outcome; `again` repeats the operation without a fault, and `settled` checks what is then there.
    """

    prepare: Callable[[Path], None]
    operate: Callable[[Path], None]
    check: Callable[[Path, Outcome], None]
    settled: Callable[[Path], None]


class Plant:
    """Lists the calls of `os` that change a disk; the one of that number (from 1) ends as `kind` says."""

    def __init__(self, number: int = 0, kind: str = FULL) -> None:
        self.number, self.kind = number, kind
        self.calls: list[str] = []
        self.hit: str | None = None  # the call that was hit
        self.tell: Callable[[str], object] = lambda _: None  # is told before it is

    def __enter__(self) -> Plant:
        self.real = {name: getattr(os, name) for name in WATCHED}
        for name in WATCHED:
            setattr(os, name, self._watched(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self.real.items():
            setattr(os, name, function)

    def _watched(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) == self.number:
                self.hit = f"{name} {arguments[0]}"
                self.tell(self.hit)
                return self._fail(name, arguments, named)
            return self.real[name](*arguments, **named)

        return call

    def _fail(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        try:
            if self.kind in (UNSURE, KILLED_AFTER):
                self.real[name](*arguments, **named)
            elif name == "write" and self.kind in (FULL, KILLED):
                descriptor, content = arguments
                self.real[name](descriptor, content[: len(content) // 2])
        finally:
            if self.kind in (KILLED, KILLED_AFTER):
                os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == STOPPED:
            raise KeyboardInterrupt
        code = {FULL: errno.ENOSPC, DENIED: errno.EACCES}.get(self.kind, errno.EIO)
        raise OSError(code, os.strerror(code))


def run(operate: Callable[[], None], plant: Plant) -> Outcome:
    """Runs the operation with that fault planted, and says how it ended."""
    from finetune.errors import OutputError

    try:
        with plant:
            operate()
    except OutputError as error:
        return Outcome("refused", str(error), plant.hit)
    except KeyboardInterrupt:
        return Outcome("stopped", "", plant.hit)
    return Outcome("done", "", plant.hit)


def run_to_death(operate: Callable[[], None], plant: Plant) -> Outcome:
    """The same in a fork of this process, which the fault kills."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            real_write = os.write
            plant.tell = lambda hit: real_write(writing, hit.encode())
            run(operate, plant)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as file:
        hit = file.read() or None
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == (0 if hit is None else -signal.SIGKILL), code
    return Outcome("done" if hit is None else "killed", "", hit)


def every_fault(case: Case, folder: Path) -> Iterator[tuple[str, Outcome]]:
    """Runs the case with each kind of fault at each call, until there are fewer calls. AssertionError if it fails."""
    work = folder / "work"
    for kind in KINDS:
        for number in itertools.count(1):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            case.prepare(work)
            way = run_to_death if kind in (KILLED, KILLED_AFTER) else run
            outcome = way(partial(case.operate, work), Plant(number, kind))
            if outcome.fault is None:
                assert outcome.ended == "done", outcome
                break
            try:
                case.check(work, outcome)
                case.operate(work)
                case.settled(work)
            except BaseException as error:
                there = sorted(str(path.relative_to(work)) for path in work.rglob("*"))
                error.add_note(f"{kind} at call {number}: {outcome}\nthere: {there}")
                raise
            yield kind, outcome


def told(results: Callable[[Case, Path], Iterator[tuple[str, Outcome]]]) -> None:
    """Prints a line of JSON for each case: how often each kind of fault ended how, or what failed."""
    import fault_cases

    for name, case in fault_cases.CASES.items():
        counts: dict[str, dict[str, int]] = {}
        try:
            for kind, outcome in results(case, Path(sys.argv[1])):
                ended = counts.setdefault(kind, {})
                ended[outcome.ended] = ended.get(outcome.ended, 0) + 1
            print(json.dumps({"name": name, "counts": counts}), flush=True)
        except BaseException:
            print(json.dumps({"name": name, "failure": traceback.format_exc()}), flush=True)


if __name__ == "__main__":
    told(every_fault)
