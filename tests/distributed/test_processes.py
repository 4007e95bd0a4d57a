"""Several processes: the same images and the same weights as one, one of them writes, and all end when one does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import SUPPORT, finetune, make_data, phase, pretrain_recipe
from together import PHASES, RESUMED
from torchrun import ours, run, started, workers_of
from training_parts import net

RUNS = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found through /proc")
EVERY = [(kind, name) for kind in ("plain", "norm") for name in PHASES]
AGAIN = [(kind, name, way) for kind in RESUMED for name in RESUMED[kind] for way in ("ddp", "fsdp")]


# --- the loop ---------------------------------------------------------------------------------------------------------


def weights(ends: Path, name: str) -> dict[str, torch.Tensor]:
    """A network's tensors; both processes must have ended with the same."""
    first, second = (load_file(ends / f"{name}.{rank}.safetensors") for rank in (0, 1))
    assert same(first, second), name
    return first


def said(ends: Path, what: str) -> list[object]:
    """What each process said."""
    return [json.loads((ends / f"{rank}.json").read_text())[what] for rank in (0, 1)]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", PHASES)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_end_with_the_weights_of_one(ends, way, name):
    alone, together = (weights(ends, f"{how}-plain-{name}") for how in ("alone", way))
    assert furthest(alone, together) < 1e-6
    rows, others = said(ends, f"alone-plain-{name}")[0], said(ends, f"{way}-plain-{name}")
    assert others[0] == others[1] and len(rows) == len(others[0])
    for (loss, accuracy, judged), (other_loss, other_accuracy, other_judged) in zip(rows, others[0], strict=True):
        assert accuracy == other_accuracy
        assert loss == pytest.approx(other_loss, rel=1e-5) and judged == pytest.approx(other_judged, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixed", "fifteen", "single", "unused"])
def test_mixed_images_parts_without_an_image_and_unused_parameters_change_nothing(ends, name):
    assert furthest(weights(ends, f"alone-{name}"), weights(ends, f"ddp-{name}")) < 1e-6
    (rows,), others = said(ends, f"alone-{name}")[0], said(ends, f"ddp-{name}")
    assert others[0] == others[1] and others[0][0][:2] == pytest.approx(rows[:2], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_both_processes_end_with_the_same_statistics_too(ends, kind, name):
    for way in ("ddp", "fsdp"):
        found = weights(ends, f"{way}-{kind}-{name}")
        assert kind == "plain" or not torch.equal(found["body.1.running_mean"], torch.zeros(6))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "way"), AGAIN)
def test_resumed_from_the_leaders_snapshot_they_end_with_the_same_bytes_and_rows(ends, kind, name, way):
    never, resumed = (f"{way}-{kind}-{name}{how}" for how in ("", "-resumed"))
    assert same(weights(ends, never), weights(ends, resumed))
    assert said(ends, never)[0][-1] == said(ends, resumed)[0][-1]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", RESUMED["plain"])
def test_one_process_goes_on_from_the_snapshot_of_two(ends, name, way):
    alone = weights(ends, f"alone-plain-{name}")
    assert furthest(alone, weights(ends, f"{way}-plain-{name}-alone")) < 1e-6
    assert said(ends, f"{way}-plain-{name}-alone")[0][-1] == pytest.approx(
        said(ends, f"alone-plain-{name}")[0][-1], rel=1e-4
    )


@pytest.mark.slow
def test_every_image_is_judged_once_and_to_the_bits_of_one_process(ends):
    assert said(ends, "evaluation") == [[True] * 4] * 2


@pytest.mark.slow
def test_what_processes_tell_each_other(ends):
    assert said(ends, "gathered") == [[[0.0] * 3] * 2 + [[1.0] * 3] * 2] * 2
    assert said(ends, "sum") == [[1.0, 2.0]] * 2
    assert said(ends, "average") == [[0.5, 1.0]] * 2
    assert said(ends, "same") == [[0.0, 0.0]] * 2
    assert said(ends, "vote") == [[True, False, True]] * 2
    assert said(ends, "shared") == [[0, 100_000]] * 2
    assert said(ends, "there") == [False, True]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_part_stops_both_before_the_update(ends):
    (message, images, still), other = said(ends, "lost")
    assert other == [message, images, still]
    assert 7 in images and still and "before that step changed the weights" in message


@pytest.mark.slow
def test_frozen_stages_stay_bit_equal(ends):
    assert said(ends, "moved") == [["head.weight", "head.bias"]] * 2
    start = net().state_dict()
    for way in ("ddp", "fsdp"):
        found = weights(ends, f"{way}-norm-frozen")
        assert all(torch.equal(found[name], start[name]) for name in start if name.startswith("stem"))


# --- the commands -----------------------------------------------------------------------------------------------------

