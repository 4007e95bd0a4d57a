"""Whole runs on a person's own pictures: folders and tables in, checkpoints out that see the same everywhere."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ImageFile
import pytest
import torch
from album import scene, scenes
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import adapt_recipe, files_under, phase, refused, report_of, worked

import finetune as toolkit
from finetune.data.registry import open_dataset
from finetune.report.predictions import read_predictions
from finetune.report.statistics import wilson_by_groups

SOLVED = "  - {train: head, solver: lbfgs}\n"
NEW = "new.safetensors"


def write(text: str, name: str = "recipe.yaml") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def adapted(source: Path, target: Path | str, *words: object, recipe: str = "") -> Any:
    """Adapts to `target` and returns the report."""
    chosen = write(recipe or adapt_recipe(SOLVED))
    typed = ("--recipe", chosen, "--target", target, "--out", NEW, "--quiet", "--json")
    report = worked("adapt", "--from", source, *typed, *words).json
    assert report == report_of(NEW)
    return report


def metadata_of(path: Path | str) -> Any:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["finetune"])


def predicted(checkpoint: Path | str, *images: Path | str) -> list[tuple[str, str]]:
    """(class folder, predicted label) of each picture."""
    return [
        (Path(sight["file"]).parent.name, sight["label"])
        for sight in worked("predict", checkpoint, *images, "--json").json
    ]


def check_agreement(checkpoint: Path | str, data: Path | str, pictures: Path) -> None:
    """What the run measured, what `evaluate` measures and what `predict` says of the files are one and the same."""
    results = report_of(checkpoint)["results"]
    result = results.get("after") or results["test"]
    found = worked("evaluate", checkpoint, "--data", data, "--json").json
    assert {key: found[key] for key in ("correct", "total", "accuracy", "per_class", "confusion")} == {
        key: result[key] for key in ("correct", "total", "accuracy", "per_class", "confusion")
    }
    assert found["claimed_accuracy"] == found["accuracy"] and found["left_out"] == 0
    classes = metadata_of(checkpoint)["classes"]
    counts = np.zeros((len(classes), len(classes)), int)
    for true, label in predicted(checkpoint, pictures):
        counts[classes.index(true), classes.index(label)] += 1
    assert counts.tolist() == found["confusion"]
    assert (counts > 0).sum() > len(classes), "more than one way to be right or wrong, so that a mix-up would show"


def test_from_one_folder_to_another(folder: Path, backbone: Path, orchard: Path) -> None:
    report = adapted(backbone, orchard, recipe=adapt_recipe(SOLVED + phase("{last: 2}", "steps: 3")))
    assert report["target"]["classes"] == ["apple", "pear", "plum"] and report["target"]["name"] == "orchard"
    assert [report["target"][part] for part in ("train", "validation", "test")] == [36, 18, 24]
    assert report["source"]["model"] == "timm/test_resnet" and report["source"]["dataset"] == "meadow"
    assert report["results"]["before"]["method"] == "nearest class mean" and report["retention"] is None
    assert report["results"]["after"]["accuracy"] > 0.5
    check_agreement(NEW, orchard, orchard / "test")
    metadata = metadata_of(NEW)
    assert metadata["input"]["size"] == 32 and metadata["input"]["resize"] == "shorter_side"
    assert metadata["arguments"] == {} and metadata["lineage"][0]["task"] == "meadow"
    assert metadata["recipe"]["data"]["name"] == report["recipe"]["data"]["name"] == "orchard", "not where it lies"
    assert str(orchard) not in json.dumps([report, metadata]).replace(json.dumps(report["source"]), "")
    assert set(load_file(NEW)) == set(load_file(backbone)), "timm's own names"


def test_a_pretraining_agrees_with_itself(folder: Path, backbone: Path) -> None:
    meadow = backbone.parents[1] / "meadow"
    check_agreement(backbone, meadow, meadow / "test")


# Grey and colour


def test_grey_images_make_a_colour_backbone_grey(folder: Path, backbone: Path, data: Path) -> None:
    report = adapted(backbone, "mnist")
    metadata = metadata_of(NEW)
    assert metadata["arguments"] == {"in_chans": 1} and metadata["input"]["channels"] == 1
    given = metadata_of(backbone)["input"]
    assert metadata["input"]["mean"] == [pytest.approx(sum(given["mean"]) / 3)]
    assert metadata["input"]["std"] == [pytest.approx(sum(given["std"]) / 3)]
    old, new = (load_file(path)["conv1.0.weight"] for path in (backbone, NEW))
    torch.testing.assert_close(new, old.sum(1, keepdim=True))
    found = worked("evaluate", NEW, "--data", "mnist", "--json").json
    assert found["claimed_accuracy"] == found["accuracy"] == report["results"]["after"]["accuracy"]
    assert toolkit.load(NEW)(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.slow
def test_registered_images_are_predicted_as_they_were_measured(folder: Path, data: Path) -> None:
    """The one is resized by Pillow, the other by torch, which round differently."""
    recipe = BACKBONE.replace("drawn", "mnist").replace("steps: 4", "epochs: 4")
    worked("pretrain", "--recipe", write(recipe), "--out", NEW, "--quiet")
    classifier, test = toolkit.load(NEW), open_dataset("mnist", data).test
    size = {"size": (32, 32), "mode": "bilinear", "antialias": True}
    shown = torch.nn.functional.interpolate(test.images.float(), **size) / 255
    spec = classifier.input
    seen = torch.stack([classifier.preprocess(image) for image in test.images]) * spec.std[0] + spec.mean[0]
    torch.testing.assert_close(seen, shown, rtol=0, atol=1.01 / 255)
    labels = [p.label for p in classifier.predict(list(test.images))]
    right = sum(label == test.class_names[int(i)] for label, i in zip(labels, test.labels, strict=True))
    assert abs(right - report_of(NEW)["results"]["test"]["correct"]) <= 2 and right > 25


@pytest.mark.slow
def test_colour_pictures_make_a_grey_backbone_colourful(folder: Path, backbone: Path, orchard: Path) -> None:
    adapted(backbone, "mnist")
    shutil.move(NEW, "grey.safetensors")
    adapted(Path("grey.safetensors"), orchard)
    metadata = metadata_of(NEW)
    assert metadata["arguments"] == {"in_chans": 3} and metadata["input"]["channels"] == 3
    assert len(metadata["input"]["mean"]) == len(metadata["input"]["std"]) == 3
    grey, colour = (load_file(path)["conv1.0.weight"] for path in ("grey.safetensors", NEW))
    torch.testing.assert_close(colour, grey.expand(-1, 3, -1, -1) / 3)
    check_agreement(NEW, orchard, orchard / "test")


def test_a_grey_folder_is_grey_all_through(folder: Path) -> None:
    names = dict.fromkeys(("ink", "pen"), 8)
    scenes(Path("drawn"), channels=1, train=names, test=names)
    recipe = BACKBONE.replace("{name: drawn}", "{name: drawn, augment: photo}")
    worked("pretrain", "--recipe", write(recipe), "--out", NEW, "--quiet")
    metadata = metadata_of(NEW)
    assert metadata["arguments"] == {"in_chans": 1} and metadata["input"]["channels"] == 1
    assert load_file(NEW)["conv1.0.weight"].shape[1] == 1
    check_agreement(NEW, "drawn", Path("drawn/test"))


BACKBONE = """kind: pretrain
model: timm/test_resnet
input: {size: 32}
data: {name: drawn}
phases:
  - {train: all, steps: 4, batch_size: 8, optimizer: {name: adamw, lr: 1e-3}}
