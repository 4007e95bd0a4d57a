"""Standard streams that may be closed, full or gone: a run goes on without its screen."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from typing import Literal, TextIO

_ESCAPED = "finetune-escaped"


class StandardStream(io.FileIO):
    """Standard output or error. Keeps its first failure as `error`, and drops what is written after it.

    On standard output that first failure raises its OSError, since a command that only prints need not go on; on
    standard error none does.
    """

    def __init__(self, descriptor: Literal[1, 2]) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, piece: object) -> int:
        """Writes as much as one call takes. OSError for the first failure of standard output."""
        if self.error is None:
            try:
                return super().write(piece)  # type: ignore[arg-type]
            except OSError as error:
                self.error = error
                if self.fileno() == 1:
                    raise
        return len(memoryview(piece).cast("B"))  # type: ignore[arg-type]


def open_standard_streams() -> StandardStream | None:
    """Makes the standard streams of this process outlive their other ends; returns that of standard output.

    None where somebody has put another object in its place. Descriptors that are closed are opened such that reading
    and writing fail, or else the next file that is opened would get their numbers. File names that are no text are
    read and written byte for byte, and characters that an encoding lacks as `\\u....`.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened == number:
                os.set_inheritable(opened, True)
            else:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        with contextlib.suppress(io.UnsupportedOperation):  # somebody has read from it
            sys.stdin.reconfigure(errors="surrogateescape")
    codecs.register_error(_ESCAPED, _escape)
    sys.stderr = _reopened(sys.stderr, 2, "backslashreplace") or sys.stderr
    opened_out = _reopened(sys.stdout, 1, _ESCAPED)
    if opened_out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors=_ESCAPED)
        return None
    sys.stdout = opened_out
    raw = opened_out.buffer.raw  # type: ignore[attr-defined]
    assert isinstance(raw, StandardStream)
    return raw


def _reopened(stream: TextIO | None, number: Literal[1, 2], errors: str) -> io.TextIOWrapper | None:
    """The stream of this descriptor as a StandardStream, or None where `stream` is another object."""
    if stream is not None:
        try:
            if stream.fileno() != number:
                return None
            stream.flush()
        except (OSError, ValueError, AttributeError):
            return None
    raw, encoding = StandardStream(number), getattr(stream, "encoding", None) or "utf-8"
    lines = number == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=lines)


def _escape(error: UnicodeError) -> tuple[bytes, int]:
    """A codec's error handler: bytes of file names as they were, other characters as Python escapes them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    pieces = [os.fsencode(c) if "\udc80" <= c <= "\udcff" else c.encode("ascii", "backslashreplace") for c in text]
    return b"".join(pieces), error.end


class Screen:
    """The standard stream of that name, as it is at the moment; what cannot be written there is dropped.

    `error` is the first failure. Made for rich, whose own answer to a closed pipe ends the process.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self.name = name
        self.error: Exception | None = None

    def _stream(self) -> TextIO:
        stream = getattr(sys, self.name)
        if stream is None:
            raise OSError(errno.EBADF, "it is closed")
        found: TextIO = getattr(stream, "rich_proxied_file", stream)  # a progress bar of rich stands in its place
        return found

    def write(self, text: str) -> int:
        """Writes the text, unless that has failed before."""
        if self.error is None:
            try:
                self._stream().write(text)
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self.error = error
        return len(text)

    def flush(self) -> None:
        """Hands on what was written, after which `error` is known."""
        if self.error is None:
            try:
                stream = self._stream()
                stream.flush()
                raw = getattr(getattr(stream, "buffer", None), "raw", None)
                self.error = raw.error if isinstance(raw, StandardStream) else None
            except (OSError, ValueError) as error:
                self.error = error

    def isatty(self) -> bool:
        """Whether it is a terminal that can still be asked."""
        try:
            return self._stream().isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        """Its descriptor. OSError without one."""
        return self._stream().fileno()

    @property
    def encoding(self) -> str:
        return getattr(getattr(sys, self.name), "encoding", None) or "utf-8"
