"""Two JSON values held against each other, for a person to read."""

from __future__ import annotations

import json
from collections.abc import Mapping

_NOTHING = object()


def differences(there: object, here: object, at: str = "") -> list[str]:
    """One line for each value that is not the same in two JSON values, for example `seed: 0 there, 1 here`."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = [*here, *(key for key in there if key not in here)]
        return [
            line
            for key in keys
            for line in differences(
                there.get(key, _NOTHING), here.get(key, _NOTHING), f"{at}.{key}" if at else str(key)
            )
        ]
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = enumerate(zip(there, here, strict=True))
        return [line for place, (one, other) in pairs for line in differences(one, other, f"{at}[{place}]")]
    return [] if there == here else [f"{at}: {_shown(there)} there, {_shown(here)} here"]


def _shown(value: object) -> str:
    text = "nothing" if value is _NOTHING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
