"""`finetune pretrain` from end to end: what it writes, that it repeats, and the Python API on what it wrote."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import drawn, files_under, finetune, phase, pretrain_recipe, refused, report_of, worked

import finetune as toolkit
from finetune.data.normalize import Normalizer
from finetune.data.registry import open_dataset
from finetune.errors import CheckpointError, DataError, RecipeError, SettingError
from finetune.models.cnn import ArticleCNN
from finetune.recipe.schema import PretrainRecipe

CHECKPOINT, REPORT = Path("checkpoints/small.safetensors"), Path("checkpoints/small.report.json")
PREDICTIONS = Path("checkpoints/small.predictions.csv")
RUN = {f"runs/small/{name}" for name in ("recipe.yaml", "metrics.jsonl", "log.txt", "finished.json")}
RUN |= {"runs/test-sets.jsonl"}
MADE = {str(CHECKPOINT), str(REPORT), str(PREDICTIONS)}
TIMES = ("images_per_second", "seconds")


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def metadata_of(path: str | Path) -> dict:
    with safe_open(path, "pt") as file:
        everything = file.metadata()
    assert everything.keys() == {"finetune", "format"} and everything["format"] == "pt", "transformers 4 asks for it"
    return json.loads(everything["finetune"])


def without_times(report: dict) -> dict:
    """A report without what differs from run to run."""
    phases = [
        {**p, "epochs": [{k: v for k, v in row.items() if k not in TIMES} for row in p["epochs"]]}
        for p in report["phases"]
    ]
    return {**report, "seconds": None, "phases": phases}


def small(text: str | None = None) -> str:
    Path("small.yaml").write_text(text or pretrain_recipe())
    return "small.yaml"


def same_tensors(first: str | Path, second: str | Path) -> bool:
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What is written


def test_exactly_these_files_are_written_and_named(folder: Path) -> None:
    done = worked("pretrain", "--recipe", small())
    assert files_under(folder) == {"small.yaml", *RUN, *MADE}
    assert f"wrote {CHECKPOINT} (sha256 {sha256(CHECKPOINT)[:12]}), {REPORT.name} and {PREDICTIONS.name}" in done.out
    log = Path("runs/small/log.txt").read_text()
    for line in done.err.splitlines():
        assert line in log
    assert "moved" not in done.err


def test_out_names_the_place_of_all_files(folder: Path) -> None:
    worked("pretrain", "--recipe", small(), "--out", "else/where/v1.2.safetensors", "--quiet")
    run = {name.replace("small", "v1.2") for name in RUN}
    assert files_under(folder) == {
        "small.yaml",
        *run,
        *("else/where/v1.2.safetensors", "else/where/v1.2.report.json", "else/where/v1.2.predictions.csv"),
    }


def test_the_tensors_load_without_finetune(pretrained: Path, data: Path) -> None:
    network = ArticleCNN(10)
    network.load_state_dict(load_file(pretrained))
    network.eval()
    classifier = toolkit.load(pretrained)
    assert not classifier.training and not any(module.training for module in classifier.modules())
    images = open_dataset("mnist", data).test
    inputs = torch.stack([classifier.preprocess(image) for image in images.images])
    with torch.no_grad():
        logits = network(inputs)
        assert torch.equal(classifier(inputs), logits)
    right = int((logits.argmax(1) == images.labels).sum())
    assert report_of(pretrained)["results"]["test"]["correct"] == right > 30


def test_metadata_says_all_that_is_needed(pretrained: Path, data: Path) -> None:
    found, report = metadata_of(pretrained), report_of(pretrained)
    assert set(found) == {
        *("format", "model", "arguments", "classes", "input", "recipe", "data", "results", "lineage", "versions"),
        *("tensors", "confidence"),
    }
    assert (found["format"], found["model"], found["arguments"]) == (1, "cnn", {})
    assert found["classes"] == list("0123456789") == report["target"]["classes"]
    assert found["input"] == {
        "channels": 1,
        "size": 28,
        "mean": [0.1307],
        "std": [0.3081],
        "interpolation": "bilinear",
        "crop": 1.0,
        "resize": "squash",
    }
    assert found["recipe"] == report["recipe"] and found["recipe"]["data"]["validation"] == 60
    test = {key: report["results"]["test"][key] for key in ("correct", "total", "accuracy", "ci95")}
    assert found["results"] == {"test": test}
    assert found["lineage"] == []
    splits = open_dataset("mnist", data)
    assert found["data"]["name"] == "mnist" and found["data"]["classes"] == found["classes"]
    assert found["data"]["test"] == {"images": 100, "fingerprint": splits.test.fingerprint()}
    assert [found["data"][part]["images"] for part in ("train", "validation")] == [240, 60]
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__


RESULT = {"correct", "total", "accuracy", "ci95"}


def test_the_report_has_exactly_these_keys(pretrained: Path) -> None:
    report = report_of(pretrained)
    assert list(report) == [
        *("kind", "recipe", "seed", "device", "environment", "seconds", "source", "target", "transplant", "phases"),
        *(
            "results",
            "comparisons",
            "retention",
            "interpolation",
            "seeds",
            "test_set",
            "network",
            "confidence",
            "where",
        ),
    ]
    assert report["network"] == {"model": "cnn", "parameters": 421_642, "multiply_adds": 4_241_152, "timm": None}
    assert (report["kind"], report["seed"], report["device"]) == ("pretrain", 0, report["device"])
    assert report["source"] is report["transplant"] is report["retention"] is None and set(report["comparisons"]) == {
        "test_vs_majority"
    }
    assert report["seeds"] == [0] and report["test_set"]["opened_before"] == 0
    assert set(report["environment"]) == {
        *("finetune", "torch", "torchvision", "safetensors", "python", "platform", "processor", "threads", "precision")
    }
    assert report["environment"]["precision"] == "float32"
    assert report["target"] == {
        "name": "mnist",
        "classes": list("0123456789"),
        "train": 240,
        "validation": 60,
        "test": 100,
        "notes": [],
    }
    (phase_,) = report["phases"]
    assert set(phase_) == {"name", "trains", "trainable_parameters", "cached", "epochs", "frozen"}
    assert (
        phase_["trains"] == ["conv1", "conv2", "fc1", "head"] and phase_["cached"] is False and phase_["frozen"] is None
    )
    assert phase_["trainable_parameters"] == sum(t.numel() for t in load_file(pretrained).values()) == 421_642
    assert list(report["results"]) == ["majority", "test"] and report["results"]["majority"]["correct"] == 10
    test = report["results"]["test"]
    assert set(test) == {*RESULT, "per_class", "confusion", "metrics"}
    assert test["accuracy"] == test["correct"] / test["total"] and test["total"] == 100
    low, high = test["ci95"]
    assert 0 <= low < test["accuracy"] < high <= 1
    assert list(test["per_class"]) == report["target"]["classes"]
    for i, score in enumerate(test["per_class"].values()):
        assert score == {"correct": test["confusion"][i][i], "total": 10, "accuracy": test["confusion"][i][i] / 10}
        assert sum(test["confusion"][i]) == 10
    assert sum(score["correct"] for score in test["per_class"].values()) == test["correct"]


def test_metrics_have_one_line_a_row(folder: Path) -> None:
    phases = phase(batch=3) + phase("head", "steps: 250", 3) + phase("head", "steps: 5")
    worked("pretrain", "--recipe", small(pretrain_recipe(phases, "{name: mnist, validation: 0.1}")), "--quiet")
    lines = [json.loads(line) for line in Path("runs/small/metrics.jsonl").read_text().splitlines()]
    rows = [(p["name"], row) for p in report_of(CHECKPOINT)["phases"] for row in p["epochs"]]
    assert [{k: v for k, v in line.items() if k not in ("phase", "train_accuracy")} for line in lines] == [
        row for _, row in rows
    ]
    assert [line["phase"] for line in lines] == [name for name, _ in rows]
    assert {line["phase"] for line in lines} == {"all", "head", "head-2"}
    assert set(lines[0]) == {
        *("phase", "epoch", "train_loss", "train_accuracy", "validation_accuracy", "learning_rate"),
        *("images_per_second", "seconds"),
    }
    for line in lines:
        assert 0 <= line["train_accuracy"] <= 1 and line["train_loss"] > 0
        assert round(line["validation_accuracy"] * 30) == pytest.approx(line["validation_accuracy"] * 30)


def test_without_validation_images_there_is_no_validation_accuracy(folder: Path) -> None:
    worked("pretrain", "--recipe", small(), "--quiet")
    assert report_of(CHECKPOINT)["phases"][0]["epochs"][-1]["validation_accuracy"] is None
    assert report_of(CHECKPOINT)["target"]["validation"] == 0


# That it repeats


def test_the_same_run_elsewhere_gives_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = pretrain_recipe(data="{name: mnist, validation: 0.1, augment: {shift: 2, rotate: 10, elastic: 1}}")
    worked("pretrain", "--recipe", small(text), "--quiet")
    first, report = CHECKPOINT.read_bytes(), report_of(CHECKPOINT)
    resolved = Path("runs/small/recipe.yaml").read_text()
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "two")
    torch.manual_seed(123)  # the caller's own random state has no part in it
    before = torch.get_rng_state()
    worked("pretrain", "--recipe", small(text), "--quiet")
    assert torch.equal(torch.get_rng_state(), before)
    assert CHECKPOINT.read_bytes() == first
    assert without_times(report_of(CHECKPOINT)) == without_times(report)
    # The resolved recipe of the run says the same, with every default written out.
    (tmp_path / "three").mkdir()
    monkeypatch.chdir(tmp_path / "three")
    worked("pretrain", "--recipe", small(resolved), "--quiet")
    assert CHECKPOINT.read_bytes() == first
    assert Path("runs/small/recipe.yaml").read_text() == resolved


@pytest.mark.slow
def test_another_seed_gives_other_weights(folder: Path) -> None:
    recipe = small()
    for seed in (0, 1):
        worked("pretrain", "--recipe", recipe, "--seed", seed, "--out", f"{seed}.safetensors", "--quiet")
    worked("pretrain", "--recipe", recipe, "--set", "seed=1", "--out", "set.safetensors", "--quiet")
    assert not same_tensors("0.safetensors", "1.safetensors")
    assert Path("1.safetensors").read_bytes() == Path("set.safetensors").read_bytes()
    assert [report_of(f"{seed}.safetensors")["seed"] for seed in (0, 1)] == [0, 1]


def test_phases_go_on_where_the_last_one_ended(folder: Path) -> None:
    """Two phases of one epoch are one phase of two, where the optimizer remembers nothing: the same order of images."""
    plain, data = "{name: sgd, lr: 0.01, momentum: 0}", "{name: mnist, augment: {shift: 2}}"
    halves = phase(length="epochs: 1", optimizer=plain) * 2
    worked("pretrain", "--recipe", small(pretrain_recipe(halves, data)), "--out", "two.safetensors", "--quiet")
    whole = phase(length="epochs: 2", optimizer=plain)
    worked("pretrain", "--recipe", small(pretrain_recipe(whole, data)), "--out", "one.safetensors", "--quiet")
    assert same_tensors("one.safetensors", "two.safetensors")


def test_the_seed_changes_order_and_start(folder: Path) -> None:
    recipe = small(pretrain_recipe(phase(length="steps: 1", optimizer="{name: sgd, lr: 1e-30}")))
    for seed in (0, 1):
        worked("pretrain", "--recipe", recipe, "--seed", seed, "--out", f"{seed}.safetensors", "--quiet")
    assert not same_tensors("0.safetensors", "1.safetensors"), "random weights come from the seed"


@pytest.mark.parametrize(
    "change",
    [
        *("phases[0].optimizer.lr=0.02", "phases[0].batch_size=11", "data.augment.shift=1", "phases[0].ema=0.9"),
        *("phases[0].label_smoothing=0.1", "phases[0].clip_norm=0.01", "phases[0].schedule={name: cosine}"),
        *("phases[0].optimizer={name: adamw, lr: 1e-3}", "phases[0].steps=29", "data.classes=[1,0,2]", "data.shots=5"),
        *("phases[0].optimizer.momentum=0.8", "phases[0].layer_decay=0.5", "data.validation=0.2", "seed=5"),
        *("phases[0].optimizer.nesterov=true", "phases[0].optimizer.weight_decay=0.1", "phases[0].train=[conv1, head]"),
    ],
)
def test_every_setting_has_an_effect(change: str, folder: Path, plain_run: Path) -> None:
    more = ["--set", "phases[0].epochs=null"] if "steps" in change else []
    worked("pretrain", "--recipe", small(), "--set", change, *more, "--quiet")
    assert not same_tensors(CHECKPOINT, plain_run)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The small recipe's checkpoint with nothing changed."""
    out = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out.parent)
        worked("pretrain", "--recipe", small(), "--data-root", data, "--out", out, "--quiet")
    return out