precision: float32
"""


@pytest.mark.slow
def test_a_number_of_channels_that_was_asked_for_stays(folder: Path, orchard: Path) -> None:
    names = dict.fromkeys(("ink", "pen"), 8)
    scenes(Path("drawn"), channels=1, train=names, test=names)
    for target, wanted in (("drawn", 3), ("mnist", 3), (orchard, 1)):
        words = ("--set", f"model.in_chans={wanted}", "--set", f"data.name={target}", "--set", "data.augment=photo")
        worked("pretrain", "--recipe", write(BACKBONE), "--out", NEW, "--quiet", *words)
        metadata = metadata_of(NEW)
        assert metadata["arguments"] == {"in_chans": wanted} and metadata["input"]["channels"] == wanted
        assert load_file(NEW)["conv1.0.weight"].shape[1] == wanted
        if target != "mnist":
            assert len(predicted(NEW, Path(target) / "test")) == report_of(NEW)["results"]["test"]["total"]
        found = worked("evaluate", NEW, "--data", target, "--json").json
        assert found["claimed_accuracy"] == found["accuracy"]


def test_colour_pictures_are_turned_grey_for_a_network_that_is(folder: Path, pretrained: Path, orchard: Path) -> None:
    report = adapted(pretrained, orchard, recipe=adapt_recipe(SOLVED + phase("{last: 2}", "steps: 1", 10)))
    metadata = metadata_of(NEW)
    assert metadata["arguments"] == {} and metadata["input"]["channels"] == 1 and metadata["input"]["size"] == 28
    assert report["retention"]["dataset"] == "mnist", "the source's own images are still taken as they are"
    check_agreement(NEW, orchard, orchard / "test")


def test_a_folder_called_like_a_data_set_is_not_taken_for_it(folder: Path, orchard: Path) -> None:
    names = dict.fromkeys(map(str, range(10)), 2)
    scenes(Path("mnist"), channels=1, train=names, test=names)
    worked("pretrain", "--recipe", write(BACKBONE.replace("drawn", "./mnist")), "--out", "own.safetensors", "--quiet")
    report = adapted(Path("own.safetensors"), orchard)
    assert report["source"]["dataset"] == "mnist" and report["retention"] is None


# The input


@pytest.mark.slow
def test_the_input_of_a_recipe_is_used_and_kept(folder: Path, backbone: Path, orchard: Path) -> None:
    given = "{size: 40, mean: [0.3], std: [0.4], crop: 0.8, interpolation: nearest, resize: squash}"
    recipe = adapt_recipe(SOLVED, more=f"input: {given}\n")
    adapted(backbone, orchard, recipe=recipe)
    assert metadata_of(NEW)["input"] == {
        "channels": 3,
        "size": 40,
        "mean": [0.3] * 3,
        "std": [0.4] * 3,
        "interpolation": "nearest",
        "crop": 0.8,
        "resize": "squash",
    }
    check_agreement(NEW, orchard, orchard / "test")
    plain = load_file(NEW)["fc.weight"]
    for change in ("size=32", "mean=[0.5]", "std=[0.2]", "crop=1.0", "interpolation=bicubic", "resize=shorter_side"):
        adapted(backbone, orchard, "--set", f"input.{change}", recipe=recipe)
        assert not torch.equal(load_file(NEW)["fc.weight"], plain), change


def test_means_and_deviations_of_the_wrong_number(folder: Path, backbone: Path, orchard: Path) -> None:
    recipe = write(adapt_recipe(SOLVED, more="input: {std: [0.2, 0.2]}\n"))
    message = refused("adapt", "--from", backbone, "--recipe", recipe, "--target", orchard)
    assert message.startswith("input.std: expected 1 number or 3, one per channel, found 2")


def test_means_of_colours_become_their_average_for_grey_images(folder: Path, backbone: Path) -> None:
    recipe = adapt_recipe(SOLVED, more="input: {mean: [0.2, 0.5, 0.8], std: [0.1, 0.2, 0.6]}\n")
    adapted(backbone, "mnist", recipe=recipe)
    found = metadata_of(NEW)["input"]
    assert found["mean"] == [pytest.approx(0.5)] and found["std"] == [pytest.approx(0.3)]


def test_one_mean_stays_that_number(folder: Path, backbone: Path) -> None:
    adapted(backbone, "mnist", recipe=adapt_recipe(SOLVED, more="input: {mean: [0.1], std: [0.7]}\n"))
    found = metadata_of(NEW)["input"]
    assert found["mean"] == [0.1] and found["std"] == [0.7]


def test_what_says_how_pictures_are_cut_is_for_pictures(folder: Path, backbone: Path) -> None:
    """Registered images come as they are and are shown whole: the checkpoint says so, and a recipe cannot differ."""
    adapted(backbone, "mnist")
    found = metadata_of(NEW)["input"]
    assert (found["crop"], found["resize"], found["interpolation"]) == (1.0, "squash", "bilinear")
    for given in ("crop: 0.5", "resize: shorter_side", "interpolation: nearest"):
        recipe = write(adapt_recipe(SOLVED, more=f"input: {{{given}}}\n"))
        message = refused("adapt", "--from", backbone, "--recipe", recipe, "--target", "mnist")
        assert message.startswith(f"input.{given.partition(':')[0]}: ") and "28×28" in message, message


VIT = """kind: pretrain
model: timm/test_vit
data: {name: drawn}
phases:
  - {train: all, steps: 2, batch_size: 8, optimizer: {name: adamw, lr: 1e-3}}
