"""The metrics against scikit-learn by another way, tiny cases worked by hand, and simulation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from finetune.errors import SettingError
from finetune.report.crossed import crossed_difference, crossed_mean, unpaired_difference
from finetune.report.metrics import (
    METRICS,
    Answers,
    all_metrics,
    answers_difference,
    applicable_metrics,
    measure,
    measure_over_seeds,
    metric_difference,
    metric_value,
    metrics_markdown,
)

ROOT = Path(__file__).parents[2]
Drawn = tuple[np.ndarray, np.ndarray]


def drawn(
    random: np.random.Generator, images: int, classes: int, apart: float = 2, sharp: float = 1, shares: object = None
) -> Drawn:
    """Labels and probabilities of a classifier that is right more often the further `apart`."""
    labels = random.choice(classes, images, p=shares)
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), labels] += apart
    chances = np.exp(sharp * logits)
    return labels, chances / chances.sum(1, keepdims=True)


def answers(seed: int = 0, images: int = 300, classes: int = 3, **more: object) -> Answers:
    return Answers.of(*drawn(np.random.default_rng(seed), images, classes, **more))


@pytest.mark.parametrize("classes", [2, 5])
def test_values_are_scikit_learn_s(classes: int) -> None:
    labels, chances = drawn(np.random.default_rng(0), 400, classes)
    predicted, found = chances.argmax(1), {k: v.value for k, v in all_metrics(labels, chances).items()}
    expected = {
        "accuracy": (labels == predicted).mean(),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, predicted),
        "macro_f1": sklearn.metrics.f1_score(labels, predicted, average="macro"),
        "log_loss": sklearn.metrics.log_loss(labels, chances),
        "brier": ((chances - np.eye(classes)[labels]) ** 2).sum(1).mean(),
    }
    if classes == 2:
        precision_table = sklearn.metrics.confusion_matrix(labels, predicted, normalize="true")
        expected |= {"specificity": precision_table[0, 0], "sensitivity": precision_table[1, 1]}
        expected["auroc"] = sklearn.metrics.roc_auc_score(labels, chances[:, 1])
    else:
        expected["auroc"] = sklearn.metrics.roc_auc_score(labels, chances, multi_class="ovr", average="macro")
    assert set(found) == {*expected, "calibration_error"}
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
    # Two images at confidence 0.9, one right; two at 0.6, both right: 2/4 · |0.9 - 0.5| + 2/4 · |0.6 - 1|.
    chances = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert metric_value("calibration_error", [0, 1, 0, 1], chances).value == pytest.approx(0.4)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if not metric.binary])
def test_influence_is_the_change_when_an_image_weighs_more(name: str) -> None:
    own = answers(images=40)
    assert own.probabilities is not None
    copies = 1000  # of each image; image 7 once more
    labels = np.append(np.repeat(own.labels, copies), own.labels[7])
    chances = np.append(np.repeat(own.probabilities, copies, 0), own.probabilities[7:8], 0)
    more = Answers.of(labels, chances)
    moved = (METRICS[name].value(more) - METRICS[name].value(own)) * copies
    influence = METRICS[name].influence(own)
    assert moved == pytest.approx(influence[7], rel=2e-3, abs=1e-6)
    assert influence.sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("case", [(200, 2, 1.5), (300, 4, 2, 2, (0.7, 0.2, 0.07, 0.03))])
def test_intervals_hold_the_truth_as_often_as_they_say(case: tuple[object, ...]) -> None:
    random = np.random.default_rng(0)
    images, *world = case
    many = Answers.of(*drawn(random, 20_000, *world))
    truth = {name: METRICS[name].value(many) for name in applicable_metrics(many)}
    held = dict.fromkeys(truth, 0)
    for _ in range(40):
        for name, found in all_metrics(*drawn(random, images, *world)).items():
            held[name] += found.ci95[0] <= truth[name] <= found.ci95[1]
    assert min(held.values()) >= 33, held  # of 38 expected, less 3.6 standard errors


def test_perfect_and_hopeless_classifiers_have_intervals_with_a_width() -> None:
    labels, right = np.arange(30) % 3, np.eye(3)[np.arange(30) % 3]
    for chances, value in ((right, 1.0), (np.roll(right, 1, 1), 0.0)):
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc"):
            found = metric_value(name, labels, chances)
            expected = 0.25 if name == "auroc" and value == 0 else value  # a wrong class is above half of the others
            assert found.value == pytest.approx(expected)
            low, high = found.ci95
            assert 0 <= low <= found.value <= high <= 1 and high - low > 0.05
    assert metric_value("log_loss", labels, right).value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounding_neither_raises_nor_warns(dtype: type) -> None:
    labels, chances = drawn(np.random.default_rng(0), 200, 3, apart=9, sharp=6)
    found = all_metrics(labels, (chances * (1 + 3e-7)).astype(dtype))
    assert found == all_metrics(labels, (chances * (1 + 3e-7)).astype(dtype)), "the same every time"
    assert all(np.isfinite(v.ci95).all() for v in found.values())


def test_a_class_without_images_is_left_out_and_said() -> None:
    labels, chances = drawn(np.random.default_rng(0), 100, 3)
    wider = np.hstack([chances * 0.9, np.full((100, 1), 0.1)])
    found, without = all_metrics(labels, wider, ["ant", "bee", "fly", "wasp"]), all_metrics(labels, chances)
    for name in ("balanced_accuracy", "macro_f1", "auroc"):
        assert found[name].note == "without classes that have no image: wasp"
    assert found["balanced_accuracy"].value == pytest.approx(without["balanced_accuracy"].value, abs=0.05)
    assert without["auroc"].note is None


def test_what_is_not_defined_is_none() -> None:
    chances = np.array([[0.9, 0.1], [0.4, 0.6]])
    found = all_metrics([0, 0], chances, ["cat", "dog"])
    assert asdict(found["sensitivity"]) == {
        "value": None,
        "ci95": None,
        "note": "not defined: every image is of class cat",
    }
    assert found["auroc"].value is None and found["specificity"].value == 0.5
    assert found["specificity"].note == "positive: dog; negative: cat"
    own = Answers.of([0, 0], chances)
    assert answers_difference("auroc", [own], [own]).p_value is None
    assert set(all_metrics([0], np.array([[1.0]]))) == set(METRICS) - {"sensitivity", "specificity"}


def test_predictions_alone_are_enough_for_some() -> None:
    own = answers(classes=2)
    known = Answers.of_predictions(own.labels, own.predicted, 2, own.confidence)
    for name in METRICS:
        assert measure(name, known).value == pytest.approx(measure(name, own).value)
    named = Answers.of_predictions(own.labels, own.predicted, 2)
    with pytest.raises(SettingError, match="needs the probabilities of all classes"):
        measure("auroc", named)
    with pytest.raises(SettingError, match="for two classes, and there are 3"):
        measure("sensitivity", answers())
    with pytest.raises(SettingError, match="did you mean 'accuracy'"):
        measure("acuracy", named)


def test_wrong_arrays_are_refused() -> None:
    good = np.full((2, 2), 0.5)
    for labels, chances in [
        ([], good[:0]),
        ([0], good),
        ([0, 2], good),
        ([0.0, 1.0], good),
        ([0, 1], good * 1.1),
        ([0, 1], good * np.nan),
        ([0, 1], np.array([[1.5, -0.5], [0.5, 0.5]])),
        ([0, 1], good[0]),
    ]:
        with pytest.raises(ValueError):
            all_metrics(labels, chances)


# --- differences


def test_a_difference_swapped_is_negated_and_agrees_with_its_p_value() -> None:
    sides = [[answers(10 * side + seed) for seed in range(3)] for side in range(2)]
    for other in sides[1]:
        other.labels[:] = sides[0][0].labels
    for own in sides[0][1:]:
        own.labels[:] = sides[0][0].labels
    for name in (name for name, metric in METRICS.items() if not metric.binary):
        for ones, others in (sides, (sides[0][:1], sides[1][:1])):
            there, back = answers_difference(name, ones, others), answers_difference(name, others, ones)
            assert (there.difference, there.p_value) == pytest.approx((-back.difference, back.p_value))
            assert there.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))
            assert (there.p_value < 0.05) == (not there.ci95[0] <= 0 <= there.ci95[1])
        same = answers_difference(name, sides[0], sides[0])
        assert (same.difference, same.p_value) == pytest.approx((0, 1))


def test_accuracy_over_seeds_is_that_of_crossed() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(3, size=100)

    def training(share: float) -> Answers:
        named = np.where(random.random(100) < share, labels, random.integers(3, size=100))
        return Answers.of_predictions(labels, named, 3)

    first, second = [training(0.5) for _ in range(3)], [training(0.8) for _ in range(4)]
    ones, others = (np.stack([given.right for given in side]) for side in (first, second))
    for found, expected in (
        (answers_difference("accuracy", first, second[:3]), crossed_difference(ones, others[:3])),
        (answers_difference("accuracy", first, second, paired=False), unpaired_difference(ones, others)),
    ):
        assert (found.difference, found.p_value) == pytest.approx((expected.mean, expected.p_value))
        assert found.ci95 == pytest.approx(expected.ci95)
    mean = measure_over_seeds(second)["accuracy"]
    assert (mean.value, *mean.ci95) == pytest.approx((crossed_mean(others).mean, *crossed_mean(others).ci95))
    assert measure_over_seeds(first[:1] * 3)["macro_f1"] == measure("macro_f1", first[0])
    with pytest.raises(ValueError, match="as many trainings"):
        answers_difference("accuracy", first, second)


def test_the_interval_of_a_difference_holds_the_truth() -> None:
    """Two classifiers on the same images: their common difficulty must cancel out."""
    random, names = np.random.default_rng(0), ("macro_f1", "auroc", "log_loss")

    def pair(images: int) -> tuple[np.ndarray, list[np.ndarray]]:
        labels, common = random.integers(3, size=images), random.normal(size=(images, 3))
        sides = []
        for apart in (2.0, 2.3):
            logits = common + 0.5 * random.normal(size=common.shape)
            logits[np.arange(images), labels] += apart
            chances = np.exp(logits)
            sides.append(chances / chances.sum(1, keepdims=True))
        return labels, sides

    labels, sides = pair(20_000)
    truth = {name: metric_difference(name, labels, sides[:1], sides[1:]).difference for name in names}
    held = dict.fromkeys(names, 0)
    for _ in range(40):
        labels, sides = pair(300)
        for name in names:
            low, high = metric_difference(name, labels, sides[:1], sides[1:]).ci95
            held[name] += low <= truth[name] <= high
    assert min(held.values()) >= 33, held


def test_the_page_has_the_table() -> None:
    assert metrics_markdown() in (ROOT / "docs" / "reports.md").read_text()
