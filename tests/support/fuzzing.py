"""What the tests with random input share: how many examples, how long one may take, and what an answer may be.

FINETUNE_FUZZ=100 takes a hundred times as many examples as usual, and other ones each time: a hunt by hand.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import finetune.models.timm.build  # noqa: F401 (what is large is loaded before the limits below are set)
from finetune.errors import UserError
from finetune.io.sanitize import printable_lines

Answer = TypeVar("Answer")

TIMES = int(os.environ.get("FINETUNE_FUZZ", "1"))
LONGEST = 20  # seconds for one example
MOST_MEMORY = 1 << 30  # bytes that one example may take
MOST_SAID = 40_000  # characters of one message


class Hang(BaseException):
    """One example took longer than LONGEST."""


def fuzzed(examples: int) -> settings:
    """The same `examples` each time, or very many others in a hunt."""
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def modestly() -> Iterator[None]:
    """Raises Hang where the block takes longer than it may, and lets it have no more memory than it may."""

    def ring(*_: object) -> None:
        raise Hang

    before, limits = signal.signal(signal.SIGALRM, ring), resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def answered(call: Callable[[], Answer]) -> Answer | None:
    """What `call` returns; None where it says, in a message that can be shown, that the person gave something wrong.

    Any other exception is passed on, and so fails the test.
    """
    with modestly():
        try:
            return call()
        except UserError as error:
            said = str(error)
            assert said and len(said) < MOST_SAID, len(said)
            assert printable_lines(said) == said, said
            return None


ODD_TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "\x1b[2J", "\0", "\ud800", "a\nb", "\u202e", "x" * 700, "NaN", "../..", "/dev/zero", "<<", "é"]
    ),
)
ODD_NUMBERS = st.one_of(
    st.integers(-3, 20),
    st.sampled_from([2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**4000]),
    st.floats(),
    st.sampled_from([1e308, -0.0, 5e-324, 1e-9]),
)
SCALARS = st.one_of(st.none(), st.booleans(), ODD_NUMBERS, ODD_TEXTS)
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ODD_TEXTS, inner, max_size=4),
        max_leaves=8,
    ),
    st.builds(lambda depth, value: nested(depth, value), st.integers(1, 40), SCALARS),
    st.builds(lambda count, value: [value] * count, st.sampled_from([100, 3000]), SCALARS),
)
"""Anything that JSON or YAML can say, and a little more."""


def nested(depth: int, value: Any) -> Any:
    """[[[value]]]"""
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any, here: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to everything in a JSON value, the value itself included."""
    found = [here]
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(item, (*here, key))
    return found


def replaced(value: Any, place: tuple[str | int, ...], new: Any) -> Any:
    """A copy of a JSON value with another one at this place; `...` removes it."""
    if not place:
        return None if new is ... else new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    if len(place) == 1 and new is ...:
        del copy[place[0]]
    else:
        copy[place[0]] = replaced(copy[place[0]], place[1:], new)
    return copy


@st.composite
def changed(draw: st.DrawFn, value: Any, others: st.SearchStrategy[Any] = VALUES, most: int = 3) -> Any:
    """The value with up to `most` things in it replaced, removed, put somewhere else, or with something beside them."""
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.sampled_from(places(value)))
        kind = draw(st.sampled_from(["replace", "replace", "remove", "move", "add"]))
        if kind == "replace":
            value = replaced(value, place, draw(others))
        elif kind == "remove" and place:
            value = replaced(value, place, ...)
        elif kind == "move":
            value = replaced(value, place, at(value, draw(st.sampled_from(places(value)))))
        elif isinstance(inside := at(value, place), dict):
            value = replaced(value, place, {**inside, draw(ODD_TEXTS): draw(others)})
        elif isinstance(inside, list):
            value = replaced(value, place, [*inside, draw(others)])
    return value


def at(value: Any, place: tuple[str | int, ...]) -> Any:
    for part in place:
        value = value[part]
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with some changed, cut out, doubled or put in."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.one_of(st.integers(0, 8), st.integers(0, len(content))))
        new = draw(st.one_of(st.binary(max_size=9), st.just(content[start : start + length] * 2), st.just(b"")))
        content = content[:start] + new + content[start + length :]
    return content
