"""The report of `finetune check`: what was found in the pictures, worst first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.text import Text

MAX_SHOWN = 10  # pictures of one finding on the screen

# What is found, worst first, and what it is called.
KINDS: dict[str, str] = {
    "two_labels": "one picture under two labels",
    "twins_across_parts": "test pictures with a twin to learn from",
    "flattery": "twins flatter",
    "grouping": "a grouping that file names show",
    "labels": "labels that other pictures contradict",
    "twins": "twins within one part",
    "plain": "pictures that show nothing",
    "odd": "pictures unlike all others",
    "class_names": "class names that differ in case or spacing only",
    "few": "classes with few pictures",
    "uneven": "uneven classes",
    "colour": "colour is thrown away",
    "notes": "said while the pictures were opened",
}


@dataclass(frozen=True)
class Finding:
    """Something found. kind: a key of KINDS. says: what it is and what to do. count: of what was found.

    pictures: JSON objects, worst first: `image` and, as it applies, `part`, `label`, `twin`, `likelier`, `score`.
    """

    kind: str
    says: str
    count: int
    pictures: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class CheckReport:
    """What `finetune check` found. parts: images of each part. classes: images of each class, all parts together.

    features: what pictures were compared by for their labels. agreement: which share of labels the out-of-fold probe
    names, each image by itself and with twins and groups kept together; None where it was not asked.
    group: the pattern for data.group that file names suggest. suspects: pictures that --write leaves out.
    """

    data: str
    source: str | None
    parts: dict[str, int]
    classes: dict[str, int]
    size: list[int]
    features: str
    agreement: dict[str, float] | None
    group: str | None
    findings: list[Finding]
    suspects: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return values


def check_parts(found: Mapping[str, Any]) -> list[RenderableType]:
    """What `finetune check` shows: a paragraph for each finding, worst first."""
    parts = ", ".join(f"{count:,} {part}" for part, count in found["parts"].items() if count)
    lines: list[str] = [f"{found['data']}: {len(found['classes'])} classes, {parts}"]
    if not found["findings"]:
        lines.append("nothing found")
    for finding in found["findings"]:
        lines.append(f"{KINDS[finding['kind']]}: {finding['says']}")
        lines += [f"  {_picture_line(picture)}" for picture in finding["pictures"][:MAX_SHOWN]]
        more = len(finding["pictures"]) - MAX_SHOWN
        lines += [f"  and {more:,} more (--json lists all)"] if more > 0 else []
    return [Text(line) for line in lines]


def _picture_line(picture: Mapping[str, Any]) -> str:
    line: str = picture["image"]
    if "label" in picture:
        line += f" ({picture['label']})"
    if "twin" in picture:
        line += f" ~ {picture['twin']}"
    if "twin_label" in picture:
        line += f" ({picture['twin_label']})"
    if "likelier" in picture:
        line += f": more like {picture['likelier']}"
    return line
