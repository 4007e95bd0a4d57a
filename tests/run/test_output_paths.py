"""Where a run writes: what is there already is moved aside under a name of its own, and never lost."""

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from tampering import tampered
from tiny import adapt_recipe, files_under, phase, refused, worked
from torch import nn

from finetune.checkpoint.format import Metadata, read_checkpoint, read_metadata
from finetune.checkpoint.tensor_hash import hash_named, hash_tensor
from finetune.errors import Interrupted, OutputError, SettingError, TrainingError
from finetune.report.console import Console
from finetune.run.interrupt import InterruptCheckpoint
from finetune.run.output_paths import OutputPaths, append_metrics, check_outputs, move_aside
from finetune.run.run_folder import RunFolder, RunIdentity
from finetune.run.snapshot import ResumeOptions


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def prepared(out, name, recipe_text, console):
    """The places of a run that has begun and ended without doing anything."""
    outputs = check_outputs(out, name)
    with RunFolder(outputs, RunIdentity(recipe_text, {}, {}), ResumeOptions(), console):
        assert (outputs.run_folder / "lock").exists()
    return outputs


def mark(content):
    return hashlib.sha256(content).hexdigest()[:8]


def test_places_follow_the_name(here):
    outputs = prepared(None, "mnist", "kind: pretrain # größer\n", Console(quiet=True))
    assert str(outputs.checkpoint) == "checkpoints/mnist.safetensors"
    assert str(outputs.report) == "checkpoints/mnist.report.json"
    assert str(outputs.run_folder) == "runs/mnist"
    assert str(outputs.metrics) == "runs/mnist/metrics.jsonl"
    assert str(outputs.interrupted) == "runs/mnist/interrupted.safetensors"
    assert files(here) == {"runs/mnist/recipe.yaml": "kind: pretrain # größer\n".encode()}
    assert (here / "checkpoints").is_dir() and list((here / "checkpoints").iterdir()) == []


def test_out_names_checkpoint_report_and_run_folder(here):
    outputs = prepared(here / "deep" / "v1.2.safetensors", "ignored", "", Console(quiet=True))
    assert outputs.report == here / "deep" / "v1.2.report.json"
    assert str(outputs.run_folder) == "runs/v1.2"


def test_the_console_logs_into_the_new_run_folder():
    console = Console(quiet=True)
    outputs = prepared(None, "mnist", "", console)
    console.note("hello")
    assert (outputs.run_folder / "log.txt").read_text().endswith(" hello\n")


def test_an_older_run_folder_is_moved_aside_each_time_anew(here, capsys):
    for count in range(4):
        outputs = prepared(None, "mnist", f"run {count}", Console())
        assert (outputs.run_folder / "recipe.yaml").read_text() == f"run {count}"
        assert list(outputs.run_folder.iterdir()) == [outputs.run_folder / "recipe.yaml"]
    found = {p.name: (p / "recipe.yaml").read_text() for p in (here / "runs").iterdir()}
    assert sorted(found.values()) == ["run 0", "run 1", "run 2", "run 3"]
    assert all(re.fullmatch(r"mnist(\.was-\d{8}-\d{6}(-[23])?)?", name) for name in found)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(re.fullmatch(r"runs/mnist was there already: moved to runs/mnist\.was-[\d-]+", line) for line in said)


@pytest.mark.parametrize("out", ["x", "x.pt", "x.safetensors.zip", "", ".", "folder/"])
def test_out_has_to_be_a_safetensors_name(here, out):
    with pytest.raises(SettingError, match=r"--out .*expected a file name that ends in \.safetensors"):
        prepared(out, "mnist", "", Console(quiet=True))
    assert list(here.iterdir()) == []


def test_out_that_is_a_folder_is_refused(here):
    (here / "x.safetensors").mkdir()
    with pytest.raises(OutputError, match=r"--out x\.safetensors: x\.safetensors is a folder"):
        prepared("x.safetensors", "mnist", "", Console(quiet=True))


def test_places_that_cannot_be_written_are_refused_before_any_work(here):
    (here / "file").write_text("")
    with pytest.raises(OutputError, match=r"^file: cannot write there \(File exists\); name another place with --out"):
        prepared("file/x.safetensors", "mnist", "", Console(quiet=True))
    with pytest.raises(OutputError, match=r"file/y: cannot write there \(Not a directory\)"):
        prepared("file/y/x.safetensors", "mnist", "", Console(quiet=True))
    (here / "runs").write_text("")
    with pytest.raises(OutputError, match=r"^runs: cannot write there .*; run finetune in a folder"):
        prepared("x.safetensors", "mnist", "", Console(quiet=True))


