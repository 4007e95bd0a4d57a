"""The notebook runs as it is in the repository, and is kept there without outputs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"


def test_outputs_are_cleared():
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5 and not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
def test_the_tour_runs(tmp_path):
    pytest.importorskip("nbmake")
    shutil.copy(TOUR, tmp_path)
    words = [sys.executable, "-m", "pytest", "-q", "--nbmake", "--rootdir", ".", TOUR.name]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
