"""The run folder: whether an earlier attempt is resumed, begun anew or moved aside, and when snapshots are due."""

import errno
import os
from pathlib import Path

import pytest

from finetune.errors import OutputError, SettingError
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


PIPES = ("recipe.yaml", "finished.json", "log.txt", "metrics.jsonl", "snapshots", "interrupted.safetensors", "lock")


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("resume", [True, False])
def test_a_pipe_in_the_run_folder_is_not_waited_for(outputs, name, resume, capsys):
    """Reading one would last for ever; what is in its place is said, moved aside with the folder, or not needed."""
    attempt(outputs)
    (outputs.run_folder / name).unlink(missing_ok=True)
    os.mkfifo(outputs.run_folder / name)
    try:
        with opened(outputs, resume=resume) as run:
            assert run.finished is None
            run.console.note("a line")
            append_metrics(outputs, {"epoch": 1})
        assert name != "lock"
    except OutputError as error:
        assert f"runs/mnist/{name}: " in str(error) and ("it is a pipe" in str(error) or name in ("lock", "snapshots"))


def test_what_cannot_be_deleted_after_the_end_is_said_and_no_failure(outputs, monkeypatch, capsys):
    def refuse(path, *_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened(outputs) as run:
        (outputs.interrupted).touch()
        monkeypatch.setattr(os, "unlink", refuse)
        run.delete_unfinished()
    said = capsys.readouterr().err
    assert said.startswith(
        "warning: left over, though the run has finished: runs/mnist/interrupted.safetensors: cannot"
    )


def test_what_has_to_be_deleted_before_the_start_is_an_error(outputs, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"), opened(outputs):
        pass
