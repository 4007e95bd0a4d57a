"""`finetune adapt --seeds`: its report, its checkpoint, and what it refuses."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import adapt_recipe, files_under, phase, refused, report_of, worked

import finetune as toolkit
from finetune.errors import SettingError
from finetune.study.design import few_seeds_note, parse_seeds
from finetune.study.runner import TrialOptions
from finetune.study.seeds import average_weights

ROWS = adapt_recipe(phase("all", "steps: 6", 10), compare="[linear_probe, scratch]")
BARE = adapt_recipe(phase("all", "steps: 6", 10), data="{validation: 0.2}")


def write(text: str, name: str = "adapt.yaml") -> str:
    Path(name).write_text(text)
    return name


def study(source: Path, out: str, *words: object, recipe: str = BARE) -> Any:
    """Adapts over seeds, and returns the report."""
    typed = ("--target", "kmnist", "--recipe", write(recipe), "--out", out, "--quiet", "--json", *words)
    report = worked("adapt", "--from", source, *typed).json
    assert report == report_of(out)
    return report


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, data: Path, pretrained: Path) -> Path:
    """The folder of a study of three seeds with all rows, none of which may change it."""
    work = tmp_path_factory.mktemp("three")
    with contextlib.chdir(work):
        study(pretrained, "three.safetensors", "--seeds", 3, "--data-root", data, recipe=ROWS)
    return work


# What it reports


def test_the_report_is_over_seeds(three):
    report = report_of(three / "three.safetensors")
    assert report["seeds"] == [0, 1, 2] and report["seed"] == 0
    for row in ("majority", "before", "linear_probe", "after", "scratch"):
        result = report["results"][row]
        assert [own["seed"] for own in result["per_seed"]] == [0, 1, 2]
        assert result["correct"] == sum(own["correct"] for own in result["per_seed"])
        assert result["total"] == 300 and result["accuracy"] == result["correct"] / 300
        assert result["ci95"][0] <= result["accuracy"] <= result["ci95"][1]
    found = report["comparisons"]["after_vs_scratch"]
    assert (found["design"], found["seeds"], found["shots_vary"]) == ("seeds x images", 3, False)
    assert set(found["variance"]) == set(found["uncertainty"]) == {"training", "images", "residual"}
    assert found["detectable"] > 0


def test_rows_that_nothing_trains_are_the_same_for_all_seeds(three):
    before = report_of(three / "three.safetensors")["results"]["before"]
    assert len({own["correct"] for own in before["per_seed"]}) == 1


def test_the_folder_has_one_folder_a_trial_and_nothing_left_over(three):
    names = {Path(name).parts[1] for name in files_under(three / "runs" / "three") if name.startswith("trials/")}
    rows = ("majority+before+linear_probe", "after", "scratch")
    assert names == {f"{row}-seed-{seed}" for row in rows for seed in range(3)}
    left = [name for name in files_under(three) if name.endswith((".part", "/lock", "/stop")) or "snapshots" in name]
    assert left == []


# Its checkpoint


def test_the_checkpoint_is_that_of_the_first_seed_alone(folder, pretrained):
    study(pretrained, "study.safetensors", "--seeds", "1,0")
    words = ("--target", "kmnist", "--recipe", "adapt.yaml", "--seed", 1, "--out", "alone.safetensors", "--quiet")
    worked("adapt", "--from", pretrained, *words)
    assert sha256("study.safetensors") == sha256("alone.safetensors")


def test_the_average_is_kept_where_it_is_no_worse_on_the_validation_images(folder, pretrained):
    report = study(pretrained, "average.safetensors", "--seeds", 2, "--keep", "average")
    log = Path("runs/average/log.txt").read_text()
    kept = "the average is kept" in log
    assert kept != ("the first seed's are kept" in log)
    assert ("average" in report["results"]) == kept
    first = Path("runs/average/trials/after-seed-0/result")
    own = load_file(next(first.rglob("state.safetensors")))
    same = all(torch.equal(own[f"weights/{n}"], t) for n, t in load_file("average.safetensors").items())
    assert same != kept
    found = toolkit.verify("average.safetensors", "kmnist")
    assert found.holds and "as recorded" in next(one.message for one in found.checks if one.check == "accuracy")


def test_an_average_is_the_mean_of_what_differs():
    states = [
        {"w": torch.tensor([0.0, 1.0]), "same": torch.tensor([0.1]), "count": torch.tensor(3)},
        {"w": torch.tensor([1.0, 1.0]), "same": torch.tensor([0.1]), "count": torch.tensor(5)},
    ]
    found = average_weights(states)
    assert found["w"].tolist() == [0.5, 1.0] and torch.equal(found["same"], states[0]["same"])
    assert found["count"] == 3


# How many seeds


@pytest.mark.parametrize(("given", "seeds"), [("3", (0, 1, 2)), (1, (0,)), ("4, 2,9", (4, 2, 9)), ([5], (5,))])
def test_seeds_are_a_count_or_a_list(given, seeds):
    assert parse_seeds(given) == seeds


@pytest.mark.parametrize("given", ["0", "1,1", "many", "", "-1", "1,", "1001", [], [-1], [2**63]])
def test_other_seeds_are_refused(given):
    with pytest.raises(SettingError, match="--seeds"):
        parse_seeds(given)


def test_few_seeds_come_with_a_note():
    assert few_seeds_note((0, 1, 2)) is None
    for seeds in ((0,), (0, 1)):
        assert f"{len(seeds)} seed" in str(few_seeds_note(seeds)) and "--seeds 5" in str(few_seeds_note(seeds))


def test_one_seed_says_neither_helps_nor_hurts(folder, pretrained):
    report = study(pretrained, "one.safetensors", "--seeds", 1, recipe=ROWS)
    assert report["seeds"] == [0]
    found = [comparison for comparison in report["comparisons"].values() if comparison is not None]
    assert found and not {comparison["verdict"] for comparison in found} & {"helps", "hurts"}


# What is refused


def test_what_is_refused(folder, pretrained, monkeypatch):
    words = ("adapt", "--from", pretrained, "--target", "kmnist", "--recipe", write(BARE))
    assert "--seeds 0" in refused(*words, "--seeds", 0)
    assert "1 is given twice" in refused(*words, "--seeds", "1,1")
    assert "--jobs: goes with --seeds" in refused(*words, "--jobs", 2)
    assert "expected one of them" in refused(*words, "--seeds", 2, "--seed", 1)
    assert "--same-shots" in refused(*words, "--seeds", 2, "--keep", "average", "--shots", 5)
    assert "expected dask://HOST:PORT" in refused(*words, "--seeds", 2, "--engine", "http://a:1")
    assert "--jobs or --engine" in refused(*words, "--seeds", 2, "--engine", "dask://a:1", "--jobs", 2)
    assert not Path("runs").exists() and not Path("checkpoints").exists()


def test_average_needs_validation_images(folder, pretrained):
    none = adapt_recipe(phase("all", "steps: 1", 10), data="{validation: 0}")
    words = ("--target", "kmnist", "--recipe", write(none), "--seeds", 2, "--keep", "average", "--quiet")
    assert "set data.validation" in refused("adapt", "--from", pretrained, *words)
    assert not Path("runs").exists()


def test_torchrun_is_refused(folder, pretrained, monkeypatch):
    from finetune.run import options as module

    class Two:
        size, leader = 2, True

    @contextlib.contextmanager
    def two(device: str):
        yield Two()

    monkeypatch.setattr(module, "distributed_context", two)
    words = ("--target", "kmnist", "--recipe", write(BARE), "--seeds", 2)
    assert "use --jobs" in refused("adapt", "--from", pretrained, *words)


def test_jobs_are_at_least_one():
    with pytest.raises(SettingError, match="--jobs 0"):
        TrialOptions(jobs=0)