# Outputs that exist already


def test_an_older_checkpoint_is_moved_aside_with_its_report(folder: Path) -> None:
    recipe = small()
    worked("pretrain", "--recipe", recipe, "--quiet")
    old, old_report, old_log = CHECKPOINT.read_bytes(), REPORT.read_bytes(), Path("runs/small/log.txt").read_bytes()
    done = worked("pretrain", "--recipe", recipe, "--seed", 1)
    aside = f"small.was-{hashlib.sha256(old).hexdigest()[:8]}"
    assert Path(f"checkpoints/{aside}.safetensors").read_bytes() == old
    assert Path(f"checkpoints/{aside}.report.json").read_bytes() == old_report
    assert f"{CHECKPOINT} was there already: moved to {aside}.safetensors" in done.err
    assert f"{REPORT} was there already: moved to {aside}.report.json" in done.err
    (run_aside,) = Path("runs").glob("small.was-*")
    assert run_aside.name.startswith("small.was-") and (run_aside / "log.txt").read_bytes() == old_log
    assert f"runs/small was there already: moved to {run_aside}" in done.err
    assert len(files_under(folder)) == 1 + 2 * 7 + 1  # the recipe, two runs, and the ledger of test sets


def test_nothing_is_lost_over_many_runs(folder: Path) -> None:
    recipe, seen = small(pretrain_recipe(phase(length="steps: 1"))), set()
    for seed in (0, 1, 0, 2, 0):
        done = worked("pretrain", "--recipe", recipe, "--seed", seed, "--quiet")
        assert done.err == ""
        seen.add(sha256(CHECKPOINT))
        there = [sha256(path) for path in Path("checkpoints").glob("*.safetensors")]
        assert seen <= set(there)
    assert len(seen) == 3 and len(list(Path("runs").glob("small*"))) == 5


