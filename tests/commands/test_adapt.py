"""`finetune adapt` from end to end: the report, the head's rows, the phases, and that the comparisons are fair."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import (
    adapt_recipe,
    drawn,
    files_under,
    make_data,
    phase,
    pretrain_recipe,
    refused,
    report_of,
    worked,
    write_part,
)

import finetune as toolkit
from finetune.batching import batches_per_epoch
from finetune.commands.baselines import scratch_phase
from finetune.data.loader import Batches
from finetune.data.registry import DATASETS, open_dataset
from finetune.models.registry import find_model
from finetune.recipe.schema import AdaptRecipe, DataSettings
from finetune.run.data import open_run_data

FULL = adapt_recipe(
    phase("head", "steps: 20", 10) + phase("all", "epochs: 1", 10), compare="[linear_probe, interpolated, scratch]"
)


def write(text: str, name: str = "adapt.yaml") -> str:
    Path(name).write_text(text)
    return name


def adapted(
    source: Path, *words: object, recipe: str = "", target: str = "kmnist", out: str = "new.safetensors"
) -> Any:
    """Adapts without comparisons unless the recipe has some, and returns the report."""
    chosen = write(recipe or adapt_recipe())
    typed = ("--recipe", chosen, "--target", target, "--out", out, "--quiet", "--json", *words)
    report = worked("adapt", "--from", source, *typed).json
    assert report == report_of(out)
    return report


def metadata_of(path: str | Path) -> Any:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["finetune"])


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, data: Path, pretrained: Path) -> Path:
    """The checkpoint of mnist adapted to kmnist with all comparisons."""
    work = tmp_path_factory.mktemp("full")
    with contextlib.chdir(work):
        words = ("--target", "kmnist", "--recipe", write(FULL), "--data-root", data)
        done = worked("adapt", "--from", pretrained, *words)
        Path("out.txt").write_text(done.out)
        Path("err.txt").write_text(done.err)
    return work / "checkpoints" / "mnist-kmnist.safetensors"


# The report

SCORE = {"correct", "total", "accuracy", "ci95", "metrics"}
COMPARISON = {
    *("difference", "ci95", "p_value", "exact_p_value", "verdict", "metric", "design", "seeds", "shots_vary"),
    *("variance", "uncertainty", "detectable", "one_point"),
}
KEYS = {
    "kind": None,
    "recipe": {"kind", "data", "head", "phases", "compare", "precision", "seed"},
    "seed": None,
    "device": None,
    "environment": {
        *("finetune", "torch", "torchvision", "safetensors"),
        *("python", "platform", "processor", "threads", "precision"),
    },
    "seconds": None,
    "source": {"path", "sha256", "model", "dataset", "accuracy"},
    "target": {"name", "classes", "train", "validation", "test", "notes"},
    "transplant": {"kept", "fresh", "head_rows_reused"},
    "phases": [
        {
            "name": None,
            "trains": None,
            "trainable_parameters": None,
            "cached": None,
            "epochs": [
                {"epoch", "train_loss", "validation_accuracy", "learning_rate", "images_per_second", "seconds"},
            ],
            "frozen": None,
        }
    ],
    "results": {
        "majority": SCORE,
        "before": SCORE | {"method"},
        "linear_probe": SCORE,
        "after": SCORE | {"per_class", "confusion"},
        "interpolated": SCORE | {"per_class", "confusion"},
        "scratch": SCORE,
    },
    "comparisons": {
        "after_vs_majority": COMPARISON,
        "after_vs_before": COMPARISON,
        "after_vs_interpolated": COMPARISON,
        "after_vs_scratch": COMPARISON,
    },
    "retention": {"dataset", "before", "after", "interpolated"},
    "interpolation": {
        "weight": None,
        "retain": None,
        "images": None,
        "source_images": None,
        "source_part": None,
        "source_before": None,
        "frontier": [{"weight", "accuracy", "log_loss", "source_accuracy"}],
        "note": None,
        "weights": None,
    },
    "seeds": None,
    "test_set": {"fingerprint", "opened_before", "by", "other_choices"},
    "network": {"model", "parameters", "multiply_adds", "timm"},
    "confidence": {
        "temperature",
        "images",
        "how",
        "before",
        "after",
        "bins_before",
        "bins_after",
        "promise",
        "novelty",
        "notes",
    },
    "where": None,
}


def check_keys(found: Any, wanted: Any, at: str = "report") -> None:
    if isinstance(wanted, set):
        assert set(found) == wanted, at
    elif isinstance(wanted, list):
        assert isinstance(found, list) and found, at
        for i, item in enumerate(found):
            check_keys(item, wanted[0], f"{at}[{i}]")
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted), at
        for key, inner in wanted.items():
            check_keys(found[key], inner, f"{at}.{key}")


def test_the_report_has_exactly_the_keys_of_the_design(full: Path) -> None:
    report = report_of(full)
    check_keys(report, KEYS)
    assert set(report["results"]["after"]["per_class"]) == set(report["target"]["classes"])
    for score in report["results"]["after"]["per_class"].values():
        assert set(score) == {"correct", "total", "accuracy"}
    assert report["kind"] == "adapt" and report["recipe"]["data"]["name"] == "kmnist"


def test_the_report_agrees_with_itself_and_with_the_files(full: Path, pretrained: Path, data: Path) -> None:
    report, parent = report_of(full), report_of(pretrained)
    source = report["source"]
    assert source == {
        "path": str(pretrained),
        "sha256": sha256(pretrained),
        "model": "cnn",
        "dataset": "mnist",
        "accuracy": parent["results"]["test"]["accuracy"],
    }
    assert report["target"] == {
        "name": "kmnist",
        "classes": list(DATASETS["kmnist"].class_names),
        "train": 270,
        "validation": 30,
        "test": 100,
        "notes": [],
    }
    for result in report["results"].values():
        low, high = result["ci95"]
        assert result["total"] == 100 and result["accuracy"] == result["correct"] / 100
        assert 0 <= low <= result["accuracy"] <= high <= 1 and high - low < 0.25
    after = report["results"]["after"]
    confusion = np.array(after["confusion"])
    assert confusion.shape == (10, 10) and confusion.trace() == after["correct"]
    for row, score in zip(confusion, after["per_class"].values(), strict=True):
        assert score["total"] == row.sum() == 10 and score["accuracy"] == score["correct"] / 10
    assert [s["correct"] for s in after["per_class"].values()] == confusion.diagonal().tolist()
    for name, against in (("after_vs_before", "before"), ("after_vs_scratch", "scratch")):
        found = report["comparisons"][name]
        difference = after["accuracy"] - report["results"][against]["accuracy"]
        assert found["difference"] == pytest.approx(difference)
        low, high = found["ci95"]
        assert low < found["difference"] < high and 0 <= found["p_value"] <= 1
        if found["p_value"] >= 0.05:
            assert found["verdict"] == "no difference shown"
        else:
            assert found["verdict"] == ("better" if difference > 0 else "worse"), "one training claims no cause"
        assert found["design"] == "images" and 0 < found["detectable"] < 0.3
    saved = metadata_of(full)
    assert saved["recipe"] == report["recipe"] and set(saved["results"]) == set(report["results"]) - {"majority"}
    before = {key: value for key, value in report["results"]["before"].items() if key != "metrics"}
    assert saved["results"]["before"] == before
    assert saved["results"]["after"] == {k: after[k] for k in ("correct", "total", "accuracy", "ci95")}
    assert saved["classes"] == report["target"]["classes"]
    # The file's weights are those that were measured.
    assert toolkit.evaluate(full, "kmnist", data_root=data).result.correct == after["correct"]


def test_fine_tuning_helps_on_these_images(full: Path) -> None:
    """The generated sets are made so that it does: the features of one serve the other."""
    results = report_of(full)["results"]
    assert results["after"]["accuracy"] > 0.7 > results["scratch"]["accuracy"]
    assert results["after"]["accuracy"] > results["before"]["accuracy"] > 0.3
    assert results["linear_probe"]["accuracy"] > 0.5
    assert report_of(full)["comparisons"]["after_vs_scratch"]["verdict"] == "better"


def test_what_is_shown_are_the_same_numbers(full: Path) -> None:
    out, err = (full.parents[1] / "out.txt").read_text(), (full.parents[1] / "err.txt").read_text()
    report = report_of(full)
    assert "kmnist: 10 classes; 270 to learn from, 30 to validate, 100 to test" in out
    for label, key in (
        ("before", "before"),
        ("linear probe", "linear_probe"),
        ("after", "after"),
        ("scratch", "scratch"),
    ):
        (line,) = (line for line in out.splitlines() if line.startswith(f"│ {label} "))
        result = report["results"][key]
        assert f"{result['correct']} / 100" in line and f"{100 * result['accuracy']:.2f} %" in line
    assert (
        "nearest class mean" in out
        and "this training did better; whether starting from these weights helps takes" in " ".join(out.split())
    )
    kept = report["retention"]
    assert f"on mnist itself: {100 * kept['before']:.2f} % before, {100 * kept['after']:.2f} % after" in out
    assert "phase 1/2 head: head train (1,290 parameters), 20 steps, frozen part run once" in err
    assert "phase scratch: " in err


def test_exactly_these_files_are_written(full: Path) -> None:
    run = {f"runs/mnist-kmnist/{name}" for name in ("recipe.yaml", "metrics.jsonl", "log.txt", "finished.json")}
    endings = ("safetensors", "report.json", "predictions.csv")
    made = {f"checkpoints/mnist-kmnist.{ending}" for ending in endings} | {"runs/test-sets.jsonl"}
    assert files_under(full.parents[1]) == {"adapt.yaml", "out.txt", "err.txt", *run, *made}


def test_the_same_run_gives_the_same_bytes(folder: Path, full: Path, pretrained: Path) -> None:
    again = adapted(pretrained, recipe=FULL)
    assert Path("new.safetensors").read_bytes() == full.read_bytes()
    assert again["results"] == report_of(full)["results"] and again["retention"] == report_of(full)["retention"]
    resolved = (full.parents[1] / "runs/mnist-kmnist/recipe.yaml").read_text()
    worked("adapt", "--from", pretrained, "--recipe", write(resolved), "--out", "resolved.safetensors", "--quiet")
    assert Path("resolved.safetensors").read_bytes() == full.read_bytes(), "the target is part of the resolved recipe"
    adapted(pretrained, "--seed", 1, recipe=FULL, out="seed.safetensors")
    assert sha256("seed.safetensors") != sha256(full)


def test_comparing_changes_nothing_in_the_weights(folder: Path, full: Path, pretrained: Path) -> None:
    report = adapted(pretrained, "--no-compare", recipe=FULL)
    new, old = load_file("new.safetensors"), load_file(full)
    assert all(torch.equal(new[name], old[name]) for name in old)
    assert report["results"]["linear_probe"] is report["results"]["scratch"] is None
    assert report["comparisons"]["after_vs_scratch"] is None
    assert report["comparisons"]["after_vs_before"] == report_of(full)["comparisons"]["after_vs_before"]
    assert report["recipe"]["compare"] == []
    assert report["results"]["before"] == report_of(full)["results"]["before"]


@pytest.mark.slow
def test_one_comparison_alone(folder: Path, full: Path, pretrained: Path) -> None:
    probe = adapted(pretrained, "--set", "compare=[linear_probe]", recipe=FULL, out="probe.safetensors")
    assert probe["results"]["scratch"] is None
    scratch = adapted(pretrained, "--set", "compare=[scratch]", recipe=FULL, out="scratch.safetensors")
    assert scratch["results"]["linear_probe"] is None
    assert probe["results"]["linear_probe"] == report_of(full)["results"]["linear_probe"]
    assert scratch["results"]["scratch"] == report_of(full)["results"]["scratch"]


# The head

ONE_STEP = adapt_recipe(phase("head", "steps: 1", optimizer="{name: sgd, lr: 1e-30}"))


def rows(path: str | Path) -> dict[str, tuple[torch.Tensor, float]]:
    tensors, classes = load_file(path), metadata_of(path)["classes"]
    weight, bias = tensors["head.weight"], tensors["head.bias"]
    return {name: (weight[i], float(bias[i])) for i, name in enumerate(classes)}


def same_row(first: tuple[torch.Tensor, float], second: tuple[torch.Tensor, float]) -> bool:
    return torch.equal(first[0], second[0]) and first[1] == second[1]


ALL_TENSORS = [f"{stage}.{kind}" for stage in ("conv1", "conv2", "fc1", "head") for kind in ("weight", "bias")]


def test_shared_classes_in_another_order_keep_their_rows(folder: Path, pretrained: Path) -> None:
    backwards = list("9876543210")
    report = adapted(pretrained, "--set", f"data.classes=[{','.join(backwards)}]", recipe=ONE_STEP, target="mnist")
    assert report["target"]["classes"] == backwards == metadata_of("new.safetensors")["classes"]
    assert report["transplant"] == {
        "kept": ALL_TENSORS,
        "fresh": [],
        "head_rows_reused": {name: name for name in backwards},
    }
    old, new = rows(pretrained), rows("new.safetensors")
    assert list(new) == backwards and all(same_row(new[name], old[name]) for name in backwards)
    before = report["results"]["before"]
    assert before["method"] == "source head"
    assert (
        before["correct"]
        == report_of(pretrained)["results"]["test"]["correct"]
        == report["results"]["after"]["correct"]
    )


def test_classes_without_a_name_in_common_start_from_class_means(folder: Path, pretrained: Path, data: Path) -> None:
    report = adapted(pretrained, recipe=ONE_STEP)
    assert report["transplant"]["fresh"] == ["head.weight", "head.bias"]
    assert report["transplant"]["kept"] == ALL_TENSORS[:-2] and report["transplant"]["head_rows_reused"] == {}
    before, after = report["results"]["before"], report["results"]["after"]
    assert before["method"] == "nearest class mean" and before["correct"] == after["correct"] > 30
    # A reference of one's own: the nearest mean of the features of the images to learn from.
    classifier = toolkit.load(pretrained)
    recipe = AdaptRecipe.model_validate(report["recipe"])
    material = open_run_data(recipe.data, data, recipe.seed, find_model("cnn").input)

    def features(images: Any) -> torch.Tensor:
        inputs = torch.stack([classifier.preprocess(image) for image in images.images])
        with torch.no_grad():
            return classifier.network.features(inputs).double()

    train = features(material.train)
    means = torch.stack([train[material.train.labels == c].mean(0) for c in range(10)])
    nearest = torch.cdist(features(material.test), means).argmin(1)
    assert int((nearest == material.test.labels).sum()) == before["correct"]


def test_classes_partly_shared(folder: Path, pretrained: Path) -> None:
    five = adapted(
        pretrained, "--set", "data.classes=[0,1,2,3,4]", recipe=ONE_STEP, target="mnist", out="five.safetensors"
    )
    assert five["results"]["before"]["method"] == "source head", "it knows every class, and more"
    assert five["transplant"]["head_rows_reused"] == {name: name for name in "01234"}
    done = worked(
        *("adapt", "--from", "five.safetensors", "--recipe", "adapt.yaml", "--target", "mnist"),
        *("--set", "data.classes=[6,4,5,3]", "--out", "four.safetensors"),
    )
    assert "head: rows kept for 4, 3\n" in done.err
    assert "head: new rows from their class means for 6, 5\n" in done.err
    report = report_of("four.safetensors")
    assert report["transplant"] == {
        "kept": ALL_TENSORS[:-2],
        "fresh": ALL_TENSORS[-2:],
        "head_rows_reused": {"4": "4", "3": "3"},
    }
    assert report["results"]["before"]["method"] == "nearest class mean"
    old, new = rows("five.safetensors"), rows("four.safetensors")
    assert list(new) == list("6453") and same_row(new["4"], old["4"]) and same_row(new["3"], old["3"])
    lengths = {name: float(weight.norm()) for name, (weight, _) in new.items()}
    mean_of_old = np.mean([float(weight.norm()) for weight, _ in old.values()])
    assert np.mean([lengths["6"], lengths["5"]]) == pytest.approx(mean_of_old, rel=1e-4), "neither wins by size"


@pytest.mark.parametrize("head", ["random", "class_means"])
def test_a_head_that_keeps_no_rows(head: str, folder: Path, pretrained: Path) -> None:
    report = adapted(pretrained, "--set", f"head={head}", recipe=ONE_STEP, target="mnist")
    assert report["transplant"]["head_rows_reused"] == {}
    assert report["results"]["before"]["method"] == "source head", "the source is what it is"
    after = report["results"]["after"]["accuracy"]
    assert (after < 0.35) if head == "random" else (after > 0.3)
    first = Path("new.safetensors").read_bytes()
    adapted(pretrained, "--set", f"head={head}", recipe=ONE_STEP, target="mnist")
    assert Path("new.safetensors").read_bytes() == first


def test_before_is_what_evaluating_the_source_says(folder: Path, pretrained: Path) -> None:
    make_data(folder / "more", "qmnist")
    make_data(folder / "more", "mnist")
    words = ("--data-root", folder / "more")
    report = adapted(pretrained, *words, target="qmnist")
    assert report["results"]["before"]["method"] == "source head"
    said = worked("evaluate", pretrained, "--data", "qmnist", *words, "--json").json
    assert {k: said[k] for k in SCORE} == {k: report["results"]["before"][k] for k in SCORE}
    report = adapted(pretrained, *words, "--set", "data.classes=[3,1]", target="qmnist")
    assert report["results"]["before"]["total"] == 20, "only the target's classes are asked for, and offered"


@pytest.mark.slow
def test_one_half_of_the_classes_to_the_other(folder: Path) -> None:
    """The plan's first exercise: digits 0 to 4, then 5 to 9."""
    write(pretrain_recipe(phase("all", "epochs: 5", 10), "{name: mnist, classes: [0, 1, 2, 3, 4]}"), "low.yaml")
    worked("pretrain", "--recipe", "low.yaml", "--quiet")
    report = adapted(
        Path("checkpoints/low.safetensors"), "--set", "data.classes=[5,6,7,8,9]", recipe=FULL, target="mnist"
    )
    assert report["target"]["classes"] == list("56789") and report["results"]["after"]["total"] == 50
    assert report["transplant"]["head_rows_reused"] == {}
    assert report["results"]["after"]["accuracy"] > 0.6
    assert report["source"]["accuracy"] == report["retention"]["before"]


