"""Single values: which text is a number, after the core schema of YAML 1.2, and which values a recipe can hold.

In YAML 1.2 `1e-3` is a number, and `no`, `yes` and `on` are text. https://yaml.org/spec/1.2.2/#103-core-schema
"""

from __future__ import annotations

import math
import re
import unicodedata

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
_MOST_DIGITS = 1000  # beyond this a number is refused without being worked out
_TOO_LARGE = 2**63  # whole numbers stop before this: they must fit 64 bits


def resolve(text: str) -> Scalar:
    """Returns what plain (unquoted) `text` stands for: a number, true or false, null, or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _ENDLESS.fullmatch(text):
        return float(text.replace(".", ""))
    if len(text) > _MOST_DIGITS:
        return math.inf if _FLOAT.fullmatch(text) else text
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    return float(text) if _FLOAT.fullmatch(text) else text


def unusable(value: Scalar) -> str | None:
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
    if _is_number(resolve(value)):
        return f"; write {value} without quotes" if not whole or isinstance(resolve(value), int) else ""
    text = re.sub(r"[\s_]", "", value).replace(",", ".")
    text = re.sub("[\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}]", "-", text)
    percent = text.endswith("%")
    if not _is_number(resolve(text.removesuffix("%"))):
        return ""
    text = f"{float(text.removesuffix('%')) / 100:g}" if percent else text
    return f"; write {text}" if not whole or isinstance(resolve(text), int) else ""


def truth_hint(value: object) -> str:
    """Returns `; write false` for text such as `no`, which older YAML took for false, else ""."""
    word = value.lower() if isinstance(value, str) else ""
    if word in ("no", "off", "n", "false"):
        return "; write false"
    return "; write true" if word in ("yes", "on", "y", "true") else ""


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and unusable(value) is None
