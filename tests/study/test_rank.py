"""Ranking sources: the cheap scores against their formulas, the tied set, and whole rankings of tiny things."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from album import scenes
from safetensors.torch import save_file
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from tiny import ROOT, adapt_recipe, files_under, finetune, phase, refused, worked

from finetune.checkpoint.format import write_checkpoint
from finetune.models.classifier import Classifier
from finetune.models.registry import build_model, find_model
from finetune.recipe.schema import AdaptRecipe
from finetune.report.comparison import compare_over_seeds
from finetune.report.console import Console
from finetune.report.ranking import AgainstBest, Candidate, CheapScores, RankReport, adjusted, agreement, conclude
from finetune.report.report import TargetSummary, TestSetUse
from finetune.report.statistics import holm, kendall
from finetune.report.tables import test_set_lines as opened_lines
from finetune.run.output_paths import StudyPaths
from finetune.run.setup import expect_kind, open_recipe
from finetune.sources.save import make_metadata
from finetune.study.contenders import Contender, RankDesign, name_contenders
from finetune.study.rank import choose, save_ranking
from finetune.train.linear_probe import PENALTIES, _fit, stratified_folds
from finetune.train.transfer_scores import _fit_folds, knn_accuracy, log_evidence, probe_accuracy

MNIST = ROOT / "checkpoints" / "mnist.safetensors"
RECIPE = adapt_recipe(phase("head", "steps: 4", 10) + phase("all", "steps: 6", 10), more="head: class_means\n")


def features(count: int, width: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % classes
    rng = torch.Generator().manual_seed(count + width)
    means = torch.randn(classes, width, generator=rng, dtype=torch.float64)
    return means[labels] + torch.randn(count, width, generator=rng, dtype=torch.float64), labels


@pytest.mark.parametrize(("count", "width"), [(12, 2), (15, 5), (9, 20)])
def test_logme_is_the_largest_evidence_there_is(count, width):
    inputs, labels = features(count, width)

    def lost(logs, target):  # of the labels' density, integrated over the weights
        cov = np.exp(-logs[0]) * (inputs @ inputs.T).numpy() + np.exp(-logs[1]) * np.eye(count)
        return -multivariate_normal(np.zeros(count), cov, allow_singular=True).logpdf(target)

    starts = [(a, 2.0) for a in (0.0, 4.0)]
    evidence = [
        -min(minimize(lost, start, ((labels == c).double().numpy(),), "Nelder-Mead").fun for start in starts)
        for c in range(3)
    ]
    assert log_evidence(inputs, labels, 3) == pytest.approx(np.mean(evidence) / count, rel=1e-4)


def test_logme_does_not_change_with_the_scale_or_a_turn_of_the_features():
    inputs, labels = features(30, 6)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    assert log_evidence(inputs @ turn * 1000, labels, 3) == pytest.approx(log_evidence(inputs, labels, 3))


@pytest.mark.parametrize(("count", "width"), [(20, 3), (12, 5)])
def test_the_folds_of_the_probe_are_solved_together_as_each_alone(count, width):
    inputs, labels = features(count, width)
    fold = stratified_folds(labels)
    heads = _fit_folds(inputs.numpy(), labels.numpy(), fold.numpy(), PENALTIES[2], np.zeros((5, width + 1, 3)))
    for k in range(5):
        weight, bias = _fit((inputs[fold != k], labels[fold != k]), 3, PENALTIES[2], None)
        assert torch.allclose(torch.from_numpy(heads[k, :-1]).T, weight, atol=0.01)
        assert torch.allclose(torch.from_numpy(heads[k, -1]), bias, atol=0.01)


def test_the_probe_knows_what_can_be_known():
    inputs, labels = features(60, 8)
    chance = torch.randn(60, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert probe_accuracy(inputs, labels, 3) > 0.9 > 0.6 > probe_accuracy(chance, labels, 3)
    more = torch.cat([inputs, 0 * chance], 1)  # more features than images: solved in the space of the images
    assert probe_accuracy(more, labels, 3) == probe_accuracy(inputs, labels, 3)
    assert probe_accuracy(inputs[:3], labels[:3], 3) is None and knn_accuracy(inputs[:3], labels[:3], 3) is None


def test_neighbours_are_those_of_other_folds():
    inputs, labels = features(30, 2)
    fold, centred = stratified_folds(labels), inputs - inputs.mean(0)
    right = 0
    for i in range(30):
        others = [j for j in range(30) if fold[j] != fold[i]]
        cosine = {j: float(torch.cosine_similarity(centred[i], centred[j], dim=0)) for j in others}
        near = sorted(others, key=cosine.__getitem__)[-5:]
        of_class = [[cosine[j] for j in near if labels[j] == c] for c in range(3)]
        votes = [(len(own), sum(own)) for own in of_class]
        right += votes.index(max(votes)) == int(labels[i])
    assert knn_accuracy(inputs, labels, 3) == right / 30


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1] and holm([]) == []


def test_kendall():
    assert kendall([1, 2, 3], [10, 30, 20]) == pytest.approx(1 / 3)
    assert kendall([1, 2], [1, 2]) is None and kendall([1, 1, 1], [1, 2, 3]) is None


def candidate(name: str, accuracy: float, p: float | None = None, *, size: int = 10, random: bool = False) -> Candidate:
    against = None if p is None else AgainstBest(accuracy - 0.9, (-0.1, 0.0), p, p, None)
    return Candidate(
        source=name,
        name=name,
        random=random,
        state="fine-tuned",
        parameters=size,
        accuracy=accuracy,
        scores=CheapScores(None, accuracy, -accuracy, 1),
        against_best=against,
        tied=p is None or p >= 0.05,
    )


def test_the_conclusion_says_who_cannot_be_told_from_the_best():
    def said(*found: Candidate, seeds: Sequence[int] = (0, 1, 2), left_out: int = 0) -> str:
        return conclude(found, "d", seeds=seeds, left_out=left_out)

    best, far, near = candidate("a", 0.9), candidate("b", 0.8, 0.01), candidate("c", 0.89, 0.4, size=5)
    assert "shown to be better than b, by 10.00 points (adjusted p = 0.0100)" in said(best, far)
    assert "each of the others; b, the next, is 10.00 points" in said(best, far, candidate("z", 0.1, 0.01))
    assert "but c cannot be told from it; of these c is the smallest; more seeds may" in said(best, near, far)
    assert said(best, near).endswith("more seeds may tell: --seeds 6 --resume")
    assert said(best, near, seeds=(3, 1)).endswith("more seeds may tell: --seeds 3,1,0,2 --resume")
    random = candidate("random", 0.89, 0.4, random=True)
    assert "no source is shown to help" in said(best, random)
    assert "hurts or brings nothing" in said(candidate("random", 0.9, random=True), far)
    assert "nothing is compared" in said(best)
    assert said(best, far, seeds=[0], left_out=2).startswith("best on d of the 2 fine-tuned: a")
    assert said(best, far, seeds=[0]).endswith("about these trainings alone")


def ranking(source: str = "a", seconds: float = 1.0) -> RankReport:
    scores = CheapScores(None, None, 0.5, seconds)
    return RankReport(
        target=TargetSummary("d", ["x", "y"], 2, 0, 2),
        recipe={},
        seeds=[0],
        shots_vary=False,
        top=1,
        candidates=[replace(candidate(source, 0.9), scores=scores, seconds=seconds)],
        best="a",
        tied=["a"],
        comparisons=0,
        kendall={},
        conclusion="",
        seconds={"scores": seconds, "fine_tuning": seconds},
        device="cpu",
        environment={},
    )


def test_a_report_that_differs_in_seconds_alone_stays(tmp_path):
    paths, call = StudyPaths(tmp_path / "d.rank.json", "rank"), mock.Mock(console=Console(quiet=True, results=False))
    for seconds in (1.0, 2.0):
        save_ranking(ranking(seconds=seconds), paths, call)
    assert files_under(tmp_path) == {"d.rank.json"}
    save_ranking(ranking("b"), paths, call)
    assert len(files_under(tmp_path)) == 2


def test_a_path_that_is_no_utf8_does_not_lose_the_report():
    found = ranking("b\udcff.safetensors")
    assert json.loads(found.to_json().encode()) == found.to_dict()


def test_more_shots_and_another_order_are_no_other_choice():
    def choice(sources: tuple[str, ...], shots: int | None, **more: object) -> object:
        recipe = expect_kind(AdaptRecipe, open_recipe({**yaml.safe_load(RECIPE), **more}, [f"data.shots={shots}"]), {})
        return RankDesign(sources, recipe, (0,), shots == 5, 2).choice()

    known = choice(("a", "b"), 5)
    assert known == choice(("b", "a"), 10) != choice(("a", "c"), 5)
    assert known != choice(("a", "b"), 5, head="random")
    (line,) = opened_lines(TestSetUse("", 7, [], 3))
    assert "opened 7 times before, and 3 other choices were tried on them: the best of 4" in line


def test_cheap_scores_that_order_as_the_results_agree():
    found = agreement([candidate("a", 0.9), candidate("b", 0.8), candidate("c", 0.7)])
    assert found == {"probe": 1.0, "knn": None, "logme": -1.0}
    assert agreement([candidate("a", 0.9), candidate("b", 0.8)])["probe"] is None


def test_all_pairs_are_adjusted_for():
    rng = np.random.default_rng(0)
    tables = [rng.random((3, 200)) < share for share in (0.9, 0.85, 0.4)]
    pairs = {("a", "b"): (0, 1), ("a", "c"): (0, 2), ("b", "c"): (1, 2)}
    compared = {names: compare_over_seeds(tables[i], tables[j]) for names, (i, j) in pairs.items()}
    found = adjusted(compared)
    smallest, second, _ = sorted(comparison.p_value for comparison in compared.values())
    assert min(found.values()) == pytest.approx(3 * smallest)
    assert found["a", "c"] < 0.05 < found["a", "b"] and second < 0.05


def test_the_best_by_logme_are_chosen_and_random_weights_besides():
    def contender(name: str, probe: float | None, logme: float) -> Contender:
        return Contender(name, name, name, scores=CheapScores(None, probe, logme, 0))

    every = [contender("a", 0.7, 1), contender("random", 0.1, 0), contender("b", 0.5, 2), contender("c", 0.6, 2)]
    assert [own.name for own in choose(every, 1)] == ["random", "c"]
    assert [own.name for own in choose(every, 2)] == ["random", "b", "c"]
    assert [own.name for own in choose(every, 9)] == ["a", "random", "b", "c"]


def test_names_and_labels_tell_sources_apart():
    found = name_contenders(["x/m.safetensors", "y/m.safetensors", "timm:a/b", "random"])
    assert [own.name for own in found] == ["x/m.safetensors", "y/m.safetensors", "timm:a/b", "random"]
    assert len({own.label for own in found}) == 4 and not any("/" in own.label for own in found)


def fresh(path: Path, model: str = "cnn", size: int = 28, scale: float = 1.0) -> Path:
    """A checkpoint of random weights; those before the head of `cnn` are `scale` times as large."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_model(model, 3, {})
    if model == "cnn":
        network.fc1.weight.data *= scale
    spec = replace(find_model(model).input, size=size)
    classifier = Classifier(network, model, {}, ("x", "y", "z"), spec)
    write_checkpoint(path, network.state_dict(), make_metadata(classifier))
    return path


