"""The marks around what finetune writes into a model card, by which a person's own words survive the next push."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

# The digest is that of the section as finetune wrote it: whether a person changed it since can be told from it.
_SECTION = re.compile(
    r"<!-- finetune:begin (?P<name>[a-z-]+) (?P<digest>[0-9a-f]{12}) -->\n(?P<text>.*?)\n"
    r"<!-- finetune:end (?P=name) -->",
    re.DOTALL,
)
_YAML = re.compile(r"\A\s*---\n(.*?\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)
_EARLIER = "- `README.md`: this page"  # in every card of versions that set no marks
YOUR_WORDS = (
    "<!-- Your own words go here, or anywhere else outside the marks finetune:begin and finetune:end: the next push "
    "leaves them as they are. -->"
)
OWNED = ("library_name", "pipeline_tag", "model-index")  # keys of the metadata that are always finetune's
LISTS = ("tags", "datasets", "metrics", "widget")  # to which a person may add entries


def digest_of(text: str) -> str:
    """The digest in a section's first mark."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def marked(name: str, text: str) -> str:
    """A section between its marks."""
    return f"<!-- finetune:begin {name} {digest_of(text)} -->\n{text}\n<!-- finetune:end {name} -->"


def unmarked(text: str) -> str:
    """Text from outside without anything that could be one of the marks."""
    return text.replace("<!--", "< !--")


def fresh_body(sections: Mapping[str, str]) -> str:
    """The card's text where there was none before: every section, and a place for a person's words after the first."""
    first, *others = (marked(name, text) for name, text in sections.items())
    return "\n\n".join([first, YOUR_WORDS, *others]) + "\n"


def merge_body(previous: str, sections: Mapping[str, str]) -> tuple[str, list[str]]:
    """The text of a card that is there with its sections made anew, and remarks on what a person had changed in them.

    What stands outside the marks stays, byte for byte. A section that a person changed stays too, as long as what
    finetune would write there is what it wrote before; else the new one takes its place, and theirs stands below it,
    outside the marks. A text without marks is kept below the new one, unless an earlier finetune wrote it.
    """
    there = {found["name"] for found in _SECTION.finditer(previous)}
    if not there:
        if not previous.strip() or _EARLIER in previous:
            return fresh_body(sections), []
        remark = "README.md had a text that finetune did not write: it is kept below the new one"
        return f"{fresh_body(sections)}\n{previous.strip()}\n", [remark]
    remarks: list[str] = []

    def renew(found: re.Match[str]) -> str:
        name, text, new = found["name"], found["text"], sections.get(found["name"])
        touched = digest_of(text) != found["digest"]
        if new is None:
            return text if touched else ""
        if not touched or text == new:
            return marked(name, new) + _absent_after(name, sections, there)
        if digest_of(new) == found["digest"]:
            remarks.append(f"README.md: the section {name!r} was changed by hand and is kept")
            return found[0] + _absent_after(name, sections, there)
        remarks.append(
            f"README.md: the section {name!r} was changed by hand, and its facts are others now: the new section is in "
            "its place, and the one changed by hand stands below it"
        )
        return f"{marked(name, new)}\n\n{text}" + _absent_after(name, sections, there)

    return _SECTION.sub(renew, previous), remarks


def _absent_after(name: str, sections: Mapping[str, str], there: set[str]) -> str:
    """The sections that a card does not have yet and that come right after one that it has."""
    names = list(sections)
    found = ""
    for following in names[names.index(name) + 1 :]:
        if following in there:
            break
        found += f"\n\n{marked(following, sections[following])}"
    return found


def split_card(card: str) -> tuple[dict[str, Any] | None, str]:
    """The metadata of a card, and its text. None for metadata that cannot be read, {} where there is none."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    card = card.replace("\r\n", "\n")
    found = _YAML.match(card)
    if found is None:
        return {}, card
    try:
        values = YAML(typ="safe", pure=True).load(found[1] or "")
    except (YAMLError, ValueError, RecursionError):
        return None, card[found.end() :]
    return (values if isinstance(values, dict) else None) if values is not None else {}, card[found.end() :]


def merge_metadata(previous: Mapping[str, Any], new: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a card that is there, made anew: keys and entries of lists that a person added stay.

    ours: by key, whether an entry of a list may be one that finetune wrote, and is therefore made anew.
    """
    kept = {key: value for key, value in previous.items() if isinstance(key, str) and key not in (*OWNED, *LISTS)}
    if "base_model" in new:
        kept.pop("base_model_relation", None)
    found = dict(new) | {key: value for key, value in kept.items() if key not in new}
    for key in LISTS:
        given = previous.get(key)
        entries = given if isinstance(given, list) else [given] if isinstance(given, str) else []
        added = [entry for entry in entries if not ours[key](entry) and entry not in new.get(key, [])]
        if added:
            found[key] = [*new.get(key, []), *added]
    return found
