"""A run that was stopped or killed goes on to the bytes, the rows and the report of one that never was."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import adapt_recipe, drawn, make_data, phase, pretrain_recipe, refused, report_of, worked, write_part

import finetune as toolkit
from finetune.data.registry import DATASETS
from finetune.errors import Interrupted
from finetune.run import phases
from finetune.run.lock import RunLock
from finetune.run.output_paths import OutputPaths
from finetune.run.snapshot import MANIFEST, STATE, SnapshotStore
from finetune.train import meter

OFTEN = ("--snapshot-every", "0", "--quiet")
TIMES = ("seconds", "images_per_second")
FULL = adapt_recipe(
    "  - {train: head, solver: lbfgs}\n"
    + phase("head", "steps: 6", batch=64, more="name: top, augment: false")
    + phase("{last: 2}", "epochs: 2", batch=64, more="name: more, augment: false, keep: best, ema: 0.9")
    + phase("all", "epochs: 2", batch=64, more="layer_decay: 0.7, name: every"),
    compare="[linear_probe, scratch]",
    data="{validation: 0.2, augment: {shift: 1}}",
)
KEPT = adapt_recipe(
    phase("{last: 2}", "epochs: 3", batch=64, more="name: views, views: 2")
    + phase("head", "epochs: 2", batch=64, more="name: plain, augment: false"),
    data="{validation: 0.2, augment: {shift: 1}}",
    more="cache: {memory: 0, disk: 1}\n",
)
DROPOUT = (
    "kind: pretrain\nmodel: {name: timm/test_resnet, drop_rate: 0.3}\ndata: {name: mnist, validation: 0.2}\nphases:\n"
    + phase("all", "steps: 5", batch=32, optimizer="{name: adamw, lr: 1e-3}", more="name: one")
    + phase(
        "all",
        "steps: 5",
        batch=32,
        optimizer="{name: adamw, lr: 1e-3}",
        more="name: low, lora: {rank: 2, dropout: 0.2}",
    )
    + "precision: float32\ninput: {size: 32}\n"
)


class Killed(BaseException):
    """As if the process had gone: nothing may react to it."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    make_data(root, "mnist")
    make_data(root, "kmnist")
    return root


@pytest.fixture(scope="module")
def pretrained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("pretrained")
    recipe = here / "mnist.yaml"
    recipe.write_text(pretrain_recipe())
    old = Path.cwd()
    os.chdir(here)
    try:
        worked("pretrain", "--recipe", recipe, "--data-root", pictures, "--quiet")
    finally:
        os.chdir(old)
    return here / "checkpoints/mnist.safetensors"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_DATA_ROOT", str(pictures))
    monkeypatch.setattr(meter, "TICK", 0.0)
    return tmp_path