# Few images


def test_shots_are_all_the_images_there_are(folder: Path, pretrained: Path, data: Path) -> None:
    found = {}
    for seed in (0, 1):
        report = adapted(pretrained, "--shots", 6, "--seed", seed, recipe=adapt_recipe(data="{validation: 0.34}"))
        assert (report["target"]["train"], report["target"]["validation"], report["target"]["test"]) == (40, 20, 100)
        assert report["recipe"]["data"]["shots"] == 6
        settings = AdaptRecipe.model_validate(report["recipe"]).data
        material = open_run_data(settings, data, seed, find_model("cnn").input)
        assert [
            a + b for a, b in zip(material.train.counts().values(), material.validation.counts().values(), strict=True)
        ] == [6] * 10
        found[seed] = metadata_of("new.safetensors")["data"]["train"]["fingerprint"]
        assert found[seed] == material.train.fingerprint()
    assert found[0] != found[1]
    adapted(pretrained, "--shots", 6, recipe=adapt_recipe(data="{validation: 0.34}"), out="again.safetensors")
    assert metadata_of("again.safetensors")["data"]["train"]["fingerprint"] == found[0]


def test_one_shot(folder: Path, pretrained: Path) -> None:
    recipe = FULL.replace("validation: 0.1", "validation: 0").replace("interpolated, ", "")
    report = adapted(pretrained, "--shots", 1, recipe=recipe)
    assert report["target"]["train"] == 10 and report["results"]["linear_probe"]["total"] == 100


