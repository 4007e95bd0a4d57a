"""Says in one plain sentence why text is not YAML, and on which line."""

from __future__ import annotations

from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from finetune.recipe.faults import Fault
from finetune.strangers.printable import quoted

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


def syntax_fault(error: Exception, text: str) -> Fault:
    """Returns the fault for what the YAML parser raised on `text`."""
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        character = error.character if isinstance(error.character, str) else chr(error.character)
        return Fault((), f"the character {quoted(character)} cannot stand in a recipe", line=line)
    if not isinstance(error, MarkedYAMLError):
        return Fault((), "is not valid YAML", line=1)
    words = f"{error.context} {error.problem}".replace("\t", r"\t")
    for part, sentence, from_start in _SENTENCES:
        if part in words:
            return Fault((), f"not valid YAML: {sentence}", line=_line(error, from_start, text))
    return Fault((), f"not valid YAML: {error.problem}", line=_line(error, False, text))


def _line(error: MarkedYAMLError, from_start: bool, text: str) -> int:
    mark = error.context_mark if from_start and error.context_mark else error.problem_mark or error.context_mark
    last = max(1, len(text.splitlines()))
    return min(int(mark.line) + 1, last) if mark else 1
