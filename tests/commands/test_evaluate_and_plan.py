"""The commands that train nothing: evaluate, plan, inspect, models, datasets, recipes; and every shipped recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tampering import tampered
from tiny import ROOT, adapt_recipe, files_under, make_data, phase, pretrain_recipe, refused, report_of, worked

import finetune as toolkit
from finetune.data.registry import DATASETS, open_dataset
from finetune.paths import shipped_folder
from finetune.recipe.load import first_comment
from finetune.recipe.schema import AdaptRecipe, PretrainRecipe
from finetune.report.statistics import mcnemar_images
from finetune.run.setup import open_recipe

SHIPPED = sorted(path.name for path in shipped_folder("recipes").glob("*.yaml"))


# evaluate


def test_evaluate_repeats_the_result_in_the_file(folder: Path, pretrained: Path) -> None:
    found = worked("evaluate", pretrained, "--data", "mnist", "--json").json
    test = report_of(pretrained)["results"]["test"]
    assert list(found) == [
        *("checkpoint", "data", "classes", "left_out", "not_offered", "part"),
        *("correct", "total", "accuracy", "ci95", "per_class", "confusion", "metrics", "claimed_accuracy"),
        *("test_set", "confidence"),
    ]
    assert {key: found[key] for key in test} == test
    assert found["claimed_accuracy"] == test["accuracy"] and found["classes"] == list("0123456789")
    assert (found["checkpoint"], found["data"]) == (str(pretrained), "mnist")
    shown = worked("evaluate", pretrained, "--data", "mnist").out
    percent = f"{100 * test['accuracy']:.2f} %"
    assert f"mnist: {test['correct']} of 100 right, {percent}" in shown
    assert f"the checkpoint says {percent} on these images: the same" in shown
    assert "per class, worst first" in shown and "\x1b" not in shown
    assert files_under(folder) == set(), "it writes nothing"


def test_evaluate_says_what_the_confidence_is_worth(folder: Path, pretrained: Path) -> None:
    """As the report of the training, and how many pictures are unlike; the result stays that of the network's own."""
    values = worked("evaluate", pretrained, "--data", "mnist", "--json", "--reliability", "r.png").json
    found, reported = values["confidence"], report_of(pretrained)["confidence"]
    assert found | {"novelty": None} == reported | {"novelty": None} and found["images"] == 60
    assert found["novelty"] == reported["novelty"] | {"test": found["novelty"]["test"]}
    assert 0 <= found["novelty"]["test"] < 50, "they are of the same kind"
    assert {key: values["metrics"][key] for key in found["before"]} == found["before"]
    assert found["before"] != found["after"] and found["promise"] is None
    for bins in (found["bins_before"], found["bins_after"]):
        assert sum(own["images"] for own in bins) == 100 and sum(own["right"] for own in bins) == values["correct"]
    assert Path("r.png").read_bytes().startswith(b"\x89PNG")
    before, after = (
        sum(abs(own["right"] - own["images"] * own["probability"]) for own in found[key]) / 100
        for key in ("bins_before", "bins_after")
    )
    assert (before, after) == pytest.approx([found[key]["calibration_error"]["value"] for key in ("before", "after")])
    message = refused("evaluate", pretrained, "--data", "mnist", "--confusion", "x.png", "--reliability", "./x.png")
    assert "--confusion has the same name" in message