@pytest.fixture
def here(folder: Path) -> Path:
    Path("few.yaml").write_text(RECIPE)
    return folder


OPTIONS = ("--target", "digits", "--recipe", "few.yaml", "--shots", 5, "--device", "cpu")


@pytest.mark.slow
def test_a_ranking_with_a_broken_source(here):
    Path("broken.safetensors").write_bytes(MNIST.read_bytes()[:1000])
    burst = fresh(Path("burst.safetensors"), scale=1e14)  # its training comes to no finite loss
    given = ["rank", "random", MNIST, "broken.safetensors", burst, *OPTIONS, "--seeds", 2, "--json", "--quiet"]
    done = finetune(*given)
    assert done.code == 1, done.err
    assert "2 of 4 sources could not be ranked" in done.err and "Traceback" not in done.err
    report = json.loads(Path("studies/digits.rank.json").read_text())
    assert report == done.json
    states = {own["name"]: own["state"] for own in report["candidates"]}
    assert states == {"mnist": "fine-tuned", "random": "fine-tuned", "burst": "failed", "broken": "failed"}
    assert [own["place"] for own in report["candidates"]] == [1, 2, None, None]
    best, other, *failed = report["candidates"]
    assert best["accuracy"] > other["accuracy"] and best["name"] == report["best"] == "mnist"
    assert other["against_best"]["difference"] == pytest.approx(other["accuracy"] - best["accuracy"])
    assert report["comparisons"] == 1 and set(report["tied"]) <= {"mnist", "random"}
    assert all(own["error"] for own in failed) and best["parameters"] == 421_642
    assert set(report["kendall"].values()) == {None}

    kept = Path("runs/digits.rank/trials").glob("[mr]*/result/**/*")  # of mnist and random
    trials = {path: path.stat().st_mtime_ns for path in kept if path.is_file()}
    assert len(trials) >= 4
    again = finetune(*given, "--resume")
    assert again.code == 1 and again.json["candidates"][:2] == report["candidates"][:2]
    assert again.json["seconds"] == report["seconds"]  # nothing was done again
    assert {path: path.stat().st_mtime_ns for path in trials} == trials

    message = refused("rank", "random", MNIST, *OPTIONS, "--seeds", 2, "--quiet", "--resume")
    assert "another study" in message
    shown = worked("rank", "random", MNIST, *OPTIONS, "--seeds", 1, "--top", 5)
    assert "moved to digits.rank.was-" not in shown.err and "digits.was-" in shown.err  # the older report
    assert "mnist" in shown.out and "3 are needed" in shown.out
    assert len(list(Path("runs").glob("digits.rank*"))) == 2
    more = worked("rank", "random", MNIST, *OPTIONS, "--seeds", 2, "--resume", "--json")
    assert "2 of 4 trials have finished already" in more.err
    assert [own["per_seed"] for own in more.json["candidates"]] == [own["per_seed"] for own in report["candidates"][:2]]


