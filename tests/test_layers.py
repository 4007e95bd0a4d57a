"""Imports point down only, and what must be light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "finetune"

# What each room may import from, besides itself. Lower rooms stand further down; siblings are not in each other's sets.
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "digest": set(),
    "machine": set(),
    "strangers": set(),
    "lock": {"files", "errors"},
    "folders": {"files", "errors"},
    "header": {"strangers", "errors"},
    "tensors": {"header", "digest", "machine", "strangers", "errors"},
    "bounds": {"strangers"},
    "pictures": {"machine", "strangers", "errors"},
    "__init__": {"api", "saving", "source", "models", "reporting"},
    "reporting": {"strangers", "files", "errors"},
    "data": {"pictures", "bounds", "machine", "strangers", "errors"},
    "models": {"pictures", "bounds", "machine", "strangers", "errors"},
    "recipe": {"strangers", "errors"},
    "checkpoint": {"tensors", "header", "bounds", "digest", "strangers", "files", "errors"},
    "training": {"data", "models", "tensors", "folders", "digest", "errors"},
    "hub": {"checkpoint", "bounds", "strangers", "files", "errors"},
    "told": {"models", "hub", "checkpoint", "bounds", "errors"},
    "foreign": {"told", "models", "hub", "checkpoint", "errors"},
    "source": {"foreign", "models", "hub", "checkpoint", "bounds", "errors"},
    "saving": {"source", "training", "models", "checkpoint", "files", "errors"},
    "commands": {
        *("saving", "source", "hub", "training", "data", "models", "pictures", "recipe", "checkpoint"),
        *("reporting", "lock", "header", "bounds", "digest", "machine", "strangers", "files", "errors"),
    },
    "api": {"commands", "reporting", "errors"},
    "options": set(),
    "cli": {"options", "commands", "data", "reporting", "machine", "strangers", "errors", "__init__"},
    "help": {"cli"},
    "__main__": {"cli"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] if node.module != "finetune" else [f"finetune.{a.name}" for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "finetune":
                room = parts[1] if len(parts) > 1 else "__init__"
                found.add(room if room in ALLOWED else "__init__")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down_only(path):
    room = room_of(path)
    assert room in ALLOWED, f"a new room {room!r}: say in this test what it may import"
    assert rooms_imported(path) - {room} <= ALLOWED[room]


def test_no_relative_imports_hide_a_direction():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}:{node.lineno}"


def test_the_allowed_directions_have_no_cycle():
    done: set[str] = set()
    rooms = {room: set(below) - {"__init__"} for room, below in ALLOWED.items()}
    while len(done) < len(rooms):
        free = [room for room, below in rooms.items() if room not in done and below <= done]
        assert free, f"a cycle among {set(rooms) - done}"
        done |= set(free)


@pytest.mark.parametrize(
    "statement",
    [
        "import finetune",
        "import finetune.cli",
        "import finetune.errors",
        "import finetune.pictures",
        "import finetune.recipe.reader",
        "import finetune.recipe.reference",
        "import finetune.data.catalog",
        "from finetune.data.photographs import is_photographs; is_photographs('mnist')",
        "import finetune.models.registry",
        "import finetune.commands.recipes",
        "import finetune.commands.inspect",
        "import finetune.reporting.tables",
        "import finetune.reporting.pictures",
    ],
)
def test_needs_no_torch(statement):
    heavy = {"torch", "torchvision", "sklearn", "scipy", "matplotlib"}
    code = f"{statement}\nimport sys\nassert not {heavy} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['finetune', '--help']\n"
        "from finetune.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'ruamel', 'rich', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_freeze_touches_requires_grad():
    def touches(node):
        called = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "requires_grad_"
        targets = node.targets if isinstance(node, ast.Assign) else []
        return called or any(getattr(target, "attr", "") == "requires_grad" for target in targets)

    owners = {p.name for p in PACKAGE.rglob("*.py") if any(map(touches, ast.walk(ast.parse(p.read_text()))))}
    assert owners == {"freeze.py", "solver.py"}  # the solver's are its own fresh variables