def test_what_is_promised_is_looked_for_among_all_classes_only(folder: Path, pretrained: Path, data: Path) -> None:
    own = {"max_error": 0.1, "confidence": 0.95, "threshold": 0.6, "answered": 0.9, "images": 60}
    path = tampered(shutil.copy(pretrained, "promised.safetensors"), lambda m: m["confidence"].update(promise=own))
    evaluated, test = toolkit.evaluate(path, "mnist", data_root=data), open_dataset("mnist", data).test
    summary = evaluated.confidence
    assert summary is not None and summary.promise is not None and summary.promise.found is not None
    found, answers = summary.promise.found, toolkit.load(path).predict(list(test.images))
    right = [one.label == test.class_names[int(i)] for one, i in zip(answers, test.labels, strict=True)]
    sure = [not one.unsure for one in answers]
    assert (found.images, found.answered) == (100, sum(sure)) and 0 < sum(sure) < 100
    assert found.wrong == sum(s and not r for s, r in zip(sure, right, strict=True))
    for index, image in enumerate(test.images[:20]):
        place = Path("two", str(int(test.labels[index])), f"{index}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place)
    for name in "23456789":
        shutil.rmtree(f"two/{name}")
    few = worked("evaluate", path, "--data", "two")
    assert "8 were no choice here" in " ".join(few.out.split()) and "found: " not in few.out
    values = toolkit.evaluate(path, "two").to_dict()["confidence"]
    assert values["before"] == values["after"] == {} and values["promise"]["found"] is None


def test_evaluate_agrees_with_predict(folder: Path, pretrained: Path, data: Path) -> None:
    found = toolkit.evaluate(pretrained, "mnist", data_root=data)
    test = open_dataset("mnist", data).test
    labels = [p.label for p in toolkit.load(pretrained).predict(list(test.images))]
    right = sum(label == test.class_names[int(i)] for label, i in zip(labels, test.labels, strict=True))
    assert right == found.result.correct
    assert found.to_dict() == worked("evaluate", str(pretrained), "--data", "mnist", "--json").json


def test_evaluate_asks_only_for_the_classes_in_common(folder: Path, pretrained: Path, data: Path) -> None:
    make_data(folder / "more", "emnist-balanced", 94, 94)
    found = worked("evaluate", pretrained, "--data", "emnist-balanced", "--data-root", folder / "more", "--json").json
    assert found["classes"] == list("0123456789") and found["total"] == 20 and found["claimed_accuracy"] is None
    write("few.yaml", pretrain_recipe(data="{name: mnist, classes: [7, 1, 4]}"))
    worked("pretrain", "--recipe", "few.yaml", "--quiet")
    few = worked("evaluate", "checkpoints/few.safetensors", "--data", "mnist", "--json").json
    assert few["classes"] == ["7", "1", "4"] and few["total"] == 30
    assert few["claimed_accuracy"] == few["accuracy"], "the same images, so the same claim"
    assert few["correct"] == report_of("checkpoints/few.safetensors")["results"]["test"]["correct"]


def test_evaluate_on_other_images_claims_nothing(folder: Path, pretrained: Path) -> None:
    make_data(folder / "more", "mnist", noise=300)
    found = worked("evaluate", pretrained, "--data", "mnist", "--data-root", folder / "more", "--json").json
    assert found["claimed_accuracy"] is None and found["accuracy"] < 1


def test_evaluate_says_so_where_no_class_is_shared(folder: Path, pretrained: Path) -> None:
    message = refused("evaluate", pretrained, "--data", "kmnist")
    assert "have no class in common" in message and f"`finetune adapt --from {pretrained} --target kmnist`" in message


def test_an_alias_is_the_data_set(folder: Path, pretrained: Path) -> None:
    make_data(folder / "more", "fashion-mnist")
    recipe = write("a.yaml", adapt_recipe(phase(length="steps: 1")))
    words = ("--data-root", folder / "more")
    worked("adapt", "--from", pretrained, "--target", "fashion", "--recipe", recipe, *words, "--quiet")
    out = "checkpoints/mnist-fashion-mnist.safetensors"
    found = worked("evaluate", out, "--data", "fashion", *words, "--json").json
    assert found["data"] == "fashion-mnist" and found["claimed_accuracy"] == found["accuracy"]


# plan


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


PHASES = (
    phase("head", "steps: 7", 10, more="name: head")
    + phase("{last: 2}", "epochs: 2", 10, more="augment: false, name: top")
    + phase("all", "epochs: 3", 50, "{name: adamw, lr: 1e-2}", "layer_decay: 0.5, name: all")
)
PLAN = adapt_recipe(PHASES, "{validation: 0.1, augment: {shift: 1}}", "[scratch]")


def test_plan_trains_and_writes_nothing(folder: Path, pretrained: Path) -> None:
    recipe = write("plan.yaml", PLAN)
    words = ("--recipe", recipe, "--from", pretrained, "--target", "kmnist")
    before = pretrained.read_bytes()
    plan = worked("plan", *words, "--json").json
    assert files_under(folder) == {"plan.yaml"} and pretrained.read_bytes() == before
    counts = ["train", "validation", "test"]
    assert list(plan) == ["kind", "model", "data", *counts, "phases", "calibration", "power", "where", "mixes"]
    assert [row["differing"] for row in plan["power"]] == [0.02, 0.05, 0.1, 0.2]
    assert plan["power"][2]["images_for_one_point"] == mcnemar_images(10, 100)
    assert (plan["kind"], plan["model"], plan["data"]) == ("adapt", "cnn", "kmnist")
    assert (plan["train"], plan["validation"], plan["test"]) == (270, 30, 100)
    assert (plan["calibration"]["how"], plan["calibration"]["images"]) == ("validation", 30)
    for one in plan["phases"]:
        assert set(one) == {
            *("name", "trains", "frozen", "trainable_parameters", "learning_rates", "l2_sp", "norms", "cached"),
            "augmented",
            *("cache", "steps", "batch_size", "seconds", "memory"),
        }
        assert 0 < one.pop("seconds") < 600
    caches = [one.pop("cache") for one in plan["phases"]]
    assert [one["says"] for one in caches] == [
        "not cached: images are augmented; views: K would keep K passes",
        "frozen part run once (3.4 MB in memory)",
        "nothing frozen",
        "nothing frozen",
    ]
    kept = {"behind": "conv2", "passes": 1, "where": "memory", "bytes": 270 * 3136 * 4}
    assert {key: caches[1][key] for key in kept} == kept
    assert {key: caches[0][key] for key in kept} == {"behind": None, "passes": 0, "where": None, "bytes": 0}
    assert [sum(one.pop("memory").values()) > 0 for one in plan["phases"]] == [True] * 4
    head, top, everything, scratch = plan["phases"]
    assert head == {
        "name": "head",
        "trains": ["head"],
        "frozen": ["conv1", "conv2", "fc1"],
        "trainable_parameters": 1_290,
        "learning_rates": {"head": 0.01},
        "l2_sp": None,
        "norms": "hold",
        "cached": False,
        "augmented": True,
        "steps": 7,
        "batch_size": 10,
    }
    assert (top["cached"], top["augmented"], top["trains"]) == (True, False, ["fc1", "head"])
    assert top["steps"] == 54 and top["trainable_parameters"] == 401_536 + 1_290
    assert everything["learning_rates"] == {"conv1": 0.00125, "conv2": 0.0025, "fc1": 0.005, "head": 0.01}
    assert everything["frozen"] == [] and everything["steps"] == 18 and everything["batch_size"] == 50
    assert (scratch["name"], scratch["trains"]) == ("scratch", ["conv1", "conv2", "fc1", "head"])
    assert set(scratch["learning_rates"].values()) == {0.01}
    assert scratch["steps"] == 31, "1,420 images: five epochs of 270 in six steps, and 70 more in one of 50"


def test_plan_of_scratch_is_fair(folder: Path, pretrained: Path) -> None:
    """What suits weights that have learnt something is left out for random ones."""
    last = phase("head", "epochs: 1", 10, more="augment: false, layer_decay: 0.5, keep: best, name: last")
    fair = "scratch: {optimizer: {name: adamw, lr: 3e-3}, schedule: {name: cosine}}\n"
    text = adapt_recipe(last, "{validation: 0.1, augment: {shift: 1}}", "[scratch]", fair)
    words = ("--recipe", write("fair.yaml", text), "--from", pretrained, "--target", "kmnist")
    phases = worked("plan", *words, "--json").json["phases"]
    assert [one["augmented"] for one in phases] == [False, True]
    assert phases[1]["learning_rates"] == dict.fromkeys(("conv1", "conv2", "fc1", "head"), 0.003)
    assert phases[1]["steps"] == phases[0]["steps"] == 27


def test_plan_says_what_is_calibrated_on_and_what_that_could_promise(folder: Path, pretrained: Path) -> None:
    recipe = write("plan.yaml", adapt_recipe(phase("head", "steps: 1"), "{validation: 0}"))

    def planned(*settings: str) -> dict[str, Any]:
        chosen = [word for setting in settings for word in ("--set", setting)]
        found = worked("plan", "--recipe", recipe, "--from", pretrained, "--target", "kmnist", *chosen, "--json").json
        return found["calibration"]

    none = planned()
    assert (none["how"], none["images"], none["images_needed"]) == (None, 0, None)
    assert "found none held out" in none["says"][0] and "calibration_folds" in none["says"][0]
    few = planned("data.validation=100", "max_error=0.01")
    assert (few["how"], few["images"], few["trainings"], few["images_needed"]) == ("validation", 100, 0, 299)
    assert few["says"][1].startswith("at most 1 % wrong takes at least 299 of them without a mistake")
    assert few["says"][1].endswith("there are only 100")
    folds = planned("calibration_folds=3", "max_error=0.01")
    assert (folds["how"], folds["images"], folds["trainings"]) == ("folds", 300, 3)
    assert "3 trainings more" in folds["says"][0] and folds["says"][1].endswith("there are 300")
    torn = planned("calibration_folds=3", "data.shots=1")
    assert torn["how"] is None and "no 3 folds" in torn["says"][0]


def test_plan_is_what_then_happens(folder: Path, pretrained: Path) -> None:
    recipe = write("plan.yaml", PLAN.replace("[scratch]", "[]"))
    words = ("--recipe", recipe, "--from", pretrained, "--target", "kmnist", "--shots", 10, "--seed", 3)
    plan = worked("plan", *words, "--json").json
    report = worked("adapt", *words, "--quiet", "--json").json
    keys = ("name", "trains", "trainable_parameters", "cached")
    assert [{k: p[k] for k in keys} for p in plan["phases"]] == [{k: p[k] for k in keys} for p in report["phases"]]
    assert [plan[part] for part in ("train", "validation", "test")] == [90, 10, 100]
    assert [report["target"][part] for part in ("train", "validation", "test")] == [90, 10, 100]


def test_plan_of_a_pretraining(folder: Path) -> None:
    recipe = write("small.yaml", pretrain_recipe())
    words = ("plan", "--recipe", recipe, "--set", "phases[0].batch_size=30")
    plan = worked(*words, "--json").json
    assert (plan["kind"], plan["data"], plan["train"]) == ("pretrain", "mnist", 300)
    (one,) = plan["phases"]
    assert (one["steps"], one["trainable_parameters"], one["cached"]) == (20, 421_642, False)
    shown = worked(*words).out
    said = "pretrain of cnn on mnist: 300 to learn from, 0 to validate, 100 to test"
    assert said in " ".join(shown.split())
    assert "421,642" in shown and "20 of 30" in shown and "head 0.01" in shown
    assert files_under(folder) == {recipe}


def test_plan_of_an_adapt_needs_its_source(folder: Path, pretrained: Path) -> None:
    adapt, pretrain = write("adapt.yaml", PLAN), write("pretrain.yaml", pretrain_recipe())
    message = refused("plan", "--recipe", adapt, "--target", "kmnist")
    assert "an adapt recipe depends on its source" in message and "--from" in message
    assert "no target" in refused("plan", "--recipe", adapt, "--from", pretrained)
    assert "--from goes with an adapt recipe" in refused("plan", "--recipe", pretrain, "--from", pretrained)
    message = refused("plan", "--recipe", adapt, "--from", pretrained, "--set", "phases[0].train=[fc2]")
    assert "unknown stage" in message and "conv1, conv2, fc1, head" in message


# inspect and the lists


def test_inspect_shows_the_metadata(folder: Path, pretrained: Path) -> None:
    with safe_open(pretrained, "pt") as file:
        metadata = json.loads(file.metadata()["finetune"])
    for layer in metadata["confidence"]["novelty"]["layers"]:
        layer["vectors"] = f"{layer['count'] * layer['width']:,} bytes"  # which nobody reads
    assert worked("inspect", pretrained, "--json").json == metadata
    shown = worked("inspect", pretrained).out
    assert all(any(line.startswith(key) for line in shown.splitlines()) for key in metadata)
    assert "cnn" in shown and "mnist" in shown


def test_models(folder: Path) -> None:
    names = worked("models", "--json").json
    assert "cnn" in names and all(name in worked("models").out for name in names)
    details = worked("models", "cnn", "--json").json
    assert list(details["stages"]) == ["conv1", "conv2", "fc1", "head"]
    assert sum(details["stages"].values()) == details["parameters"] == 421_642
    assert details["input"]["size"] == 28 and "421642" in worked("models", "cnn").out.replace(",", "")
    assert "unknown model 'cmn'; did you mean 'cnn'?" in refused("models", "cmn")


def test_datasets(folder: Path, data: Path) -> None:
    found = worked("datasets", "--json").json
    assert list(found) == list(DATASETS)
    assert {name for name, row in found.items() if row["present"]} == {"mnist", "kmnist", "kmnist-sample", "digits"}
    assert {
        name for name, row in worked("datasets", "--data-root", "nowhere", "--json").json.items() if row["present"]
    } == {"kmnist-sample", "digits"}
    shown = worked("datasets").out
    assert all(name in shown for name in DATASETS)
    details = worked("datasets", "kmnist", "--json").json
    assert details["classes"] == list(DATASETS["kmnist"].class_names) and details["present"] is True
    assert details["folder"] == str(data / "KMNIST" / "raw")
    assert worked("datasets", "fashion", "--json").json["name"] == "fashion-mnist"
    assert worked("datasets", "digits").out
    assert "did you mean 'kmnist'" in refused("datasets", "kmnits")
    assert files_under(folder) == set()


def test_recipes_are_listed_and_shown(folder: Path) -> None:
    found = worked("recipes", "--json").json
    assert sorted(f"{name}.yaml" for name in found) == SHIPPED
    shown = worked("recipes").out
    assert all(name in shown and line in shown for name, line in found.items())
    for name in found:
        text = (shipped_folder("recipes") / f"{name}.yaml").read_text(encoding="utf-8")
        assert worked("recipes", name).out == text
        assert worked("recipes", name, "--json").json == {"name": name, "text": text}
    assert "did you mean 'mnist-fast'" in refused("recipes", "mnist-fats")


# The shipped recipes

NEEDED = {"adapt.yaml", "digits.yaml", "mnist-article.yaml", "mnist-fast.yaml"}


@pytest.fixture(scope="module")
def every_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of every data set that a shipped recipe names, and of kmnist as a target."""
    root = tmp_path_factory.mktemp("sets")
    recipes = [open_recipe(shipped_folder("recipes") / name, []) for name in SHIPPED]
    for name in {"kmnist", *(recipe.data.name for recipe in recipes if recipe.data.name)} - {"digits"}:
        make_data(root, DATASETS[{"fashion": "fashion-mnist"}.get(name, name)].name, 360, 120)
    return root


def shortened(recipe: PretrainRecipe | AdaptRecipe) -> list[str]:
    """Settings that leave each phase two steps of at most 20 images."""
    words = [] if not recipe.data.validation else ["--set", "data.validation=0.2"]
    words += ["--set", "calibration_folds=null"] if recipe.kind == "adapt" else []
    for i, one in enumerate(recipe.phases):
        if one.solver is not None:
            continue
        for change in ("epochs=null", "min_steps=null", "max_steps=null", "steps=2", "batch_size=20"):
            words += ["--set", f"phases[{i}].{change}"]
    return words


def test_there_are_recipes() -> None:
    assert set(SHIPPED) >= NEEDED
    assert shipped_folder("recipes") == ROOT / "recipes"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_runs(name: str, folder: Path, every_set: Path, pretrained: Path) -> None:
    path = shipped_folder("recipes") / name
    assert first_comment(path), "it opens with what it is for and what to expect"
    recipe = open_recipe(path, [])
    words: list[Any] = ["--recipe", f"recipes/{name}", "--data-root", every_set, *shortened(recipe), "--quiet"]
    if recipe.kind == "adapt":
        words += ["--from", pretrained, *([] if recipe.data.name else ["--target", "kmnist"])]
    report = worked(recipe.kind, *words, "--json").json
    assert [len(p["epochs"]) for p in report["phases"]] == [1] * len(recipe.phases)
    out = f"checkpoints/mnist-{report['target']['name']}" if recipe.kind == "adapt" else f"checkpoints/{path.stem}"
    classifier = toolkit.load(f"{out}.safetensors")
    wanted = recipe.data.classes or DATASETS[report["target"]["name"]].class_names
    assert classifier.class_names == tuple(wanted)
    assert classifier(torch.zeros(1, 1, 28, 28)).shape == (1, len(wanted))


def test_the_default_recipe_of_adapt_is_found_from_anywhere(folder: Path, pretrained: Path) -> None:
    recipe = open_recipe(shipped_folder("recipes") / "adapt.yaml", [])
    words = shortened(recipe)
    worked("adapt", "--from", pretrained, "--target", "kmnist", *words, "--no-compare", "--quiet")
    assert Path("checkpoints/mnist-kmnist.safetensors").exists()
    report = toolkit.adapt(
        pretrained,
        "kmnist",
        compare=False,
        out="api.safetensors",
        settings={
            f"phases[{i}].{key}": value
            for i in range(len(recipe.phases))
            for key, value in (("epochs", None), ("min_steps", None), ("max_steps", None), ("steps", 1))
        },
    )
    assert [p.name for p in report.phases] == [p.name for p in recipe.phases]