def write(text: str, name: str = "small.yaml") -> str:
    Path(name).write_text(text)
    return name


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def rows_of(name: str) -> list[dict[str, Any]]:
    text = Path(f"runs/{name}/metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in text.splitlines()]


def timeless(values: Any) -> Any:
    """A report without its times."""
    if isinstance(values, dict):
        return {key: timeless(value) for key, value in values.items() if key not in TIMES}
    return [timeless(value) for value in values] if isinstance(values, list) else values


class Counted:
    """Lets so many snapshots be written, then kills the run; notes where the run stood at each of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: list[tuple[object, ...]] = []
        self.most = -1
        save = SnapshotStore.save

        def counted(store: SnapshotStore, snapshot: Any) -> Path:
            made = save(store, snapshot)
            facts = snapshot.facts
            over = len(facts["networks"][facts["current"]]["phases"])
            under_way = facts["phase"] and (bool(facts["phase"]["history"]), facts["phase"]["numbers"]["step"] > 1)
            self.places.append((facts["current"], over, under_way))
            if len(self.places) == self.most:
                raise Killed
            return made

        monkeypatch.setattr(SnapshotStore, "save", counted)

    def arm(self, most: int) -> None:
        self.places, self.most = [], most


Place = tuple[object, ...]


def killed(words: list[object], monkeypatch: pytest.MonkeyPatch, only: tuple[Place, ...] | None = None) -> list[Place]:
    """Runs a command whole, then killed once at each kind of place and resumed; returns those places.

    The kinds: in each phase of each network after its first step, within an epoch and after a row; at each phase's end.
    `only` names those to kill at, in place of all.
    """
    counted = Counted(monkeypatch)
    worked(*words, "--out", "whole.safetensors", *OFTEN)
    places, wanted = counted.places, sha256("whole.safetensors")
    for moment in [places.index(place) + 1 for place in only or dict.fromkeys(places)]:
        counted.arm(moment)
        with pytest.raises(Killed):
            worked(*words, "--out", f"{moment}.safetensors", *OFTEN)
        assert not Path(f"{moment}.safetensors").exists()
        assert len(list(Path(f"runs/{moment}/snapshots").glob("[0-9]*"))) == min(moment, 2)
        counted.arm(-1)
        worked(*words, "--out", f"{moment}.safetensors", *OFTEN, "--resume")
        assert sha256(f"{moment}.safetensors") == wanted, places[moment - 1]
        assert rows_of(str(moment)) == rows_of("whole"), places[moment - 1]
        assert timeless(report_of(f"{moment}.safetensors")) == timeless(report_of("whole.safetensors"))
        assert not Path(f"runs/{moment}/snapshots").exists()
    return places


EVERYWHERE = pytest.param(None, marks=pytest.mark.slow, id="everywhere")


def within(current: str, over: int) -> Place:
    """Within the first epoch of a phase of this network, after `over` others."""
    return (current, over, (False, True))


@pytest.mark.slow
@pytest.mark.parametrize("only", [(within("scratch", 0),), EVERYWHERE])
def test_an_adapt_killed_in_its_phases(
    only: tuple[Place, ...] | None, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[object] = ["adapt", "--from", pretrained, "--target", "kmnist", "--recipe", write(FULL)]
    places = killed(words, monkeypatch, only)
    assert len(places) > 25 and {place[:2] for place in places} == {
        *(("training", over) for over in range(1, 5)),
        ("scratch", 0),
        ("scratch", 1),
    }


@pytest.mark.slow
@pytest.mark.parametrize("only", [(within("training", 0),), EVERYWHERE])
def test_what_was_kept_in_files_is_made_again(
    only: tuple[Place, ...] | None, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[object] = ["adapt", "--from", pretrained, "--target", "kmnist", "--recipe", write(KEPT)]
    places = killed(words, monkeypatch, only)
    assert len(set(places)) == 6 and len(places) == 20


def test_a_run_goes_on_with_another_room_for_what_is_kept(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[object] = ["adapt", "--from", pretrained, "--target", "kmnist", "--recipe", write(KEPT)]
    more = ("--set", "cache={memory: 2, disk: 0}")
    worked(*words, *more, "--out", "whole.safetensors", "--quiet")
    stopped_after([*words, "--out", "other.safetensors"], monkeypatch)
    worked(*words, *more, "--out", "other.safetensors", "--resume", "--quiet")
    assert sha256("other.safetensors") == sha256("whole.safetensors"), (
        "in memory or in a file, the numbers are the same"
    )


@pytest.mark.slow
@pytest.mark.parametrize("only", [(within("training", 1),), EVERYWHERE])
def test_dropout_moving_statistics_and_adapters(
    only: tuple[Place, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    assert len(killed(["pretrain", "--recipe", write(DROPOUT)], monkeypatch, only)) == 10


def test_killed_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("pretrain", "--recipe", write(pretrain_recipe(phase(length="steps: 4", batch=64))))
    worked(*words, "--out", "whole.safetensors", "--quiet")
    counted = Counted(monkeypatch)
    kills = 0
    while True:
        counted.arm(1)
        try:
            worked(*words, "--out", "again.safetensors", *OFTEN, "--resume")
            break
        except Killed:
            kills += 1
    assert kills == 4  # three steps and the end of the phase
    assert sha256("again.safetensors") == sha256("whole.safetensors") and rows_of("again") == rows_of("whole")


def test_a_damaged_newest_snapshot_is_named_and_the_one_before_used(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("pretrain", "--recipe", write(pretrain_recipe()))
    worked(*words, "--out", "whole.safetensors", "--quiet")
    counted = Counted(monkeypatch)
    counted.arm(7)
    with pytest.raises(Killed):
        worked(*words, *OFTEN)
    newest = max(Path("runs/small/snapshots").glob("[0-9]*")) / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    counted.arm(-1)
    done = worked(*words, *OFTEN, "--resume")
    assert newest.parent.name in done.err and "warning" in done.err
    assert sha256("checkpoints/small.safetensors") == sha256("whole.safetensors")
    assert rows_of("small") == rows_of("whole")


def forged(tensors: dict[str, torch.Tensor], name: str, change: str) -> dict[str, torch.Tensor]:
    """The tensors with one of them renamed, left out, reshaped or retyped."""
    found = dict(tensors)
    value = found.pop(name)
    if change == "renamed":
        return {**found, f"{name}x": value}
    other = {"reshaped": value.reshape(-1, 1), "retyped": value.to(torch.float16)}
    return found if change == "left out" else {**found, name: other[change]}


def test_a_snapshot_of_other_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest is hashed anew, so that it is whole."""
    adamw = "{name: adamw, lr: 1e-3}"
    recipe = pretrain_recipe(
        phase("all", "epochs: 3", batch=64, optimizer=adamw, more="ema: 0.9"),
        "{name: mnist, validation: 0.2}",
    )
    words = ["pretrain", "--recipe", write(recipe)]
    stopped_after(words, monkeypatch, 6)
    newest = max(Path("runs/small/snapshots").glob("[0-9]*"))
    tensors, manifest = load_file(newest / STATE), json.loads((newest / MANIFEST).read_text())
    changes = [("training/head.weight", change) for change in ("renamed", "left out", "reshaped", "retyped")]
    changes += [("phase/optimizer/0/exp_avg", "renamed"), ("phase/optimizer/1/step", "left out")]
    changes += [("phase/average/0", "retyped"), ("phase/meter/loss", "left out"), ("random/cpu", "retyped")]
    for name, change in changes:
        save_file(forged(tensors, name, change), newest / STATE)
        content = (newest / STATE).read_bytes()
        manifest["files"][STATE] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (newest / MANIFEST).write_text(json.dumps(manifest))
        said = refused(*words, *OFTEN, "--resume")
        assert "the newest snapshot does not fit this run: " in said and "without --resume" in said, (name, change)
    save_file(tensors, newest / STATE)
    manifest["files"][STATE] = {"size": (newest / STATE).stat().st_size, "sha256": sha256(newest / STATE)}
    (newest / MANIFEST).write_text(json.dumps(manifest))
    worked(*words, *OFTEN, "--resume")


def stopped_after(words: list[object], monkeypatch: pytest.MonkeyPatch, saves: int = 5) -> None:
    with monkeypatch.context() as patch:
        Counted(patch).arm(saves)
        with pytest.raises(Killed):
            worked(*words, *OFTEN)


def test_another_recipe_seed_or_data_is_refused_and_the_difference_shown(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, tmp_path: Path
) -> None:
    words: list[object] = ["pretrain", "--recipe", write(pretrain_recipe())]
    stopped_after(words, monkeypatch)
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}

    message = refused(*words, "--resume", "--seed", "3", "--set", "phases[0].epochs=5")
    assert message.startswith("--resume: runs/small holds a different run, which cannot be resumed:\n")
    assert "  recipe.seed: 0 there, 3 here\n" in message and "  recipe.phases[0].epochs: 2 there, 5 here\n" in message

    other = tmp_path / "other"
    make_data(other, "mnist")
    images, labels = drawn("mnist", 300, "train")
    images[0, 0, 0] ^= 1
    write_part(other, "mnist", DATASETS["mnist"].train_files, images, labels)
    message = refused(*words, "--resume", "--data-root", other)
    (line,) = [line for line in message.splitlines() if line.startswith("  ")]
    assert line.startswith("  data.train.fingerprint: ")

    after = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    assert after == before
    worked(*words, "--resume", "--quiet")