def test_the_same_run_again_leaves_one_checkpoint(folder: Path) -> None:
    recipe = small()
    worked("pretrain", "--recipe", recipe, "--quiet")
    first, time = sha256(CHECKPOINT), CHECKPOINT.stat().st_mtime_ns
    done = worked("pretrain", "--recipe", recipe)
    assert f"{CHECKPOINT}: the same bytes as the run before" in done.err
    assert {path.name for path in Path("checkpoints").iterdir()} == {CHECKPOINT.name, REPORT.name, PREDICTIONS.name}
    assert (sha256(CHECKPOINT), CHECKPOINT.stat().st_mtime_ns) == (first, time)


def test_a_report_without_its_checkpoint_is_moved_aside_too(folder: Path) -> None:
    Path("checkpoints").mkdir()
    REPORT.write_text("mine")
    worked("pretrain", "--recipe", small())
    (aside,) = Path("checkpoints").glob("small.was-*.report.json")
    assert aside.read_text() == "mine"


def test_a_failed_run_leaves_an_older_checkpoint_where_it_is(folder: Path) -> None:
    worked("pretrain", "--recipe", small(), "--quiet")
    old = {path: path.read_bytes() for path in (CHECKPOINT, REPORT)}
    refused("pretrain", "--recipe", small(), "--set", "phases[0].optimizer.lr=1e30", "--quiet", code=1)
    assert {path: path.read_bytes() for path in old} == old
    assert {path.name for path in Path("checkpoints").iterdir()} == {CHECKPOINT.name, REPORT.name, PREDICTIONS.name}


