"""Where the program begins: answers Ctrl-C before anything that takes time is imported."""

from __future__ import annotations

# The module in C: signal itself imports enum, which takes as long as all else here.
import _signal as signal  # type: ignore[import-not-found]
import os

TYPE_CHECKING = False  # as typing has it, which takes time to import
if TYPE_CHECKING:
    from types import FrameType


def main() -> None:
    """Runs the command line; Ctrl-C ends the imports too with one message and 130."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, answer_ctrl_c)
    from finetune.cli.main import main as run

    run()


def answer_ctrl_c(number: int, frame: FrameType | None) -> None:
    """Ends the process at once while something is imported; else raises KeyboardInterrupt.

    Some packages swallow an exception in the middle of their import and go on in halves.
    """
    place, importing = frame, frame is not None and frame.f_code is main.__code__
    while place is not None and not importing:
        importing, place = place.f_code.co_filename == "<frozen importlib._bootstrap>", place.f_back
    if importing:
        try:
            os.write(2, b"finetune: stopped by Ctrl-C\n")
        finally:
            os._exit(128 + number)
    raise KeyboardInterrupt


answer_ctrl_c.gives_way = True  # type: ignore[attr-defined]  # to the handler of a run
