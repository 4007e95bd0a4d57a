"""`finetune adapt --folds`: every image is tested once, and the checkpoint has learnt from all of them."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from album import scenes
from tiny import Impatient, adapt_recipe, files_under, phase, refused, report_of, worked

import finetune as toolkit
from finetune.checkpoint.format import encode, read_checkpoint
from finetune.errors import Interrupted, SettingError
from finetune.hub.card_facts import CardFacts, DataFacts
from finetune.hub.model_card import check_card_here, model_card
from finetune.report.statistics import wilson

ROWS = adapt_recipe(phase("all", "steps: 6", 10), compare="[linear_probe, scratch]")
BARE = adapt_recipe(phase("all", "steps: 6", 10))
OUT = "folds.safetensors"
TIMES = ("seconds", "images_per_second")


def typed(source: Path, *words: object, recipe: str = BARE, out: str = OUT) -> tuple[object, ...]:
    Path("adapt.yaml").write_text(recipe)
    return ("adapt", "--from", source, "--target", "kmnist", "--recipe", "adapt.yaml", "--out", out, "--quiet", *words)


def timeless(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: timeless(value) for key, value in values.items() if key not in TIMES}
    return [timeless(value) for value in values] if isinstance(values, list) else values


def left(out: str) -> tuple[str, bytes, Any]:
    checkpoint = Path(out)
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return digest, checkpoint.with_suffix(".predictions.csv").read_bytes(), timeless(report_of(out))


def read_table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, data: Path, pretrained: Path) -> Path:
    """The folder of a cross-validation of three folds with all rows, none of which may change it."""
    work = tmp_path_factory.mktemp("three")
    with contextlib.chdir(work):
        worked(*typed(pretrained, "--folds", 3, "--data-root", data, recipe=ROWS))
    return work


def test_every_image_of_all_parts_is_tested_once(three):
    report = report_of(three / OUT)
    assert report["folds"] == 3 and report["seeds"] == [0]
    assert report["target"] | {"notes": []} == {
        "name": "kmnist",
        "classes": report["target"]["classes"],
        "notes": [],
        "train": 360,
        "validation": 40,
        "test": 400,
    }
    for row in ("majority", "before", "linear_probe", "after", "scratch"):
        result = report["results"][row]
        each = result["per_fold"]
        assert [own["fold"] for own in each] == [1, 2, 3] and [own["seed"] for own in each] == [0, 1, 2]
        assert sum(own["total"] for own in each) == result["total"] == 400
        assert sum(own["correct"] for own in each) == result["correct"]
        low, high = wilson(result["correct"], 400)
        assert result["ci95"][0] <= low and high <= result["ci95"][1]
    after = report["results"]["after"]
    assert sum(map(sum, after["confusion"])) == 400 and sum(c["total"] for c in after["per_class"].values()) == 400
    found = report["comparisons"]["after_vs_scratch"]
    assert (found["design"], found["seeds"]) == ("folds", 3)


def test_the_predictions_have_the_fold_of_each_image(three):
    path = three / "folds.predictions.csv"
    lines = read_table(path)
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    report, found = report_of(three / OUT), toolkit.compare(path, row="after", against="scratch")
    for own in report["results"]["after"]["per_fold"]:
        tested = [row for row in rows if int(row["fold"]) == own["fold"]]
        assert len(tested) == own["total"] and sum(row["label"] == row["after"] for row in tested) == own["correct"]
    comparison = report["comparisons"]["after_vs_scratch"]
    assert found.folds == 3 and found.note is None
    assert found.comparison.difference == pytest.approx(comparison["difference"])
    assert list(found.comparison.ci95) == pytest.approx(comparison["ci95"])
    assert list(found.second.ci95) == pytest.approx(report["results"]["after"]["ci95"])


def test_files_of_other_folds_are_compared_over_images_and_that_is_said(three, tmp_path):
    path = three / "folds.predictions.csv"
    lines = read_table(path)
    place = lines[0].index("fold")
    others = [[*row[:place], str(4 - int(row[place])), *row[place + 1 :]] for row in lines[1:]]
    other, none = tmp_path / "other.csv", tmp_path / "none.csv"
    for name, table in ((other, [lines[0], *others]), (none, [row[:place] + row[place + 1 :] for row in lines])):
        with name.open("w", newline="") as file:
            csv.writer(file).writerows(table)
    for name in (other, none):
        found = toolkit.compare(name, path, row="after", against="scratch")
        assert (
            found.folds is None and found.comparison.design == "images" and "not cross-validated in the" in found.note
        )
    assert toolkit.compare(none, none, row="after", against="scratch").note is None


def test_the_checkpoint_has_learnt_from_all_and_says_so(three, data):
    checkpoint = three / OUT
    found = toolkit.evaluate(checkpoint, "kmnist", data_root=data)
    assert found.claimed is None and "these images are among those it has learnt from" in found.learnt
    expected = f"{100 * report_of(checkpoint)['results']['after']['accuracy']:.2f} %"
    assert f"cross-validated accuracy: {expected}" in found.learnt
    shown = worked("evaluate", checkpoint, "--data", "kmnist", "--data-root", data)
    assert "no fair test" in " ".join(shown.out.split())
    verified = toolkit.verify(checkpoint, "kmnist", data_root=data)
    states = {check.check: check.state for check in verified.checks}
    assert verified.holds and (states["results"], states["report"]) == ("ok", "ok")
    assert (states["images"], states["accuracy"]) == ("not checked", "not checked")
    assert "learnt" not in toolkit.evaluate(three / OUT, "kmnist", data_root=data).result.metrics


def test_the_model_card_says_how_it_was_tested(three):
    metadata = read_checkpoint(three / OUT).metadata
    card, _ = model_card(CardFacts("ada/folds", metadata, DataFacts("kmnist", "KMNIST"), None, "mit"))
    check_card_here(card)
    assert "each of 400 images was tested once" in card and "never saw" not in card
    assert "split: cross-validation" in card


def test_a_result_whose_folds_do_not_add_up_is_found(three, tmp_path):
    read = read_checkpoint(three / OUT)
    for change in ({"correct": 1}, {"total": 0}, {"correct": "many"}):
        results = json.loads(json.dumps(read.metadata.results))
        results["after"]["per_fold"][0] |= change
        changed = read.metadata.model_copy(update={"results": results})
        (tmp_path / "changed.safetensors").write_bytes(encode(read.tensors, changed))
        found = {check.check: check for check in toolkit.verify(tmp_path / "changed.safetensors").checks}
        assert found["results"].state == "failed" and "the folds do not add up" in found["results"].message


def test_the_folder_has_one_folder_a_trial_and_nothing_left_over(three):
    names = {Path(name).parts[1] for name in files_under(three / "runs" / "folds") if name.startswith("trials/")}
    rows = ("majority+before+linear_probe", "after", "scratch")
    assert names == {f"{row}-fold-{n + 1}-of-3-seed-{n}" for row in rows for n in range(3)} | {"after-all-seed-0"}
    assert [
        name for name in files_under(three) if name.endswith((".part", "/lock", "/stop")) or "snapshots" in name
    ] == []


@pytest.mark.slow
def test_an_interrupted_one_goes_on_to_the_same_bytes_and_another_k_is_refused(folder, pretrained):
    worked(*typed(pretrained, "--folds", 2))
    given = {"folds": 2, "out": "stopped.safetensors"}
    with pytest.raises(Interrupted, match="finished trials are kept; resume with"):
        toolkit.adapt_folds(pretrained, "kmnist", "adapt.yaml", **given, console=Impatient("3/5"))
    kept = {path: path.stat().st_mtime_ns for path in Path("runs/stopped/trials").glob("*/result/*/manifest.json")}
    assert len(kept) >= 2 and not Path("stopped.safetensors").exists()
    other = refused(*typed(pretrained, "--folds", 3, "--resume", out="stopped.safetensors"))
    assert "holds another study" in other and "folds: 2 there, 3 here" in other
    toolkit.adapt_folds(pretrained, "kmnist", "adapt.yaml", **given, resume=True)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert left("stopped.safetensors") == left(OUT)


@pytest.mark.slow
def test_jobs_give_the_same_bytes(folder, pretrained):
    worked(*typed(pretrained, "--folds", 2, "--jobs", 2))
    worked(*typed(pretrained, "--folds", 2, out="alone.safetensors"))
    words = typed(pretrained, "--folds", 2, "--jobs", 2, "--resume")
    before = left(OUT)
    worked(*words)
    assert left(OUT) == before
    import torch

    if torch.get_num_threads() == 1:  # as each of the two had
        assert left("alone.safetensors") == before


def test_a_folder_s_own_test_part_is_tested_and_learnt_from_and_shots_are_within_folds(folder, backbone):
    names = ("ant", "bee", "fly")
    scenes(Path("own"), train=dict.fromkeys(names, 6), test=dict.fromkeys(names, 4))
    Path("few.yaml").write_text(adapt_recipe(phase("head", "steps: 2", 4), data="{validation: 0}"))
    words = ("--from", backbone, "--target", "own", "--recipe", "few.yaml", "--shots", 2, "--folds", 2)
    shown = " ".join(worked("adapt", *words, "--out", "own.safetensors").out.split())
    assert "30 images in 2 folds, each tested once" in shown and "on 6 images of all folds" in shown
    report = report_of("own.safetensors")
    assert report["target"]["train"] == 6 and report["results"]["after"]["total"] == 30
    assert not {c["verdict"] for c in report["comparisons"].values() if c is not None} & {"helps", "hurts"}, "two folds"
    assert "some of these images may be among" in toolkit.evaluate("own.safetensors", "own").learnt
    scenes(Path("own"), test=dict.fromkeys(names, 5))
    assert "no fair test where some of these are among them" in toolkit.evaluate("own.safetensors", "own").learnt


def test_what_is_refused(folder, pretrained):
    assert "--folds 1: expected a number of folds from 2 to 1,000" in refused(*typed(pretrained, "--folds", 1))
    assert "--folds 500: expected 2 to 400" in refused(*typed(pretrained, "--folds", 500))
    assert "--folds and --seeds: expected one of them" in refused(*typed(pretrained, "--folds", 2, "--seeds", 2))
    for words in (["--keep", "average"], ["--same-shots"]):
        assert "goes with --seeds, not with --folds" in refused(*typed(pretrained, "--folds", 2, *words))
    assert "unknown metric" in refused(*typed(pretrained, "--folds", 2, "--metric", "precise"))
    with pytest.raises(SettingError, match="folds: expected a whole number, found 'five'"):
        toolkit.adapt_folds(pretrained, "kmnist", "adapt.yaml", folds="five")
    assert not Path("runs").exists() and not Path("checkpoints").exists()
