"""A real command, killed from outside at random moments, ends as if nobody had touched it; `kill_run.py` does more."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import SGD, SUPPORT, phase, pretrain_recipe


@pytest.mark.slow
def test_a_killed_run_ends_as_one_never_killed(folder: Path) -> None:
    Path("small.yaml").write_text(pretrain_recipe(phase(length="epochs: 5", optimizer=SGD)))
    script = SUPPORT / "kill_run.py"
    command = ["pretrain", "--recipe", "small.yaml", "--snapshot-every", "0", "--quiet"]
    done = subprocess.run(
        [sys.executable, script, "--kills", "3", "--seed", "2", "--", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nkill ") == 3 and "runs ended with" in done.stdout
