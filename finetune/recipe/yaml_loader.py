"""Reads YAML 1.2 into values that remember their lines."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

from finetune.io.sanitize import quoted
from finetune.recipe.problems import Line, Place, Problem, found_text

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

_ENDLESS = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_MAX_DIGITS = 1000  # beyond this a number is refused without being worked out

_TOO_LARGE = 2**63  # whole numbers stop before this: they must fit 64 bits


def resolve_scalar(text: str) -> Scalar:
    """Returns what plain (unquoted) `text` stands for: a number, true or false, null, or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _ENDLESS.fullmatch(text):
        return float(text.replace(".", ""))
    if len(text) > _MAX_DIGITS:
        return math.inf if _FLOAT.fullmatch(text) else text
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    return float(text) if _FLOAT.fullmatch(text) else text


def refused_scalar(value: Scalar) -> str | None:
    """Says why a recipe cannot hold this value, or returns None where it can."""
    if isinstance(value, str):
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
            return "has a line break, a tab or another control character, which no text of a recipe needs"
    elif isinstance(value, float):
        if not math.isfinite(value):
            return "must be a finite number, not an infinite one, one that is too large, or none (nan)"
    elif isinstance(value, int) and abs(value) >= _TOO_LARGE:
        return "is too large a number; whole numbers go up to 9223372036854775807"
    return None


def number_hint(value: object, whole: bool) -> str:
    """Returns `; write 0.001` where text (or, for a whole number, 3.0) was meant as a number, else ""."""
    if isinstance(value, float) and whole and value.is_integer():
        return f"; write {int(value)}"
    if not isinstance(value, str) or len(value) > 40:
        return ""
    if _is_number(resolve_scalar(value)):
        return f"; write {value} without quotes" if not whole or isinstance(resolve_scalar(value), int) else ""
    text = re.sub(r"[\s_]", "", value).replace(",", ".")
    text = re.sub("[\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}]", "-", text)
    percent = text.endswith("%")
    if not _is_number(resolve_scalar(text.removesuffix("%"))):
        return ""
    text = f"{float(text.removesuffix('%')) / 100:g}" if percent else text
    return f"; write {text}" if not whole or isinstance(resolve_scalar(text), int) else ""


def boolean_hint(value: object) -> str:
    """Returns `; write false` for text such as `no`, which older YAML took for false, else ""."""
    word = value.lower() if isinstance(value, str) else ""
    if word in ("no", "off", "n", "false"):
        return "; write false"
    return "; write true" if word in ("yes", "on", "y", "true") else ""


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and refused_scalar(value) is None


# (part of the parser's own words, what to tell the person, whether the fault lies where the construct began)
_SENTENCES = (
    (r"found character '\t'", "a tab stands where only spaces may; indent and separate with spaces", False),
    (
        "mapping values are not allowed",
        "this ':' cannot stand here; is the indentation off, or are quotes missing?",
        False,
    ),
    ("sequence entries are not allowed", "a list item '- ' cannot start here; put it on a line of its own", False),
    ("while scanning a quoted", "this quote is not closed", True),
    ("while scanning a double-quoted", "this quote is not closed, or a \\ in it is not a known escape", True),
    ("while parsing a flow sequence", "this list '[' is not closed, or a comma is missing in it", True),
    ("while parsing a flow mapping", "this mapping '{' is not closed, or a comma is missing in it", True),
    ("could not find expected ':'", "a key without ': ' after it", True),
    (
        "expected <block end>",
        "the indentation does not fit the lines above, or something follows a finished value",
        False,
    ),
    ("that cannot start any token", "a value cannot start with this character; put quotes around it", False),
    ("expected the node content", "a value is missing before this", False),
    ("expected alphabetic or numeric", "a value cannot start with & or *; put quotes around it", False),
    ("<document start>", "text after the end of the document; a recipe is one document", False),
    ("directive", "a line cannot start with %; remove it or put quotes around it", False),
)


def syntax_problem(error: Exception, text: str) -> Problem:
    """Returns the fault for what the YAML parser raised on `text`."""
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        character = error.character if isinstance(error.character, str) else chr(error.character)
        return Problem((), f"the character {quoted(character)} cannot stand in a recipe", line=line)
    if not isinstance(error, MarkedYAMLError):
        return Problem((), "is not valid YAML", line=1)
    words = f"{error.context} {error.problem}".replace("\t", r"\t")
    for part, sentence, from_start in _SENTENCES:
        if part in words:
            return Problem((), f"not valid YAML: {sentence}", line=_error_line(error, from_start, text))
    return Problem((), f"not valid YAML: {error.problem}", line=_error_line(error, False, text))


