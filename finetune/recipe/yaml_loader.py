"""Reads YAML 1.2 into plain values that remember their lines, with every problem on the way; writes values as YAML.

It walks the parser's events. ruamel's round-trip reader would keep lines too, but stops at the first duplicate key,
reads 1_0 as 10, hides where aliases stood, has no limits, and takes 1.7 times as long.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from ruamel.yaml import YAML, events
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from finetune.io.sanitize import quoted
from finetune.recipe.problems import Line, Place, Problem, found_text

MAX_DEPTH = 20  # levels of nesting; a recipe needs 5
MAX_VALUES = 50_000  # values in one recipe; the largest honest one is a list of some ten thousand class names
_MAX_DIGITS = 1000  # beyond this a number is refused without being worked out
_INT_LIMIT = 2**63  # whole numbers stop before this: they must fit 64 bits
Scalar = int | float | str | bool | None

_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class WrittenInt(int):
    """A whole number that is written in another way than Python would, such as 001: as text it is that, the name of a
    class.
    """

    written: str

    @classmethod
    def read(cls, text: str, base: int) -> int:
        """The number that `text` writes; a plain int where it is written as usual."""
        number = int(text.removeprefix("0o"), base)
        if str(number) == text:
            return number
        found = cls(number)
        found.written = text
        return found

    def __str__(self) -> str:
        return self.written


def resolve_scalar(text: str) -> Scalar:
    """Returns what plain (unquoted) `text` stands for: a number, true or false, null, or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _NON_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    if len(text) > _MAX_DIGITS:
        return math.inf if _FLOAT.fullmatch(text) else text
    for pattern, base in ((_INT, 10), (_OCTAL, 8), (_HEX, 16)):
        if pattern.fullmatch(text):
            return WrittenInt.read(text, base)
    return float(text) if _FLOAT.fullmatch(text) else text


def refused_scalar(value: Scalar) -> str | None:
    """Says why a recipe cannot hold this value, or returns None where it can."""
    if isinstance(value, str) and any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
        return "has a line break, a tab or another control character, which no text of a recipe needs"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number, not an infinite one, one that is too large, or none (nan)"
    if isinstance(value, int) and abs(value) >= _INT_LIMIT:
        return "is too large a number; whole numbers go up to 9223372036854775807"
    return None


# Part of the parser's own message: what to tell the person. The problem lies where a "while ..." began.
_SYNTAX_MESSAGES = {
    "found character '\\t'": "a tab stands where only spaces may; indent and separate with spaces",
    "mapping values are not allowed": "this ':' cannot stand here; is the indentation off, or are quotes missing?",
    "sequence entries are not allowed": "a list item '- ' cannot start here; put it on a line of its own",
    "while scanning a quoted": "this quote is not closed",
    "while scanning a double-quoted": "this quote is not closed, or a \\ in it is not a known escape",
    "while parsing a flow sequence": "this list '[' is not closed, or a comma is missing in it",
    "while parsing a flow mapping": "this mapping '{' is not closed, or a comma is missing in it",
    "while scanning a simple key": "a key without ': ' after it",
    "expected <block end>": "the indentation does not fit the lines above, or something follows a finished value",
    "that cannot start any token": "a value cannot start with this character; put quotes around it",
    "expected the node content": "a value is missing before this",
    "expected alphabetic or numeric": "a value cannot start with & or *; put quotes around it",
    "<document start>": "text after the end of the document; a recipe is one document",
    "directive": "a line cannot start with %; remove it or put quotes around it",
}


def _syntax_problem(error: Exception, text: str) -> Problem:
    """Returns the problem for what the YAML parser raised on `text`."""
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        character = error.character if isinstance(error.character, str) else chr(error.character)
        return Problem((), f"the character {quoted(character)} cannot stand in a recipe", line=line)
    if not isinstance(error, MarkedYAMLError):
        return Problem((), "is not valid YAML", line=1)
    words = f"{error.context} {error.problem}".replace("\t", r"\t")
    part = next((part for part in _SYNTAX_MESSAGES if part in words), "")
    began = error.context_mark if part.startswith("while") else None
    mark = began or error.problem_mark or error.context_mark
    line = min(int(mark.line) + 1, max(1, len(text.splitlines()))) if mark else 1
    return Problem((), f"not valid YAML: {_SYNTAX_MESSAGES.get(part, error.problem)}", line=line)


@dataclass
class Document:
    """Plain data (dict, list, int, float, str, bool, None), where each value stands, and what was refused."""

    data: object = None
    lines: dict[Place, Line] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[Place] = field(default_factory=set)  # values that could not be taken; None stands in for them
    empty: bool = False  # there was no value at all, only white space and comments
    complete: bool = True  # False when reading had to stop before the end

    def refuse(self, place: Place, message: str, line: Line | None = None, broken: bool = False) -> None:
        """Adds a problem; with `broken` the value at `place` does not say what the person meant."""
        self.problems.append(Problem(place, message, line=line))
        if broken:
            self.broken.add(place)


