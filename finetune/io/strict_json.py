"""Strict parser for untrusted JSON: values in range, no duplicate keys, bounded depth and number of values."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

MAX_DEPTH = 30  # levels of lists and mappings
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that is half a character unless the other half follows
_MAX_NUMBER_LEN = 20  # characters of a whole number of 64 bits


def parse_json(content: bytes | str, most_values: int) -> Any:
    """Parses untrusted JSON. ValueError says what is wrong with it.

    Whole numbers have at most 64 bits, others are finite, texts are Unicode, and no mapping has a key twice. There are
    at most about `most_values` values: the commas and brackets are counted, those in texts too, before the text is
    parsed, so that a few megabytes never become gigabytes.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start:,}") from None
    if text.count(",") + text.count("[") + text.count("{") > most_values:
        raise ValueError(f"more than {most_values:,} values")
    try:
        found = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_int=_int64,
            parse_float=_finite_float,
            parse_constant=_finite_float,
        )
        _check_depth(found, MAX_DEPTH)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text with half a character in it (a surrogate without the other)") from None
    return found


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {json.dumps(twice[:60])} is there twice")
    return found


def _int64(digits: str) -> int:
    value = int(digits) if len(digits) <= _MAX_NUMBER_LEN else 2**64
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"the number {digits[:_MAX_NUMBER_LEN]}... does not fit 64 bits")
    return value


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:_MAX_NUMBER_LEN]}, which is not finite")
    return value


def _check_depth(value: Any, levels: int) -> None:
    if isinstance(value, (dict, list)):
        if levels == 0:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, (dict, list)):
                _check_depth(item, levels - 1)