RECIPE = pretrain_recipe(
    phase(length="epochs: 2", batch=50, more="name: one")
    + phase("{last: 2}", "steps: 12", batch=32, more="name: two, augment: false"),
    "{name: mnist, validation: 60, augment: {shift: 1}}",
)
LONG = ("--set", "phases[0].epochs=120", "--snapshot-every", "0.2")
ADAPT = """kind: adapt
data: {validation: 0.2}
phases:
  - {train: head, solver: lbfgs}
  - {train: {last: 2}, steps: 6, batch_size: 32, optimizer: {name: sgd, lr: 1e-4}, augment: false, keep: best}
compare: [linear_probe, interpolated, scratch]
precision: float32
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, recipes and a place to work."""
    folder = tmp_path_factory.mktemp("commands")
    make_data(folder / "data", "mnist", 300, 1100)
    make_data(folder / "data", "kmnist", 200, 100)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "adapt.yaml").write_text(ADAPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_DATA_ROOT", str(folder / "data"))
        patch.chdir(folder)
        yield folder


def long_run(name: str) -> tuple[str, ...]:
    return ("pretrain", "--recipe", "recipe.yaml", *LONG, "--out", f"{name}.safetensors")


def wait_for_a_snapshot(root: Path, name: str) -> None:
    until = time.monotonic() + 120
    while not list((root / "runs" / name / "snapshots").glob("[0-9]*")):
        assert time.monotonic() < until, "no snapshot was written"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def stopped(root: Path) -> dict[str, tuple[int, str, float]]:
    """How runs end whose first process is killed, and which a machine asks to stop: exit code, words, seconds."""
    found = {}
    for name in ("killed", "asked"):
        with started("-m", "finetune", *long_run(name), cwd=root) as job:
            wait_for_a_snapshot(root, name)
            leader, other = workers_of(job)
            began = time.monotonic()
            if name == "killed":
                os.kill(leader, signal.SIGKILL)
            else:  # as Slurm does: everyone is told, and torchrun tells its processes once more
                for pid in (leader, other, job.pid):
                    os.kill(pid, signal.SIGTERM)
            _, err = job.communicate(timeout=60)
        found[name] = (job.returncode, ours(err), time.monotonic() - began)
        if name == "killed":
            assert "finetune: process 1" in err.rpartition("Failures:")[2], "torchrun's summary has our message"
        shutil.copytree(root / "runs" / name, root / "runs" / f"{name}-alone")
    return found


@pytest.mark.slow
@RUNS
def test_when_a_process_is_killed_the_job_ends_with_a_word_from_another(stopped):
    code, err, seconds = stopped["killed"]
    assert code == 1 and seconds < 30, "torchrun gives a job 30 seconds before it kills it"
    assert err.count("finetune: ") == 1 and "Traceback" not in err
    assert "finetune: process 1 of 2 (on " in err and "another process of this job has ended" in err
    assert "resume with: torchrun ... -m finetune pretrain" in err and err.endswith("--resume")


@pytest.mark.slow
@RUNS
def test_a_job_that_is_asked_to_stop_ends_after_the_same_step_everywhere(stopped):
    code, err, seconds = stopped["asked"]
    assert code == 1 and seconds < 30
    assert err.count("finetune: ") == 1 and "finetune: stopped by SIGTERM; " in err
    assert "snapshot: step " in err and err.endswith("--resume")


FIRST = ("pretrain", "--recipe", "recipe.yaml")
Said = dict[str, list[dict[str, object]]]


def together(root: Path, commands: dict[str, dict[str, object]], *more: object) -> Said:
    """What each of two processes printed in each of these commands, all in one job, which may have more to do."""
    (root / "commands.json").write_text(json.dumps(list(commands.values())))
    code, out, err = run(SUPPORT / "together.py", "commands", root, *more, cwd=root)
    assert (code, out, err) == (0, "", ""), err
    files = ([root / f"{place}.{rank}.json" for rank in (0, 1)] for place in range(len(commands)))
    return {name: [json.loads(file.read_text()) for file in pair] for name, pair in zip(commands, files, strict=True)}


@pytest.fixture(scope="module")
def ends(root: Path, done: object) -> Path:
    """What two processes left of all trainings in `together`."""
    return root / "ends"


@pytest.fixture(scope="module")
def done(root: Path) -> Said:
    """A training and its adapt, and commands that end before any work; then all the small trainings."""
    (root / "ends").mkdir()
    make_data(root / "other", "mnist", 300, 1000)
    return together(
        root,
        {
            "two": {"words": [*FIRST, "--out", "two.safetensors", "--json"]},
            "adapt": {"words": ["adapt", "--from", "two.safetensors", "--target", "kmnist", "--recipe", "adapt.yaml"]},
            "again": {"words": [*FIRST, "--out", "two.safetensors", "--resume"]},
            "key": {"words": [*FIRST, "--set", "phases[0].epoch=3"]},
            "nothing": {"words": FIRST, "environment": {"1": {"FINETUNE_DATA_ROOT": "/proc/nothing"}}},
            "other": {"words": FIRST, "environment": {"1": {"FINETUNE_DATA_ROOT": str(root / "other")}}},
            "device": {"words": [*FIRST, "--device", "cuda:0"]},
        },
        *("training", root / "ends"),
    )


@pytest.fixture(scope="module")
def more(root: Path, stopped: object) -> Said:
    """Further trainings: those that were killed or stopped go on."""
    return together(
        root,
        {
            "again": {"words": [*FIRST, "--out", "again.safetensors"]},
            "parted": {"words": [*FIRST, "--out", "parted.safetensors", "--set", "sharding=fsdp"]},
            "killed": {"words": [*long_run("killed"), "--resume"]},
            "asked": {"words": [*long_run("asked"), "--resume"]},
        },
    )


def silent(said: dict[str, object]) -> bool:
    return said["out"] == said["err"] == ""


def test_one_process_prints_and_writes_and_the_report_says_how_many_there_were(done, root):
    for name in ("two", "adapt", "again"):
        all_went_well(done[name])
    assert json.loads(done["two"][0]["out"])["environment"]["processes"] == 2
    environment = json.loads((root / "two.report.json").read_text())["environment"]
    assert (environment["processes"], environment["backend"]) == (2, "gloo")
    rows = (root / "runs/two/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["phase"] for row in rows] == ["one", "two"]
    assert "this run has already finished" in done["again"][0]["err"]


def all_went_well(command: list[dict[str, object]]) -> None:
    assert [said["code"] for said in command] == [0, 0], command
    assert command[0]["out"] and silent(command[1])


@pytest.mark.slow
@RUNS
def test_the_same_seed_gives_the_same_bytes_and_sharded_weights_nearly_the_same(done, more, root):
    all_went_well(more["again"])
    all_went_well(more["parted"])
    assert (root / "two.safetensors").read_bytes() == (root / "again.safetensors").read_bytes()
    assert furthest(*(load_file(root / f"{name}.safetensors") for name in ("two", "parted"))) < 1e-5


def test_one_process_gives_nearly_the_same(done, root):
    alone = finetune("pretrain", "--recipe", root / "recipe.yaml", "--out", root / "one.safetensors", "--quiet")
    assert alone.code == 0
    assert furthest(*(load_file(root / f"{name}.safetensors") for name in ("one", "two"))) < 1e-5
    results = [json.loads((root / f"{name}.report.json").read_text())["results"]["test"] for name in ("one", "two")]
    assert abs(results[0]["correct"] - results[1]["correct"]) <= 2 and results[0]["total"] == 1100


def test_an_adapt_has_every_row_of_its_verdict_from_both(done, root):
    report = json.loads((root / "checkpoints/two-kmnist.report.json").read_text())
    rows = ("before", "linear_probe", "after", "interpolated", "scratch")
    assert all(report["results"][name]["total"] == 100 for name in rows)
    assert report["retention"]["dataset"] == "mnist"
    words = ("--target", "kmnist", "--recipe", root / "adapt.yaml", "--out", root / "adapted.safetensors", "--quiet")
    assert finetune("adapt", "--from", root / "two.safetensors", *words).code == 0
    alone = json.loads((root / "adapted.report.json").read_text())
    for name in rows:
        assert abs(alone["results"][name]["correct"] - report["results"][name]["correct"]) <= 1, name
    one, two = load_file(root / "adapted.safetensors"), load_file(root / "checkpoints/two-kmnist.safetensors")
    assert furthest(one, two) < 1e-4


@pytest.mark.slow
@RUNS
def test_a_job_that_was_killed_or_stopped_goes_on_to_the_same_bytes(more, root):
    for name in ("killed", "asked"):
        all_went_well(more[name])
        assert "resuming from step " in more[name][0]["err"]
    assert (root / "killed.safetensors").read_bytes() == (root / "asked.safetensors").read_bytes()


def test_a_fault_that_all_have_is_told_once(done):
    first, second = done["key"]
    assert (first["code"], second["code"]) == (2, 2) and silent(second)
    assert first["err"].startswith("finetune: --set phases[0].epoch=3: unknown key") and first["err"].count("\n") == 1


def test_a_fault_that_one_process_has_is_told_by_it(done):
    first, second = done["nothing"]
    assert (first["code"], second["code"]) == (1, 2)
    assert first["out"] == "" and "finetune: " not in first["err"]
    assert second["err"].startswith("finetune: process 1 of 2 (on ") and "/proc/nothing" in second["err"]


def test_other_data_on_one_machine_are_refused(done):
    first, second = done["other"]
    assert (first["code"], second["code"]) == (1, 2) and "finetune: " not in first["err"]
    assert "would not train the same" in second["err"] and "data.test.fingerprint" in second["err"]


def test_a_device_by_its_number_is_refused(done):
    first, second = done["device"]
    assert (first["code"], second["code"]) == (2, 2) and silent(second)
    assert "with several processes it is auto, cpu or cuda" in first["err"]
