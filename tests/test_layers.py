"""Imports point down only, without a cycle of any kind, and what must be light stays light."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from rooms import MODULES, imports_of

# The rooms from the ground up, and what each may import from besides itself. A room stands above all that it imports.
ROOMS = {
    "errors": set(),
    "batching": set(),
    "text": set(),
    "arguments": {"text", "errors"},
    "system": set(),
    "io": {"errors"},
    "paths": {"io", "errors"},
    "checkpoint": {"io", "system", "text", "errors"},
    "data": {"batching", "checkpoint", "io", "system", "paths", "text", "errors"},
    "models": {"data", "checkpoint", "io", "system", "text", "errors"},
    "exports": {"models", "data", "checkpoint", "io", "text", "errors"},
    "report": {"io", "text", "errors"},
    "recipe": {"batching", "report", "io", "paths", "text", "errors"},
    "distributed": {"io", "text", "errors"},
    "train": {"distributed", "models", "data", "checkpoint", "system", "text", "errors"},
    "hub": {"models", "recipe", "report", "data", "checkpoint", "io", "system", "paths", "text", "errors"},
    "sources": {"hub", "models", "report", "checkpoint", "io", "system", "paths", "text", "errors"},
    "app": {"train", "models", "errors"},
    "run": {
        *("sources", "hub", "train", "distributed", "models", "data", "recipe", "report", "checkpoint", "io"),
        *("system", "paths", "text", "errors"),
    },
    "verification": {
        *(
            "run",
            "sources",
            "hub",
            "train",
            "models",
            "recipe",
            "report",
            "checkpoint",
            "io",
            "system",
            "text",
            "errors",
        ),
    },
    "commands": {
        *(
            "verification",
            "exports",
            "run",
            "app",
            "sources",
            "hub",
            "train",
            "distributed",
            "models",
            "data",
            "recipe",
        ),
        *("report", "checkpoint", "io", "system", "paths", "text", "batching", "errors"),
    },
    "study": {
        *("commands", "run", "sources", "train", "distributed", "models", "data", "recipe", "report", "checkpoint"),
        *("io", "system", "paths", "text", "errors"),
    },
    "cli": {
        "study",
        "commands",
        "run",
        "distributed",
        "recipe",
        "report",
        "data",
        "io",
        "system",
        "paths",
        "text",
        "errors",
        "__init__",
    },
    "__init__": {"arguments", "study", "commands", "run", "sources", "models", "report", "system"},
    "__main__": {"cli"},
}


def first_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_only(module):
    room = module.split(".")[0]
    assert room in ROOMS, f"a new room {room!r}: say in this test what it may import"
    assert {name.split(".")[0] for name in imports_of(module)} - {room} <= ROOMS[room]


def test_no_module_imports_itself_by_a_detour():
    assert first_cycle({module: set(imports_of(module)) for module in MODULES}) is None


def test_the_rooms_have_no_cycle():
    assert first_cycle(ROOMS) is None


def test_a_cycle_would_be_found():
    assert first_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})


def test_every_room_has_several_modules_that_say_enough():
    for room in ROOMS.keys() - {"__init__", "__main__", "arguments", "errors", "batching", "text", "paths", "system"}:
        assert len([m for m in MODULES if m.startswith(f"{room}.")]) > 1, room
    short = {m for m, p in MODULES.items() if "." in m and p.name != "__init__.py" and lines(p) < 20}
    assert not short, "a module under 20 lines belongs to its neighbour"
    assert not {m for m in MODULES if m.rpartition(".")[2] in ("utils", "helpers", "common", "misc")}


def lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


@pytest.mark.parametrize(
    "statement",
    [
        "import finetune",
        "import finetune.cli.main",
        "import finetune.errors",
        "import finetune.data.image_io",
        "import finetune.recipe.load",
        "import finetune.recipe.docs",
        "import finetune.data.registry",
        "from finetune.data.openers import is_image_path; is_image_path('mnist')",
        "import finetune.models.registry",
        "import finetune.commands.listing",
        "import finetune.commands.inspect",
        "import finetune.report.tables",
        "import finetune.report.plots",
    ],
)
def test_needs_no_torch(statement):
    heavy = {"torch", "torchvision", "sklearn", "scipy", "matplotlib"}
    code = f"{statement}\nimport sys\nassert not {heavy} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['finetune', '--help']\n"
        "from finetune.cli.main import main\n"
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

    owners = {m for m, p in MODULES.items() if any(map(touches, ast.walk(ast.parse(p.read_text()))))}
    assert owners == {"train.freeze", "train.linear_probe"}  # the probe's are its own fresh variables