class _StopReading(Exception):
    """A limit is passed; its argument is the Problem."""


_LONG_TAG = re.compile(r"!\S{5000}")


def read_yaml(text: str, flow_only: bool = False) -> Document:
    """Reads one YAML document. With `flow_only`, collections must be written `[a, b]` and `{a: b}`."""
    document = Document()
    try:
        if long := _LONG_TAG.search(text):  # the parser would take seconds over it, only to have it refused as a tag
            line = text.count("\n", 0, long.start()) + 1
            message = "a '!' with thousands of characters after it; a recipe has no tags (!)"
            raise _StopReading(Problem((), message, line=line))
        _Reader(document, YAML(typ="safe", pure=True).parse(text), flow_only).run()
    except Exception as error:  # The parser is given hostile text and raises more than its own errors on some of it.
        document.complete = False
        document.problems.append(error.args[0] if isinstance(error, _StopReading) else _syntax_problem(error, text))
    return document


@dataclass
class _Reader:
    """The walk over the events of one document; each method takes the event that starts what it reads."""

    document: Document
    stream: Iterator[events.Event]
    flow_only: bool
    values: int = 0

    def run(self) -> None:
        next(self.stream)  # the start of the stream
        start = next(self.stream)
        if isinstance(start, events.StreamEndEvent):
            self.document.empty = True
            return
        assert isinstance(start, events.DocumentStartEvent)
        if start.version or start.tags:
            self.document.refuse((), "a recipe has no % directives; remove this line", line=1)
        self.document.data = self._value(next(self.stream), (), 0)
        next(self.stream)  # the end of the document
        after = next(self.stream)
        if not isinstance(after, events.StreamEndEvent):
            self._refuse(after, (), "a second document starts here; a recipe is one document")

    def _refuse(self, event: events.Event, place: Place, message: str, broken: bool = False) -> None:
        self.document.refuse(place, message, _line(event), broken)

    def _value(self, event: events.Event, place: Place, depth: int) -> object:
        self._check_node(event, place, depth)
        self.document.lines.setdefault(place, _line(event))
        if isinstance(event, events.AliasEvent):
            return None
        if isinstance(event, events.ScalarEvent):
            value = _to_python(event)
            why = refused_scalar(value)
            if why is not None:
                self._refuse(event, place, why, broken=True)
            return value if why is None else None
        if self.flow_only and not getattr(event, "flow_style", True):
            self._refuse(event, place, "write a list as [a, b] and a mapping as {a: b}", broken=True)
        if isinstance(event, events.MappingStartEvent):
            return self._mapping(place, depth)
        items: list[object] = []
        while not isinstance(event := next(self.stream), events.SequenceEndEvent):
            items.append(self._value(event, (*place, len(items)), depth + 1))
        return items

    def _mapping(self, place: Place, depth: int) -> dict[str, object]:
        entries: dict[str, object] = {}
        while not isinstance(event := next(self.stream), events.MappingEndEvent):
            key = self._key(event, place, depth)
            value = next(self.stream)
            if key is None:
                self._skip(value, place, depth)
            elif key in entries:
                first = self.document.lines[(*place, key)]
                self._refuse(event, (*place, key), f"is given twice, first on line {first}")
                self._skip(value, place, depth)
            else:
                self.document.lines[(*place, key)] = _line(event)
                entries[key] = None  # its place is taken, whatever the value turns out to be
                entries[key] = self._value(value, (*place, key), depth + 1)
        return entries

    def _key(self, event: events.Event, place: Place, depth: int) -> str | None:
        """Reads a key; None where it is refused."""
        if not isinstance(event, events.ScalarEvent):
            what = "an alias" if isinstance(event, events.AliasEvent) else "a list or mapping"
            self._refuse(event, place, f"a key must be text, found {what}")
            self._skip(event, place, depth)
            return None
        self._check_node(event, place, depth)
        key = _to_python(event)
        if key == "<<":
            self._refuse(event, place, "a recipe has no merge keys (<<); write the keys out")
        elif not isinstance(key, str):
            self._refuse(event, place, f"a key must be text, found {found_text(key)}")
        elif refused_scalar(key):
            self._refuse(event, place, f"a key {refused_scalar(key)}")
        else:
            return key
        return None

    def _skip(self, event: events.Event, place: Place, depth: int) -> None:
        """Reads one value that belongs to no key; of it only the limits count."""
        document, self.document = self.document, Document()
        self._value(event, place, depth + 1)
        self.document = document

    def _check_node(self, event: events.Event, place: Place, depth: int) -> None:
        """Holds the limits, and refuses aliases, anchors and tags: with them a value is not what is written there."""
        self.values += 1
        if depth > MAX_DEPTH:
            raise _StopReading(Problem(place[:3], f"is nested deeper than {MAX_DEPTH} levels", line=_line(event)))
        if self.values > MAX_VALUES:
            message = f"has more than {MAX_VALUES} values, too many for a recipe"
            raise _StopReading(Problem((), message, line=_line(event)))
        if isinstance(event, events.AliasEvent):
            self._refuse(event, place, "a recipe has no aliases (*name); write the value out", broken=True)
        elif getattr(event, "anchor", None) is not None:
            self._refuse(event, place, "a recipe has no anchors (&name); remove it")
        if getattr(event, "tag", None) is not None:
            self._refuse(event, place, "a recipe has no tags (!); remove it", broken=True)


