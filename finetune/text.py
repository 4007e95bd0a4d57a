"""Text for messages: lists, amounts, near names, and the differences between two JSON values."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping

DISTRIBUTION = "finetune-images"  # what pip calls this package; `finetune` there is somebody else's
_MAX_NAMES = 30  # known names listed in one message


def install_hint(extra: str) -> str:
    """The command that installs one of the extras, as in `pip install 'NAME[heic]'`."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def listed(names: Iterable[str]) -> str:
    """Joins names with commas; of more than 30 only the first are listed."""
    every = list(names)
    more = f" and {len(every) - _MAX_NAMES} more" if len(every) > _MAX_NAMES else ""
    return ", ".join(every[:_MAX_NAMES]) + more


def places_of(names: Iterable[str], known: Iterable[str]) -> list[int]:
    """Where each of `names` is in `known`, each of whose names is there once."""
    places = {name: place for place, name in enumerate(known)}
    return [places[name] for name in names]


def amount(size: float) -> str:
    """Formats a number of bytes for a person, as in '4.9 MB' (decimal units)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def name_hint(name: str, known: Iterable[str], plural: str) -> str:
    """The end of a message about an unknown name: `; did you mean 'cnn'? Models are cnn`, or `; models are cnn`."""
    names = list(known)
    every = f"{plural} are {listed(names)}" if names else f"there are no {plural}"
    near = did_you_mean(name, names)
    return f"{near} {every[0].upper()}{every[1:]}" if near else f"; {every}"


def did_you_mean(name: str, known: Iterable[str], most: int = 2, cutoff: float = 0.55) -> str:
    """`; did you mean 'cnn'?` of the names nearest to this one, whatever their case; "" when none is near."""
    lowered = {k.lower(): k for k in known}
    near = [lowered[k] for k in difflib.get_close_matches(name.lower(), lowered, n=most, cutoff=cutoff)]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


_ABSENT = object()


def json_diff(there: object, here: object, at: str = "") -> list[str]:
    """Lists the differences of two JSON values, one line each: `seed: 0 there, 1 here`."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = [*here, *(key for key in there if key not in here)]
        return [
            line
            for key in keys
            for line in json_diff(there.get(key, _ABSENT), here.get(key, _ABSENT), f"{at}.{key}" if at else str(key))
        ]
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = enumerate(zip(there, here, strict=True))
        return [line for place, (one, other) in pairs for line in json_diff(one, other, f"{at}[{place}]")]
    return [] if there == here else [f"{at}: {_short_json(there)} there, {_short_json(here)} here"]


def _short_json(value: object) -> str:
    text = "nothing" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def first_line(text: object, limit: int = 200) -> str:
    """The first line of a text or of an error's message, cut to `limit` characters; of an empty error its type."""
    said = str(text).strip() or (type(text).__name__ if isinstance(text, BaseException) else "")
    line = said.partition("\n")[0]
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
