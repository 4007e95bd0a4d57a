"""Logs beside metrics.jsonl: what is in them, read by the readers of the programs they are for."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reports import adapt_report
from tiny import adapt_recipe, phase, refused, report_of, worked

import finetune as toolkit
from finetune.errors import Interrupted, OutputError, SettingError
from finetune.run import phases
from finetune.run.loggers import LOGS, confusion_of, row_scalars
from finetune.study.runner import TrialOptions
from finetune.train import loop

TWO = adapt_recipe(
    phase("head", "epochs: 2", more="name: top") + phase("all", "epochs: 1", more="name: every"), compare="[scratch]"
)
ROWS = 6  # two phases, and the run from scratch, which is as long as both


@pytest.fixture(autouse=True)
def a_row_for_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MIN_ROW_STEPS", 1)


def events(folder: Path) -> Any:
    """What TensorBoard reads in a folder; every event that is on the disk, since there is one file."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert len(list(folder.iterdir())) == 1
    found = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def trackio_lines(name: str) -> list[dict[str, Any]]:
    """What trackio reads of the newest run of a name, of which the folder's id is one."""
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    own = Path(f"runs/{name}/trackio_run_id").read_text().strip()
    (run,) = [run for run in trackio.Api().runs("finetune") if run.id == own]
    assert run.config["run_folder"].endswith(f"runs/{name}") and run.config["_Group"] == name.partition("/")[0]
    return SQLiteStorage.get_logs("finetune", run.name, run_id=own)


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]


def adapt(pretrained: Path, out: str, *words: object) -> None:
    Path("two.yaml").write_text(TWO)
    worked("adapt", "--from", pretrained, "--target", "kmnist", "--recipe", "two.yaml", "--out", out, "--quiet", *words)


def stopped(pretrained: Path, out: str, rows: int, log: list[str]) -> None:
    """An adapt that is stopped when this many rows have been written."""
    written = 0

    def append_metrics(outputs: object, row: object) -> None:
        nonlocal written
        written += 1
        if written == rows:
            os.kill(os.getpid(), signal.SIGTERM)

    Path("two.yaml").write_text(TWO)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(phases, "append_metrics", append_metrics)
        toolkit.adapt(pretrained, "kmnist", "two.yaml", out=out, log=log)


def test_a_row_s_numbers_are_named_by_phase_and_key():
    row = {"phase": "top", "epoch": 3, "train_loss": 0.5, "validation_accuracy": None, "learning_rate": 0}
    assert row_scalars(row) == {"top/train_loss": 0.5, "top/learning_rate": 0.0}


@pytest.mark.slow
def test_both_logs_have_every_row_and_the_outcome(folder, pretrained, monkeypatch):
    for name in LOGS:
        pytest.importorskip(name)
    adapt(pretrained, "plain.safetensors")
    assert not Path("runs/plain/tensorboard").exists()
    monkeypatch.setattr(socket.socket, "connect", None)  # nothing may be sent
    adapt(pretrained, "seen.safetensors", "--log", "tensorboard", "--log", "trackio", "--log", "trackio")
    assert Path("plain.safetensors").read_bytes() == Path("seen.safetensors").read_bytes()
    rows, after = rows_of("seen"), report_of("seen.safetensors")["results"]["after"]["accuracy"]
    assert len(rows) == ROWS and {row["phase"] for row in rows} == {"top", "every", "scratch"}

    found = events(Path("runs/seen/tensorboard"))
    for step, row in enumerate(rows, 1):
        for name, value in row_scalars(row).items():
            (own,) = [event.value for event in found.Scalars(name) if event.step == step]
            assert own == pytest.approx(value)
    (last,) = found.Scalars("test_accuracy/after")
    assert (last.step, last.value) == (ROWS, pytest.approx(after))
    (text,) = found.Tensors("verdict/text_summary")
    assert "interval" in text.tensor_proto.string_val[0].decode()
    (picture,) = found.Images("confusion")
    assert picture.step == ROWS and picture.width > 400

    *lines, end = trackio_lines("seen")
    assert [line["step"] for line in lines] == list(range(1, ROWS + 1)) and end["step"] == ROWS + 1
    for line, row in zip(lines, rows, strict=True):
        assert row_scalars(row).items() <= line.items()
    assert end["test_accuracy/after"] == after and "interval" in end["verdict"]["_value"]
    assert (Path(os.environ["TRACKIO_DIR"]) / "media" / end["confusion"]["file_path"]).read_bytes()[1:4] == b"PNG"