def _error_line(error: MarkedYAMLError, from_start: bool, text: str) -> int:
    mark = error.context_mark if from_start and error.context_mark else error.problem_mark or error.context_mark
    last = max(1, len(text.splitlines()))
    return min(int(mark.line) + 1, last) if mark else 1


MAX_DEPTH = 20  # levels of nesting; a recipe needs 5

_LONG_TAG = re.compile(r"!\S{5000}")

MAX_VALUES = 50_000  # values in one recipe; the largest honest one is a list of some ten thousand class names


@dataclass
class Document:
    """Plain data (dict, list, int, float, str, bool, None), where each value stands, and what was refused."""

    data: object = None
    lines: dict[Place, Line] = field(default_factory=dict)
    faults: list[Problem] = field(default_factory=list)
    broken: set[Place] = field(default_factory=set)  # values that could not be taken; None stands in for them
    empty: bool = False  # there was no value at all, only white space and comments
    whole: bool = True  # False when reading had to stop before the end

    def refuse(self, place: Place, message: str, line: Line | None = None, broken: bool = False) -> None:
        """Notes a fault, and with `broken` that the value at `place` says nothing about what the person meant."""
        self.faults.append(Problem(place, message, line=line))
        if broken:
            self.broken.add(place)


class _SyntaxStop(Exception):
    """Reading cannot go on."""


def read_yaml(text: str, flow_only: bool = False) -> Document:
    """Reads one YAML document. With `flow_only`, collections must be written `[a, b]` and `{a: b}`."""
    document = Document()
    if long := _LONG_TAG.search(text):  # the parser would take seconds over it, only to have it refused as a tag
        line = text.count("\n", 0, long.start()) + 1
        document.refuse((), "a '!' with thousands of characters after it; a recipe has no tags (!)", line=line)
        document.whole = False
        return document
    try:
        events = YAML(typ="safe", pure=True).parse(text)
        _Reader(document, events, flow_only).run()
    except _SyntaxStop:
        document.whole = False
    except Exception as error:  # The parser is given hostile text and raises more than its own errors on some of it.
        document.whole = False
        document.faults.append(syntax_problem(error, text))
    return document