def test_metrics_are_one_json_line_a_row():
    outputs = prepared(None, "mnist", "", Console(quiet=True))
    rows = [{"epoch": 1, "validation_accuracy": None}, {"epoch": 2, "phase": "größer"}]
    for row in rows:
        append_metrics(outputs, row)
    assert [json.loads(line) for line in outputs.metrics.read_text(encoding="utf-8").splitlines()] == rows
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_metrics(outputs, {"loss": float("nan")})


# --- set aside --------------------------------------------------------------------------------------------------------


def given(here, checkpoint=None, report=None):
    """The outputs of a run with these files there already, and no others under their names."""
    outputs = OutputPaths(here / "v1.0.safetensors", here / "runs" / "v1.0")
    for path, content in ((outputs.checkpoint, checkpoint), (outputs.report, report)):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
    return outputs


def asides(here):
    return {name: content for name, content in files(here).items() if ".was-" in name}


def test_nothing_there_nothing_set_aside(here, capsys):
    move_aside(given(here), Console())
    assert files(here) == {} and capsys.readouterr().err == ""


def test_checkpoint_and_report_get_second_names_with_the_checkpoints_mark_and_stay(here, capsys):
    move_aside(given(here, b"one", b"{}"), Console())
    name = f"v1.0.was-{mark(b'one')}"
    assert asides(here) == {f"{name}.safetensors": b"one", f"{name}.report.json": b"{}"}
    assert (here / "v1.0.safetensors").read_bytes() == b"one" and (here / "v1.0.report.json").read_bytes() == b"{}"
    assert [line.rpartition(" ")[2] for line in capsys.readouterr().err.splitlines()] == [
        f"{name}.safetensors",
        f"{name}.report.json",
    ]


def test_without_hard_links_they_are_copied(here, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    move_aside(given(here, b"one", b"{}"), Console(quiet=True))
    name = f"v1.0.was-{mark(b'one')}"
    assert asides(here) == {f"{name}.safetensors": b"one", f"{name}.report.json": b"{}"}
    assert (here / f"{name}.safetensors").stat().st_nlink == 1


def test_a_checkpoint_or_a_report_alone_gets_one_too(here):
    move_aside(given(here, b"one"), Console(quiet=True))
    move_aside(given(here, None, b"{}"), Console(quiet=True))
    names = {f"v1.0.was-{mark(b'one')}.safetensors": b"one", f"v1.0.was-{mark(b'{}')}.report.json": b"{}"}
    assert asides(here) == names


@pytest.mark.parametrize("there", [(b"one", b"{}"), (b"one", None), (None, b"{}")])
def test_the_same_content_is_set_aside_once(here, there):
    """An attempt that was killed before it replaced anything, and the next one."""
    move_aside(given(here, *there), Console(quiet=True))
    once = asides(here)
    move_aside(given(here, *there), Console(quiet=True))
    assert asides(here) == once and len(once) == sum(content is not None for content in there)


def test_an_attempt_killed_between_the_two_is_completed(here):
    move_aside(given(here, b"one"), Console(quiet=True))
    move_aside(given(here, b"one", b"{}"), Console(quiet=True))
    name = f"v1.0.was-{mark(b'one')}"
    assert asides(here) == {f"{name}.safetensors": b"one", f"{name}.report.json": b"{}"}


def test_what_was_set_aside_is_never_overwritten_and_pairs_stay_pairs(here):
    """The same bytes with another report are another pair; so is a name that a folder or another file has."""
    name, other = f"v1.0.was-{mark(b'one')}", f"v1.0.was-{mark(b'two')}"
    (here / f"{other}.report.json").mkdir()
    (here / f"{other}-2.safetensors").write_bytes(b"somebody's")
    for there in ((b"one", b"{2}"), (b"one", b"{3}"), (b"one", b"{2}"), (b"two", b"{4}")):
        move_aside(given(here, *there), Console(quiet=True))
    assert asides(here) == {
        f"{name}.safetensors": b"one",
        f"{name}.report.json": b"{2}",
        f"{name}-2.safetensors": b"one",
        f"{name}-2.report.json": b"{3}",
        f"{other}-2.safetensors": b"somebody's",
        f"{other}-3.safetensors": b"two",
        f"{other}-3.report.json": b"{4}",
    }


# --- keeper -----------------------------------------------------------------------------------------------------------

METADATA = Metadata.model_validate(
    {
        "model": "cnn",
        "arguments": {},
        "classes": ["a"],
        "input": {"channels": 1, "size": 28, "mean": [0.0], "std": [1.0], "interpolation": "bilinear"},
        **{name: {} for name in ("recipe", "data", "results", "versions")},
        "lineage": [],
    }
)


@pytest.fixture
def outputs():
    return prepared(None, "mnist", "", Console(quiet=True))


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (KeyboardInterrupt(), Interrupted, "stopped by Ctrl-C; kept: the weights after epoch 1 in "),
        (TrainingError("the loss is gone"), TrainingError, "the loss is gone\nkept: the weights after epoch 1 in "),
    ],
)
def test_a_stopped_run_leaves_the_weights_of_its_last_row(outputs, error, raised, said):
    network = nn.Linear(2, 2)
    kept = network.weight.detach().clone()
    with pytest.raises(raised) as caught, InterruptCheckpoint(outputs, lambda: METADATA) as keeper:
        keeper.update(network, "after epoch 1")
        with torch.no_grad():
            network.weight += 1
        raise error
    assert str(caught.value).startswith(said)
    found = read_checkpoint(outputs.interrupted)
    sealed = METADATA.model_copy(update={"tensors": hash_named({n: hash_tensor(t) for n, t in found.tensors.items()})})
    assert torch.equal(found.tensors["weight"], kept) and found.metadata == sealed