# What is printed


@pytest.mark.slow
def test_the_articles_line_after_each_epoch(folder: Path) -> None:
    text = pretrain_recipe(phase(batch=3), more="test_each_epoch: true\n")
    done = worked("pretrain", "--recipe", small(text))
    lines = [line for line in done.out.splitlines() if line.startswith("Epoch")]
    right = report_of(CHECKPOINT)["results"]["test"]["correct"]
    assert len(lines) == 2 and lines[0].startswith("Epoch [1/2], Accuracy: [") and lines[0].endswith("/100]")
    assert lines[1] == f"Epoch [2/2], Accuracy: [{right}/100]"
    assert lines[0] in Path("runs/small/log.txt").read_text()
    with_test = CHECKPOINT.read_bytes()
    worked("pretrain", "--recipe", small(), "--set", "phases[0].batch_size=3", "--out", "without.safetensors")
    assert with_test != Path("without.safetensors").read_bytes(), "the recipe is part of the file"
    assert same_tensors(CHECKPOINT, "without.safetensors"), "looking at the test set changes nothing"


def test_json_is_the_report_and_nothing_else(folder: Path) -> None:
    done = worked("pretrain", "--recipe", small(pretrain_recipe(more="test_each_epoch: true\n")), "--json")
    assert done.out == REPORT.read_text(encoding="utf-8")
    assert done.json["kind"] == "pretrain" and "epoch 2/2" in done.err