precision: float32
"""


@pytest.mark.slow
def test_a_size_that_a_vit_cannot_take(folder: Path, orchard: Path) -> None:
    recipe, data = write(VIT), ("--set", f"data.name={orchard}")
    message = refused("pretrain", "--recipe", recipe, *data, "--set", "input.size=50")
    assert message.startswith("model 'timm/test_vit' takes images of 160×160 pixels, not 50×50: ")
    assert "--set" not in message, "50 is no multiple of its patches"
    data = (*data, "--set", "model.dynamic_img_size=false")
    message = refused("pretrain", "--recipe", recipe, *data, "--set", "input.size=48")
    assert message.startswith("model 'timm/test_vit' takes images of 160×160 pixels, not 48×48: ")
    assert message.endswith("; --set model.img_size=48 builds it for that size\n")
    worked("pretrain", "--recipe", recipe, *data, "--set", "model.img_size=48", "--out", "vit.safetensors", "--quiet")
    assert metadata_of("vit.safetensors")["input"]["size"] == 48
    check = ("adapt", "--from", "vit.safetensors", "--target", orchard, "--recipe", write(adapt_recipe(SOLVED)))
    message = refused(*check, "--set", "input.size=64")
    assert "takes images of 48×48 pixels, not 64×64" in message and "--set" not in message, "a checkpoint has its size"
    worked(*check, "--out", NEW, "--quiet")
    check_agreement(NEW, orchard, orchard / "test")


# The parts of a folder


def test_the_validation_part_is_used_for_nothing_else(folder: Path, backbone: Path, orchard: Path) -> None:
    """Its labels are wrong here, each the next class's, which shows where it goes."""
    shutil.copytree(orchard, "turned")
    names = sorted(path.name for path in Path("turned/val").iterdir())
    for name in names:
        Path("turned/val", name).rename(f"turned/val/{name}-")
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        Path(f"turned/val/{name}-").rename(f"turned/val/{following}")
    recipe = adapt_recipe(phase("head", "steps: 60", 12, "{name: adamw, lr: 1e-2}"), "{validation: 0.3}")
    report = adapted(backbone, "turned", recipe=recipe)
    assert [report["target"][part] for part in ("train", "validation", "test")] == [36, 18, 24]
    found = predicted(NEW, "turned/val")
    accuracy = sum(true == label for true, label in found) / len(found)
    assert report["phases"][0]["epochs"][-1]["validation_accuracy"] == accuracy < 0.34
    assert report["results"]["after"]["accuracy"] > 0.6
    true = adapted(backbone, orchard, recipe=recipe)
    assert true["phases"][0]["epochs"][-1]["validation_accuracy"] > 0.6
    assert true["phases"][0]["epochs"][-1]["train_loss"] == report["phases"][0]["epochs"][-1]["train_loss"]


