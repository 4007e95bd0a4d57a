"""Whole runs on classes that are uneven, on very few pictures, and with a last batch of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from album import album, scenes
from tiny import adapt_recipe, phase, refused, report_of, worked

SOLVED = "  - {train: head, solver: lbfgs}\n"
NEW = "new.safetensors"
ADAM = "{name: adamw, lr: 3e-3}"


def write(text: str) -> str:
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    return "recipe.yaml"


def adapted(source: Path, target: Path | str, *words: object, recipe: str = "", out: str = NEW) -> tuple[Any, str]:
    """Adapts, shows what a person sees, and returns the report and all that was said."""
    typed = ("--recipe", write(recipe or adapt_recipe(SOLVED)), "--target", target, "--out", out)
    done = worked("adapt", "--from", source, *typed, *words)
    return report_of(out), " ".join(f"{done.out} {done.err}".split())


# --- uneven classes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """57 pictures of `ok` and 3 of `bad` to learn from, 95 and 5 to test, and nothing in them tells which is which."""
    root = tmp_path_factory.mktemp("noise") / "parts"
    return album(root, train={"ok": 57, "bad": 3}, test={"ok": 95, "bad": 5})


def test_a_training_is_not_praised_where_the_commonest_class_does_as_well(
    noise: Path, folder: Path, pretrained: Path
) -> None:
    report, said = adapted(pretrained, noise, recipe=adapt_recipe(SOLVED, "{validation: 12}"))
    comparisons, results = report["comparisons"], report["results"]
    assert comparisons["after_vs_before"]["verdict"] == "better", "by far, as the source has no idea"
    assert comparisons["after_vs_majority"]["verdict"] == "no difference shown"
    assert "after is not shown to be better than always answering 'ok'" in said and "did better" not in said
    assert "after beats before by" in said and "yet it is not shown to be better than always answering 'ok'" in said
    assert results["majority"]["method"] == "ok" and results["majority"]["accuracy"] == 0.95
    assert "balanced accuracy" in said and "50.00 %" in said
    note = "the classes are uneven: 46 images to learn from of ok, 2 of bad"
    assert f"{note}; where rare classes matter as much as common ones, try --set balance=logit_adjustment" in said
    assert any(found.startswith(note) for found in report["target"]["notes"])


def test_the_plan_tells_of_uneven_classes_too_unless_something_is_done(
    noise: Path, folder: Path, pretrained: Path
) -> None:
    typed = ("plan", "--from", pretrained, "--target", noise, "--recipe", write(adapt_recipe(SOLVED)))
    done = worked(*typed)
    assert "try --set balance=logit_adjustment" in " ".join(f"{done.out} {done.err}".split())
    done = worked(*typed, "--set", "balance=sampler")
    assert "uneven" not in done.out + done.err


def test_what_is_learnt_of_rare_classes_is_told_where_accuracy_does_not_show_it(folder: Path, backbone: Path) -> None:
    root = scenes(Path("rare"), train={"ok": 40, "bad": 4}, test={"ok": 76, "bad": 4})
    report, said = adapted(backbone, root, "--set", "balance=logit_adjustment")
    metrics = report["results"]["after"]["metrics"]["balanced_accuracy"]
    assert report["comparisons"]["after_vs_majority"]["verdict"] == "no difference shown", "4 images show none"
    assert metrics["ci95"][0] > 0.5
    assert "it has learnt something all the same: balanced accuracy" in said and "learnt nothing" not in said


def test_every_balance_trains_goes_on_and_says_so(folder: Path, pretrained: Path) -> None:
    root, found = scenes(Path("tail"), channels=1, train={"a": 24, "b": 6, "c": 4}, test={"a": 4, "b": 4, "c": 4}), {}
    recipe = adapt_recipe(
        phase("head", "epochs: 1", 16) + phase("all", "epochs: 1", 16, ADAM, "keep: best, ema: 0.9"),
        "{validation: 6, augment: {shift: 2, mixup: 0.2}}",
        "[linear_probe, scratch]",
    )
    for balance in ("none", "sampler", "loss", "logit_adjustment"):
        compare = [] if balance == "sampler" else ["--no-compare"]
        report, said = adapted(pretrained, root, "--set", f"balance={balance}", *compare, recipe=recipe)
        found[balance] = Path(NEW).read_bytes()
        assert report["recipe"].get("balance") == (None if balance == "none" else balance)
        assert ("(balanced " in said) == (balance != "none")
        assert (report["results"]["scratch"] is not None) == (not compare)
    assert len(set(found.values())) == 4
    rows = [json.loads(line) for line in Path("runs/new/metrics.jsonl").read_text().splitlines()]
    assert all("validation_balanced_accuracy" in row for row in rows)


# --- few pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_one_two_or_three_pictures_a_class_are_trained_on(count: int, folder: Path, backbone: Path) -> None:
    root = scenes(Path("few"), train={"cat": count, "dog": count}, test={"cat": 6, "dog": 6})
    phases = phase("head", "steps: 3", 128) + SOLVED + phase("all", "steps: 2", 128)
    report, said = adapted(backbone, root, recipe=adapt_recipe(phases, compare="[linear_probe, scratch]"))
    assert report["target"]["validation"] == (1 if count == 3 else 0)
    assert ("data.validation is 0.1, which is no image of" in said) == (count < 3)
    assert all(report["results"][row] is not None for row in ("before", "linear_probe", "after", "scratch"))


def test_a_fraction_takes_no_class_its_last_picture(folder: Path, backbone: Path) -> None:
    names = [f"class {number}" for number in range(10)]
    root = scenes(Path("few"), train=dict.fromkeys(names, 1), test=dict.fromkeys(names, 1))
    report, _ = adapted(backbone, root)
    assert (report["target"]["train"], report["target"]["validation"]) == (10, 0)


def test_where_the_best_weights_are_to_be_kept_validation_images_are_needed(folder: Path, backbone: Path) -> None:
    scenes(Path("few"), train={"cat": 1, "dog": 1}, test={"cat": 6, "dog": 6})
    recipe = write(adapt_recipe(phase("head", "steps: 3", 16, more="name: top, keep: best")))
    message = refused("adapt", "--from", backbone, "--target", "few", "--recipe", recipe, "--quiet")
    assert "phase top keeps the weights that are best on validation images" in message and "keep: last" in message


@pytest.mark.slow
def test_fewer_pictures_than_shots_are_all_taken_and_that_is_said(folder: Path, backbone: Path) -> None:
    root = scenes(Path("few"), train={"cat": 14, "dog": 5}, test={"cat": 6, "dog": 6})
    for words in ((), ("--seeds", 2)):
        report, said = adapted(backbone, root, "--shots", 10, *words, recipe=adapt_recipe(SOLVED, "{validation: 0}"))
        assert report["target"]["train"] == 15
        assert "10 shots asked for; all there are of dog (5)" in said


# --- a last batch of one ----------------------------------------------------------------------------------------------


@pytest.fixture
def odd(folder: Path) -> Path:
    """33 pictures to learn from, so that batches of 16 and of 32 leave one over."""
    return scenes(Path("odd"), train={"cat": 17, "dog": 16}, test={"cat": 6, "dog": 6})


@pytest.mark.parametrize("batch", [pytest.param(16, marks=pytest.mark.slow), 32])
def test_a_single_picture_left_over_stops_no_training(batch: int, odd: Path, backbone: Path) -> None:
    phases = phase("{last: 2}", "epochs: 2", batch) + phase("all", "epochs: 2", batch)
    recipe = adapt_recipe(phases, "{validation: 0}", "[linear_probe, scratch]")
    report, _ = adapted(backbone, odd, recipe=recipe)
    assert report["results"]["scratch"] is not None and report["phases"][0]["cached"]
    plan = worked("plan", "--from", backbone, "--target", odd, "--recipe", "recipe.yaml", "--json").json
    assert [found["steps"] for found in plan["phases"]] == ([4, 4, 8] if batch == 16 else [2, 2, 4])


def test_one_picture_in_all_ends_in_one_message(folder: Path, backbone: Path) -> None:
    scenes(Path("one"), train={"cat": 1}, test={"cat": 3})
    recipe = write(adapt_recipe(phase("all", "steps: 2", 16), "{validation: 0}"))
    message = refused("adapt", "--from", backbone, "--target", "one", "--recipe", recipe, "--quiet")
    assert "there is one to learn from: add more" in message or "one class" in message
