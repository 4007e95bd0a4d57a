"""The rooms of the package and what they import, read from the code.

`python tests/support/rooms.py` prints a picture of them.

The picture is an SVG: a box for each room with its modules, each above all that it imports. An arrow says "imports";
those that follow from others are left out.
"""

from __future__ import annotations

import ast
from functools import cache
from html import escape
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "finetune"
WIDTH, MARGIN, LINE, LETTER = 1000, 14, 15, 6.3  # pixels; LETTER is the mean width of a letter of 11 pixels


def module_of(path: Path) -> str:
    """The dotted name inside the package, as in "data.loader"; a package's __init__ is the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports_of(module: str) -> frozenset[str]:
    """The modules that one imports from anywhere in it: inside functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import hides its direction"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            head, *parts = name.split(".")
            if head == "finetune":
                whole = ".".join(parts)
                found.add(whole if whole in MODULES else ".".join(parts[:-1]) or "__init__")
    return frozenset(found) - {module}


def room_imports() -> dict[str, set[str]]:
    """Which rooms each room imports; modules at the top of the package count as one room, "top"."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        if not module.startswith("__"):
            below = {_room(name) for name in imports_of(module) if not name.startswith("__")}
            found.setdefault(_room(module), set()).update(below)
    return {room: below - {room} for room, below in found.items()}


def _room(module: str) -> str:
    """Its folder; a module at the top that imports from a folder is a room of its own, the others are "top"."""
    head = module.split(".")[0]
    if (PACKAGE / head).is_dir():
        return head
    return head if any((PACKAGE / name.split(".")[0]).is_dir() for name in imports_of(head)) else "top"


def _floor(room: str, graph: dict[str, set[str]]) -> int:
    return max((_floor(below, graph) + 1 for below in graph[room]), default=0)


def _arrows(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others: (room, room below)."""

    def reaches(start: str) -> set[str]:
        return graph[start].union(*(reaches(below) for below in graph[start]))

    return [
        (room, below)
        for room in graph
        for below in sorted(graph[room])
        if not any(below in reaches(other) for other in graph[room] - {below})
    ]


def svg() -> str:
    """The picture of the rooms."""
    graph = room_imports()
    floors = {room: _floor(room, graph) for room in graph}
    places: dict[str, tuple[float, float, float, float]] = {}
    shapes, top = [], float(MARGIN)
    for floor in range(max(floors.values()), -1, -1):
        rooms = [room for room in sorted(graph) if floors[room] == floor]
        width = (WIDTH - MARGIN * (len(rooms) + 1)) / len(rooms)
        texts = {room: _wrapped(room, width - 2 * MARGIN) for room in rooms}
        height = 26 + LINE * max(map(len, texts.values()))
        for number, room in enumerate(rooms):
            left = MARGIN + number * (width + MARGIN)
            places[room] = left, top, width, height
            shapes.append(f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{height}" rx="6"/>')
            shapes.append(f'<text class="room" x="{left + MARGIN:.0f}" y="{top + 18:.0f}">{escape(room)}</text>')
            for line, text in enumerate(texts[room]):
                shapes.append(f'<text x="{left + MARGIN:.0f}" y="{top + 34 + LINE * line:.0f}">{escape(text)}</text>')
        top += height + 34
    lines = []
    for above, below in _arrows(graph):
        (x, y, w, h), (bx, by, bw, _) = places[above], places[below]
        start = min(max(bx + bw / 2, x + 12), x + w - 12)
        end = min(max(start, bx + 12), bx + bw - 12)
        lines.append(f'<line x1="{start:.0f}" y1="{y + h:.0f}" x2="{end:.0f}" y2="{by:.0f}"/>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top - 20:.0f}" font-family="Arial">',
            "<style>rect{fill:#f4f6f8;stroke:#5b6b7b}text{font-size:11px;fill:#333}.room{font-size:14px;font-weight:bold}"
            "line{stroke:#5b6b7b;marker-end:url(#tip)}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#5b6b7b"/></marker></defs>',
            '<rect width="100%" height="100%" style="fill:#fff;stroke:none"/>',
            *lines,
            *shapes,
            "</svg>\n",
        ]
    )


def _wrapped(room: str, width: float) -> list[str]:
    """The names of a room's modules, in lines of at most `width` pixels."""
    own = [m for m, path in MODULES.items() if _room(m) == room and path.stem[:2] != "__"]
    lines = [""]
    for name in (module.removeprefix(f"{room}.") for module in own):
        longer = f"{lines[-1]}, {name}" if lines[-1] else name
        if len(longer) * LETTER > width and lines[-1]:
            lines.append(name)
        else:
            lines[-1] = longer
    return lines


if __name__ == "__main__":
    print(svg(), end="")
