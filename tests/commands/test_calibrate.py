"""A checkpoint's confidence from end to end: recorded by trainings and by `calibrate`, used by `predict`."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tampering import tampered
from tiny import Impatient, adapt_recipe, drawn, make_data, refused, report_of, worked

import finetune as toolkit
from finetune.checkpoint.format import read_metadata
from finetune.errors import CheckpointError, DataError, Interrupted, SettingError
from finetune.train.temperature import fit_temperature

ALL = "  - {train: all, steps: 40, batch_size: 10, optimizer: {name: sgd, lr: 0.01}}\n"
HEAD = "  - {train: head, steps: 20, batch_size: 10, optimizer: {name: sgd, lr: 0.01}}\n"


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, pretrained: Path, data: Path) -> Path:
    """The small mnist adapted to the small kmnist with 60 of 300 images held out; nothing may change it."""
    work = tmp_path_factory.mktemp("adapted")
    with contextlib.chdir(work):
        Path("a.yaml").write_text(adapt_recipe(ALL, "{validation: 60}"))
        words = ("--recipe", "a.yaml", "--target", "kmnist", "--out", "a.safetensors", "--data-root", data)
        worked("adapt", "--from", pretrained, *words, "--max-error", "0.4", "--quiet")
    return work / "a.safetensors"


def pictures(folder: Path, count: int = 40) -> list[Path]:
    """Pictures of the small kmnist's kind."""
    folder.mkdir()
    paths = [folder / f"{number:03}.png" for number in range(count)]
    for path, pixels in zip(paths, drawn("kmnist", count, "test")[0], strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def test_a_training_records_its_confidence(adapted: Path, data: Path, folder: Path) -> None:
    record, report = read_metadata(adapted).confidence, report_of(adapted)["confidence"]
    assert record is not None and record.novelty is not None
    assert (record.images, record.how) == (60, "validation") == (report["images"], report["how"])
    assert report["temperature"] == record.temperature and report["novelty"]["threshold"] == record.novelty.threshold
    assert {"log_loss", "brier", "calibration_error"} == report["before"].keys() == report["after"].keys()
    before = report_of(adapted)["results"]["after"]["metrics"]
    assert all(report["before"][name] == before[name] for name in report["before"])
    classifier = toolkit.load(adapted)
    images = torch.from_numpy(drawn("kmnist", 100, "test")[0])[:, None]
    logits = classifier(classifier.input.normalizer(torch.device("cpu"))(images)).detach()
    labels = torch.arange(100) % 10
    loss = torch.nn.functional.cross_entropy(logits.double() / record.temperature, labels)
    assert report["after"]["log_loss"]["value"] == pytest.approx(float(loss), abs=1e-5)
    assert report["before"]["log_loss"]["value"] > report["after"]["log_loss"]["value"]
    promise = report["promise"]
    sure = (logits.double() / record.temperature).softmax(1).amax(1) >= promise["threshold"]
    wrong = sure & (logits.argmax(1) != labels)
    found = promise["found"]
    assert (promise["max_error"], promise["confidence"], promise["images"]) == (0.4, 0.95, 60)
    assert (found["images"], found["answered"], found["wrong"]) == (100, int(sure.sum()), int(wrong.sum()))


def test_predictions_are_calibrated_and_never_change(adapted: Path, folder: Path) -> None:
    paths = pictures(Path("mine"))
    classifier, record = toolkit.load(adapted), read_metadata(adapted).confidence
    assert record is not None and record.promise is not None and record.novelty is not None
    ours = classifier.predict(paths)
    logits = torch.tensor([own.logits for own in ours]).double()
    assert [own.label for own in ours] == [classifier.class_names[place] for place in logits.argmax(1).tolist()]
    calibrated = (logits / record.temperature).softmax(1)
    assert np.allclose([own.probabilities for own in ours], calibrated, atol=1e-6)
    assert [own.unsure for own in ours] == (calibrated.amax(1) < record.promise.threshold).tolist()
    found = worked("predict", adapted, *paths, "--json").json
    for theirs, own in zip(found, ours, strict=True):
        assert theirs["label"] == own.label and theirs["unsure"] == own.unsure
        assert theirs["probability"] == pytest.approx(own.probability, abs=1e-6)
        assert theirs["novelty"] == pytest.approx(own.novelty, abs=1e-3) and ("unlike" in theirs) == own.unlike
    lines = worked("predict", adapted, *paths).out.splitlines()
    assert [("\tunsure, best guess " in line) for line in lines] == [own.unsure for own in ours]
    assert any(own.unsure for own in ours) and not all(own.unsure for own in ours)


def test_what_is_unlike_anything_trained_on_is_said(adapted: Path, folder: Path) -> None:
    Image.new("L", (28, 28), 255).save("white.png")
    done = worked("predict", adapted, "white.png", "--json")
    assert done.json[0]["unlike"].startswith("unlike anything it was trained on: novelty score ")
    assert "white.png is unlike anything it was trained on" in done.err and "its answer means little" in done.err
    assert worked("predict", adapted, "white.png", "--quiet").out.endswith("\tunlike those trained on\n")
    assert toolkit.load(adapted).predict(["white.png"])[0].unlike


def test_calibrate_writes_the_same_weights(adapted: Path, folder: Path, data: Path) -> None:
    shutil.copy(adapted, "a.safetensors")
    done = worked("calibrate", "a.safetensors", "--data", "kmnist", "--max-error", "0.5")
    assert "kmnist: 60 images that it has not learnt from\ncalibrated: temperature " in done.out
    before, after = read_metadata(Path("a.safetensors")), read_metadata(Path("a-calibrated.safetensors"))
    assert before.confidence is not None and after.confidence is not None
    assert after.confidence.how == "data" and after.confidence.temperature == before.confidence.temperature
    assert after.confidence.novelty == before.confidence.novelty, "the same images were held out by the training"
    assert after.model_copy(update={"confidence": None}) == before.model_copy(update={"confidence": None})
    old, new = load_file("a.safetensors"), load_file("a-calibrated.safetensors")
    assert old.keys() == new.keys() and all(old[name].equal(new[name]) for name in old)
    worked("verify", "a-calibrated.safetensors", "--data", "kmnist")
    make_data(Path("more"), "kmnist", train=300, test=1, noise=100)  # other images of the same classes
    message = refused("calibrate", "a.safetensors", "--data", "kmnist", "--data-root", "more")
    assert "which of these it has learnt from cannot be told" in message


def test_images_of_another_data_set_leave_the_novelty_score_alone(adapted: Path, folder: Path) -> None:
    for label, path in zip(np.arange(60) % 10, pictures(Path("flat"), 60), strict=True):
        place = Path("other", toolkit.load(adapted).class_names[label], path.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    found = toolkit.calibrate(adapted, "other", out="b.safetensors")
    before, after = read_metadata(adapted).confidence, read_metadata(Path("b.safetensors")).confidence
    assert before is not None and after is not None and after.novelty == before.novelty and after.promise is None
    assert found.images == after.images >= 30 and found.out == "b.safetensors"
    assert "are among those it has learnt from cannot be told" in found.lines()[0]


@pytest.mark.parametrize("share", ["0", "1", "-0.1"])
def test_a_promise_of_nothing_wrong_is_refused(adapted: Path, folder: Path, share: str) -> None:
    message = refused("calibrate", adapted, "--data", "kmnist", "--max-error", share, "--out", "b.safetensors")
    assert f"--max-error {share}: expected a share from 0.0001 and below 1" in message
    Path("a.yaml").write_text(adapt_recipe(HEAD))
    words = ("--recipe", "a.yaml", "--target", "kmnist", "--out", "c.safetensors")
    assert refused("adapt", "--from", adapted, *words, "--max-error", share) == message
    assert f"max_error={share}: must be " in refused("adapt", "--from", adapted, *words, "--set", f"max_error={share}")


def test_too_few_images_say_how_many_would_do(adapted: Path, folder: Path) -> None:
    words = ("--data", "kmnist", "--out", "b.safetensors", "--json")
    notes = worked("calibrate", adapted, *words, "--max-error", "0.01").json["confidence"]["notes"]
    assert "cannot be promised by 60 held-out images: even without a mistake it takes 299" in notes[0]


def test_a_checkpoint_without_a_record_answers_as_before(pretrained: Path, adapted: Path, folder: Path) -> None:
    shutil.copy(adapted, "old.safetensors")
    tampered("old.safetensors", lambda metadata: metadata.pop("confidence"))
    classifier = toolkit.load("old.safetensors")
    assert classifier.confidence is None
    one = classifier.predict(pictures(Path("mine"), 1))[0]
    assert np.allclose(one.probabilities, torch.tensor(one.logits).softmax(0)) and not one.unsure
    assert one.novelty is None and not one.unlike
    found = worked("predict", "old.safetensors", "mine", "--json").json[0]
    assert found.keys() == {"file", "label", "probability", "top"}


def change(metadata: dict[str, Any], place: str, value: object) -> None:
    *path, last = place.split(".")
    for key in path:
        metadata = metadata[int(key) if key.isdigit() else key]
    metadata[last] = value


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("confidence.temperature", 0.0),
        ("confidence.temperature", 1e9),
        ("confidence.promise.threshold", 1.5),
        ("confidence.novelty.layers.0.vectors", "no base64!"),
        ("confidence.novelty.layers.0.count", 3),
        ("confidence.novelty.layers.0.std", 0.0),
        ("confidence.novelty.layers.0.cut", 77),
        ("confidence.novelty.layers", []),
    ],
)
def test_a_record_that_cannot_be_is_refused(adapted: Path, folder: Path, place: str, value: object) -> None:
    shutil.copy(adapted, "odd.safetensors")
    tampered("odd.safetensors", lambda metadata: change(metadata, place, value))
    with pytest.raises(CheckpointError, match=r"its metadata does not hold at confidence"):
        toolkit.load("odd.safetensors")


