"""The same training writes the same bytes as before: a change of these hashes is a change of every checkpoint."""

from pathlib import Path

import golden
import pytest


def check(name, make, folder: Path) -> None:
    expected = golden.known()
    if expected is None:
        pytest.skip(f"no hashes recorded for {golden.machine()}; `python tests/support/golden.py` records them")
    assert golden.hashes(make, folder) == expected[name]


@pytest.mark.parametrize("name", golden.SHORT)
def test_a_training_gives_the_bytes_it_always_gave(name, tmp_path):
    check(name, golden.SHORT[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.LONG)
def test_a_whole_recipe_gives_the_bytes_it_always_gave(name, tmp_path):
    check(name, golden.LONG[name], tmp_path)