@dataclass
class _Reader:
    """The walk over the events of one document; each method takes the event that starts what it reads."""

    document: Document
    events: Iterator[Event]
    flow_only: bool
    values: int = 0

    def run(self) -> None:
        next(self.events)  # the start of the stream
        start = next(self.events)
        if isinstance(start, StreamEndEvent):
            self.document.empty = True
            return
        assert isinstance(start, DocumentStartEvent)
        if start.version or start.tags:
            self.document.refuse((), "a recipe has no % directives; remove this line", line=1)
        root = next(self.events)
        self.document.data = self._value(root, (), 0)
        next(self.events)  # the end of the document
        after = next(self.events)
        if not isinstance(after, StreamEndEvent):
            self.document.refuse((), "a second document starts here; a recipe is one document", line=_line(after))

    def _value(self, event: Event, place: Place, depth: int) -> object:
        self._count(event, place, depth)
        line = _line(event)
        self.document.lines.setdefault(place, line)
        self._refuse_marks(event, place)
        if isinstance(event, AliasEvent):
            return None
        if isinstance(event, ScalarEvent):
            return self._scalar(event, place)
        if self.flow_only and not getattr(event, "flow_style", True):
            self.document.refuse(place, "write a list as [a, b] and a mapping as {a: b}", line=line, broken=True)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(place, depth)
        return self._mapping(place, depth)

    def _scalar(self, event: ScalarEvent, place: Place) -> Scalar:
        value = _to_python(event)
        why = refused_scalar(value)
        if why is None:
            return value
        self.document.refuse(place, why, line=_line(event), broken=True)
        return None

    def _sequence(self, place: Place, depth: int) -> list[object]:
        items: list[object] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self._value(event, (*place, len(items)), depth + 1))
        return items

    def _mapping(self, place: Place, depth: int) -> dict[str, object]:
        entries: dict[str, object] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self._key(event, place, depth)
            value = next(self.events)
            if key is None:
                self._skip(value, place, depth)
            elif key in entries:
                first = self.document.lines[(*place, key)]
                self.document.refuse((*place, key), f"is given twice, first on line {first}", line=_line(event))
                self._skip(value, place, depth)
            else:
                self.document.lines[(*place, key)] = _line(event)
                entries[key] = None  # its place is taken, whatever the value turns out to be
                entries[key] = self._value(value, (*place, key), depth + 1)
        return entries

    def _key(self, event: Event, place: Place, depth: int) -> str | None:
        """Reads a key; None where it is refused."""
        line = _line(event)
        if isinstance(event, AliasEvent | SequenceStartEvent | MappingStartEvent):
            what = "an alias" if isinstance(event, AliasEvent) else "a list or mapping"
            self.document.refuse(place, f"a key must be text, found {what}", line=line)
            self._skip(event, place, depth)
            return None
        assert isinstance(event, ScalarEvent)
        self._count(event, place, depth)
        self._refuse_marks(event, place)
        key = _to_python(event)
        if key == "<<":
            self.document.refuse(place, "a recipe has no merge keys (<<); write the keys out", line=line)
        elif not isinstance(key, str):
            self.document.refuse(place, f"a key must be text, found {found_text(key)}", line=line)
        elif refused_scalar(key):
            self.document.refuse(place, f"a key {refused_scalar(key)}", line=line)
        else:
            return key
        return None

    def _skip(self, event: Event, place: Place, depth: int) -> None:
        """Passes over one value that nobody will look at."""
        opened = 0
        while True:
            self._count(event, place, depth + opened)
            if isinstance(event, SequenceStartEvent | MappingStartEvent):
                opened += 1
            elif isinstance(event, SequenceEndEvent | MappingEndEvent):
                opened -= 1
            if not opened:
                return
            event = next(self.events)

    def _refuse_marks(self, event: Event, place: Place) -> None:
        """Refuses aliases, anchors and tags: each makes a value mean something else than what is written there."""
        line = _line(event)
        if isinstance(event, AliasEvent):
            self.document.refuse(place, "a recipe has no aliases (*name); write the value out", line=line, broken=True)
        elif getattr(event, "anchor", None) is not None:
            self.document.refuse(place, "a recipe has no anchors (&name); remove it", line=line)
        if getattr(event, "tag", None) is not None:
            self.document.refuse(place, "a recipe has no tags (!); remove it", line=line, broken=True)

    def _count(self, event: Event, place: Place, depth: int) -> None:
        self.values += 1
        if depth > MAX_DEPTH:
            self.document.refuse(place[:3], f"is nested deeper than {MAX_DEPTH} levels", line=_line(event))
            raise _SyntaxStop
        if self.values > MAX_VALUES:
            self.document.refuse((), f"has more than {MAX_VALUES} values, too many for a recipe", line=_line(event))
            raise _SyntaxStop


def _to_python(event: ScalarEvent) -> Scalar:
    text = str(event.value)
    return resolve_scalar(text) if event.style in (None, "") and event.implicit[0] else text


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


def from_python(data: object) -> Document:
    """Returns a copy of `data` as plain dicts and lists; what a recipe cannot hold becomes a fault and None."""
    document = Document()
    counted = [0]  # one counter for the whole walk: data can refer to itself and never end

    def copied(value: object, place: Place) -> object:
        counted[0] += 1
        if len(place) > MAX_DEPTH or counted[0] > MAX_VALUES:
            if document.whole:
                document.refuse(place[:3], f"is nested deeper than {MAX_DEPTH} levels or has over {MAX_VALUES} values")
            document.whole = False
            return None
        if isinstance(value, Mapping):
            entries = {}
            for key, item in value.items():
                if isinstance(key, str) and not refused_scalar(key):
                    entries[str(key)] = copied(item, (*place, key))
                else:
                    document.refuse(place, f"a key must be plain text, found {found_text(key)}")
            return entries
        if isinstance(value, list | tuple):
            return [copied(item, (*place, index)) for index, item in enumerate(value)]
        if value is None or isinstance(value, bool):
            return value
        for kind in (int, float, str):
            if isinstance(value, kind):
                plain = kind(value) if not isinstance(value, str) else str.__str__(value)
                why = refused_scalar(plain)
                if why is None:
                    return plain
                document.refuse(place, why, broken=True)
                return None
        document.refuse(place, f"expected text, a number, a list or a mapping, found {found_text(value)}", broken=True)
        return None

    document.data = copied(data, ())
    return document