@pytest.mark.slow
def test_sources_of_other_sizes_and_channels_see_the_same_pictures(here, monkeypatch):
    from finetune.study.trial import TrialRunner

    names = ("apple", "pear", "plum")
    scenes(Path("orchard"), noise=400, train=dict.fromkeys(names, 8), test=dict.fromkeys(names, 4))
    seen = {}
    run = TrialRunner.run

    def noted(self, trial, folder):
        data = self.setup(trial).data
        seen[trial.name] = data.train.images.shape[1:], data.train.files, data.validation.files, data.test.files
        return run(self, trial, folder)

    monkeypatch.setattr(TrialRunner, "run", noted)
    options = ("--target", "orchard", "--recipe", "few.yaml", "--shots", 4, "--device", "cpu", "--seeds", "3,4")
    fresh(Path("colour.safetensors"), "timm/test_resnet", 32)
    done = worked("rank", MNIST, "colour.safetensors", *options, "--set", "data.validation=0.3", "--json")
    assert len(done.json["candidates"]) == 2 and not any(own["error"] for own in done.json["candidates"])
    for seed in (3, 4):
        grey, colour = (seen[name] for name in seen if name.endswith(f"seed-{seed}"))
        assert grey[0] == (1, 28, 28) and colour[0] == (3, 33, 33)
        assert grey[1:] == colour[1:] and len(grey[1]) and len(grey[2])


