"""The run folder: whether an earlier attempt is resumed, begun anew or moved aside, and when snapshots are due."""

from pathlib import Path

import pytest

from finetune.errors import SettingError
from finetune.report.console import Console
from finetune.run.output_paths import append_metrics, check_outputs
from finetune.run.run_folder import EarlierAttempt, RunFolder, RunIdentity, SnapshotTimer
from finetune.run.snapshot import NetworkState, ResumeOptions


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return check_outputs(None, "mnist")


def opened(outputs, recipe="a recipe", seed=0, **options):
    return RunFolder(outputs, RunIdentity(recipe, {"seed": seed}, {}), ResumeOptions(**options), Console(quiet=True))


def attempt(outputs, *, snapshot=False):
    """A run that wrote a row of metrics and then died, before or after its first snapshot."""
    with opened(outputs) as run:
        append_metrics(outputs, {"epoch": 1})
        run.record({"epoch": 1})
        if snapshot:
            run.save("training", {"training": NetworkState(epochs=1)}, {}, None, "the end of phase one")
    (outputs.run_folder / "notes.txt").write_text("mine")


def run_folders():
    return sorted(path.name for path in Path("runs").iterdir())


def test_a_run_without_a_snapshot_is_begun_anew_where_it_is(outputs):
    attempt(outputs)
    with opened(outputs, resume=True) as run:
        assert run.earlier == EarlierAttempt() and run.rows == []
        assert not outputs.metrics.exists(), "its rows will be written again"
    assert run_folders() == ["mnist"] and (outputs.run_folder / "notes.txt").exists()


@pytest.mark.parametrize("options", [{"recipe": "another", "resume": True}, {"resume": False}])
def test_another_run_is_moved_aside_as_is_one_that_shall_not_be_resumed(outputs, options):
    attempt(outputs)
    with opened(outputs, **options):
        assert not outputs.metrics.exists() and not (outputs.run_folder / "notes.txt").exists()
    aside, here = run_folders()[::-1]
    assert here == "mnist" and (Path("runs") / aside / "metrics.jsonl").exists()


def test_a_run_with_a_snapshot_is_resumed_with_the_rows_up_to_it(outputs):
    attempt(outputs, snapshot=True)
    append_metrics(outputs, {"epoch": 2})
    with opened(outputs, resume=True) as run:
        assert run.earlier.state.networks == {"training": NetworkState(epochs=1)} and run.finished is None
        assert run.rows == [{"epoch": 1}] and outputs.metrics.read_text() == '{"epoch": 1}\n'
        run.restore_rng_state()
    with pytest.raises(
        SettingError, match="holds a different run, which cannot be resumed:\n  seed: 0 there, 1 here\n"
    ):
        opened(outputs, seed=1, resume=True).__enter__()


def test_an_error_after_a_snapshot_says_how_to_resume(outputs):
    with pytest.raises(SettingError) as caught, opened(outputs, resume_command="finetune x") as run:
        run.save("training", {}, {}, None, "now")
        raise SettingError("bad")
    assert str(caught.value) == "bad\nsnapshot: now, in runs/mnist/snapshots; resume with: finetune x"


def test_a_snapshot_is_due_after_its_interval_and_at_the_end_of_an_epoch_that_is_long_enough():
    timer = SnapshotTimer(60.0)
    assert timer.due(epoch_ended=True) and not timer.due(epoch_ended=False)
    timer.cost = 1.0
    assert not timer.due(epoch_ended=True), "saving would take more than a twentieth of the time"
    timer.saved -= 21
    assert timer.due(epoch_ended=True) and not timer.due(epoch_ended=False)
    timer.saved -= 40
    assert timer.due(epoch_ended=False)
    with timer.measure():
        pass
    assert timer.cost < 1 and not timer.due(epoch_ended=False)
