"""The docs site: what its hooks do to a page, and that it builds whole and looks for nothing elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hooks() -> Any:
    pytest.importorskip("latex2mathml")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_become_mathml(hooks):
    page = r'<p>with <span class="arithmatex">\(a &lt; b\)</span></p><div class="arithmatex">\[\sum_i x_i^2\]</div>'
    made = hooks.on_page_content(page, page=None, config=None, files=None)
    assert made.count("<math") == 2 and "arithmatex" not in made and 'display="block"' in made
    assert "&lt;" in made or "&#x0003C;" in made


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        (None, "see its tests, [a page](b.md)"),
        ("https://x.y/z/", "see [its tests](https://x.y/z/blob/HEAD/tests/a.py)"),
    ],
)
def test_links_that_leave_the_docs(hooks, repository, expected):
    page, config = SimpleNamespace(file=SimpleNamespace(src_uri="c.md")), SimpleNamespace(repo_url=repository)
    made = hooks.on_page_markdown(
        "see [its tests](../tests/a.py), [a page](b.md)", page=page, config=config, files=None
    )
    assert made.startswith(expected) and "[a page](b.md)" in made


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    for name in ("material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(name)
    words = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "-f", ".mkdocs.yml", "-d", str(tmp_path)]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")}
    assert pages.keys() >= {"index", "photographs", "weights", "labels", "verdict", "recipes", "hub", "api", "concepts"}
    for name, text in pages.items():
        assert not re.search(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//', text), name
        assert not re.search(r'<link[^>]+rel="(?:stylesheet|preconnect|preload)"[^>]+href="(?:https?:)?//', text), name
        assert r"\(" not in re.sub(r"<(code|pre)\b.*?</\1>", "", text, flags=re.DOTALL), (
            f"{name}: a formula left as TeX"
        )
    assert "adapt_seeds" in pages["api"] and "Fine-tunes" in pages["api"]