def test_another_source_and_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch, pretrained: Path) -> None:
    recipe = write(adapt_recipe())
    words: list[object] = ["adapt", "--target", "kmnist", "--recipe", recipe, "--out", "x.safetensors", "--from"]
    stopped_after([*words, pretrained], monkeypatch)
    worked(
        "pretrain",
        "--recipe",
        write(pretrain_recipe(), "m.yaml"),
        "--seed",
        "9",
        "--out",
        "mnist.safetensors",
        "--quiet",
    )
    message = refused(*words, "mnist.safetensors", "--resume")
    assert "  source.sha256: " in message and "recipe" not in message.splitlines()[1]
    monkeypatch.setattr("finetune.run.finalize.versions", lambda model: {"torch": "0.4.1"})
    message = refused(*words, pretrained, "--resume")
    assert f'  versions.torch: "{version("torch")}" there, "0.4.1" here' in message


def test_other_threads_are_only_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[object] = ["pretrain", "--recipe", write(pretrain_recipe())]
    stopped_after(words, monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        done = worked(*words, "--resume")
    finally:
        torch.set_num_threads(threads)
    assert f"threads: {threads} there, {threads + 1} here: the result may differ in its last bits" in done.err


def test_resume_with_nothing_to_resume_begins(capfd: pytest.CaptureFixture[str]) -> None:
    words = ("pretrain", "--recipe", write(pretrain_recipe()))
    done = worked(*words, "--resume")
    assert "runs/small: no snapshot to resume from; starting from the beginning" in done.err
    worked(*words, "--out", "other.safetensors", "--quiet")
    assert sha256("checkpoints/small.safetensors") == sha256("other.safetensors")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["other", "small", "test-sets.jsonl"]


def test_a_finished_run_is_not_done_again() -> None:
    words = ("pretrain", "--recipe", write(pretrain_recipe()), "--json")
    first = worked(*words)
    files = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in Path("checkpoints").iterdir()}
    again = worked(*words, "--resume")
    assert "this run has already finished; nothing to do" in again.err and again.json == first.json
    assert files == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in Path("checkpoints").iterdir()}
    assert "holds a different run" in refused(*words, "--resume", "--seed", "1")
    # Where what it wrote is gone, it is.
    Path("checkpoints/small.safetensors").unlink()
    done = worked(*words, "--resume")
    assert done.json["results"] == first.json["results"] and Path("checkpoints/small.safetensors").exists()


