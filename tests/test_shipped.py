"""What is shipped holds: the MNIST checkpoint and its report, and the promises at the top of the recipes."""

import json
import re
from pathlib import Path

import pytest

import finetune
from finetune.data.registry import is_present
from finetune.paths import data_root
from finetune.sources.resolve import open_source, read_source_metadata

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "checkpoints" / "mnist.safetensors"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_checkpoint_and_its_report_say_the_same():
    source = open_source(CHECKPOINT)
    report = json.loads((ROOT / "checkpoints" / "mnist.report.json").read_text(encoding="utf-8"))
    assert source.metadata.recipe == report["recipe"] and source.metadata.classes == report["target"]["classes"]
    test = report["results"]["test"]
    assert {key: test[key] for key in ("correct", "total", "accuracy", "ci95")} == source.metadata.results["test"]
    assert test["total"] == 10_000 and test["accuracy"] >= 0.995


def test_the_checkpoint_is_made_by_the_shipped_recipe():
    from finetune.run.setup import open_recipe

    # Read again, so that keys which came later have the default that leaves the run as it was.
    assert open_recipe(read_source_metadata(CHECKPOINT).recipe, []) == open_recipe(ROOT / "recipes" / "mnist.yaml", [])


def test_the_checkpoint_reaches_the_accuracy_it_claims():
    if not is_present("mnist", data_root(None)):
        pytest.skip("needs the MNIST files under $FINETUNE_DATA_ROOT")
    found = finetune.evaluate(CHECKPOINT, "mnist", device="cpu")
    assert found.claimed is not None and found.result.accuracy == found.claimed


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_opens_with_what_to_expect_and_how_that_was_measured(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    opening = " ".join(
        line[1:].strip() for line in lines[: next(i for i, x in enumerate(lines) if not x.startswith("#"))]
    )
    command = re.search(r"`((?:python benchmarks/seeds\.py|finetune adapt) [^`]+)`", opening)
    assert "Not measured" in opening or (command and path.name in command[1] and re.search(r"\d\d\.\d\d %", opening))
