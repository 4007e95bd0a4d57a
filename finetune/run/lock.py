"""An exclusive lock on a run folder, released by the system when its holder dies."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import stat
import sys
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from finetune.errors import OutputError
from finetune.io.atomic import MODE, lock_file, make_folder, raises_output_error, write_all
from finetune.io.sanitize import printable

LOCK_NAME = "lock"
_MAX_NOTE_BYTES = 4096
_MAX_TEXT_LEN = 200  # characters of one text in a note
_TRIES = 100  # each one fails only when another run has just released the lock or moved the folder


@dataclass(frozen=True)
class Holder:
    """Who took a lock, as noted in its file: text that anyone may have written."""

    pid: int
    host: str
    command: str
    started: str

    def __str__(self) -> str:
        return f"`{self.command}`, process {self.pid} on {self.host}, since {self.started}"


class RunLock:
    """Holds `folder`/lock in a `with`; makes a missing folder. OutputError while another run holds it.

    `recovered` is the holder before, if it died without releasing the lock. Where the file system has no locks, nothing
    keeps a second run out.
    """

    def __init__(self, folder: Path, command: str | None = None) -> None:
        self.folder = folder
        self.command = command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.recovered: Holder | None = None
        self._descriptors: tuple[int, int] | None = None  # of the lock file and of its folder

    def __enter__(self) -> RunLock:
        assert self._descriptors is None
        with raises_output_error(self.folder / LOCK_NAME):
            for _ in range(_TRIES):
                with contextlib.suppress(FileNotFoundError):  # the folder was renamed meanwhile
                    make_folder(self.folder)
                    if self._acquire():
                        return self
        raise OutputError(f"{self.folder}: other runs come and go there without end; name another --out")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._descriptors is None:  # in a forked child
            return
        file, folder = self._descriptors
        try:
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)  # if the next line fails, it is still not the note of a dead run
            with contextlib.suppress(OSError):
                os.unlink(LOCK_NAME, dir_fd=folder)  # by the open folder, which may have been renamed meanwhile
        finally:
            self._close()

    def _acquire(self) -> bool:
        """Opens and locks the file. False when by then it is no longer the one under the lock's name."""
        with contextlib.ExitStack() as undo:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            undo.callback(os.close, folder)
            file = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, MODE, dir_fd=folder)
            undo.callback(os.close, file)
            if not self._lock_and_sign(file):
                return False
            undo.pop_all()
            self._descriptors = file, folder
            _HELD.add(self)
            return True

    def _lock_and_sign(self, file: int) -> bool:
        """Locks the open file and writes this run's note into it. False where the lock's name is another file's."""
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OutputError(f"{self.folder / LOCK_NAME}: expected a finetune lock, found no plain file; delete it")
        locked, before = lock_file(file), _read_holder(file)
        if locked is False:
            raise OutputError(f"{self.folder}: {_held_message(before)}")
        try:
            named = (self.folder / LOCK_NAME).stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not os.path.samestat(named, os.fstat(file)):
            return False
        self.recovered = before if locked else None
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = Holder(os.getpid(), socket.gethostname(), self.command[:_MAX_TEXT_LEN], started)
        os.ftruncate(file, 0)
        write_all(file, json.dumps(asdict(holder)).encode())
        return True

    def _close(self) -> None:
        for descriptor in self._descriptors or ():
            os.close(descriptor)
        self._descriptors = None
        _HELD.discard(self)


_HELD: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _close_after_fork() -> None:
    for lock in list(_HELD):
        lock._close()


os.register_at_fork(after_in_child=_close_after_fork)  # else a lock would outlive its run in a worker of it


def _read_holder(file: int) -> Holder | None:
    """The holder noted in the file; None where it holds no such note."""
    try:
        values = json.loads(os.pread(file, _MAX_NOTE_BYTES, 0))
    except (OSError, ValueError, RecursionError):
        return None
    match values:
        case {"pid": int(pid), "host": str(host), "command": str(command), "started": str(started)} if 0 < pid < 2**31:
            return Holder(pid, *(printable(text[:_MAX_TEXT_LEN]) for text in (host, command, started)))
    return None


def _held_message(holder: Holder | None) -> str:
    if holder is None:
        return "another run works there (its lock does not say which); wait until it has ended, or name another --out"
    stop = f"stop it (kill {holder.pid})" if holder.host == socket.gethostname() else f"stop it on {holder.host}"
    return f"another run works there: {holder}; wait until it has ended, {stop}, or name another --out"