# The phases


def changed(first: str | Path, second: str | Path) -> set[str]:
    """The stages whose tensors differ."""
    old, new = load_file(first), load_file(second)
    return {
        name.partition(".")[0]
        for name in old
        if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])
    }


@pytest.mark.parametrize(
    ("train", "stages"),
    [
        ("head", {"head"}),
        ("{last: 2}", {"fc1", "head"}),
        ("[conv2, head]", {"conv2", "head"}),
        ("[head, conv1]", {"conv1", "head"}),
        ("all", {"conv1", "conv2", "fc1", "head"}),
    ],
)
def test_what_is_frozen_stays_bit_for_bit(train: str, stages: set[str], folder: Path, pretrained: Path) -> None:
    recipe = adapt_recipe(phase(train, more="norms: update"))
    report = adapted(pretrained, recipe=recipe, target="mnist")
    assert changed(pretrained, "new.safetensors") == stages
    (summary,) = report["phases"]
    assert summary["trains"] == [stage for stage in ("conv1", "conv2", "fc1", "head") if stage in stages]
    tensors = load_file("new.safetensors")
    wanted = sum(t.numel() for name, t in tensors.items() if name.partition(".")[0] in stages)
    assert summary["trainable_parameters"] == wanted


def test_the_cache_changes_nothing(folder: Path, pretrained: Path) -> None:
    recipe = adapt_recipe(phase("head") + phase("{last: 2}", more="name: two"))
    report = adapted(pretrained, recipe=recipe, out="cached.safetensors")
    assert [p["cached"] for p in report["phases"]] == [True, True]
    nothing = ("--set", "cache={memory: 0, disk: 0}")
    report = adapted(pretrained, *nothing, recipe=recipe, out="not.safetensors")
    assert [p["cached"] for p in report["phases"]] == [False, False]
    cached, plain = load_file("cached.safetensors"), load_file("not.safetensors")
    assert all(torch.allclose(cached[name], plain[name], atol=1e-5) for name in plain)


