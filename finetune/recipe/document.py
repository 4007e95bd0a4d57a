"""YAML text becomes plain data, with the line of every value and a fault for everything a recipe does not allow.

The YAML parser's events are read one by one instead of loading the file: every value then has its line, numbers and
words follow YAML 1.2 exactly, and hostile input (endless nesting, aliases that multiply) is stopped at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ruamel.yaml import YAML
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

from finetune.recipe.faults import Fault, Line, Place, found
from finetune.recipe.scalars import Scalar, resolve, unusable
from finetune.recipe.syntax import syntax_fault

DEEPEST = 20  # levels of nesting; a recipe needs 5
_LONG_TAG = re.compile(r"!\S{5000}")
MOST_VALUES = 50_000  # values in one recipe; the largest honest one is a list of some ten thousand class names


@dataclass
class Document:
    """Plain data (dict, list, int, float, str, bool, None), where each value stands, and what was refused."""

    data: object = None
    lines: dict[Place, Line] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    broken: set[Place] = field(default_factory=set)  # values that could not be taken; None stands in for them
    empty: bool = False  # there was no value at all, only white space and comments
    whole: bool = True  # False when reading had to stop before the end

    def refuse(self, place: Place, message: str, line: Line | None = None, broken: bool = False) -> None:
        """Notes a fault, and with `broken` that the value at `place` says nothing about what the person meant."""
        self.faults.append(Fault(place, message, line=line))
        if broken:
            self.broken.add(place)


class _Stopped(Exception):
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
        _Reading(document, events, flow_only).run()
    except _Stopped:
        document.whole = False
    except Exception as error:  # The parser is given hostile text and raises more than its own errors on some of it.
        document.whole = False
        document.faults.append(syntax_fault(error, text))
    return document


@dataclass
class _Reading:
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
        value = _plain(event)
        why = unusable(value)
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
        key = _plain(event)
        if key == "<<":
            self.document.refuse(place, "a recipe has no merge keys (<<); write the keys out", line=line)
        elif not isinstance(key, str):
            self.document.refuse(place, f"a key must be text, found {found(key)}", line=line)
        elif unusable(key):
            self.document.refuse(place, f"a key {unusable(key)}", line=line)
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
        if depth > DEEPEST:
            self.document.refuse(place[:3], f"is nested deeper than {DEEPEST} levels", line=_line(event))
            raise _Stopped
        if self.values > MOST_VALUES:
            self.document.refuse((), f"has more than {MOST_VALUES} values, too many for a recipe", line=_line(event))
            raise _Stopped


def _plain(event: ScalarEvent) -> Scalar:
    text = str(event.value)
    return resolve(text) if event.style in (None, "") and event.implicit[0] else text


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1