def test_a_run_stopped_before_its_first_row_says_so(outputs):
    with (
        pytest.raises(Interrupted, match="no epoch had ended") as caught,
        InterruptCheckpoint(outputs, lambda: METADATA),
    ):
        raise KeyboardInterrupt
    assert not outputs.interrupted.exists() and str(outputs.run_folder) in str(caught.value)


def test_other_errors_and_a_good_end_pass_through(outputs):
    with pytest.raises(ValueError, match="a bug"), InterruptCheckpoint(outputs, lambda: METADATA) as keeper:
        keeper.update(nn.Linear(1, 1), "now")
        raise ValueError("a bug")
    with InterruptCheckpoint(outputs, lambda: METADATA) as keeper:
        keeper.update(nn.Linear(1, 1), "now")
    assert not outputs.interrupted.exists()


def test_a_failed_write_at_the_end_keeps_the_weights_too(outputs):
    with (
        pytest.raises(OutputError, match=r"(?s)no room.kept: the weights now"),
        InterruptCheckpoint(outputs, lambda: METADATA) as keeper,
    ):
        keeper.update(nn.Linear(1, 1), "now")
        raise OutputError("no room")
    assert outputs.interrupted.exists()


def test_what_the_end_of_a_run_needs_is_tried_before_its_start(
    folder: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source of an odd name, and of long words about its data; and a checkpoint of the longest name there can be."""
    source, out = os.fsdecode(b"caf\xe9.safetensors"), f"{'n' * 239}.safetensors"
    shutil.copy(pretrained, source)
    tampered(source, lambda said: said["data"].update(name="d" * 600))
    Path("adapt.yaml").write_text(adapt_recipe(phase("head", "steps: 2", 10)))
    words = ("adapt", "--from", source, "--recipe", "adapt.yaml", "--target", "kmnist", "--out", out, "--quiet")
    for seed in (1, 1, 2):
        worked(*words, "--seed", seed)
    (parent,) = read_metadata(Path(out)).lineage
    assert parent["id"] == r"caf\xe9.safetensors" and parent["task"] == "d" * 499 + "…"
    asides = [path.name for path in Path().glob("nnn*~*.was-*")]
    assert sorted(name.rpartition("-")[2].partition(".")[2] for name in asides) == [
        "predictions.csv",
        "report.json",
        "safetensors",
    ]
    assert len([path for path in Path("runs").iterdir() if path.is_dir()]) > 1, "the older runs were moved aside"
    worked("verify", out)
    before = files_under(Path())
    long = refused("adapt", *words[1:7], "--out", f"{'n' * 240}.safetensors")
    assert "predictions.csv: too long for a file's name (a name of 256 bytes)" in long
    monkeypatch.setattr("finetune.checkpoint.format.MAX_METADATA", 100)
    assert "cannot be saved" in refused(*words, "--seed", 3) and files_under(Path()) == before
