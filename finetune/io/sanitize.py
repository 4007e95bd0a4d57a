"""Makes text from other people's files safe to print on a terminal."""

from __future__ import annotations

import json
import os
import re
import unicodedata

_SHORT = 60  # characters of a text that are repeated in a message

# The folders of an absolute path within a sentence, and no URL, fraction or "images/s". A folder's name may have spaces
# and commas, but no path continues after ": ", ", " or "; ", and no name ends in a space.
_NAME = r"(?:[^/\\\n:;,\"]|,(?! ))*[^/\\\n:;,\"\s]"
_FOLDERS = re.compile(rf"(?<![\w.:/\\])(?:~?/|[A-Za-z]:\\|\\\\)(?:{_NAME}[/\\])*(?={_NAME})")


def is_printable(text: str) -> bool:
    """Whether every character can be shown: no line break, control character, half character, or unseen mark.

    Unlike `str.isprintable`, any kind of space will do.
    """
    return text.isprintable() or all(c.isprintable() or unicodedata.category(c) == "Zs" for c in text)


def printable(text: object) -> str:
    """Replaces each character that cannot be shown with `�`."""
    whole = os.fspath(text) if isinstance(text, os.PathLike) else str(text)
    return whole if whole.isprintable() else "".join(c if is_printable(c) else "�" for c in whole)


def printable_lines(text: str) -> str:
    """Applies `printable` to each line of a text."""
    return "\n".join(map(printable, text.split("\n")))


def escaped_json(text: str) -> str:
    """Escapes what cannot be shown in JSON text as `\\u....`, so also each byte of a file name that is no UTF-8.

    Python reads such a name back as `os.fsdecode` gives it: the byte 0xE9 is `\\udce9`.
    """
    if text.replace("\n", "").isprintable():
        return text
    kept = [c == "\n" or is_printable(c) for c in text]
    return "".join(c if keep else json.dumps(c)[1:-1] for c, keep in zip(text, kept, strict=True))


def without_folders(text: str) -> str:
    """The text with the last name alone of each absolute path: what is passed on tells nothing of the machine."""
    return _FOLDERS.sub("", text)


def name_in_line(name: str, *, terminal: bool) -> str:
    """A file's name for a line of text, where it can forge no other line: as it is, else as an ASCII string of JSON.

    On a terminal every character that cannot be shown has it quoted; elsewhere only line breaks, tabs and other control
    characters do. So has a double quote at its start, which tells the two forms apart.
    """
    odd = not is_printable(name) if terminal else any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name)
    return json.dumps(name) if odd or name.startswith('"') else name


def quoted(text: str, most: int = _SHORT) -> str:
    """Puts the text in double quotes, cut to `most` characters, odd characters escaped as Python would."""
    cut = text if len(text) <= most else text[: most - 3] + "..."
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return '"' + escaped.replace('"', '\\"') + '"'