def test_a_finished_adapt_is_not_done_again(pretrained: Path) -> None:
    recipe = write(adapt_recipe(compare="[linear_probe, scratch]"))
    words = ("adapt", "--from", pretrained, "--target", "kmnist", "--recipe", recipe, "--json")
    first = worked(*words)
    again = worked(*words, "--resume")
    assert "this run has already finished" in again.err and again.json == first.json


def test_without_resume_an_unfinished_run_is_moved_aside_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[object] = ["pretrain", "--recipe", write(pretrain_recipe())]
    stopped_after(words, monkeypatch)
    done = worked(*words)
    assert "it was not finished: --resume would have gone on with it" in done.err
    (aside,) = Path("runs").glob("small.was-*")
    store = SnapshotStore(aside / "snapshots")
    assert store.newest()[0] is not None


def test_a_second_run_of_the_same_name_is_told_who_has_it() -> None:
    recipe = write(pretrain_recipe())
    with RunLock(Path("runs/small"), "finetune pretrain --recipe other.yaml"):
        for more in ((), ("--resume",)):
            message = refused("pretrain", "--recipe", recipe, *more)
            assert message.startswith("runs/small: another run works there: `finetune pretrain --recipe other.yaml`")
            assert f"process {os.getpid()}" in message
    worked("pretrain", "--recipe", recipe, "--quiet")