def _to_python(event: events.ScalarEvent) -> Scalar:
    text = str(event.value)
    return resolve_scalar(text) if event.style in (None, "") and event.implicit[0] else text


def _line(event: events.Event) -> int:
    return int(event.start_mark.line) + 1


def from_python(data: object) -> Document:
    """Returns a copy of `data` as plain dicts and lists; what a recipe cannot hold becomes a problem and None."""
    document = Document()
    values = 0  # counted over the whole walk: data can refer to itself and never end

    def copy(value: object, place: Place) -> object:
        nonlocal values
        values += 1
        if len(place) > MAX_DEPTH or values > MAX_VALUES:
            if document.complete:
                document.refuse(place[:3], f"is nested deeper than {MAX_DEPTH} levels or has over {MAX_VALUES} values")
            document.complete = False
            return None
        if isinstance(value, Mapping):
            entries = {}
            for key, item in value.items():
                if isinstance(key, str) and not refused_scalar(key):
                    entries[str(key)] = copy(item, (*place, key))
                else:
                    document.refuse(place, f"a key must be plain text, found {found_text(key)}")
            return entries
        if isinstance(value, list | tuple):
            return [copy(item, (*place, index)) for index, item in enumerate(value)]
        plain, why = _plain_scalar(value)
        if why is not None:
            document.refuse(place, why, broken=True)
        return plain

    document.data = copy(data, ())
    return document


def _plain_scalar(value: object) -> tuple[Scalar, str | None]:
    """The value as a plain number, text, bool or None, without a subclass such as numpy's, or why it is refused."""
    if value is None or isinstance(value, bool):
        return value, None
    for kind in (int, float, str):
        if isinstance(value, kind):
            plain = str.__str__(value) if isinstance(value, str) else kind(value)
            why = refused_scalar(plain)
            return (plain, None) if why is None else (None, why)
    return None, f"expected text, a number, a list or a mapping, found {found_text(value)}"


_YAML_1_1_BOOL = re.compile(r"(?i)yes|no|on|off")  # true or false to readers of YAML 1.1, such as PyYAML
_PLAIN = re.compile(r"[A-Za-z_.][A-Za-z0-9_./+-]*")  # text that needs no quotes, if it is not a word such as true


def write_flow(value: object) -> str:
    """Writes a value on one line of YAML, with quotes where it needs them: `{name: sgd, lr: 0.05}`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{write_flow(str(key))}: {write_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(write_flow, value)) + "]"
    if not isinstance(value, str):
        # YAML 1.1 takes 1e-05 for a text, and 1.0e-05 for a number.
        return re.sub(r"^(-?\d+)e", r"\1.0e", json.dumps(value))
    if _PLAIN.fullmatch(value) and not _YAML_1_1_BOOL.fullmatch(value) and isinstance(resolve_scalar(value), str):
        return value
    escaped = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped)


def write_recipe(data: Mapping[str, object]) -> str:
    """Writes a recipe, or any mapping, as YAML: phases and data as blocks, what is deeper on one line each."""
    return "".join(line + "\n" for line in _block(data))


def _block(data: Mapping[str, object], indent: str = "") -> list[str]:
    lines = []
    for key, value in data.items():
        if key == "phases" and _are_mappings(value):
            lines.append(f"{indent}{key}:")
            for phase in value:
                first, *rest = _block(phase, indent + "    ")
                lines += [f"{indent}  - {first.lstrip()}", *rest]
        elif key in ("data", "scratch") and isinstance(value, Mapping) and value:
            lines += [f"{indent}{key}:", *_block(value, indent + "  ")]
        else:
            lines.append(f"{indent}{write_flow(str(key))}: {write_flow(value)}")
    return lines


def _are_mappings(value: object) -> TypeGuard[list[Mapping[str, object]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) and item for item in value)
