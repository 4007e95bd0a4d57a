"""Checks the arguments of the public functions, and takes paths and numpy's numbers where texts and numbers are."""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from finetune.errors import SettingError
from finetune.text import did_you_mean

F = TypeVar("F", bound=Callable[..., Any])
_CLASSES: dict[str, type] = {
    "str": str,
    "Path": Path,
    "int": int,
    "float": float,
    "bool": bool,
    "Sequence": Sequence,
    "Mapping": Mapping,
    "None": type(None),
}
_WORDS = {
    str: "a text",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    Sequence: "a list",
    Iterable: "a list",
    Mapping: "a dictionary",
    type(None): "None",
}


@dataclass(frozen=True)
class _Accepted:
    """What an argument may be: its types, and what each element of a list may be (None: anything)."""

    types: tuple[type, ...]
    elements: _Accepted | None = None

    def takes(self, value: object) -> bool:
        """Whether `value` is of one of the types; True is no number here and a text no list, but 3 is a 3.0."""
        if isinstance(value, bool):
            return bool in self.types
        if isinstance(value, (str, bytes)):
            return type(value) in self.types
        return isinstance(value, self.types) or (isinstance(value, int) and float in self.types)


def check_arguments(function: F) -> F:
    """`function`, which then takes a path for a text, and numpy's numbers and arrays for Python's.

    SettingError for an argument of a kind that its annotation does not have, and for an unknown keyword option.
    """
    signature = inspect.signature(function)
    names = function.__globals__
    accepted: dict[str, _Accepted | None] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            options = names[str(parameter.annotation).removeprefix("Unpack[").removesuffix("]")]
            home = vars(sys.modules[options.__module__])
            accepted |= {key: _accepted(kind.__forward_arg__, home) for key, kind in options.__annotations__.items()}
        else:
            accepted[name] = _accepted(parameter.annotation, names)

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        for name in options:
            if name not in accepted:
                raise SettingError(f"{function.__name__}: there is no option {name!r}{did_you_mean(name, accepted)}")
        plain = [_convert(name, value, accepted[name]) for name, value in zip(accepted, args, strict=False)]
        named = {name: _convert(name, value, accepted[name]) for name, value in options.items()}
        return function(*plain, *args[len(plain) :], **named)

    return checked  # type: ignore[return-value]


def _accepted(annotation: str, names: Mapping[str, Any]) -> _Accepted | None:
    """What an annotation such as "str | Sequence[int] | None" accepts; None where `names` lack a name in it."""
    inner = re.search(r"Sequence\[(.*)\]", annotation)
    found: list[type] = []
    for part in re.sub(r"\[.*?\]", "", annotation).split("|"):
        name = part.strip()
        kind = _CLASSES.get(name, names.get(name))
        for each in get_args(kind) if isinstance(kind, UnionType) else (kind,):
            each = get_origin(each) or each
            if not isinstance(each, type):
                return None
            found.append(each)
    return _Accepted(tuple(found), _accepted(inner[1], names) if inner else None)


def _convert(name: str, value: Any, accepted: _Accepted | None) -> Any:
    """`value` with numpy's numbers as Python's. SettingError where it is none of what is accepted."""
    value = _without_numpy(value)
    if accepted is None:
        return value
    if isinstance(value, os.PathLike) and Path not in accepted.types and str in accepted.types:
        value = os.fspath(value)
    if not accepted.takes(value):
        expected = " or ".join(_WORDS.get(kind, kind.__name__) for kind in accepted.types)
        raise SettingError(f"{name}: expected {expected}, found {value!r:.80} ({type(value).__name__})")
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"{name}: expected a finite number, found {value}")
    if accepted.elements is not None and isinstance(value, Sequence) and not isinstance(value, str):
        return [_convert(f"{name}[{place}]", item, accepted.elements) for place, item in enumerate(value)]
    return value


def _without_numpy(value: Any) -> Any:
    """numpy's numbers and arrays as Python's, in lists and dictionaries too."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _without_numpy(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_without_numpy(item) for item in value]
    return value
