"""Ctrl-C and the signals that ask a run to end: at once where nothing is under way, else after the step that is."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from finetune.training.group import Group

NAMES = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}  # not every system has all of them
ECHO = 1.0  # seconds


class Stopped(KeyboardInterrupt):
    """The person, or the machine, asked the run to end; `exit_code` is the shell's for that signal."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(self.name)

    @property
    def name(self) -> str:
        return NAMES.get(signal.Signals(self.number).name, signal.Signals(self.number).name)

    @property
    def exit_code(self) -> int:
        return 128 + self.number


class StopRequests:
    """Turns the signals into Stopped while a block runs. Signals that somebody else handles or ignores stay theirs.

    Between `hold` and `release` the first request only sets `asked`, so that a step is finished; a second one stops at
    once, unless it follows so fast that it is the first one again: torchrun passes on what its processes have got from
    the machine already. After an error nobody releases, so that what is being saved is not cut short.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.since = 0.0
        self.holding = False
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for name in NAMES:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self.handlers[number] = signal.signal(number, self._asked_to)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """From here on requests wait; whoever holds them looks at `asked` where it may stop."""
        self.holding = True

    def release(self) -> None:
        """Requests no longer wait; raises Stopped if one did."""
        self.holding = False
        self.stop_if_asked()

    def agree(self, group: Group, flag: bool = False) -> bool:
        """A request that one process of a group has got is one to all. Returns whether `flag` is raised in any."""
        numbers = [int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]
        raised, *asked = group.vote(flag, *(self.asked == number for number in numbers))()
        if any(asked):
            self._ask(numbers[asked.index(True)])
        return raised

    def stop_if_asked(self) -> None:
        """Raises Stopped if a request is waiting."""
        if self.asked is not None:
            raise Stopped(self.asked)

    def _asked_to(self, number: int, frame: FrameType | None) -> None:
        if self.holding and (self.asked is None or time.monotonic() - self.since < ECHO):
            self._ask(number)
            return
        raise Stopped(number)

    def _ask(self, number: int) -> None:
        if self.asked is None:
            self.since = time.monotonic()
        self.asked = number