def test_a_folder_without_validation_has_some_held_out(folder: Path, backbone: Path, orchard: Path) -> None:
    shutil.copytree(orchard, "plain")
    shutil.rmtree("plain/val")
    report = adapted(backbone, "plain", recipe=adapt_recipe(SOLVED, "{validation: 0.25}"))
    assert [report["target"][part] for part in ("train", "validation", "test")] == [27, 9, 24]
    report = adapted(backbone, "plain", "--shots", 4, recipe=adapt_recipe(SOLVED, "{validation: 0.25}"))
    assert [report["target"][part] for part in ("train", "validation", "test")] == [9, 3, 24]


def test_flat_class_folders_are_split_the_same_for_every_command(folder: Path, backbone: Path, orchard: Path) -> None:
    for path in sorted(orchard.rglob("*.png")):
        place = Path("flat", path.parent.name)
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / f"{path.parents[1].name}-{path.name}")
    report = adapted(backbone, "flat", recipe=adapt_recipe(SOLVED, "{validation: 0.2}"))
    test = report["target"]["test"]
    assert 8 <= test <= 24 and report["target"]["train"] + report["target"]["validation"] == 78 - test
    found = worked("evaluate", NEW, "--data", "flat", "--json").json
    assert found["claimed_accuracy"] == found["accuracy"] == report["results"]["after"]["accuracy"]
    assert f"{test} of 78 pictures are kept for the test" in " ".join(report["target"]["notes"])


