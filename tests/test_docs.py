"""The generated pages are what the code says now, and the README's words are true of the program."""

import json
import re
from pathlib import Path

import pytest
import rooms

from finetune.cli.docs import commands_markdown
from finetune.recipe.docs import json_schema, reference_markdown
from finetune.report.rows import rows_markdown

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("commands.md", commands_markdown),
        ("recipes.md", reference_markdown),
        ("recipe.schema.json", lambda: json.dumps(json_schema())),
        ("rooms.svg", rooms.svg),
    ],
)
def test_generated_pages_are_up_to_date(name, expected):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        assert json.loads(text) == json.loads(expected()), "run `make docs`"
    else:
        assert text.rstrip() == expected().rstrip(), "run `make docs`"


def test_the_rows_of_the_verdict_are_documented():
    page = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
    assert rows_markdown() in page, "put in what `python -m finetune.report.rows` prints"


def pages():
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.name)
def test_commands_in_the_pages_exist(page):
    from finetune.cli.main import cli

    for line in re.findall(
        r"^(?:\$ )?finetune ([a-z]+)((?: [^\n#]*)?)", page.read_text(encoding="utf-8"), re.MULTILINE
    ):
        name, rest = line
        assert name in cli.commands, f"finetune {name}"
        known = {opt for param in cli.commands[name].params for opt in param.opts} | {"--help"}
        assert set(re.findall(r"(?<=\s)--[a-z0-9-]+", rest)) <= known, f"finetune {name}{rest}"
        for recipe in re.findall(r"recipes/[\w-]+\.yaml", rest):
            assert (ROOT / recipe).exists(), recipe
