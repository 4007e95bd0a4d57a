"""What the person sees: bars on a terminal, plain lines elsewhere, and the same lines in the run's log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from finetune.io.safe_open import open_to_append
from finetune.io.sanitize import printable_lines
from finetune.io.screen import Screen

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID


PLAIN_WIDTH = 120  # columns of a table that is not shown on a terminal


class Console:
    """Progress and remarks go to standard error; results (`show`) go to standard output unless `results` is off.

    `quiet` leaves progress and remarks out, warnings excepted. Lines are also written to the log, if any; tables are
    not, the report has them. Brackets and colons in names of files and classes mean nothing, and characters that would
    move a terminal's cursor are shown as `�`. A stream that breaks is left alone from then on, and the log says so.
    """

    def __init__(self, *, quiet: bool = False, results: bool = True) -> None:
        from rich.console import Console as RichConsole

        self.quiet, self.results = quiet, results
        self._screens = {"error": Screen("stderr"), "output": Screen("stdout")}
        width = None if self._screens["output"].isatty() else PLAIN_WIDTH
        plain: Any = {"highlight": False, "markup": False, "emoji": False}
        self.err = RichConsole(file=cast("TextIO", self._screens["error"]), soft_wrap=True, **plain)
        self.out = RichConsole(file=cast("TextIO", self._screens["output"]), width=width, **plain)
        self.log: Path | None = None
        self.hushed = False

    def hush(self) -> None:
        """From here on nothing is shown: another process of the same job shows it."""
        self.hushed, self.quiet, self.results = True, True, False

    def note(self, text: str) -> None:
        """A remark on what is going on."""
        text = printable_lines(text)
        self._log(text)
        if not self.quiet:
            self._print(self.err, text)

    def warn(self, text: str) -> None:
        """Something the person should know even when it is quiet."""
        text = printable_lines(text)
        self._log(f"warning: {text}")
        if self.hushed:
            return
        self._print(self.err, f"warning: {text}", style="yellow")

    def say(self, text: str) -> None:
        """A line that is part of the result."""
        text = printable_lines(text)
        self._log(text)
        self._show(text)

    def show(self, renderable: RenderableType) -> None:
        """A table that is part of the result."""
        self._show(renderable)

    def _show(self, what: RenderableType) -> None:
        if self.results:
            self._print(self.out, what, soft_wrap=isinstance(what, str))

    def _print(self, console: RichConsole, what: RenderableType, **how: Any) -> None:
        console.print(what, **how)
        for name, screen in list(self._screens.items()):
            if screen.error is not None:
                del self._screens[name]
                reason = getattr(screen.error, "strerror", None) or screen.error
                self._log(f"warning: standard {name} can no longer be written ({reason}); going on without it")

    @contextmanager
    def phase(self, title: str, steps: int) -> Iterator[PhaseView]:
        """A view of one phase's progress for as long as it runs."""
        self.note(title)
        if self.quiet or not self.err.is_terminal:
            yield PhaseView(self, None, None)
            return
        with _bar(self) as bar:
            yield PhaseView(self, bar, bar.add_task("", total=steps, status=""))

    @contextmanager
    def task(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for work on many things before a run: the block is given a function that takes (done, all)."""
        if self.quiet or not self.err.is_terminal:
            yield lambda done, every: None
            return
        with _bar(self) as bar:
            task = bar.add_task("", total=None, status=what)
            yield lambda done, every: bar.update(task, completed=done, total=every, status=f"{what} {done:,}/{every:,}")

    def _log(self, text: str) -> None:
        if self.log is None:
            return
        try:
            with open_to_append(self.log) as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode())
        except OSError as error:
            lost, self.log = self.log, None  # a log must not end a run
            self.warn(f"{lost}: cannot be written ({error.strerror}); going on without it")


class PhaseView:
    """One phase on the screen."""

    def __init__(self, console: Console, bar: Progress | None, task: TaskID | None) -> None:
        self.console, self.bar, self.task = console, bar, task

    def tick(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Moves the bar; elsewhere than on a terminal there is nothing to move."""
        if self.bar is not None and self.task is not None:
            status = f"epoch {epoch}  loss {loss:.4f}  accuracy {accuracy:.2%}  {images_per_second:,.0f} images/s"
            self.bar.update(self.task, completed=step, status=status)

    def row(self, text: str) -> None:
        """A line that stays."""
        self.console.note(text)


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console.err, transient=True)