def test_a_class_without_a_test_picture(folder: Path, backbone: Path, orchard: Path) -> None:
    """It is still a class: nothing is renumbered, it may be predicted, and the accuracy claimed is found again."""
    shutil.copytree(orchard, "part")
    shutil.rmtree("part/test/apple")
    report = adapted(backbone, "part")
    assert report["target"]["classes"] == ["apple", "pear", "plum"] and report["target"]["test"] == 16
    result = report["results"]["after"]
    assert result["per_class"]["apple"] == {"correct": 0, "total": 0, "accuracy": None}
    assert "no test picture of apple" in " ".join(report["target"]["notes"])
    assert any(row[0] for row in result["confusion"][1:]), "some pictures are taken for apples"
    check_agreement(NEW, "part", Path("part/test"))


def test_the_classes_asked_for_in_the_order_asked_for(folder: Path, backbone: Path, orchard: Path) -> None:
    report = adapted(backbone, orchard, "--set", "data.classes=[plum, apple]")
    assert report["target"]["classes"] == ["plum", "apple"] == metadata_of(NEW)["classes"]
    assert [report["target"][part] for part in ("train", "validation", "test")] == [24, 12, 16]
    found = worked("evaluate", NEW, "--data", orchard, "--json").json
    assert found["classes"] == ["plum", "apple"] and found["left_out"] == 8
    assert found["claimed_accuracy"] == found["accuracy"] == report["results"]["after"]["accuracy"] > 0.6
    right = [true == label for true, label in predicted(NEW, orchard / "test/plum", orchard / "test/apple")]
    assert sum(right) == found["correct"]
    message = refused(*TYPED, "--from", backbone, "--target", orchard, "--set", "data.classes=[plum, aple]")
    assert "unknown class 'aple'; did you mean 'apple'?" in message


TYPED = ("adapt", "--recipe", "recipe.yaml")


# What is said of the pictures


