"""`finetune verify`: what holds is said to hold, and every way of lying about a checkpoint is found."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tampering import tampered
from tiny import (
    ROOT,
    Impatient,
    adapt_recipe,
    files_under,
    finetune,
    make_data,
    phase,
    pretrain_recipe,
    refused,
    worked,
)

import finetune as toolkit
from finetune.checkpoint.format import read_checkpoint, read_metadata, write_checkpoint
from finetune.checkpoint.limits import MAX_LINEAGE
from finetune.checkpoint.tensor_hash import hash_named, hash_tensor
from finetune.commands.adapt import adapt
from finetune.errors import FinetuneError, Interrupted
from finetune.sources.resolve import SourceRef
from finetune.verification import lineage
from finetune.verification.checks import open_for_checks
from finetune.verification.lineage import Parent, parent_checks

SOLVED = "  - {train: head, solver: lbfgs}\n"
FROZEN = SOLVED + phase("{last: 2}", "steps: 20", 50, "{name: sgd, lr: 1e-4}")
CHECKS = [
    *("file", "metadata", "tensors", "numbers", "hash", "classes", "results", "recipe", "lineage", "parent 1"),
    *("frozen", "report", "images", "accuracy"),
]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, data: Path, pretrained: Path) -> Path:
    """A folder with mnist.safetensors, its child of kmnist (the convolutions frozen), and a child of that."""
    work = tmp_path_factory.mktemp("family")
    for path in pretrained.parent.iterdir():
        shutil.copy(path, work)
    with contextlib.chdir(work):
        Path("a.yaml").write_text(adapt_recipe(FROZEN))
        for source, target, out in (("mnist", "kmnist", "child"), ("child", "mnist", "grandchild")):
            words = ("--from", f"{source}.safetensors", "--target", target, "--out", f"{out}.safetensors")
            worked("adapt", *words, "--recipe", "a.yaml", "--data-root", data, "--quiet")
    return work


@pytest.fixture
def home(folder: Path, family: Path) -> Path:
    """A copy of the family to spoil, in the folder to work in."""
    for path in family.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


def found(*words: object, code: int = 0) -> dict[str, Any]:
    """What verify says as JSON, after checking how it ended and that the words say the same."""
    done = finetune("verify", *words, "--json")
    assert done.code == code and "Traceback" not in done.err, done.err
    values: dict[str, Any] = json.loads(done.out)
    failed = [check["check"] for check in values["checks"] if check["state"] == "failed"]
    assert values["holds"] == (not failed) == (code == 0)
    assert ("FAILED" in done.err) == bool(failed) and all(name in done.err for name in failed)
    return values


def states(values: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["state"] for check in values["checks"]}


def failed(*words: object) -> dict[str, str]:
    """What failed, and what was said of it; the exit code has to be 1."""
    return {check["check"]: said(check) for check in found(*words, code=1)["checks"] if check["state"] == "failed"}


def said(check: dict[str, Any]) -> str:
    return "\n".join([check["says"], *check["details"]])


def says(values: dict[str, Any], name: str) -> str:
    (check,) = (check for check in values["checks"] if check["check"] == name)
    return str(check["says"])


def report_with(path: str, change: Callable[[dict[str, Any]], Any]) -> None:
    place = Path(path).with_suffix(".report.json")
    values = json.loads(place.read_text())
    change(values)
    place.write_text(json.dumps(values))


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# What holds


def test_a_checkpoint_that_is_what_it_says(home: Path) -> None:
    before = files_under(home)
    values = found("child.safetensors", "--data", "kmnist")
    assert list(values) == ["checkpoint", "sha256", "holds", "checks", "evaluation"]
    assert (values["checkpoint"], values["sha256"]) == ("child.safetensors", sha256("child.safetensors"))
    assert all(list(check) == ["check", "state", "says", "details"] for check in values["checks"])
    assert states(values) == dict.fromkeys(CHECKS, "ok")
    assert (
        values["evaluation"]
        == {"data": "kmnist"} | worked("inspect", "child.safetensors", "--json").json["results"]["after"]
    )
    assert says(values, "parent 1") == "mnist.safetensors has the recorded sha256"
    assert says(values, "frozen").startswith("4 tensors of conv1, conv2 never trained, and are bit for bit those of")
    frozen = next(check for check in values["checks"] if check["check"] == "frozen")
    assert frozen["details"] == ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]
    assert files_under(home) == before, "it writes nothing"


@pytest.mark.parametrize("part", ["temperature", "promise", "novelty"])
def test_the_confidence_is_that_of_the_report(home: Path, part: str) -> None:
    assert states(found("mnist.safetensors"))["report"] == "ok"
    promise = {"max_error": 0.01, "confidence": 0.95, "threshold": 0.5, "answered": 0.5, "images": 60}

    def change(metadata: dict[str, Any]) -> None:
        own = metadata["confidence"]
        changed = {"temperature": own["temperature"] * 1.5, "promise": promise, "novelty": own["novelty"]}
        own["novelty"]["threshold"] += part == "novelty"
        own[part] = changed[part]

    tampered("mnist.safetensors", change)
    assert list(broken := failed("mnist.safetensors")) == ["report"] and f"confidence.{part}" in broken["report"]
    report_with("mnist.safetensors", lambda r: r.pop("confidence"))
    assert states(found("mnist.safetensors"))["report"] == "ok", "of an earlier version, which says nothing"


def test_a_temperature_out_of_range_is_refused(home: Path) -> None:
    tampered("mnist.safetensors", lambda m: m["confidence"].update(temperature=0))
    assert "confidence.temperature" in refused("verify", "mnist.safetensors")


def test_it_is_shown_line_by_line(home: Path) -> None:
    done = worked("verify", "child.safetensors")
    lines = done.out.splitlines()
    assert lines[0].startswith("child.safetensors, sha256 ") and "\x1b" not in done.out
    assert [line.split("  ")[1].strip() for line in lines[1:-1]] == [name for name in CHECKS if name != "images"]
    assert lines[-2] == "  accuracy  not checked  no --data is named to measure it on"
    assert lines[-1] == "12 ok, 0 FAILED, 1 not checked"
    tampered("child.safetensors", bits=("fc1.weight", 3))
    done = finetune("verify", "child.safetensors")
    assert done.code == 1 and "  hash      FAILED       the tensors have the sha256 " in done.out
    assert done.err.startswith("finetune: child.safetensors does not hold what it says: hash, report FAILED") or (
        done.err == "finetune: child.safetensors does not hold what it says: hash FAILED\n"
    )


def test_from_python(home: Path) -> None:
    values = toolkit.verify("child.safetensors", "kmnist")
    assert values.holds and values.failed == []
    assert values.to_dict() == found("child.safetensors", "--data", "kmnist")
    tampered("child.safetensors", bits=("fc1.weight", 3))
    assert toolkit.verify("child.safetensors").failed == ["hash"], "it tells, and raises nothing"


def test_a_pretrained_one_has_no_parents(home: Path) -> None:
    values = found("mnist.safetensors", "--data", "mnist")
    assert "parent 1" not in states(values) and states(values)["frozen"] == "not checked"
    assert says(values, "lineage") == "no parents are recorded"


def test_the_shipped_weights_hold() -> None:
    path = ROOT / "checkpoints" / "mnist.safetensors"
    assert toolkit.verify(path).holds


def test_parents_of_parents(home: Path) -> None:
    values = found("grandchild.safetensors", "--data", "mnist")
    assert states(values)["parent 1"] == states(values)["parent 2"] == states(values)["frozen"] == "ok"
    tampered("grandchild.safetensors", lambda m: m["lineage"].pop(1))
    faults = failed("grandchild.safetensors")
    assert (
        list(faults) == ["parent 1"] and "child.safetensors has other parents than those recorded" in faults["parent 1"]
    )


def test_parents_are_found_by_content_wherever_they_lie(home: Path) -> None:
    Path("checkpoints").mkdir()
    Path("mnist.safetensors").rename("checkpoints/renamed.safetensors")
    values = found("child.safetensors")
    assert says(values, "parent 1") == "checkpoints/renamed.safetensors has the recorded sha256"
    assert states(values)["frozen"] == "ok"
    Path("far").mkdir()
    Path("checkpoints/renamed.safetensors").rename("far/away.safetensors")
    values = found("child.safetensors")
    assert states(values)["parent 1"] == states(values)["frozen"] == "not checked"
    assert "mnist.safetensors is not at hand: no file beside the checkpoint or in checkpoints/" in says(
        values, "parent 1"
    )
    assert says(values, "frozen") == "4 tensors of conv1, conv2 never trained, but mnist.safetensors is not at hand"
    report_with("child.safetensors", lambda r: r["source"].update(path=str(home / "far" / "away.safetensors")))
    assert states(found("child.safetensors"))["frozen"] == "ok", "where the report says"


def test_an_older_file_holds_too(home: Path) -> None:
    tampered("child.safetensors", lambda m: m.pop("tensors"))
    report_with("child.safetensors", lambda r: [one.pop("frozen") for one in r["phases"]])
    values = found("child.safetensors", "--data", "kmnist")
    assert states(values) == {**dict.fromkeys(CHECKS, "ok"), "hash": "not checked"}
    assert says(values, "hash") == "not recorded: the file is older than this hash"


def test_a_file_without_a_report(home: Path) -> None:
    Path("child.report.json").unlink()
    values = found("child.safetensors")
    assert says(values, "report") == "there is no child.report.json beside it" and values["holds"]


def test_weights_that_were_changed_and_saved_by_hand_claim_little(home: Path) -> None:
    classifier = toolkit.load("child.safetensors")
    classifier.network.conv1.bias.data += 1
    toolkit.save(classifier, "mine.safetensors")
    values = found("mine.safetensors", "--data", "kmnist")
    assert {name for name, state in states(values).items() if state == "not checked"} == {
        *("classes", "results", "recipe", "frozen", "report", "images", "accuracy")
    }
    assert states(values)["parent 1"] == states(values)["parent 2"] == "ok"
    assert "of which the checkpoint says nothing" in says(values, "accuracy") and values["evaluation"]["total"] == 100


def test_what_a_stopped_run_kept_holds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.train.loop.MIN_ROW_STEPS", 5)
    Path("a.yaml").write_text(adapt_recipe(phase("{last: 2}", "epochs: 9", 50), "{name: kmnist}"))
    with pytest.raises(Interrupted):
        adapt("mnist.safetensors", recipe="a.yaml", out="new.safetensors", console=Impatient("epoch", 1))
    Path("interrupted.safetensors").write_bytes(Path("runs/new/interrupted.safetensors").read_bytes())
    values = found("interrupted.safetensors", "--data", "kmnist")
    assert states(values)["frozen"] == states(values)["images"] == "ok" and "no result is recorded" in says(
        values, "accuracy"
    )


# What does not


def test_one_bit_of_a_tensor(home: Path) -> None:
    tampered("child.safetensors", bits=("fc1.weight", 8 * 4000))
    assert list(failed("child.safetensors", "--data", "kmnist")) in (["hash"], ["hash", "accuracy"])
    tampered("child.safetensors", seal=True)
    values = found("child.safetensors")
    assert states(values)["hash"] == "ok", (
        "a stage that trained can be anything: only its accuracy can be held against it"
    )


def test_one_bit_of_a_frozen_tensor_is_found_though_the_hash_was_made_to_fit(home: Path) -> None:
    tampered("child.safetensors", bits=("conv2.bias", 5), seal=True)
    faults = failed("child.safetensors")
    assert list(faults) == ["frozen", "report"]
    assert faults["frozen"].startswith("conv2.bias was never to change, and is not that of mnist.safetensors")
    assert "phases.last-2.frozen: it says" in faults["report"]


def test_numbers_that_are_none(home: Path) -> None:
    tampered("child.safetensors", bits=("fc1.bias", 0))
    values = load_file("child.safetensors")
    values["fc1.bias"][3] = float("nan")
    content = bytearray(Path("child.safetensors").read_bytes())
    end = 8 + struct.unpack("<Q", content[:8])[0]
    at = end + json.loads(content[8:end])["fc1.bias"]["data_offsets"][0]
    content[at : at + values["fc1.bias"].numel() * 4] = values["fc1.bias"].numpy().tobytes()
    Path("child.safetensors").write_bytes(content)
    faults = failed("child.safetensors")
    assert "NaN or infinite numbers in fc1.bias" in faults["numbers"] and "hash" in faults


def test_numbers_that_are_too_large(home: Path) -> None:
    def too_large(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("conv2.weight", "fc1.weight", "head.weight"):
            tensors[name].fill_(1e14)

    tampered("grandchild.safetensors", bits=("fc1.weight", 30), seal=True)  # the highest of a small number's exponent
    assert "numbers above 1e+15 in fc1.weight" in failed("grandchild.safetensors")["numbers"]
    said = refused("evaluate", "grandchild.safetensors", "--data", "kmnist")
    assert "numbers above 1e+15 in fc1.weight" in said
    rewritten("child.safetensors", too_large)
    assert "the network's outputs for a black" in failed("child.safetensors")["numbers"]
    said = refused("evaluate", "child.safetensors", "--data", "kmnist", code=1)
    assert "the network's outputs are NaN or infinite for 100 of 100 images" in said


def rewritten(path: str, change: Callable[[dict[str, torch.Tensor]], Any], **metadata: Any) -> str:
    """Writes a checkpoint anew with its tensors changed and with other metadata; returns its sha256."""
    read = read_checkpoint(Path(path))
    change(read.tensors)
    return write_checkpoint(Path(path), read.tensors, read.metadata.model_copy(update=metadata))


def test_a_huge_file_under_the_parents_name_is_not_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse one, whole by its header."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [2**41], "data_offsets": [0, 2**41]}}).encode()
    with Path("mnist.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**41)
    assert states(found("child.safetensors"))["parent 1"] == "not checked"
    shutil.copy("grandchild.safetensors", "mnist.safetensors")
    monkeypatch.setattr(lineage, "LARGE", 1)
    assert "which may be a parent" in finetune("verify", "child.safetensors").err


def test_of_very_many_ancestors_the_oldest_are_not_kept(home: Path) -> None:
    many = [{"id": f"{number}.safetensors", "sha256": "0" * 64, "task": None} for number in range(MAX_LINEAGE)]
    older = read_metadata(Path("child.safetensors")).lineage
    digest = rewritten("child.safetensors", dict, lineage=[*older, *many][:MAX_LINEAGE])
    parent = read_metadata(Path("grandchild.safetensors")).lineage[0] | {"sha256": digest}
    rewritten("grandchild.safetensors", dict, lineage=[parent, *older, *many][:MAX_LINEAGE])
    told = states(json.loads(finetune("verify", "grandchild.safetensors", "--json").out))
    assert told["parent 1"] == "ok"


def test_an_accuracy_that_was_edited(home: Path) -> None:
    tampered("child.safetensors", lambda m: m["results"]["after"].update(accuracy=0.999))
    faults = failed("child.safetensors")
    assert "results.after: the accuracy says 0.999, and " in faults["results"]
    assert "child.report.json: results.after.accuracy: it says" in faults["report"] and len(faults) == 2


def test_results_that_were_edited_all_together(home: Path) -> None:
    better = worked("inspect", "child.safetensors", "--json").json["results"]["after"]["correct"] + 1
    from finetune.report.statistics import wilson

    made = {"correct": better, "total": 100, "accuracy": better / 100, "ci95": list(wilson(better, 100))}
    tampered("child.safetensors", lambda m: m["results"].update(after=made))
    assert list(failed("child.safetensors")) == ["report"]
    report_with("child.safetensors", lambda r: r["results"]["after"].update(made))
    faults = failed("child.safetensors")
    assert "comparisons.after_vs_before: the difference is not that of the two accuracies" in faults["report"]
    Path("child.report.json").unlink()
    assert found("child.safetensors")["holds"], "nothing at hand contradicts it"
    faults = failed("child.safetensors", "--data", "kmnist")
    assert faults == {"accuracy": f"{better - 1} of 100 right ({better - 1}.00 %), and {better} of 100 are recorded"}


@pytest.mark.parametrize(
    ("results", "fault"),
    [
        ({"after": 5}, "results.after: expected a result, found int"),
        ({"after": {"correct": 101, "total": 100}}, "expected correct of total, found 101 of 100"),
        ({"after": {"correct": 1.0, "total": 100}}, "expected correct of total"),
        (
            {"after": {"correct": 5, "total": 10, "accuracy": 0.5, "ci95": [0.2365930907240167, 0.7634069092759833]}},
            "is of 10 images, and 100 test",
        ),
        ({"after": {"correct": 5, "total": 100, "accuracy": 0.05, "ci95": [0, 1]}}, "the interval says [0, 1]"),
    ],
)
def test_results_that_cannot_be(home: Path, results: dict[str, Any], fault: str) -> None:
    tampered("child.safetensors", lambda m: m.update(results=results))
    assert fault in failed("child.safetensors", "--data", "kmnist")["results"]


def test_classes_in_another_order(home: Path) -> None:
    def turned(names: list[str]) -> list[str]:
        return [*names[1:], names[0]]

    tampered("child.safetensors", lambda m: m.update(classes=turned(m["classes"])))
    faults = failed("child.safetensors", "--data", "kmnist")
    assert "the classes are in another order than those of the training data" in faults["classes"]
    assert "target.classes" in faults["report"] and "are recorded" in faults["accuracy"]
    tampered("child.safetensors", lambda m: m["data"].update(classes=turned(m["data"]["classes"])))
    Path("child.report.json").unlink()
    assert found("child.safetensors")["holds"], "nothing at hand contradicts it"
    values = found("child.safetensors", "--data", "kmnist", code=1)
    assert states(values)["images"] == "ok" and states(values)["accuracy"] == "failed"


def test_another_file_under_the_parents_name(home: Path) -> None:
    shutil.copy("grandchild.safetensors", "mnist.safetensors")
    values = found("child.safetensors")
    assert says(values, "parent 1") == "mnist.safetensors is not at hand: mnist.safetensors has another sha256"
    assert states(values)["frozen"] == "not checked"


def test_another_parent_in_the_lineage(home: Path, data: Path) -> None:
    make_data(home / "more", "mnist", noise=300)
    Path("b.yaml").write_text(pretrain_recipe(phase(length="steps: 3")))
    words = ("--out", "other.safetensors", "--set", "seed=5", "--data-root", home / "more", "--quiet")
    worked("pretrain", "--recipe", "b.yaml", *words)
    entry = {"id": "other.safetensors", "sha256": sha256("other.safetensors"), "task": "mnist"}
    tampered("child.safetensors", lambda m: m.update(lineage=[entry]))
    faults = failed("child.safetensors")
    assert list(faults) == ["frozen", "report"] and faults["frozen"].count("was never to change") == 4
    assert "source.sha256" in faults["report"]
    tampered("child.safetensors", lambda m: m["lineage"][0].update(task="fashion-mnist"))
    assert "other.safetensors was trained on mnist, and fashion-mnist is" in failed("child.safetensors")["parent 1"]


def test_a_parent_of_another_model(home: Path, backbone: Path) -> None:
    shutil.copy(backbone, home)
    entry = {"id": "meadow.safetensors", "sha256": sha256("meadow.safetensors"), "task": "meadow"}
    tampered("child.safetensors", lambda m: m.update(lineage=[entry]))
    assert "meadow.safetensors has another sha256" in says(found("child.safetensors", code=1), "parent 1"), (
        "passed over"
    )
    subject = open_for_checks(SourceRef("child.safetensors", Path("child.safetensors")))
    path = Path("meadow.safetensors")
    parent = Parent(str(path), entry["sha256"], "meadow", SourceRef(str(path), path), entry["sha256"])
    (check,) = parent_checks(subject, [parent])
    assert check.message == "meadow.safetensors is a timm/test_resnet, and what was made of it a cnn"


@pytest.mark.parametrize(
    ("lineage", "fault"),
    [
        ([], "an adapt starts from weights, and no parent is recorded"),
        ([{}], "3 things"),
        ([{"id": "", "sha256": "0" * 64, "task": None}], "parent 1: expected an id, found ''"),
        ([{"id": "x", "sha256": "0" * 63, "task": None}], "expected a sha256 of 64 digits"),
    ],
)
def test_lineages_that_are_none(home: Path, lineage: list[Any], fault: str) -> None:
    tampered("child.safetensors", lambda m: m.update(lineage=lineage))
    faults = failed("child.safetensors")
    assert fault in faults["lineage"] or (fault == "3 things" and "parent 1: expected an id" in faults["lineage"])
    values = found("child.safetensors", code=1)
    assert states(values)["frozen"] == "not checked" and "parent 1" not in states(values)


def test_a_pretrain_with_a_parent(home: Path) -> None:
    tampered("mnist.safetensors", lambda m: m.update(lineage=[{"id": "x", "sha256": "0" * 64, "task": None}]))
    assert "a pretrain starts from random weights" in failed("mnist.safetensors")["lineage"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda r: r.update(seed=7), "seed: it says 7, and the checkpoint 0"),
        (lambda r: r["recipe"]["phases"][1].update(steps=21), "recipe: it says "),
        (lambda r: r["results"]["after"].update(correct=100), "results.after.correct: it says 100"),
        (lambda r: r["results"].pop("before"), "results.before: the report has none"),
        (lambda r: r["results"].update(scratch=r["results"]["after"]), "results.scratch: the checkpoint has none"),
        (lambda r: r.pop("results"), "there is no results in it"),
        (lambda r: r["target"].update(test=99), "target.test: it says 99, and the checkpoint 100"),
        (lambda r: r["target"]["classes"].reverse(), "target.classes"),
        (lambda r: r["source"].update(sha256="0" * 64), "source.sha256"),
        (lambda r: r.update(source=None), "source.sha256: it says null"),
        (lambda r: r.update(kind="pretrain"), "kind"),
        (lambda r: r["phases"].pop(), "phases: it says"),
        (lambda r: r["phases"][1]["frozen"].update(tensors=5), "phases.last-2.frozen"),
        (lambda r: r["phases"][1].update(frozen=None), "phases.last-2.frozen: it says null"),
        (lambda r: r["comparisons"]["after_vs_before"].update(difference=0.9), "comparisons.after_vs_before"),
    ],
)
def test_a_report_that_was_edited(home: Path, change: Callable[[dict[str, Any]], Any], fault: str) -> None:
    report_with("child.safetensors", change)
    faults = failed("child.safetensors")
    assert list(faults) == ["report"] and fault in faults["report"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a report: the file is empty"),
        ("{", "not a report: cut short at line 1, column 2"),
        ("[]", "not a report: expected a JSON object, found list []"),
        (None, "the report cannot be read (it is a pipe, not a regular file)"),
        ("{ }" + " " * 200, "the report cannot be read (203 bytes, and at most 200 are read); name or make it anew"),
    ],
)
def test_a_report_that_is_none(home: Path, text: str | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.report.report.MAX_REPORT_BYTES", 200)
    Path("child.report.json").unlink()
    os.mkfifo("child.report.json") if text is None else Path("child.report.json").write_text(text)
    assert failed("child.safetensors")["report"] == f"child.report.json: {said}; put it right, or move it away"


def test_the_report_of_another_run(home: Path) -> None:
    shutil.copy("grandchild.report.json", "child.report.json")
    assert list(failed("child.safetensors")) == ["report"]


def test_a_recipe_that_does_not_hold(home: Path) -> None:
    tampered("child.safetensors", lambda m: m["recipe"]["phases"][1].update(train=["fc2"], epohcs=3))
    faults = failed("child.safetensors")
    assert "fc2" in faults["recipe"] and "epohcs" in faults["recipe"] and "report" in faults
    assert states(found("child.safetensors", code=1))["frozen"] == "not checked"
    tampered("mnist.safetensors", lambda m: m["recipe"].update(model="timm/resnet18"))
    assert "is of timm/resnet18, and the checkpoint is a cnn" in failed("mnist.safetensors")["recipe"]


def test_tensors_of_another_network(home: Path) -> None:
    tampered("child.safetensors", lambda m: m.update(classes=m["classes"][:9]))
    values = found("child.safetensors", "--data", "kmnist", code=1)
    assert says(values, "tensors") == "the tensors do not fit the model, which has 8; the file has 8"
    assert states(values)["accuracy"] == states(values)["frozen"] == "not checked" and states(values)["hash"] == "ok"
    tampered("mnist.safetensors", lambda m: m.update(arguments={"depth": 3}))
    assert "unknown argument 'depth'" in failed("mnist.safetensors")["tensors"]
    tampered("grandchild.safetensors", lambda m: m.update(arguments={"depth": 3}))
    faults = failed("grandchild.safetensors")
    assert "unknown argument 'depth'" in faults["tensors"] and "unknown argument 'depth'" in faults["recipe"]


# The data


def test_other_images_confirm_nothing_and_refute_nothing(home: Path) -> None:
    make_data(home / "more", "kmnist", noise=300)
    values = found("child.safetensors", "--data", "kmnist", "--data-root", home / "more")
    assert says(values, "images") == "other images: those of kmnist are not the ones it was measured on"
    assert states(values)["images"] == states(values)["accuracy"] == "not checked"
    assert values["evaluation"]["total"] == 100 and "of 100 right" in says(values, "accuracy")


def test_weights_trained_on_other_data(home: Path, data: Path) -> None:
    """The words of one file over the tensors of another, which saw other images."""
    make_data(home / "more", "kmnist", 40, 100, noise=900)
    words = ("--from", "mnist.safetensors", "--target", "kmnist", "--data-root", home / "more", "--quiet")
    worked("adapt", *words, "--recipe", "a.yaml", "--out", "other.safetensors")
    for name in ("other.safetensors", "child.safetensors"):
        tampered(name)
    ours, theirs = (bytearray(Path(name).read_bytes()) for name in ("child.safetensors", "other.safetensors"))
    ends = [8 + struct.unpack("<Q", content[:8])[0] for content in (ours, theirs)]
    Path("child.safetensors").write_bytes(ours[: ends[0]] + theirs[ends[1] :])
    assert "hash" in failed("child.safetensors")
    tampered("child.safetensors", seal=True)
    assert found("child.safetensors")["holds"], (
        "the convolutions are the parent's, and nothing else can be held against it"
    )
    assert list(failed("child.safetensors", "--data", "kmnist")) == ["accuracy"]


def test_another_version_or_device_may_see_single_images_otherwise(home: Path) -> None:
    from finetune.report.statistics import wilson

    right = worked("inspect", "child.safetensors", "--json").json["results"]["after"]["correct"]

    def claim(correct: int) -> Callable[[dict[str, Any]], Any]:
        made = {"correct": correct, "total": 100, "accuracy": correct / 100, "ci95": list(wilson(correct, 100))}
        return lambda values: values["results"]["after"].update(made)

    tampered("child.safetensors", claim(right - 1))
    report_with("child.safetensors", claim(right - 1))
    assert "accuracy" in failed("child.safetensors", "--data", "kmnist")
    report_with("child.safetensors", lambda r: r["environment"].update(processor="another"))
    values = found("child.safetensors", "--data", "kmnist", code=1)
    assert states(values)["accuracy"] == "ok"
    assert says(values, "accuracy").endswith(
        f"recorded {right - 1} of 100: within 1, which another processor may bring"
    )
    Path("child.report.json").unlink()
    assert "accuracy" in failed("child.safetensors", "--data", "kmnist")
    tampered("child.safetensors", lambda m: m["versions"].update(torch="1.0"))
    assert "another version of torch" in says(found("child.safetensors", "--data", "kmnist"), "accuracy")
    tampered("child.safetensors", claim(right - 2))
    assert "may bring 1 more or fewer, and no more" in failed("child.safetensors", "--data", "kmnist")["accuracy"]


def test_data_without_a_class_in_common(home: Path) -> None:
    assert "have no class in common" in refused("verify", "child.safetensors", "--data", "mnist")


# What cannot be read at all


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.unlink(), "there is no such checkpoint"),
        (lambda p: p.write_bytes(b"\x80\x04K\x01."), "pickle"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "cut short"),
        (lambda p: save_file({"a": torch.zeros(1)}, p), "without finetune's metadata"),
        (lambda p: tampered(str(p), lambda m: m.update(format=2)), "its metadata does not hold at format"),
        (lambda p: tampered(str(p), lambda m: m.update(tensors="0")), "its metadata does not hold at tensors"),
        (lambda p: tampered(str(p), lambda m: m.update(model="cnm")), "made with model 'cnm'"),
    ],
)
def test_files_that_cannot_be_read(home: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(Path("child.safetensors"))
    assert message in refused("verify", "child.safetensors")
    assert message in refused("verify", "child.safetensors", "--json")


def test_what_says_nothing_of_itself(home: Path) -> None:
    assert "timm's weights say nothing of themselves" in refused("verify", "timm:resnet18")
    assert "--device" in refused("verify", "child.safetensors", "--device", "abacus")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    *(("recipe",), ("data",), ("results",), ("lineage",), ("recipe", "kind"), ("recipe", "phases"), ("recipe", "data")),
    *(("data", "classes"), ("data", "test"), ("data", "test", "fingerprint"), ("data", "name"), ("results", "after")),
    *(("lineage", 0), ("lineage", 0, "id"), ("lineage", 0, "task"), ("arguments",), ("versions", "torch")),
]


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.slow
@given(place=st.sampled_from(PLACES), value=JSON, in_report=st.booleans())
def test_anything_in_the_metadata_ends_in_words(
    home: Path, family: Path, place: Any, value: Any, in_report: bool
) -> None:
    for name in ("child.safetensors", "child.report.json"):
        shutil.copy(family / name, name)

    def change(values: Any) -> None:
        for step in place[:-1]:
            values = values[step]
        values[place[-1]] = value

    if in_report:
        with contextlib.suppress(KeyError):
            report_with("child.safetensors", change)
    else:
        tampered("child.safetensors", change)
    with contextlib.suppress(FinetuneError):
        json.dumps(toolkit.verify("child.safetensors").to_dict())


# Backbones: buffers, colours, adapters


def adapted(
    source: object, target: object, phases: str, *words: object, data: str = "{}", frozen: str = "ok"
) -> list[str]:
    """Adapts to `new.safetensors`, verifies it, and returns the tensors that were held against the parent."""
    Path("a.yaml").write_text(adapt_recipe(phases, data))
    worked(
        "adapt",
        "--from",
        source,
        "--target",
        target,
        "--recipe",
        "a.yaml",
        "--out",
        "new.safetensors",
        "--quiet",
        *words,
    )
    values = found("new.safetensors", "--data", target)
    assert {name for name, state in states(values).items() if state != "ok"} <= {"frozen"}
    (check,) = (check for check in values["checks"] if check["check"] == "frozen")
    assert check["state"] == frozen, check
    return list(check["details"])


NORM = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("norms", ["hold", "update", "hold_all"])
def test_statistics_are_held_against_the_parents_where_they_were_not_to_move(
    norms: str, folder: Path, backbone: Path, orchard: Path
) -> None:
    shutil.copy(backbone, folder)
    phases = SOLVED + phase("{last: 2}", "steps: 4", more=f"norms: {norms}, name: top")
    held = adapted("meadow.safetensors", orchard, phases)
    names = [name for name in load_file("meadow.safetensors") if not name.startswith("fc.")]
    last = {name for name in names if name.startswith("layer4.")}
    statistics = {name for name in names if name.endswith(NORM)}
    wanted = {
        "hold": set(names) - last,
        "update": set(names) - last - statistics,
        "hold_all": set(names) - (last - statistics),
    }
    assert set(held) == wanted[norms]
    tampered("new.safetensors", bits=(held[-1], 3), seal=True)
    assert f"{held[-1]} was never to change" in failed("new.safetensors")["frozen"]


@pytest.mark.slow
def test_adapters_leave_all_but_their_places_as_it_was(folder: Path, backbone: Path, orchard: Path) -> None:
    shutil.copy(backbone, folder)
    low_rank = phase("{last: 3}", "steps: 4", optimizer="{name: adamw, lr: 1e-2}", more="lora: {rank: 2}, name: low")
    held = adapted("meadow.safetensors", orchard, SOLVED + low_rank)
    old, new = load_file("meadow.safetensors"), load_file("new.safetensors")
    moved = {name for name in old if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])}
    assert set(held) == set(old) - moved and any(name.startswith("layer3.") for name in held)
    place = next(name for name in sorted(moved) if name.startswith("layer3."))
    tampered("new.safetensors", bits=(place, 3), seal=True)
    assert found("new.safetensors")["holds"], "where an adapter was, nothing is known"


@pytest.mark.slow
def test_a_first_convolution_that_was_made_grey(folder: Path, backbone: Path) -> None:
    shutil.copy(backbone, folder)
    held = adapted("meadow.safetensors", "kmnist", SOLVED)
    assert load_file("new.safetensors")["conv1.0.weight"].shape[1] == 1 and "conv1.0.weight" in held
    tampered("new.safetensors", bits=("conv1.0.weight", 3), seal=True)
    assert "conv1.0.weight was never to change" in failed("new.safetensors")["frozen"]


@pytest.mark.slow
def test_a_bare_file_of_weights_as_the_parent(folder: Path, backbone: Path, orchard: Path) -> None:
    save_file(load_file(backbone), "bare.safetensors")
    for target in (orchard, "kmnist"):
        held = adapted("bare.safetensors", target, SOLVED, "--model", "timm/test_resnet")
        assert "layer4.0.conv1.weight" in held and "conv1.0.weight" in held
    values = found("new.safetensors")
    assert says(values, "parent 1") == "bare.safetensors has the recorded sha256"
    tampered("new.safetensors", lambda m: m["lineage"][0].update(task="imagenet"))
    assert "was trained on None, and imagenet is recorded" in failed("new.safetensors")["parent 1"]


def test_rows_of_a_head_that_never_trained(home: Path) -> None:
    """Of the same classes in another order: the rows follow the names."""
    data = "{classes: ['7', '1', '0']}"
    held = adapted("mnist.safetensors", "mnist", phase("[conv1]", "steps: 3"), data=data)
    assert held == ["conv2.weight", "conv2.bias", "fc1.weight", "fc1.bias"]
    assert says(found("new.safetensors"), "frozen").endswith("and 3 rows of the head")
    tampered("new.safetensors", bits=("head.weight", 128 * 32 + 3), seal=True)
    assert "head.weight: the row of 1 was never to change" in failed("new.safetensors")["frozen"]
    tampered("new.safetensors", lambda m: m.update(classes=["0", "1", "7"]))
    values = found("new.safetensors", "--data", "mnist", code=1)
    assert states(values)["classes"] == "failed" and states(values)["images"] == "ok", "the data set has another order"
    tampered("new.safetensors", lambda m: [m.update(classes=["7", "1", "0"]), m["data"].pop("classes")])
    values = found("new.safetensors", "--data", "mnist", code=1)
    assert states(values)["classes"] == "not checked" and states(values)["images"] == "ok", "in the file's own order"
    held = adapted(
        "mnist.safetensors",
        "mnist",
        phase("[conv1, conv2, fc1]", "steps: 3"),
        "--set",
        "head=random",
        frozen="not checked",
    )
    assert held == [] and "only the head never trained" in says(found("new.safetensors"), "frozen")


def test_the_digest_of_the_file_is_the_one_that_anybody_can_compute(home: Path, capsys: Any) -> None:
    digests = {name: hash_tensor(tensor) for name, tensor in load_file("child.safetensors").items()}
    assert worked("inspect", "child.safetensors", "--json").json["tensors"] == hash_named(digests)
    page = ROOT / "docs" / "verify.md"
    program = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    Path("checkpoints").mkdir()
    shutil.copy("child.safetensors", "checkpoints/probe.safetensors")
    exec(program, {})
    tampered("checkpoints/probe.safetensors", bits=("fc1.weight", 3))
    exec(program, {})
    assert capsys.readouterr().out == "True\nFalse\n"