def test_a_loss_that_is_not_finite_names_the_images_and_keeps_what_was_good() -> None:
    recipe = write(pretrain_recipe(phase(optimizer="{name: sgd, lr: 1e12}", batch=100)))
    message = refused("pretrain", "--recipe", recipe, *OFTEN, code=1)
    assert "stopped before that step changed the weights" in message or "no longer finite numbers after step" in message
    assert not Path("checkpoints/small.safetensors").exists()
    if "the images of that step, in mnist train: " in message:
        assert "and 92 more" in message


def test_the_images_of_a_bad_step_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write(pretrain_recipe(phase(optimizer="{name: sgd, lr: 1e4}", batch=100, length="epochs: 20")))
    message = refused("pretrain", "--recipe", recipe, *OFTEN, code=1)
    assert "the loss is no longer a finite number at step " in message
    assert "\nthe images of that step, in mnist train: " in message and "and 92 more" in message
    assert "\nsnapshot: step " in message and "go on with" not in message
    snapshot, faults = SnapshotStore(Path("runs/small/snapshots")).newest()
    assert snapshot is not None and not faults
    assert all(bool(t.isfinite().all()) for t in snapshot.tensors.values() if t.is_floating_point())


@pytest.mark.parametrize(
    "number, code, name",
    [(signal.SIGTERM, 143, "SIGTERM"), pytest.param(signal.SIGINT, 130, "Ctrl-C", marks=pytest.mark.slow)],
)
def test_a_signal_ends_a_run_with_a_snapshot_and_the_command_that_goes_on(
    number: signal.Signals, code: int, name: str, folder: Path
) -> None:
    recipe = write(pretrain_recipe(phase(length="epochs: 6", batch=10)))
    typed = ["pretrain", "--recipe", recipe, "--out", "a b.safetensors", "--snapshot-every", "3600"]
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from finetune.cli.main import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, *typed], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            began = time.monotonic()
            while not Path("runs/a b/metrics.jsonl").exists():
                assert process.poll() is None and time.monotonic() - began < 120
                time.sleep(0.01)
            process.send_signal(number)
            asked = time.monotonic()
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code and "Traceback" not in err
    assert time.monotonic() - asked < 30  # a second or two on a machine with nothing else to do
    assert f"finetune: stopped by {name}; kept: " in err
    (line,) = [line for line in err.splitlines() if line.startswith("snapshot: step ")]
    words = shlex.split(line.partition("resume with: finetune ")[2])
    assert words == [*typed, "--resume"]
    assert not Path("a b.safetensors").exists()
    worked(*words, "--quiet")
    worked("pretrain", "--recipe", recipe, "--out", "whole.safetensors", "--quiet")
    assert sha256("a b.safetensors") == sha256("whole.safetensors")


def test_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe: dict[str, Any] = {"kind": "pretrain", "model": "cnn", "data": {"name": "mnist"}, "precision": "float32"}
    recipe["phases"] = [{"train": "all", "epochs": 2, "batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.01}}]
    whole = toolkit.pretrain(recipe, out="whole.safetensors")
    assert toolkit.pretrain(recipe, out="whole.safetensors", resume=True).to_dict() == whole.to_dict()
    outputs = OutputPaths(Path("whole.safetensors"), Path("runs/whole"))
    assert (outputs.run_folder / "finished.json").exists()
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(phases, "append_metrics", lambda outputs, row: os.kill(os.getpid(), signal.SIGTERM))
        toolkit.pretrain(recipe, out="stopped.safetensors")
    assert caught.value.exit_code == 143 and "resume with: the same call with resume=True" in str(caught.value)
    toolkit.pretrain(recipe, out="stopped.safetensors", resume=True)
    assert sha256("stopped.safetensors") == sha256("whole.safetensors")