def test_duplicates_are_said_before_any_training(folder: Path, backbone: Path, orchard: Path) -> None:
    shutil.copytree(orchard, "twice")
    shutil.copy("twice/train/pear/3.png", "twice/test/pear/again.png")
    write(adapt_recipe(phase("head", "steps: 1")))
    done = worked(*TYPED, "--from", backbone, "--target", "twice", "--out", NEW)
    said = "twice: 1 test picture is also in train: train/pear/3.png = test/pear/again.png"
    assert said in done.err and done.err.index(said) < done.err.index("phase head")
    assert any(said in note for note in report_of(NEW)["target"]["notes"])


def test_bad_pictures_stop_a_run_or_are_left_out(folder: Path, backbone: Path, orchard: Path) -> None:
    shutil.copytree(orchard, "mixed")
    Path("mixed/train/pear/text.jpg").write_text("no picture")
    Path("mixed/test/plum/empty.png").touch()
    whole = Path("mixed/train/apple/1.png").read_bytes()
    Path("mixed/train/apple/1.png").write_bytes(whole[: len(whole) // 2])
    write(adapt_recipe(SOLVED))
    before = files_under(folder)
    typed = (*TYPED, "--from", backbone, "--target", "mixed", "--out", NEW)
    message = refused(*typed)
    assert message.startswith("mixed: 3 bad images\n") and "--set data.on_bad_image=skip" in message
    for name in ("train/pear/text.jpg: ", "test/plum/empty.png: ", "train/apple/1.png: "):
        assert f"\n  {name}" in message
    assert files_under(folder) == before
    done = worked(*typed, "--set", "data.on_bad_image=skip")
    assert "mixed: 3 bad images left out: " in done.err
    report = report_of(NEW)
    assert [report["target"][part] for part in ("train", "validation", "test")] == [35, 18, 24]
    assert any("train/pear/text.jpg" in note for note in report["target"]["notes"])
    assert "3 bad images" in refused("evaluate", NEW, "--data", "mixed")
    found = worked("evaluate", NEW, "--data", "mixed", "--on-bad-image", "skip", "--json").json
    assert found["claimed_accuracy"] == found["accuracy"]


def test_few_pictures_of_a_class_are_said(folder: Path, backbone: Path) -> None:
    scenes(Path("few"), train={"ant": 3, "bee": 6}, test={"ant": 2, "bee": 2})
    write(adapt_recipe(SOLVED))
    done = worked(*TYPED, "--from", backbone, "--target", "few", "--out", NEW)
    assert "few: fewer than 5 images to learn from: ant (3)" in done.err
    assert "head: rows kept for ant, bee" in done.err


def test_a_folder_that_is_not_there(folder: Path, backbone: Path, orchard: Path) -> None:
    write(adapt_recipe(SOLVED))
    for name in ("orchrd/", str(orchard.parent / "orchrd")):
        message = refused(*TYPED, "--from", backbone, "--target", name)
        assert "there is no such folder" in message or "no class folder" in message
    assert "did you mean 'orchard'" in message
    message = refused(*TYPED, "--from", backbone, "--target", "orchrd")
    assert message.startswith("--target orchrd: ") and "data set" in message


# Names and tables


def test_a_table_is_a_target(folder: Path, backbone: Path, orchard: Path) -> None:
    rows = [(path, path.parent.name, path.parents[1].name) for path in sorted(orchard.rglob("*.png"))]
    with Path("labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    report = adapted(backbone, "labels.csv")
    assert report["target"]["name"] == "labels" and report["recipe"]["data"]["name"] == "labels"
    table = metadata_of(NEW)["data"]
    check_agreement(NEW, "labels.csv", orchard / "test")
    by_folder = adapted(backbone, orchard)
    assert by_folder["results"] == report["results"]
    assert {part: table[part] for part in ("train", "validation", "test")} == {
        part: metadata_of(NEW)["data"][part] for part in ("train", "validation", "test")
    }


def test_names_of_any_kind_from_end_to_end(folder: Path, backbone: Path) -> None:
    names = ("苹果", "red pear", "Äpfel & Birnen")
    place = Path("我的 水果")
    scenes(place, noise=700, train=dict.fromkeys(names, 8), test=dict.fromkeys(names, 5))
    Image.fromarray(scene("苹果", "test 9")).save(place / "test" / "苹果" / "图 1.png")
    write(adapt_recipe(SOLVED))
    done = worked(*TYPED, "--from", backbone, "--target", place)
    out = Path("checkpoints/meadow-我的 水果.safetensors")
    assert "我的 水果: 3 classes" in done.out and out.exists()
    report = report_of(out)
    assert report["target"]["classes"] == sorted(names) == list(report["results"]["after"]["per_class"])
    assert '"苹果"' in out.with_suffix(".report.json").read_text(encoding="utf-8"), "readable as it is"
    check_agreement(out, place, place / "test")
    (line,) = worked("predict", out, place / "test" / "苹果" / "图 1.png", "--top", 3).out.splitlines()
    file, *found = line.split("\t")
    assert file == str(place / "test" / "苹果" / "图 1.png")
    assert {text.rpartition(" ")[0].rpartition(" ")[0] for text in found} == set(names)
    done = worked("evaluate", out, "--data", place, "--confusion", "混淆 1.png")
    assert "wrote 混淆 1.png" in done.err and Path("混淆 1.png").read_bytes().startswith(b"\x89PNG")
    assert all(name in done.out for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapt-timm", "adapt-lora"])
def test_the_shipped_recipes_for_backbones(name: str, folder: Path, backbone: Path, orchard: Path) -> None:
    words: list[object] = ["--from", backbone, "--recipe", f"recipes/{name}.yaml", "--target", orchard]
    plan = worked("plan", *words, "--show-augment", "grid.png", "--json").json
    assert Path("grid.png").read_bytes().startswith(b"\x89PNG") and plan["phases"][-1]["name"] == "scratch"
    for index, one in enumerate(plan["phases"][:-1]):
        if one["steps"]:
            lengths = ("epochs=null", "min_steps=null", "max_steps=null", "steps=2", "batch_size=12")
            words += [word for change in lengths for word in ("--set", f"phases[{index}].{change}")]
    report = worked("adapt", *words, "--out", NEW, "--quiet", "--json").json
    assert [one["name"] for one in report["phases"]] == [one["name"] for one in plan["phases"][:-1]]
    made = {row: own for row, own in report["results"].items() if row != "interpolated"}
    assert all(made.values()) and report["comparisons"]["after_vs_scratch"]
    check_agreement(NEW, orchard, orchard / "test")


SPECIAL = ("per_class", "head_rows_reused", "timm")  # are of these classes, or of timm's networks


def test_the_report_has_the_keys_of_every_report(folder: Path, backbone: Path, orchard: Path, pretrained: Path) -> None:
    def keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: keys(inner) for key, inner in value.items() if key not in SPECIAL}
        return keys(value[0]) if isinstance(value, list) and value and isinstance(value[0], dict) else None

    recipe = adapt_recipe(SOLVED, compare="[linear_probe, scratch]", more=SCRATCH)
    pictures = adapted(backbone, orchard, recipe=recipe)
    registered = adapted(pretrained, "kmnist", recipe=recipe)
    pictures["retention"] = registered["retention"]
    pictures["confidence"] = registered["confidence"]  # 18 pictures are too few to calibrate on
    for one in (pictures, registered):
        del one["recipe"]["data"]
    assert keys(pictures) == keys(registered)


SCRATCH = "scratch: {optimizer: {name: sgd, lr: 0.01}}\n"


@pytest.mark.slow
def test_pictures_too_many_for_memory_give_the_same_bytes(
    folder: Path, backbone: Path, orchard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay in the cache's file and are read as they are needed."""
    photo = "{augment: {crop: 0.5, flip: true, colour: 0.2, mixup: 0.2, cutmix: 1.0}}"
    recipe = adapt_recipe(SOLVED + phase("{last: 2}", "steps: 4") + phase("head", "steps: 2", more="name: b"), photo)
    first = adapted(backbone, orchard, recipe=recipe)
    content = Path(NEW).read_bytes()
    Path("limit").write_text("0")
    monkeypatch.setattr("finetune.data.image_folder_dataset.MEMORY_LIMIT", Path("limit"))
    again = adapted(backbone, orchard, recipe=recipe)
    assert Path(NEW).read_bytes() == content and again["results"] == first["results"]
    worked("plan", "--recipe", "recipe.yaml", "--from", backbone, "--target", orchard, "--show-augment", "grid.png")
    check_agreement(NEW, orchard, orchard / "test")


@pytest.mark.slow
def test_pictures_are_decoded_once(
    folder: Path, backbone: Path, orchard: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(folder / "cache"))
    decoded = []
    load = PIL.ImageFile.ImageFile.load

    def counted(self: PIL.ImageFile.ImageFile) -> Any:
        decoded.append(self)
        return load(self)

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", counted)
    first = adapted(backbone, orchard)
    assert len(decoded) >= 78
    decoded.clear()
    second = adapted(backbone, orchard)
    worked("evaluate", NEW, "--data", orchard)
    worked("plan", "--recipe", "recipe.yaml", "--from", backbone, "--target", orchard)
    assert not decoded and second["results"] == first["results"]
    adapted(backbone, orchard, "--set", "input.size=40")
    assert decoded, "another size has pixels of its own"


def tracks(root: Path) -> Path:
    """ROOT/{train,test}/CLASS/TRACK_NUMBER.png: four pictures of each track, nearly alike."""
    for part, count in (("train", 3), ("test", 5)):
        for label in ("apple", "pear"):
            for track in range(count):
                base = scene(label, f"{part} {track}", noise=300).astype(int)
                for number in range(4):
                    place = root / part / label / f"{label}{part}{track}_{number}.png"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray((base + number).clip(0, 255).astype(np.uint8)).save(place)
    return root


def test_groups_of_pictures_reach_report_predictions_and_checks(folder: Path, backbone: Path) -> None:
    album = tracks(folder / "orchard")
    words = ("--set", r"data.group=([^/]+)_\d+")
    report = adapted(backbone, album, *words, "--seeds", 2, recipe=adapt_recipe(SOLVED, data="{validation: 0.3}"))
    result, comparison = report["results"]["after"], report["comparisons"]["after_vs_majority"]
    assert result["total"] == 80 and result["groups"] == comparison["groups"] == 10
    each = result["per_seed"]
    assert all(8 <= own["effective_images"] <= 40 for own in each)
    own = metadata_of(NEW)["results"]["after"]
    assert (own["groups"], own["effective_images"]) == (10, each[0]["effective_images"])
    assert tuple(own["ci95"]) == wilson_by_groups(own["correct"], 40, own["effective_images"], 10)
    table = read_predictions(Path(NEW).with_suffix(".predictions.csv"))
    assert len(set(table.groups)) == 10 and table.groups[0] in table.images[0]
    assert toolkit.verify(NEW).holds
    found = toolkit.compare(Path(NEW).with_suffix(".predictions.csv"), against="majority")
    assert found.comparison.p_value == comparison["p_value"] and found.groups == 10
    alone = report_of(NEW)
    alone["results"]["after"]["per_seed"][0]["effective_images"] += 1.0
    Path(NEW).with_suffix(".report.json").write_text(json.dumps(alone))
    assert toolkit.verify(NEW).failed == ["report"]
    typed = ("--recipe", "recipe.yaml", "--target", album, *words, "--out", "one.safetensors")
    shown = worked("adapt", "--from", backbone, *typed).out
    assert "40 test images in 10 groups, worth about" in " ".join(shown.split())
