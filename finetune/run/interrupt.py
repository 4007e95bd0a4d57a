"""Handles Ctrl-C and signals, and saves the newest weights when a run is cut short."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor, nn

from finetune.checkpoint.format import Metadata, write_checkpoint
from finetune.distributed.process_group import ProcessGroup
from finetune.errors import Interrupted, OutputError, TrainingError
from finetune.run.output_paths import OutputPaths

SIGNAL_NAMES = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}  # not every system has all of them
ECHO_SECONDS = 1.0


class StopSignal(KeyboardInterrupt):
    """The person, or the machine, asked the run to end; `exit_code` is the shell's for that signal."""

    def __init__(self, number: int) -> None:
        self.number, self.exit_code = number, 128 + number
        name = signal.Signals(number).name
        super().__init__(SIGNAL_NAMES.get(name, name))


class StopRequests:
    """Turns signals into StopSignal while a block runs. Signals that somebody else handles or ignores stay theirs.

    Of nested blocks the innermost handles them. Between `hold` and `release` the first request only sets `asked`, so
    that a step is finished; a second one stops at once, unless it follows within ECHO_SECONDS: torchrun repeats what
    its processes have got from the machine already.
    After an error nobody releases, so that what is being saved is not cut short.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.since = 0.0
        self.holding = False
        self.on_request: Callable[[], None] | None = None
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNAL_NAMES:
                number = getattr(signal, name, None)
                if number is not None and _is_free(signal.getsignal(number)):
                    self.handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def hold(self, on_request: Callable[[], None] | None = None) -> None:
        """Makes requests wait from here on; the caller looks at `asked` where it may stop.

        on_request: called at once when the first request comes.
        """
        self.holding, self.on_request = True, on_request

    def release(self) -> None:
        """Ends `hold`. StopSignal if a request is waiting."""
        self.holding = False
        self.stop_if_asked()

    def agree(self, group: ProcessGroup, flag: bool = False) -> bool:
        """Makes a request in one process of a group one in all. Returns whether `flag` is raised in any."""
        numbers = [int(getattr(signal, name)) for name in SIGNAL_NAMES if hasattr(signal, name)]
        raised, *asked = group.all_reduce_max_async(flag, *(self.asked == number for number in numbers))()
        if any(asked):
            self._ask(numbers[asked.index(True)])
        return raised

    def stop_if_asked(self) -> None:
        """StopSignal if a request is waiting."""
        if self.asked is not None:
            raise StopSignal(self.asked)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.holding or (self.asked is not None and time.monotonic() - self.since >= ECHO_SECONDS):
            raise StopSignal(number)
        self._ask(number)

    def _ask(self, number: int) -> None:
        first, self.asked = self.asked is None, number
        if first:
            self.since = time.monotonic()
            if self.on_request is not None:
                self.on_request()


def _is_free(handler: Any) -> bool:
    """Whether a signal with this handler may be handled here."""
    default = handler in (signal.SIG_DFL, signal.default_int_handler) or getattr(handler, "gives_way", False)
    return default or isinstance(getattr(handler, "__self__", None), StopRequests)


class InterruptCheckpoint:
    """Holds the newest good weights, and saves them when the block ends by Ctrl-C, a failed training or a failed write.

    Of a group's processes only the leader `writes`.
    """

    def __init__(self, outputs: OutputPaths, describe: Callable[[], Metadata], *, writes: bool = True) -> None:
        self.outputs, self.describe, self.writes = outputs, describe, writes
        self.state: dict[str, Tensor] = {}
        self.moment = ""

    def update(self, network: nn.Module, moment: str) -> None:
        """Copies the weights as they are now; `moment` says when that is, in words."""
        if self.writes:
            self.state = {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
            self.moment = moment

    def __enter__(self) -> InterruptCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            stop = error if isinstance(error, StopSignal) else StopSignal(signal.SIGINT)
            raise Interrupted(f"stopped by {stop}; {self._write()}", stop.exit_code) from None
        if isinstance(error, (TrainingError, OutputError)) and self.writes:
            error.args = (f"{error}\n{self._write()}",)

    def _write(self) -> str:
        """Saves the weights and returns what became of them, in words."""
        folder = self.outputs.run_folder
        if not self.writes:
            return "the first process tells what was kept"
        if not self.state:
            return f"no epoch had ended, so there are no weights to keep; {folder} has the recipe and the log"
        try:
            write_checkpoint(self.outputs.interrupted, self.state, self.describe())
        except OutputError as error:
            return f"the weights {self.moment} could not be kept: {error}"
        return (
            f"kept: the weights {self.moment} in {self.outputs.interrupted}, a checkpoint that every command takes, "
            f"and the numbers so far in {self.outputs.metrics}"
        )
