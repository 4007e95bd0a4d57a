"""A checkpoint says how the files that it was trained on were decoded, and whatever uses it decodes them so too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from album import scene
from PIL import Image
from safetensors import safe_open
from tiny import adapt_recipe, finetune, report_of, worked

import finetune as toolkit

RECIPE = adapt_recipe("  - {train: head, solver: lbfgs}\n")
NEW = "new.safetensors"


def input_of(path: Path | str) -> Any:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["finetune"])["input"]


def pictures(root: Path, *, deep: bool, scale: int = 8) -> Path:
    """ROOT/PART/CLASS/0.jpg ..., of 180 by 220 pixels, or .png of 16 bits that hold 8-bit values times `scale`."""
    for part, count in (("train", 6), ("val", 4)):
        for label in ("ink", "pen"):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                small = scene(label, f"{part} {i}", channels=1 if deep else 3)
                if deep:
                    Image.fromarray(small.astype(np.uint16) * scale).save(root / part / label / f"{i}.png")
                else:
                    big = Image.fromarray(small).resize((220, 180), Image.Resampling.BICUBIC)
                    big.save(root / part / label / f"{i}.jpg")
    return root


def adapted(source: Path | str, target: Path | str, *words: str) -> Any:
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    typed = ("--recipe", "recipe.yaml", "--target", target, "--out", NEW, "--quiet", "--json", *words)
    return worked("adapt", "--from", source, *typed).json


def check_same_answers(checkpoint: str, data: Path) -> None:
    """`evaluate` claims the run's own accuracy, and `predict` and `Classifier.predict` answer as evaluate does."""
    found = worked("evaluate", checkpoint, "--data", data, "--json").json
    assert found["claimed_accuracy"] == found["accuracy"] == report_of(checkpoint)["results"]["after"]["accuracy"]
    files = sorted((data / "val").glob("*/*"))
    said = worked("predict", checkpoint, *files, "--json").json
    assert sum(one["label"] == Path(one["file"]).parent.name for one in said) == found["correct"]
    own = toolkit.load(checkpoint).predict(files)
    assert [(one["label"], pytest.approx(one["probability"], abs=1e-5)) for one in said] == [
        (one.label, one.probability) for one in own
    ]


def test_scaled_is_recorded_and_used_again(folder: Path, pretrained: Path) -> None:
    data = pictures(Path("pens"), deep=False)
    adapted(pretrained, data)
    assert input_of(NEW)["decode"] == "scaled" and "bits" not in input_of(NEW)
    check_same_answers(NEW, data)
    shutil.move(NEW, "scaled.safetensors")
    adapted("scaled.safetensors", data, "--set", "data.decode=exact")
    assert "decode" not in input_of(NEW), "as in files of before, which were trained on all pixels"
    check_same_answers(NEW, data)
    exact, scaled = toolkit.load(NEW), toolkit.load("scaled.safetensors")
    file = next(data.glob("val/*/*"))
    assert not exact.preprocess(file).equal(scaled.preprocess(file))
    with Image.open(file) as opened:
        assert exact.preprocess(file).equal(scaled.preprocess(opened)), "an open picture is taken as it is"


def test_the_white_is_recorded_and_used_again(folder: Path, pretrained: Path) -> None:
    data = pictures(Path("deep"), deep=True)
    report = adapted(pretrained, data)
    assert input_of(NEW)["bits"] == 12
    assert any("white is 4,095 (12 bits), for all of them" in note for note in report["target"]["notes"])
    check_same_answers(NEW, data)
    brighter = pictures(Path("brighter"), deep=True, scale=100)
    done = finetune("predict", NEW, next(brighter.glob("val/*/*")))
    assert done.code == 1 and "4,095 is white (12 bits)" in done.out
    toolkit.save(toolkit.load(NEW), "again.safetensors")
    assert Path("again.safetensors").read_bytes() == Path(NEW).read_bytes()


def test_registered_images_were_decoded_by_nobody(folder: Path, pretrained: Path, data: Path) -> None:
    adapted(pretrained, pictures(Path("deep"), deep=True))
    shutil.move(NEW, "deep.safetensors")
    adapted("deep.safetensors", "mnist")
    assert input_of(NEW).keys().isdisjoint(("decode", "bits"))
