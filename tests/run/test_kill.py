"""A real command, killed from outside at random moments, ends as if nobody had touched it; `kill_run.py` does more."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import SGD, SUPPORT, phase, pretrain_recipe


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_one_never_killed(kills: int, folder: Path) -> None:
    Path("small.yaml").write_text(pretrain_recipe(phase(length=f"epochs: {kills + 1}", optimizer=SGD)))
    script = SUPPORT / "kill_run.py"
    command = ["pretrain", "--recipe", "small.yaml", "--snapshot-every", "0", "--quiet"]
    done = subprocess.run(
        [sys.executable, script, "--kills", str(kills), "--seed", "2", "--", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nkill ") == kills and "runs ended with" in done.stdout
