"""Limits on what checkpoint metadata may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.io.sanitize import is_printable, quoted
from finetune.io.text_path import unicode_text

MAX_VALUES = 1_000_000  # numbers, texts, lists and mappings, about
MAX_CLASSES = 50_000
MAX_CLASS_NAME_LEN = 255  # characters of a class's name; a folder's name has no more
MAX_NAME_LEN = 200  # of a model, an argument, a library
MAX_TEXT_LEN = 100_000  # of any other text
MAX_CLASS_BYTES = 2_000_000  # of all class names together: they are in a file up to three times
MAX_LINEAGE = 200  # ancestors
MAX_ANCESTOR_LEN = 500  # characters of each text about an ancestor
MAX_INPUT_SIZE = 4096  # pixels, the side of an image
MAX_DEPTH = 20  # levels of lists and mappings
_ANCESTOR_KEYS = {"id", "sha256", "task"}
_MEAN_RANGE, _STD_RANGE = (-10.0, 10.0), (0.001, 10.0)


def check_metadata_values(values: Mapping[str, Any]) -> None:
    """ValueError, naming the place, for values beyond the limits; their types were checked before."""
    _check_name("model", values["model"])
    check_classes(values["classes"])
    for key, value in values["arguments"].items():
        _check_name("arguments", key)
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(f"arguments.{key}: expected a number, true, false or a text")
        if isinstance(value, str):
            _check_name(f"arguments.{key}", value)
    for key, value in values["versions"].items():
        _check_name("versions", key)
        _check_name(f"versions.{key}", value)
    check_ranges(values["input"]["mean"], values["input"]["std"])
    _check_lineage(values["lineage"])
    for key in ("arguments", "recipe", "data", "results"):
        _check_plain(key, values[key], MAX_DEPTH)
    _check_accuracies(values["results"])


def check_classes(names: Sequence[str]) -> None:
    """ValueError for class names too many or too long, or one that cannot be shown."""
    if len(names) > MAX_CLASSES:
        raise ValueError(f"classes: {len(names):,} of them; at most {MAX_CLASSES:,}")
    for number, name in enumerate(names):
        if not name or len(name) > MAX_CLASS_NAME_LEN or not is_printable(name):
            raise ValueError(
                f"classes.{number}: expected 1 to {MAX_CLASS_NAME_LEN} characters that can be shown, "
                f"found {quoted(name)}"
            )
    if (size := sum(len(name.encode()) for name in names)) > MAX_CLASS_BYTES:
        raise ValueError(f"classes: names of {size:,} bytes together; at most {MAX_CLASS_BYTES:,}")


def check_ranges(mean: Sequence[float], std: Sequence[float]) -> None:
    """ValueError for a mean or standard deviation, of pixels from 0 to 1, too extreme to leave a picture visible."""
    for what, numbers, (least, most) in (("mean", mean, _MEAN_RANGE), ("std", std, _STD_RANGE)):
        if not all(least <= number <= most for number in numbers):
            raise ValueError(f"input.{what}: expected numbers from {least:g} to {most:g}, found {list(numbers)}")


def ancestor_text(text: str | None) -> str | None:
    """A text about an ancestor as a lineage may hold it: Unicode, cut to MAX_ANCESTOR_LEN characters."""
    if text is None:
        return None
    whole = unicode_text(text)
    return whole if len(whole) <= MAX_ANCESTOR_LEN else f"{whole[: MAX_ANCESTOR_LEN - 1]}…"


def _check_lineage(lineage: Sequence[Mapping[str, Any]]) -> None:
    if len(lineage) > MAX_LINEAGE:
        raise ValueError(f"lineage: {len(lineage):,} ancestors; at most {MAX_LINEAGE:,}")
    for number, ancestor in enumerate(lineage):
        if not ancestor.keys() <= _ANCESTOR_KEYS:
            raise ValueError(f"lineage.{number}: expected {', '.join(sorted(_ANCESTOR_KEYS))} alone")
        for key, value in ancestor.items():
            if value is not None and (not isinstance(value, str) or len(value) > MAX_ANCESTOR_LEN):
                raise ValueError(f"lineage.{number}.{key}: expected a text of at most {MAX_ANCESTOR_LEN} characters")


def _check_accuracies(results: Mapping[str, Any]) -> None:
    for key, result in results.items():
        accuracy = result.get("accuracy", 0.0) if isinstance(result, Mapping) else 0.0
        if not isinstance(accuracy, (int, float)) or not 0 <= accuracy <= 1:
            raise ValueError(f"results.{key[:MAX_NAME_LEN]!r}: expected an accuracy from 0 to 1")


def _check_name(place: str, name: str) -> None:
    if not name or len(name) > MAX_NAME_LEN or not is_printable(name):
        raise ValueError(f"{place}: expected 1 to {MAX_NAME_LEN} characters that can be shown, found {quoted(name)}")


def _check_plain(place: str, value: Any, levels: int) -> None:
    """Depth, the lengths of texts, and the range of numbers. `place` is the top one: keys are other people's texts."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT_LEN:
            raise ValueError(f"{place}: a text of {len(value):,} characters; at most {MAX_TEXT_LEN:,}")
    elif isinstance(value, (Mapping, list)):
        if levels == 0:
            raise ValueError(f"{place}: nested deeper than {MAX_DEPTH} levels")
        keys = value if isinstance(value, Mapping) else ()
        if any(not isinstance(key, str) or len(key) > MAX_CLASS_NAME_LEN for key in keys):
            raise ValueError(f"{place}: a key of over {MAX_CLASS_NAME_LEN} characters, or one that is no text")
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_plain(place, item, levels - 1)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{place}: a number that does not fit 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place}: a number that is not finite")
