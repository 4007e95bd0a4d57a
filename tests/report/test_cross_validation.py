"""Intervals over folds: the corrected t test, and that no interval is narrower than over images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student

from finetune.report.comparison import compare_folds, comparison_from, sentence
from finetune.report.cross_validation import (
    FoldSpread,
    accuracy_over_folds,
    difference_over_folds,
    measure_over_folds,
)
from finetune.report.metrics import Answers, measure_all
from finetune.report.statistics import wilson


def answers(share: float, seed: int = 0, images: int = 200, by_fold: float = 0.0) -> tuple[Answers, np.ndarray]:
    """Answers of about this accuracy to images of two classes in five folds, whose accuracies differ by `by_fold`."""
    rng = np.random.default_rng(seed)
    folds = np.arange(images) % 5
    labels = np.random.default_rng(99).integers(2, size=images)
    right = rng.random(images) < share + by_fold * (folds - 2)
    probabilities = np.where(right, 0.8, 0.2)[:, None] * np.eye(2)[labels] + np.where(right, 0.2, 0.8)[:, None] * (
        1 - np.eye(2)[labels]
    )
    return Answers.of(labels, probabilities), folds


def test_the_corrected_variance_is_nadeau_s_and_bengio_s() -> None:
    values = [0.9, 0.8, 0.85, 0.95]
    spread = FoldSpread.of(values, [25] * 4)
    expected = math.sqrt((1 / 4 + 1 / 3) * np.var(values, ddof=1))  # 1 of 4 parts is tested, 3 are not
    assert spread.standard_error == pytest.approx(expected) and spread.mean == pytest.approx(0.875)
    assert spread.half_width == pytest.approx(student.ppf(0.975, 3) * expected)
    assert spread.p_value(0.05) == pytest.approx(2 * student.sf(0.05 / expected, 3))
    assert spread.p_value(spread.half_width) == pytest.approx(0.05)


def test_folds_count_by_their_size() -> None:
    assert FoldSpread.of([1.0, 0.0], [30, 10]).mean == pytest.approx(0.75)
    for values, sizes in (([0.5], [10]), ([0.5, 0.5], [10]), ([0.5, 0.5], [10, 0])):
        with pytest.raises(ValueError, match="at least two folds"):
            FoldSpread.of(values, sizes)


def test_folds_that_agree_do_not_make_an_interval_narrower_than_over_images() -> None:
    low, high = accuracy_over_folds([(20, 20)] * 5, wilson(100, 100))
    assert (low, high) == wilson(100, 100) and low < 0.97
    wide = accuracy_over_folds([(20, 20), (10, 20), (20, 20), (12, 20), (18, 20)], wilson(80, 100))
    assert wide[0] < wilson(80, 100)[0] and wide[1] == 1.0


def test_every_metric_has_an_interval_no_narrower_than_over_images() -> None:
    given, folds = answers(0.8, by_fold=0.08)
    plain = measure_all(given)
    found = measure_over_folds(given, folds, plain)
    assert found.keys() == plain.keys()
    for name, own in found.items():
        assert own.ci95[0] <= own.value <= own.ci95[1], name
        assert own.value == plain[name].value or name == "auroc"
        assert own.ci95[1] - own.ci95[0] >= plain[name].ci95[1] - plain[name].ci95[0] - 1e-12 or own.ci95[1] == 1.0
    counts = [(int(given.right[folds == f].sum()), 40) for f in range(5)]
    assert found["accuracy"].ci95 == pytest.approx(accuracy_over_folds(counts, plain["accuracy"].ci95))


def test_a_metric_that_a_fold_does_not_define_says_so() -> None:
    given, folds = answers(0.8)
    folds = np.where(given.labels == 0, 0, 1 + np.arange(200) % 3)  # each fold is of one class
    found = measure_over_folds(given, folds, measure_all(given))
    assert "not defined in every fold" in found["auroc"].note and found["auroc"].ci95 is not None
    assert difference_over_folds("auroc", given, given, folds).p_value is None
    assert compare_folds(given, given, folds, "auroc") is None


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "auroc", "log_loss"])
@pytest.mark.parametrize("seed", range(6))
def test_the_interval_leaves_out_0_where_the_p_value_is_below_5_percent(metric: str, seed: int) -> None:
    (first, folds), (second, _) = answers(0.7, seed), answers(0.7 + 0.04 * seed, seed + 50)
    found = difference_over_folds(metric, first, second, folds)
    assert (found.p_value < 0.05) == (found.ci95[0] > 0 or found.ci95[1] < 0)
    assert found.ci95[0] <= found.difference <= found.ci95[1]


def test_equal_folds_still_have_a_p_value_from_images() -> None:
    """Each fold with the same difference has no spread between folds: a p-value of 0 would claim too much."""
    folds, labels = np.arange(50) % 5, np.zeros(50, np.int64)
    second = Answers(labels, labels, 2)
    few = Answers(labels, (np.arange(50) < 5).astype(np.int64), 2)  # one wrong in each fold
    found = difference_over_folds("accuracy", few, second, folds)
    assert 0.01 < found.p_value < 0.1 and found.ci95[1] - found.ci95[0] > 0.05
    nothing = difference_over_folds("accuracy", second, second, folds)
    assert nothing.difference == 0 and nothing.p_value == 1 and nothing.ci95[0] < 0 < nothing.ci95[1]


def test_the_words_are_about_folds() -> None:
    (first, folds), (second, _) = answers(0.6), answers(0.95, 7)
    found = compare_folds(first, second, folds)
    assert (found.design, found.seeds, found.verdict) == ("folds", 5, "helps")
    assert "over 5 folds" in sentence(found, "after", "before") and "helps" in sentence(found, "after", "before")
    two = compare_folds(first, second, folds % 2)
    assert two.verdict in ("better", "no difference shown") and "seeds" not in sentence(two, "after", "scratch")
    assert comparison_from({**found.__dict__, "ci95": list(found.ci95)}).verdict == "helps"
    same = sentence(compare_folds(first, first, folds), "after", "scratch")
    assert "no difference shown" in same and "over 5 folds" in same
