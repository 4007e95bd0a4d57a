"""`--set KEY=VALUE`: single values of a recipe given on the command line, put into the data before it is checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from finetune.recipe.document import DEEPEST, Document, read_yaml
from finetune.recipe.faults import Fault, Place, found
from finetune.recipe.scalars import unusable
from finetune.strangers.printable import quoted

MOST_SETTINGS = 1_000
LONGEST_SETTING = 100_000  # characters
_KEY = re.compile(r"[^.\[\]=\s]+(\[\d{1,6}\])*(\.[^.\[\]=\s]+(\[\d{1,6}\])*)*")
_PART = re.compile(r"\[(\d+)\]|[^.\[\]]+")


def override(document: Document, settings: Sequence[str]) -> None:
    """Puts each `KEY=VALUE` into the document, in order; what cannot be put becomes a fault of the document."""
    if len(settings) > MOST_SETTINGS:
        document.faults.append(Fault((), f"given {len(settings):,} times, at most {MOST_SETTINGS:,}", line="--set"))
        return
    for setting in settings:
        label = f"--set {_one_line(setting)}"
        key, equals, text = setting.partition("=")
        if len(setting) > LONGEST_SETTING:
            message = f"has {len(setting):,} characters, at most {LONGEST_SETTING:,}; write it in the recipe"
            document.faults.append(Fault((), message, line=label))
            continue
        if not equals or not _KEY.fullmatch(key.strip()) or unusable(key.strip()):
            message = "expected KEY=VALUE, with a key such as phases[0].optimizer.lr"
            document.faults.append(Fault((), message, line=label))
            continue
        place = tuple(int(m[1]) if m[1] else m[0] for m in _PART.finditer(key.strip()))
        if len(place) > DEEPEST:
            message = f"names a place deeper than {DEEPEST} levels; a recipe has 5"
            document.faults.append(Fault((), message, line=label))
            continue
        value = read_yaml(text, flow_only=True)
        document.faults += [replace(f, place=(*place, *f.place), at=None, line=label) for f in value.faults]
        document.broken |= {(*place, *broken) for broken in value.broken}
        if value.empty and not value.faults:
            document.faults.append(Fault(place, "has no value; write null for none", line=label))
        elif value.whole and not value.empty and isinstance(document.data, dict):
            _put(document, place, value, label)


def _put(document: Document, place: Place, value: Document, label: str) -> None:
    node: object = document.data
    for depth, part in enumerate(place):
        here, last = place[:depth], depth == len(place) - 1
        fault = _unfit(node, part, here, label)
        if fault is not None:
            document.faults.append(fault)
            return
        inner = cast(dict[str | int, object], node)  # or a list: both are written by their key or index
        if last:
            _forget(document, place)
            document.lines |= {(*place, *below): label for below in value.lines}
            document.broken |= {(*place, *broken) for broken in value.broken}
            inner[part] = value.data
            return
        if isinstance(part, str) and inner.get(part) is None and isinstance(place[depth + 1], str):
            inner[part] = {}
            document.lines[(*here, part)] = label
            document.broken.discard((*here, part))
        elif here == () and part == "model" and isinstance(inner.get(part), str):
            inner[part] = {"name": inner[part]}
            document.lines[("model", "name")] = document.lines.get(("model",), label)
        elif here == ("data",) and part == "augment" and isinstance(inner.get(part), str):
            inner[part] = {"preset": inner[part]}
            document.lines[("data", "augment", "preset")] = document.lines.get(("data", "augment"), label)
        node = inner.get(part) if isinstance(part, str) else inner[part]


def _unfit(node: object, part: str | int, here: Place, label: str) -> Fault | None:
    """Says why `part` is no key or index of `node`, which stands at `here`; None where it can be."""
    if isinstance(part, str):
        if isinstance(node, dict):
            return None
        hint = "; give an index, as in phases[0]" if isinstance(node, list) else ""
        return Fault(here, f"is {found(node)}, so it has no key {quoted(part)}{hint}", line=label)
    if not isinstance(node, list):
        return Fault(here, f"is {found(node)}, so it has no item [{part}]", line=label)
    if part < len(node):
        return None
    has = f"its items are [0] to [{len(node) - 1}]" if node else "it is empty"
    return Fault(here, f"has no item [{part}]; {has}", line=label)


def _forget(document: Document, place: Place) -> None:
    """Forgets lines and unread values of what is replaced."""
    size = len(place)
    document.lines = {key: line for key, line in document.lines.items() if key[:size] != place}
    document.broken = {key for key in document.broken if key[:size] != place}


def _one_line(setting: str) -> str:
    text = quoted(setting)[1:-1]
    return text.replace('\\"', '"')
