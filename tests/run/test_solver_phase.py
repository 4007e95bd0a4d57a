"""Phases that compute the head: what they give, what comes after them, and how plans and comparisons see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import Impatient, adapt_recipe, phase, refused, report_of, worked

import finetune as toolkit
from finetune.commands.adapt import adapt
from finetune.errors import Interrupted
from finetune.run.data import RunData, open_run_data
from finetune.run.setup import open_recipe
from finetune.train.inference import outputs
from finetune.train.linear_probe import fit_linear_head

SOLVED = "  - {train: head, solver: lbfgs}\n"
STILL = "{name: sgd, lr: 1e-30}"
NEW = "new.safetensors"


def adapted(source: Path, target: Path | str, recipe: str, *words: object) -> Any:
    Path("recipe.yaml").write_text(recipe)
    typed = ("--recipe", "recipe.yaml", "--target", target, "--out", NEW, "--quiet", "--json")
    return worked("adapt", "--from", source, *typed, *words).json


def material_of(source: Path, root: Path) -> RunData:
    """The images of the newest run."""
    recipe = open_recipe("runs/new/recipe.yaml", [])
    return open_run_data(recipe.data, root, recipe.seed, toolkit.load(source).input)


def solved_on(body: Path | str, material: RunData) -> torch.nn.Linear:
    """The best head on what the body of a checkpoint makes of the images, by hand."""
    classifier = toolkit.load(body)
    view = classifier.input.normalizer(torch.device("cpu"))
    parts = (material.train, material.validation)
    seen, held = (outputs(classifier.network, part.images, view, stop=-1) if len(part) else None for part in parts)
    assert seen is not None
    validation = (held, material.validation.labels) if held is not None else None
    return fit_linear_head(seen, material.train.labels, len(material.class_names), validation)


def check_head(path: str, head: torch.nn.Linear) -> None:
    tensors = load_file(path)
    torch.testing.assert_close(tensors["fc.weight"], head.weight.data, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tensors["fc.bias"], head.bias.data, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("held", ["own", "none"])
def test_the_head_is_the_best_linear_one_and_so_the_probe(
    held: str, folder: Path, backbone: Path, orchard: Path, data: Path
) -> None:
    target: Path | str = orchard
    if held == "none":
        rows = [f"{path},{path.parent.name},{path.parents[1].name}" for path in sorted(orchard.glob("t*/*/*"))]
        Path("plain.csv").write_text("\n".join(["path,label,split", *rows]))
        target = "plain.csv"
    report = adapted(backbone, target, adapt_recipe(SOLVED, "{augment: photo}", "[linear_probe]"))
    material = material_of(backbone, data)
    assert len(material.validation) == {"own": 18, "none": 0}[held]
    check_head(NEW, solved_on(backbone, material))
    results = report["results"]
    assert results["linear_probe"] == {key: results["after"][key] for key in results["linear_probe"]}
    old, new = load_file(backbone), load_file(NEW)
    assert all(torch.equal(new[name], old[name]) for name in old if not name.startswith("fc."))


def test_its_row_says_what_the_head_makes_of_the_images(folder: Path, backbone: Path, orchard: Path) -> None:
    report = adapted(backbone, orchard, adapt_recipe(SOLVED))
    (one,) = report["phases"]
    (row,) = one["epochs"]
    assert (one["trains"], one["trainable_parameters"], one["cached"]) == (["head"], 3 * 96 + 3, True)
    assert (row["epoch"], row["learning_rate"]) == (1, 0.0) and row["seconds"] > 0 and row["images_per_second"] > 0
    (line,) = map(json.loads, Path("runs/new/metrics.jsonl").read_text().splitlines())
    for part, key in (("val", "validation_accuracy"), ("train", "train_accuracy")):
        found = worked("predict", NEW, orchard / part, "--json").json
        right = [sight["label"] == Path(sight["file"]).parent.name for sight in found]
        assert line[key] == pytest.approx(sum(right) / len(right))
    assert row["validation_accuracy"] == line["validation_accuracy"] and row["train_loss"] == line["train_loss"] < 1.1


def test_later_phases_start_from_it(folder: Path, backbone: Path, orchard: Path) -> None:
    adapted(backbone, orchard, adapt_recipe(SOLVED))
    alone = load_file(NEW)
    adapted(backbone, orchard, adapt_recipe(SOLVED + phase("head", "steps: 1", optimizer=STILL)))
    after = load_file(NEW)
    assert all(torch.equal(after[name], alone[name]) for name in alone)


def test_it_is_solved_on_the_features_as_they_are_by_then(
    folder: Path, backbone: Path, orchard: Path, data: Path
) -> None:
    moved = phase("{last: 3}", "steps: 6", optimizer="{name: adamw, lr: 1e-3}")
    adapted(backbone, orchard, adapt_recipe(moved + SOLVED.replace("}", ", name: again}"), compare="[]"))
    check_head(NEW, solved_on(NEW, material_of(backbone, data)))
    head = solved_on(backbone, material_of(backbone, data))
    assert not torch.allclose(load_file(NEW)["fc.weight"], head.weight.data, rtol=1e-2)


@pytest.mark.slow
def test_plan_shows_it_as_solved(folder: Path, backbone: Path, orchard: Path) -> None:
    more = "augment: false, norms: hold_all, name: top"
    phases = SOLVED + phase("{last: 2}", "steps: 2", 10, more=more) + phase("all", "epochs: 2", 10, more="name: all")
    text = adapt_recipe(phases, "{augment: photo}", "[scratch]", "scratch: {schedule: {name: cosine}}\n")
    Path("recipe.yaml").write_text(text)
    words = ("plan", "--recipe", "recipe.yaml", "--from", backbone, "--target", orchard)
    plan = worked(*words, "--json").json
    head, top, everything, scratch = plan["phases"]
    assert (head["trains"], head["steps"], head["learning_rates"]) == (["head"], 0, {})
    assert (head["cached"], head["augmented"], head["trainable_parameters"]) == (True, False, 3 * 96 + 3)
    assert (top["cached"], everything["cached"]) == (True, False) and (top["augmented"], everything["augmented"]) == (
        False,
        True,
    )
    assert all(0 < one["seconds"] < 60 for one in plan["phases"])
    # 36 images once for the head, 2 steps of 10, 2 epochs of 36; in steps of 10: three epochs of four and two more
    assert scratch["steps"] == 3 * 4 + 2
    shown = worked(*words).out
    (steps,) = (line for line in shown.splitlines() if line.startswith("│ steps"))
    assert [cell.strip() for cell in steps.split("│")[2:4]] == ["solved", "2 of 10"]
    (norms,) = (line for line in shown.splitlines() if line.startswith("│ norms"))
    assert [cell.strip() for cell in norms.split("│")[2:6]] == ["hold", "hold_all", "train", "train"]
    report = adapted(backbone, orchard, text)
    keys = ("name", "trains", "trainable_parameters", "cached")
    assert [{k: p[k] for k in keys} for p in plan["phases"][:3]] == [{k: p[k] for k in keys} for p in report["phases"]]


def test_scratch_is_given_one_pass_for_it(folder: Path, backbone: Path, orchard: Path) -> None:
    found = {}
    for name, phases in (("with", SOLVED + phase("all", "epochs: 2", 12)), ("without", phase("all", "epochs: 2", 12))):
        Path("recipe.yaml").write_text(adapt_recipe(phases, compare="[scratch]"))
        words = ("--recipe", "recipe.yaml", "--from", backbone, "--target", orchard, "--json")
        found[name] = worked("plan", *words).json["phases"][-1]["steps"]
    assert found == {"with": 9, "without": 6}


def test_a_recipe_of_it_alone_has_to_say_how_scratch_is_trained(folder: Path, backbone: Path, orchard: Path) -> None:
    Path("recipe.yaml").write_text(adapt_recipe(SOLVED, compare="[scratch]"))
    typed = ("adapt", "--recipe", "recipe.yaml", "--from", backbone, "--target", orchard, "--out", NEW)
    assert "give scratch an optimizer" in refused(*typed)
    worked(*typed, "--set", "scratch={optimizer: {name: adamw, lr: 1e-3}}", "--quiet")
    assert report_of(NEW)["results"]["scratch"]["total"] == 24
    lines = [json.loads(line) for line in Path("runs/new/metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["head", "scratch"]


def test_it_is_kept_when_what_follows_is_stopped(folder: Path, backbone: Path, orchard: Path) -> None:
    adapted(backbone, orchard, adapt_recipe(SOLVED))
    alone = load_file(NEW)
    Path("recipe.yaml").write_text(adapt_recipe(SOLVED + phase("all", "steps: 2"), f"{{name: {orchard}}}"))
    with pytest.raises(Interrupted, match="kept: the weights after phase head in runs/stopped/"):
        adapt(backbone, recipe="recipe.yaml", out="stopped.safetensors", console=Impatient("phase 2/2 all"))
    kept = load_file("runs/stopped/interrupted.safetensors")
    assert all(torch.equal(kept[name], alone[name]) for name in alone)
    assert toolkit.load("runs/stopped/interrupted.safetensors").class_names == ("apple", "pear", "plum")
