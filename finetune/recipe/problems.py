"""A problem in a recipe: where it is and how it is printed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from finetune.io.sanitize import quoted
from finetune.text import listed, name_hint

Place = tuple[str | int, ...]
Line = int | str  # a line number of the file, counted from 1, or the `--set KEY=VALUE` that gave the value
_MAX_PROBLEMS = 100  # lines in one error; a file with more problems is no recipe


@dataclass(frozen=True)
class Problem:
    """One thing wrong at `place`."""

    place: Place
    message: str
    at: Place | None = None  # the value whose line is shown, where that is more exact than `place`
    line: Line | None = None  # the line itself, where there is no value to look it up by
    lacks: tuple[Place, ...] = ()  # keys that are missing; if one of them is there but misspelt, only that is reported
    meant: tuple[Place, ...] = ()  # keys this misspelt one was probably meant to be


def found_text(value: object) -> str:
    """Says in words what a value of a recipe is: `the text "8x"`, `the number 1.5`, `a list`."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"the whole number {value}" if abs(value) < 2**63 else "a whole number too large to use"
    if isinstance(value, float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else f"a Python {type(value).__name__}"


def format_bound(bound: float) -> str:
    """Returns a bound as a person writes it: 0.001, 2, 100,000."""
    return f"{int(bound):,}" if float(bound).is_integer() else f"{bound:g}"


def unknown_value(what: str, name: str, known: Sequence[str], plural: str) -> str:
    """Returns `unknown stage "fc3"; did you mean 'fc1'? Stages are conv1, fc1, head`."""
    return f"unknown {what} {quoted(name)}{name_hint(name, known, plural)}"


def unknown_key(place: Place, allowed: Sequence[str], near: Sequence[str]) -> Problem:
    """Returns the problem of a key that is not allowed; `near` are the allowed keys it was perhaps meant to be."""
    hint = f"; did you mean {' or '.join(repr(n) for n in near)}? A" if near else "; a"
    if ":" in str(place[-1]):
        hint = "; is a space missing after the ':'? A"
    message = f"unknown key{hint}llowed keys are {listed(allowed)}"
    return Problem(place, message, meant=tuple((*place[:-1], name) for name in near))


def format_place(place: Place) -> str:
    """Writes a place as it is typed after `--set`: `phases[0].optimizer.lr`."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w-]{1,60}", part):
            text += f".{part}" if text else part
        else:
            text += f"[{quoted(part)}]"
    return text


def drop_duplicates(read: Iterable[Problem], checked: Iterable[Problem], broken: Iterable[Place]) -> list[Problem]:
    """Joins the problems of reading and of checking, without those that only repeat another.

    Dropped are a missing key that is there but misspelt, and what the checks find wrong with a value that could not be
    read (`broken`), of which they saw only None.
    """
    unread = set(broken)
    kept = [p for p in checked if not any(p.place[:size] in unread for size in range(len(p.place) + 1))]
    every = list(dict.fromkeys([*read, *kept]))
    meant = {place for problem in every for place in problem.meant}
    return [problem for problem in every if not meant.intersection(problem.lacks)]


def render_problems(problems: Iterable[Problem], where: str, lines: Mapping[Place, Line]) -> list[str]:
    """Returns one line of text per problem: those of the file in its order, then those of `--set`."""
    located = [(_line(problem, lines), problem) for problem in problems]
    located.sort(key=lambda pair: pair[0] if isinstance(pair[0], int) else (0 if pair[0] is None else math.inf))
    texts = []
    for line, problem in located[:_MAX_PROBLEMS]:
        path = format_place(problem.place)
        if isinstance(line, str):
            start, path = line, "" if line.startswith(f"--set {path}=") else path
        else:
            start = where if line is None else f"{where}:{line}"
        texts.append(f"{start}: {path}: {problem.message}" if path else f"{start}: {problem.message}")
    more = len(located) - len(texts)
    return [*texts, f"{where}: and {more} more problems"] if more else texts


def _line(problem: Problem, lines: Mapping[Place, Line]) -> Line | None:
    """The line of a problem, or of the closest value around it."""
    place = problem.place if problem.at is None else problem.at
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place) if problem.line is None else problem.line