def test_resuming_continues_the_same_log(folder, pretrained):
    for name in LOGS:
        pytest.importorskip(name)
    stopped(pretrained, "seen.safetensors", 2, list(LOGS))
    own = Path("runs/seen/trackio_run_id").read_text()
    assert [line["step"] for line in trackio_lines("seen")] == [1, 2]
    assert {event.step for event in events(Path("runs/seen/tensorboard")).Scalars("top/train_loss")} == {1, 2}
    adapt(pretrained, "seen.safetensors", "--log", "tensorboard", "--log", "trackio", "--resume")
    assert Path("runs/seen/trackio_run_id").read_text() == own
    assert [line["step"] for line in trackio_lines("seen")] == list(range(1, ROWS + 2))
    found = events(Path("runs/seen/tensorboard"))
    steps = [event.step for name in ("top", "every", "scratch") for event in found.Scalars(f"{name}/train_loss")]
    assert steps == list(range(1, ROWS + 1))


def test_a_log_that_is_asked_for_when_resuming_is_whole(folder, pretrained):
    pytest.importorskip("tensorboard")
    stopped(pretrained, "seen.safetensors", 3, [])
    adapt(pretrained, "seen.safetensors", "--log", "tensorboard", "--resume")
    found = events(Path("runs/seen/tensorboard"))
    assert [event.step for event in found.Scalars("top/seconds")] == [1, 2]


@pytest.mark.slow
def test_a_study_logs_each_training_and_what_it_came_to(folder, pretrained):
    for name in LOGS:
        pytest.importorskip(name)
    adapt(pretrained, "many.safetensors", "--seeds", 2, "--no-compare", "--log", "tensorboard", "--log", "trackio")
    trials = sorted(path.name for path in Path("runs/many/trials").iterdir())
    trained = [name for name in trials if name.startswith("after")]
    assert len(trained) == 2
    for name in trained:
        scalars = events(Path(f"runs/many/trials/{name}/tensorboard")).Tags()["scalars"]
        assert "top/train_loss" in scalars
        assert [line["step"] for line in trackio_lines(f"many/trials/{name}")]
    whole = events(Path("runs/many/tensorboard"))
    assert [event.value for event in whole.Scalars("test_accuracy/after")] == [
        pytest.approx(report_of("many.safetensors")["results"]["after"]["accuracy"])
    ]
    assert whole.Tags()["images"] == ["confusion"] and "verdict" in trackio_lines("many")[0]


def test_what_is_refused(folder, pretrained, monkeypatch):
    with pytest.raises(SettingError, match="--log wandb: expected tensorboard or trackio"):
        toolkit.adapt(pretrained, "kmnist", log=["wandb"])
    with pytest.raises(SettingError, match="expected --log or --engine"):
        TrialOptions(engine="dask://127.0.0.1:1", logs=("tensorboard",))
    found = importlib.util.find_spec
    monkeypatch.setattr("finetune.run.loggers.find_spec", lambda name: None if name in LOGS else found(name))
    for name in LOGS:
        said = refused("adapt", "--from", pretrained, "--target", "kmnist", "--log", name)
        assert said.strip().endswith(f"[{name}]'") and "\n" not in said.strip()
    assert not Path("runs").exists()


def test_a_database_that_cannot_be_written(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    from finetune.run.trackio_log import TrackioLog

    (tmp_path / "file").write_text("")
    log = TrackioLog(tmp_path)
    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "file")
    with pytest.raises(OutputError, match=r"finetune\.db"):
        log.row(1, {"loss": 1.0})


def test_the_matrix_is_a_picture():
    picture = confusion_of(adapt_report(("ant", "bee")))
    assert picture is not None and picture.dtype == np.uint8 and picture.ndim == 3