def test_augmentation_forbids_the_cache_unless_a_phase_does_without(folder: Path, pretrained: Path) -> None:
    recipe = adapt_recipe(
        phase("head", more="name: a") + phase("head", more="name: b, augment: false") + phase(more="name: c"),
        "{validation: 0.1, augment: {shift: 1}}",
    )
    assert [p["cached"] for p in adapted(pretrained, recipe=recipe)["phases"]] == [False, True, False]


def test_all_kinds_of_phases_in_a_row(folder: Path, pretrained: Path) -> None:
    recipe = adapt_recipe(
        phase("head", "steps: 30", 10, more="name: warm")
        + phase("{last: 2}", optimizer="{name: adamw, lr: 1e-3}", more="ema: 0.9, clip_norm: 1.0")
        + phase("[conv2, fc1, head]", "epochs: 1", more="schedule: {name: one_cycle}, label_smoothing: 0.1")
        + phase("all", more="layer_decay: 0.5, schedule: {name: step, at: [0.5], factor: 0.1}"),
        compare="[scratch]",
    )
    report = adapted(pretrained, recipe=recipe)
    assert [p["name"] for p in report["phases"]] == ["warm", "last-2", "conv2+fc1+head", "all"]
    assert [p["trains"][0] for p in report["phases"]] == ["head", "fc1", "conv2", "conv1"]
    assert report["phases"][-1]["epochs"][-1]["learning_rate"] == pytest.approx(0.001)
    assert report["results"]["after"]["accuracy"] > 0.5
    lines = [json.loads(line) for line in Path("runs/new/metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == [
        "warm",
        "last-2",
        "conv2+fc1+head",
        "all",
        *["scratch"] * (len(lines) - 4),
    ]
    rows_of_report = [row for p in report["phases"] for row in p["epochs"]]
    assert [
        {k: v for k, v in line.items() if k not in ("phase", "train_accuracy")} for line in lines[:4]
    ] == rows_of_report


@pytest.mark.parametrize(
    "more", ["layer_decay: 0.5", "ema: 0.9", "clip_norm: 0.1", "augment: false", "label_smoothing: 0.2"]
)
def test_every_setting_of_a_phase_counts(more: str, folder: Path, pretrained: Path) -> None:
    for name, extra in (("with", more), ("without", "")):
        recipe = adapt_recipe(phase("all", "steps: 8", more=extra), "{validation: 0.2, augment: {shift: 2}}")
        adapted(pretrained, recipe=recipe, out=f"{name}.safetensors")
    assert changed("with.safetensors", "without.safetensors") == {"conv1", "conv2", "fc1", "head"}


def validation_accuracy(checkpoint: str, report: Any, data: Path) -> float:
    """The accuracy of a checkpoint on its validation images, by its own `predict`."""
    settings = AdaptRecipe.model_validate(report["recipe"]).data
    held = open_run_data(settings, data, report["seed"], find_model("cnn").input).validation
    labels = [p.label for p in toolkit.load(checkpoint).predict(list(held.images))]
    return sum(label == held.class_names[int(i)] for label, i in zip(labels, held.labels, strict=True)) / len(held)


@pytest.mark.slow
def test_the_best_epoch_is_kept(folder: Path, pretrained: Path, data: Path) -> None:
    """The rate rises all the time until nothing is left of what was learnt, so the last epoch is not the best."""
    rising = "schedule: {name: cosine, warmup: 0.99}, clip_norm: 1.0, keep: "
    found = {}
    for keep in ("best", "last"):
        recipe = adapt_recipe(phase("all", "epochs: 4", 4, "{name: sgd, lr: 0.8}", rising + keep), "{validation: 0.2}")
        report = adapted(pretrained, recipe=recipe, out=f"{keep}.safetensors")
        found[keep] = [row["validation_accuracy"] for row in report["phases"][0]["epochs"]]
    assert found["best"] == found["last"] and found["last"][-1] < max(found["last"])
    assert validation_accuracy("last.safetensors", report, data) == found["last"][-1]
    assert validation_accuracy("best.safetensors", report, data) == max(found["best"])


# What was forgotten


def test_retention_is_about_the_sources_own_test_images(folder: Path, full: Path, pretrained: Path, data: Path) -> None:
    kept = report_of(full)["retention"]
    assert kept["dataset"] == "mnist" and kept["before"] == report_of(pretrained)["results"]["test"]["accuracy"]
    # The old head on the new stages, by hand.
    tensors, old = load_file(full), load_file(pretrained)
    tensors |= {name: old[name] for name in ("head.weight", "head.bias")}
    classifier = toolkit.load(pretrained)
    classifier.network.load_state_dict(tensors)
    test = open_dataset("mnist", data).test
    labels = [int(p.label) for p in classifier.predict(list(test.images))]
    assert np.mean(np.array(labels) == test.labels.numpy()) == kept["after"] != kept["before"]


def test_nothing_is_forgotten_where_only_the_head_moves(folder: Path, pretrained: Path) -> None:
    kept = adapted(pretrained, recipe=adapt_recipe(phase("head")))["retention"]
    assert kept["before"] == kept["after"]


def test_the_adapted_head_answers_where_it_knows_every_class(folder: Path, pretrained: Path) -> None:
    report = adapted(pretrained, "--set", "data.classes=[9,8,7,6,5,4,3,2,1,0]", target="mnist")
    assert report["retention"]["after"] == report["results"]["after"]["accuracy"]
    assert report["retention"]["before"] == report["results"]["before"]["accuracy"]


def test_without_the_sources_data_there_is_no_retention(folder: Path, pretrained: Path, data: Path, full: Path) -> None:
    shutil.copytree(data / "KMNIST", folder / "less" / "KMNIST")
    report = adapted(pretrained, "--data-root", folder / "less", recipe=FULL)
    mixed = report["interpolation"]
    assert report["retention"] is mixed["source_images"] is mixed["frontier"][0]["source_accuracy"] is None
    assert "mnist, which the source was trained on, is not in" in mixed["note"]
    assert report["results"] == report_of(full)["results"]
    assert Path("new.safetensors").read_bytes() == full.read_bytes()
    assert {path.name for path in (folder / "less").iterdir()} == {"KMNIST"}, "nothing was downloaded"


# Lineage


def test_a_chain_of_sources(folder: Path, full: Path, pretrained: Path) -> None:
    parent = {"id": "mnist.safetensors", "sha256": sha256(pretrained), "task": "mnist"}
    assert metadata_of(full)["lineage"] == [parent]
    report = adapted(full, target="mnist")
    child = {"id": "mnist-kmnist.safetensors", "sha256": sha256(full), "task": "kmnist"}
    assert metadata_of("new.safetensors")["lineage"] == [child, parent]
    assert (
        report["source"]["accuracy"] == report_of(full)["results"]["after"]["accuracy"] == report["retention"]["before"]
    )
    assert report["source"]["dataset"] == "kmnist" and report["target"]["name"] == "mnist"


def test_the_source_is_never_lost(folder: Path, pretrained: Path) -> None:
    shutil.copy(pretrained, "model.safetensors")
    words = ("--target", "kmnist", "--recipe", write(adapt_recipe()), "--out", "model.safetensors")
    said = refused("adapt", "--from", "model.safetensors", *words)
    assert "model.safetensors is what this command reads" in said
    assert files_under(folder) == {"adapt.yaml", "model.safetensors"}
    assert Path("model.safetensors").read_bytes() == pretrained.read_bytes()


def test_the_default_name_says_source_and_target(folder: Path, pretrained: Path) -> None:
    worked("adapt", "--from", pretrained, "--target", "kmnist", "--recipe", write(adapt_recipe()), "--quiet")
    assert Path("checkpoints/mnist-kmnist.safetensors").exists() and Path("runs/mnist-kmnist/recipe.yaml").exists()


# The comparison from random weights


def test_scratch_knows_nothing_of_the_source(folder: Path, full: Path, pretrained: Path) -> None:
    classifier = toolkit.load(pretrained)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    toolkit.save(classifier, "other.safetensors")
    report, reference = adapted(Path("other.safetensors"), recipe=FULL), report_of(full)
    assert report["results"]["scratch"] == reference["results"]["scratch"]
    assert report["results"]["after"] != reference["results"]["after"]
    assert report["source"]["dataset"] is report["source"]["accuracy"] is report["retention"] is None


@pytest.mark.slow
def test_scratch_is_a_pretraining_of_its_own(folder: Path, pretrained: Path) -> None:
    """The same phase as a pretrain recipe reaches the same accuracy: nothing of the adapt leaks into it."""
    report = adapted(pretrained, recipe=adapt_recipe(phase("all", "steps: 90", 10), compare="[scratch]"))
    text = pretrain_recipe(phase("all", "steps: 90", 10), "{name: kmnist, validation: 0.1}")
    worked("pretrain", "--recipe", write(text, "alone.yaml"), "--quiet")
    alone = report_of("checkpoints/alone.safetensors")
    assert alone["results"]["test"]["correct"] == report["results"]["scratch"]["correct"]


@pytest.mark.slow
def test_scratch_settings_of_the_recipe_are_used(folder: Path, full: Path, pretrained: Path) -> None:
    fair = FULL + "scratch: {optimizer: {name: adamw, lr: 1e-3}, schedule: {name: cosine}}\n"
    report = adapted(pretrained, recipe=fair)
    assert report["results"]["after"] == report_of(full)["results"]["after"]
    assert report["results"]["scratch"] != report_of(full)["results"]["scratch"]


PHASE_LENGTHS = {
    "epochs": phase("head", "epochs: 3") + phase("all", "epochs: 2"),
    "steps": phase("head", "steps: 7") + phase("all", "steps: 31"),
    "other batches": phase("head", "epochs: 10", 16) + phase("all", "epochs: 1", 64),
    "batches that do not divide": phase("head", "epochs: 10", 64) + phase("all", "epochs: 1", 32),
    "one batch": phase("head", "epochs: 4", 1000) + phase("all", "epochs: 1", 7),
}


def images_seen(steps: int, batch: int, images: int) -> int:
    batches = Batches(torch.zeros(images, 1), torch.zeros(images), batch_size=batch, seed=0)
    seen = epoch = 0
    while steps:
        for _, labels in batches.epoch(epoch):
            seen, steps = seen + len(labels), steps - 1
            if not steps:
                break
        epoch += 1
    return seen


@pytest.mark.parametrize("images", [65, 100, 270])
@pytest.mark.parametrize("lengths", PHASE_LENGTHS)
def test_scratch_sees_as_many_images_as_all_phases_together(lengths: str, images: int, folder: Path) -> None:
    from finetune.run.setup import open_recipe

    recipe = open_recipe(write(adapt_recipe(PHASE_LENGTHS[lengths])), ["data.name=mnist"])
    assert isinstance(recipe, AdaptRecipe)
    wanted = 0
    for one in recipe.phases:
        steps = one.steps or one.epochs * batches_per_epoch(images, one.batch_size)
        wanted += images_seen(steps, one.batch_size, images)
    scratch = scratch_phase(recipe, images)
    assert scratch.steps is not None and scratch.epochs is None and scratch.train == "all"
    assert abs(images_seen(scratch.steps, scratch.batch_size, images) - wanted) <= scratch.batch_size / 2


# Honesty


def test_the_test_images_have_no_part_in_training(folder: Path, pretrained: Path, data: Path) -> None:
    best = phase("all", "steps: 110", 4, more="keep: best")  # 68 steps an epoch: two rows to choose from
    recipe = adapt_recipe(phase("head", "steps: 20", 10) + best, compare="[linear_probe]")
    adapted(pretrained, recipe=recipe, out="one.safetensors")
    shutil.copytree(data, folder / "other")
    noise = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    for name in ("mnist", "kmnist"):
        write_part(folder / "other", name, DATASETS[name].test_files, noise, np.arange(100) % 10)
    report = adapted(pretrained, "--data-root", folder / "other", recipe=recipe, out="two.safetensors")
    assert changed("one.safetensors", "two.safetensors") == set()
    assert (
        report["phases"][0]["epochs"][0]["train_loss"]
        == report_of("one.safetensors")["phases"][0]["epochs"][0]["train_loss"]
    )
    assert report["results"]["after"]["accuracy"] < 0.3
    one, two = metadata_of("one.safetensors"), metadata_of("two.safetensors")
    assert one["data"]["train"] == two["data"]["train"] and one["data"]["test"] != two["data"]["test"]


def test_validation_images_are_not_trained_on(folder: Path, pretrained: Path, data: Path) -> None:
    material = open_run_data(DataSettings(name="kmnist", validation=0.1), data, 0, find_model("cnn").input)
    held = {bytes(image.numpy()) for image in material.validation.images}
    assert len(held) == 30 and not held & {bytes(image.numpy()) for image in material.train.images}
    assert not held & {bytes(image) for image in drawn("kmnist", 100, "test")[0]}


def test_a_fault_before_the_work_leaves_no_trace(folder: Path, pretrained: Path) -> None:
    recipe = write(adapt_recipe())
    refused("adapt", "--from", pretrained, "--recipe", recipe, "--target", "kmnist", "--set", "seed=-1")
    refused("adapt", "--from", pretrained, "--recipe", recipe, "--target", "kmnist", "--metric", "accurracy")
    refused("adapt", "--from", "nothing.safetensors", "--recipe", recipe, "--target", "kmnist")
    assert files_under(folder) == {recipe}


# From Python


@pytest.mark.slow
def test_from_python_it_is_the_same(folder: Path, full: Path, pretrained: Path) -> None:
    report = toolkit.adapt(pretrained, "kmnist", write(FULL))
    assert Path("checkpoints/mnist-kmnist.safetensors").read_bytes() == full.read_bytes()
    assert report.results["after"] is not None and report.comparisons["after_vs_scratch"] is not None
    assert report.to_dict() == report_of("checkpoints/mnist-kmnist.safetensors")
    few = toolkit.adapt(str(pretrained), "kmnist", "adapt.yaml", shots=5, compare=False, out="few.safetensors")
    assert few.results["scratch"] is None and few.target.train + few.target.validation == 50
    settings = {"phases[0].steps": 1, "phases[1].epochs": 1}
    short = toolkit.adapt(pretrained, "fashion", "adapt.yaml", settings=settings, data_root=fashion(folder))
    assert short.target.name == "fashion-mnist" and short.retention is None


def fashion(folder: Path) -> Path:
    make_data(folder / "clothes", "fashion-mnist")
    return folder / "clothes"