def test_reference_vectors_of_another_network_are_refused(adapted: Path, folder: Path) -> None:
    shutil.copy(adapted, "odd.safetensors")
    tampered("odd.safetensors", lambda metadata: metadata["confidence"]["novelty"]["layers"].reverse())
    with pytest.raises(CheckpointError, match=r"confidence\.novelty"):
        toolkit.load("odd.safetensors").predict(pictures(Path("mine"), 1))


def test_what_cannot_be_calibrated_is_refused(adapted: Path, pretrained: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="expected images of at least two of the checkpoint's classes"):
        toolkit.calibrate(adapted, "mnist", out="b.safetensors")
    for label, path in enumerate(pictures(Path("flat"), 20)):
        place = Path("few", toolkit.load(adapted).class_names[label % 10], path.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    with pytest.raises(DataError, match="few: expected at least 30 images to calibrate on, found "):
        toolkit.calibrate(adapted, "few", out="b.safetensors")
    with pytest.raises(SettingError, match="max-error"):
        toolkit.calibrate(adapted, "kmnist", max_error=0.0)
    Path("a.yaml").write_text(adapt_recipe(HEAD, "{validation: 0}"))
    words = ("--recipe", "a.yaml", "--target", "kmnist", "--out", "c.safetensors", "--quiet")
    worked("adapt", "--from", pretrained, *words, "--max-error", "0.05", "--set", "calibration_folds=null")
    found = report_of("c.safetensors")["confidence"]
    assert found["temperature"] is None and "none held out; hold out more with data.validation" in found["notes"][0]
    assert found["notes"][1].endswith("cannot be promised: it takes 59 held-out images without a mistake")
    assert read_metadata(Path("c.safetensors")).confidence is None
    message = refused("calibrate", "c.safetensors", "--data", "kmnist")
    assert "has learnt from all 300 images to learn from, and its test images stay closed" in message


def test_out_of_fold_where_nothing_is_held_out(pretrained: Path, folder: Path) -> None:
    """A run stopped in the second fold goes on to the same bytes; the folds change no weight."""
    folds = "calibration_folds: 2\nmax_error: 0.5\n"
    for name, more in (("folds", folds), ("plain", "")):
        Path(f"{name}.yaml").write_text(adapt_recipe(HEAD, "{validation: 0}", compare="[scratch]", more=more))
    words = {"target": "kmnist", "recipe": "folds.yaml"}
    report = toolkit.adapt(pretrained, out="whole.safetensors", **words)
    assert report.confidence is not None and (report.confidence.images, report.confidence.how) == (300, "folds")
    assert report.confidence.novelty is not None
    with pytest.raises(Interrupted):
        toolkit.adapt(pretrained, out="new.safetensors", console=Impatient("phase head-fold-2"), **words)
    again = toolkit.adapt(pretrained, out="new.safetensors", resume=True, **words)
    assert Path("new.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert again.results == report.results and again.confidence == report.confidence
    toolkit.adapt(pretrained, "kmnist", "plain.yaml", out="plain.safetensors")
    first, second = load_file("whole.safetensors"), load_file("plain.safetensors")
    assert all(first[name].equal(second[name]) for name in first)


def test_logits_of_a_temperature_are_fitted_on_the_validation_images(adapted: Path, data: Path, folder: Path) -> None:
    classifier, record = toolkit.load(adapted), read_metadata(adapted)
    from finetune.recipe.schema import DataSettings
    from finetune.run.data import open_run_data

    found = open_run_data(DataSettings(name="kmnist", validation=60), data, 0, classifier.input)
    assert found.validation.fingerprint() == record.data["validation"]["fingerprint"]
    with torch.no_grad():
        logits = classifier(classifier.input.normalizer(torch.device("cpu"))(found.validation.images))
    assert record.confidence is not None
    assert fit_temperature(logits, found.validation.labels) == pytest.approx(record.confidence.temperature, rel=1e-3)