def test_quiet_prints_results_but_no_progress(folder: Path) -> None:
    done = worked("pretrain", "--recipe", small(), "--quiet")
    assert done.err == "" and "right / total" in done.out and "wrote " in done.out
    assert "epoch 2/2" in Path("runs/small/log.txt").read_text()
    assert worked("pretrain", "--recipe", small(), "--quiet", "--json").err == ""


def test_progress_is_plain_lines_where_there_is_no_terminal(folder: Path) -> None:
    done = worked("pretrain", "--recipe", small())
    assert "\x1b" not in done.err + done.out and "\r" not in done.err + done.out
    start, *rows = done.err.splitlines()
    assert start == "phase all: conv1, conv2, fc1, head train (421,642 parameters), 20 steps, nothing frozen"
    assert len(rows) == 1 and rows[0].startswith("  epoch 2/2: loss ")


def test_where_the_data_is(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_DATA_ROOT", str(folder / "nowhere"))
    worked("pretrain", "--recipe", small(), "--data-root", data, "--quiet")
    monkeypatch.delenv("FINETUNE_DATA_ROOT")
    Path("data").symlink_to(data)
    worked("pretrain", "--recipe", small(), "--quiet")
    assert len(list(Path("checkpoints").iterdir())) == 3


# The Python API


def test_the_exported_names() -> None:
    names = [
        "Calibration",
        "CheckReport",
        "Classifier",
        "CurveReport",
        "FilePrediction",
        "Prediction",
        "RankReport",
        "Report",
        "WhereReport",
        "adapt",
        "adapt_folds",
        "adapt_seeds",
        "calibrate",
        "check",
        "compare",
        "curve",
        "evaluate",
        "export_checkpoint",
        "html_report",
        "load",
        "predict",
        "pretrain",
        "pull",
        "push",
        "rank",
        "save",
        "verify",
        "where",
    ]
    assert toolkit.__all__ == names
    assert all(getattr(toolkit, name).__module__.startswith("finetune.") for name in names)
    assert set(names) <= set(dir(toolkit))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        toolkit.nothing  # noqa: B018


def test_importing_the_package_and_help_need_no_torch() -> None:
    code = (
        "import sys, finetune; from finetune.cli.main import cli; cli(['pretrain', '--help'], standalone_mode=False);"
        "sys.exit(', '.join({'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


RECIPE = {
    "kind": "pretrain",
    "model": "cnn",
    "data": {"name": "mnist"},
    "phases": [{"train": "all", "epochs": 2, "batch_size": 30, "optimizer": {"name": "sgd", "lr": 0.01}}],
    "precision": "float32",
}


def test_a_recipe_may_be_a_file_a_dict_or_a_recipe(
    folder: Path, plain_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = toolkit.pretrain(RECIPE)
    assert files_under(folder) == {
        *("checkpoints/mnist.safetensors", "checkpoints/mnist.report.json", "checkpoints/mnist.predictions.csv"),
        *(name.replace("small", "mnist") for name in RUN),
    }
    assert isinstance(report, toolkit.Report) and report.to_dict() == report_of("checkpoints/mnist.safetensors")
    toolkit.pretrain(small(), out="file.safetensors")
    toolkit.pretrain(Path(small()), out=Path("path.safetensors"), data_root=None)
    toolkit.pretrain(PretrainRecipe.model_validate(RECIPE), out="recipe.safetensors")
    for path in ("checkpoints/mnist", "file", "path", "recipe"):
        assert Path(f"{path}.safetensors").read_bytes() == plain_run.read_bytes()
    assert capfd.readouterr() == ("", ""), "as a library it says nothing"


def test_settings_from_python_are_those_of_set(folder: Path) -> None:
    settings = {"phases[0].batch_size": 30, "seed": 3, "data.classes": ["7", "1"]}
    toolkit.pretrain(RECIPE, out="api.safetensors", settings=settings)
    typed = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    worked("pretrain", "--recipe", small(), *typed, "--out", "typed.safetensors", "--quiet")
    assert Path("api.safetensors").read_bytes() == Path("typed.safetensors").read_bytes()
    assert toolkit.load("api.safetensors").class_names == ("7", "1")


def test_faults_from_python(folder: Path, pretrained: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        toolkit.pretrain({**RECIPE, "model": "cnm"}, settings={"seed": -1, "phases[0].train": "haed"})
    assert len(caught.value.problems) == 3
    with pytest.raises(RecipeError, match="expected 'adapt', found 'pretrain'"):
        toolkit.adapt(pretrained, "kmnist", RECIPE)
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        toolkit.load("nothing.safetensors")
    with pytest.raises(DataError, match="did you mean 'mnist'"):
        toolkit.evaluate(pretrained, "mnits")
    with pytest.raises(SettingError, match="--device"):
        toolkit.evaluate(pretrained, "mnist", device="abacus")
    assert files_under(folder) == set()


# The classifier


def test_every_form_of_a_picture_is_seen_alike(folder: Path, pretrained: Path) -> None:
    pixels = drawn("mnist", 30, "test")[0]
    classifier = toolkit.load(pretrained)
    Image.fromarray(pixels[0]).save("picture.png")
    forms = [
        *("picture.png", Path("picture.png"), Image.fromarray(pixels[0]), pixels[0], torch.from_numpy(pixels[0])),
        *(torch.from_numpy(pixels[:1]), pixels[0][..., None], np.repeat(pixels[0][..., None], 3, 2)),
        *(Image.fromarray(pixels[0]).convert("RGB"), Image.fromarray(pixels[0]).convert("RGBA")),
    ]
    wanted = classifier.preprocess(pixels[0])
    assert wanted.shape == (1, 28, 28) and wanted.dtype == torch.float32
    for form in forms:
        assert torch.equal(classifier.preprocess(form), wanted)
    found = classifier.predict(forms)
    assert len({prediction.label for prediction in found}) == 1 and isinstance(found[0], toolkit.Prediction)
    for prediction in found:  # threads share a batch out, so the last bits may depend on the place in it
        assert prediction.probabilities == pytest.approx(found[0].probabilities, abs=1e-5)
    everything = classifier.predict(list(pixels))
    one_by_one = [classifier.predict([image])[0] for image in pixels]
    for single, batched in zip(one_by_one, everything, strict=True):
        assert single.label == batched.label == classifier.class_names[int(np.argmax(batched.probabilities))]
        assert single.probabilities == pytest.approx(batched.probabilities, abs=1e-5)
        assert batched.probability == max(batched.probabilities) and sum(batched.probabilities) == pytest.approx(1)
    assert classifier.predict([]) == []


def test_preprocessing_is_what_training_saw(pretrained: Path, data: Path) -> None:
    classifier, images = toolkit.load(pretrained), open_dataset("mnist", data).test.images
    seen = Normalizer(classifier.input.mean, classifier.input.std, torch.device("cpu"))(images)
    ours = torch.stack([classifier.preprocess(image) for image in images])
    assert torch.allclose(ours, seen, atol=1e-5) and abs(float(seen.std()) - 1) > 0.1


def test_other_sizes_are_resized_and_photographs_turned(folder: Path, pretrained: Path) -> None:
    classifier, pixels = toolkit.load(pretrained), drawn("mnist", 1, "test")[0][0]
    large = Image.fromarray(np.kron(pixels, np.ones((4, 4), np.uint8)))
    assert torch.allclose(classifier.preprocess(large), classifier.preprocess(pixels), atol=1.5)
    assert classifier.preprocess(Image.new("L", (50, 20))).shape == (1, 28, 28)
    turned = Image.fromarray(np.rot90(pixels).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to see it upright
    turned.save("turned.png", exif=exif)
    assert torch.equal(classifier.preprocess("turned.png"), classifier.preprocess(pixels))


def test_prediction_leaves_the_mode_as_it_was(pretrained: Path) -> None:
    classifier, image = toolkit.load(pretrained), np.zeros((28, 28), np.uint8)
    classifier.train()
    classifier.predict([image])
    assert classifier.training and classifier.network.training
    classifier.eval()
    classifier.predict([image])
    assert not classifier.training


NO_PICTURES = {
    "floats": np.zeros((28, 28), np.float32),
    "four axes": np.zeros((1, 1, 28, 28), np.uint8),
    "one axis": np.zeros(28, np.uint8),
    "channels last in a tensor": torch.zeros(28, 28, 3, dtype=torch.uint8),
    "five channels": np.zeros((28, 28, 5), np.uint8),
    "no pixels": np.zeros((0, 28), np.uint8),
    "a number": 5,
    "nothing": None,
    "bytes": b"bytes",
    "a missing file": "missing.png",
    "a text file": __file__,
    "a folder": "/",
}


@pytest.mark.parametrize("what", NO_PICTURES)
def test_what_is_no_picture_is_said_so(what: str, pretrained: Path) -> None:
    with pytest.raises(DataError):
        toolkit.load(pretrained).preprocess(NO_PICTURES[what])  # type: ignore[arg-type]


# Loading and saving


def test_saving_what_was_loaded_gives_the_same_bytes(folder: Path, pretrained: Path) -> None:
    digest = toolkit.save(toolkit.load(pretrained), "copy.safetensors")
    assert Path("copy.safetensors").read_bytes() == pretrained.read_bytes() and digest == sha256(pretrained)
    toolkit.save(toolkit.load("copy.safetensors"), "copy.safetensors")
    assert sha256("copy.safetensors") == digest
    assert files_under(folder) == {"copy.safetensors"}


def test_other_weights_are_a_child_and_claim_no_results(folder: Path, pretrained: Path) -> None:
    classifier = toolkit.load(pretrained)
    with torch.no_grad():
        classifier.network.head.bias[0] += 1
    toolkit.save(classifier, "child.safetensors")
    child, parent = metadata_of("child.safetensors"), metadata_of(pretrained)
    assert child["results"] == child["recipe"] == child["data"] == {}
    assert child["lineage"] == [{"id": "mnist.safetensors", "sha256": sha256(pretrained), "task": "mnist"}]
    assert (child["classes"], child["input"]) == (parent["classes"], parent["input"])
    assert torch.equal(toolkit.load("child.safetensors").network.head.bias, classifier.network.head.bias)
    grandchild = toolkit.load("child.safetensors")
    grandchild.network.conv1.weight.data.mul_(2)
    toolkit.save(grandchild, "grandchild.safetensors")
    found = metadata_of("grandchild.safetensors")["lineage"]
    assert found == [
        {"id": "child.safetensors", "sha256": sha256("child.safetensors"), "task": None},
        *child["lineage"],
    ]


def test_another_head_and_other_names_are_saved(folder: Path, pretrained: Path) -> None:
    classifier = toolkit.load(pretrained)
    classifier.class_names = tuple("abcdefghij")
    toolkit.save(classifier, "renamed.safetensors")
    assert toolkit.load("renamed.safetensors").class_names == tuple("abcdefghij")
    assert metadata_of("renamed.safetensors")["lineage"][0]["sha256"] == sha256(pretrained)
    classifier = toolkit.load(pretrained)
    classifier.network.head, classifier.class_names = torch.nn.Linear(128, 3), ("x", "y", "z")
    toolkit.save(classifier, "three.safetensors")
    found = toolkit.load("three.safetensors")
    assert torch.equal(found.network.head.weight, classifier.network.head.weight)
    assert found.class_names == ("x", "y", "z")


@pytest.mark.parametrize("fault", ["names", "NaN", "repeated"])
def test_what_could_not_be_loaded_again_is_not_saved(fault: str, folder: Path, pretrained: Path) -> None:
    classifier = toolkit.load(pretrained)
    if fault == "names":
        classifier.class_names = ("only", "two")
    elif fault == "repeated":
        classifier.class_names = tuple("aabcdefghi")
    else:
        classifier.network.head.bias.data[0] = float("nan")
    with pytest.raises(CheckpointError):
        toolkit.save(classifier, "bad.safetensors")
    assert files_under(folder) == set()


def test_a_classifier_trains_on_like_any_module(pretrained: Path) -> None:
    classifier = toolkit.load(pretrained)
    assert isinstance(classifier, torch.nn.Module) and isinstance(classifier, toolkit.Classifier)
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    classifier(torch.zeros(2, 1, 28, 28)).sum().backward()
    assert all(parameter.grad is not None for parameter in classifier.parameters())


@pytest.mark.slow
def test_the_run_from_a_shell(folder: Path, data: Path, plain_run: Path) -> None:
    """Once as a program of its own: the same bytes as within this process."""
    words = ["pretrain", "--recipe", small(), "--data-root", str(data), "--json"]
    done = subprocess.run([sys.executable, "-m", "finetune", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == REPORT.read_text(encoding="utf-8")
    threads = json.loads(done.stdout)["environment"]["threads"]
    if threads == torch.get_num_threads():
        assert CHECKPOINT.read_bytes() == plain_run.read_bytes()
    assert finetune("inspect", CHECKPOINT, "--json").json == metadata_of(CHECKPOINT)