def test_what_cannot_be_ranked_is_refused(here):
    assert "at least two" in refused("rank", MNIST, *OPTIONS)
    assert "given twice" in refused("rank", MNIST, MNIST.parent / "." / MNIST.name, *OPTIONS)
    shutil.copy(MNIST, "copy.safetensors")
    assert "same weights" in refused("rank", MNIST, "copy.safetensors", *OPTIONS)
    assert "same weights" in refused("rank", MNIST, "random", "random:cnn", *OPTIONS)
    Path("copy.safetensors").unlink()
    done = finetune("rank", MNIST, "copy.safetensors", *OPTIONS)
    assert done.code == 2 and "expected at least two sources that can be used, found 1" in done.err
    assert "random:MODEL names one" in finetune("rank", "random", "random:cnn", *OPTIONS).err
    assert "unknown model 'cm'" in finetune("rank", MNIST, "random:cm", *OPTIONS).err
    assert "--same-shots: goes with --shots" in refused("rank", MNIST, "random", *OPTIONS[:4], "--same-shots")
    assert "seed=7: a study's seeds" in refused("rank", MNIST, "random", *OPTIONS, "--set", "seed=7")
    save_file({"weight": torch.zeros(1)}, "bare.safetensors")
    done = finetune("rank", MNIST, "bare.safetensors", *OPTIONS)
    assert done.code == 2 and "--set model.name=NAME" in done.err and "--model" not in done.err
    Path("bare.safetensors").unlink()
    assert "no target" in refused("rank", MNIST, "random", "--recipe", "few.yaml")
    assert not Path("studies").exists() and not Path("runs").exists()
