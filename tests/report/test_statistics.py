"""The statistics against published tables, exact arithmetic and simulation."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from functools import cache
from math import comb, sqrt

import numpy as np
import pytest

from finetune.report.statistics import (
    Confusion,
    PairedDifference,
    mcnemar_detectable,
    mcnemar_images,
    paired_difference,
    per_class,
    wilson,
)

# Newcombe 1998, Table III, method 10: both right, only one right (two columns), neither, and the printed limits. The
# paper's row 1, 97, 1, 1 is left out, where its own two methods must agree and are printed one unit apart.
NEWCOMBE_TABLE_III = [
    (36, 12, 2, 0, 0.0569, 0.3404),
    (20, 12, 2, 16, 0.0562, 0.3292),
    (18, 12, 2, 18, 0.0562, 0.3290),
    (36, 14, 0, 0, 0.1528, 0.4167),
    (35, 14, 0, 1, 0.1461, 0.4175),
    (18, 14, 0, 18, 0.1441, 0.3963),
    (2, 97, 1, 0, 0.8721, 0.9854),
    (0, 29, 1, 0, 0.6666, 0.9882),
    (2, 98, 0, 0, 0.9178, 0.9945),
    (1, 98, 0, 1, 0.9171, 0.9916),
    (0, 30, 0, 0, 0.8395, 1.0000),
    (54, 0, 0, 0, -0.0664, 0.0664),
    (53, 0, 0, 1, -0.0729, 0.0729),
    (30, 0, 0, 24, -0.0358, 0.0358),
    (29, 0, 0, 25, -0.0354, 0.0354),
    (28, 0, 0, 26, -0.0352, 0.0352),
    (27, 0, 0, 27, -0.0351, 0.0351),
]


def rights(both: int, only_second: int, only_first: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_second, only_first, neither]
    return np.repeat([True, False, True, False], counts), np.repeat([True, True, False, False], counts)


@cache
def paired(both: int, only_second: int, only_first: int, neither: int) -> PairedDifference:
    return paired_difference(*rights(both, only_second, only_first, neither))


def tables(total: int) -> list[tuple[int, int, int, int]]:
    """Every way in which two classifiers can do on so many images."""
    span = range(total + 1)
    return [(a, b, c, total - a - b - c) for a in span for b in span for c in span if a + b + c <= total]


# --- Wilson


def test_wilson_reproduces_published_values() -> None:
    # Newcombe, Two-sided confidence intervals for the single proportion, 1998, Table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@pytest.mark.parametrize(("correct", "total"), [(3, 10), (50, 60), (9900, 10000), (1, 2)])
def test_wilson_ends_are_where_the_score_test_turns(correct: int, total: int) -> None:
    """The definition: at both ends the observed share lies z standard errors away, 1.6449 of them at level 0.9."""
    for level, z in ((0.95, 1.959964), (0.9, 1.644854)):
        for end in wilson(correct, total, level):
            assert abs(correct / total - end) / sqrt(end * (1 - end) / total) == pytest.approx(z, abs=1e-5)


@pytest.mark.parametrize("total", [1, 7, 10_000])
def test_wilson_at_the_ends_is_exact_and_mirrored(total: int) -> None:
    assert wilson(0, total)[0] == 0.0
    assert wilson(total, total)[1] == 1.0
    for correct in range(0, total + 1, max(1, total // 7)):
        lower, upper = wilson(correct, total)
        assert 0 <= lower <= correct / total <= upper <= 1
        assert wilson(total - correct, total) == pytest.approx((1 - upper, 1 - lower), abs=1e-12)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (-1, 5), (6, 5), (1, 0)])
def test_wilson_refuses_counts_that_cannot_be(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"correct={correct}, total={total}"):
        wilson(correct, total)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_wilson_refuses_levels_that_cannot_be(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        wilson(1, 2, level)


# --- the paired difference


@pytest.mark.parametrize("row", NEWCOMBE_TABLE_III)
def test_interval_reproduces_newcombes_table(row: tuple[int, int, int, int, float, float]) -> None:
    assert paired(*row[:4]).ci95 == pytest.approx(row[4:], abs=5.1e-5)


def test_published_example_of_cavo_and_others() -> None:
    # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, chapter 8: both tests and the
    # square-and-add interval for 59, 6, 16, 80 (as in the tests of their R package, contingencytables).
    result = paired(59, 6, 16, 80)
    assert result.difference == pytest.approx(-0.0621, abs=5e-5)
    assert result.ci95 == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    assert result.exact_p == pytest.approx(0.052479, abs=5e-7)
    assert result.mid_p == pytest.approx(0.034690, abs=5e-7)
    assert (result.only_first, result.only_second) == (16, 6)


def test_published_example_of_bentur_and_others() -> None:
    # Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13 (2013) 91, Table 1: 1, 1, 7, 12.
    result = paired(1, 7, 1, 12)
    assert (result.exact_p, result.mid_p) == (18 / 256, 10 / 256)


def test_the_p_values_are_sums_of_binomial_chances() -> None:
    for first in range(26):
        for second in range(26):
            low, n = min(first, second), first + second
            below, at = sum(comb(n, i) for i in range(low)), comb(n, low)
            exact = min(Fraction(1), Fraction(2 * (below + at), 2**n))
            mid = min(Fraction(1), Fraction(2 * below + at, 2**n))
            result = paired(1, second, first, 1)
            assert result.exact_p == pytest.approx(float(exact), rel=1e-9)
            assert result.mid_p == pytest.approx(float(mid), rel=1e-9)


def test_the_p_values_agree_with_scipy_on_many_images() -> None:
    from scipy.stats import binom, binomtest

    for first, second in ((190, 500), (1000, 1100), (4, 60), (2600, 2601)):
        result, expected = paired(9000, second, first, 10), binomtest(first, first + second).pvalue
        assert result.exact_p == pytest.approx(expected, rel=1e-7)
        assert result.mid_p == pytest.approx(expected - binom.pmf(first, first + second, 0.5), rel=1e-7)


def test_mid_p_claims_a_difference_in_no_more_than_a_twentieth_where_there_is_none() -> None:
    """Of test sets with any share of differing images; for some single numbers of them it is up to 1/16."""

    def claims(differing: int) -> float:
        ways = [comb(differing, first) / 2**differing for first in range(differing + 1)]
        called = [paired(1, differing - first, first, 1).mid_p < 0.05 for first in range(differing + 1)]
        return float(np.dot(ways, called))

    assert claims(5) == 1 / 16
    of_number, total = [claims(differing) for differing in range(61)], 60
    for share in (0.01, 0.05, 0.1, 0.2, 0.5, 0.9):
        numbers = [comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(total + 1)]
        assert np.dot(numbers, of_number) < 0.05


def test_two_that_agree_on_every_image() -> None:
    result = paired(54, 0, 0, 3)
    assert (result.difference, result.mid_p, result.exact_p) == (0.0, 1.0, 1.0)
    assert result.ci95[0] < 0 < result.ci95[1]


def test_interval_and_difference_on_every_small_table() -> None:
    for table in tables(7):
        result = paired(*table)
        both, only_second, only_first, neither = table
        assert result.difference == (only_second - only_first) / 7
        assert -1 <= result.ci95[0] <= result.difference <= result.ci95[1] <= 1
        swapped = paired(both, only_first, only_second, neither)
        assert swapped.difference == -result.difference
        assert swapped.ci95 == pytest.approx((-result.ci95[1], -result.ci95[0]), abs=1e-12)
        assert (swapped.mid_p, swapped.exact_p) == (result.mid_p, result.exact_p)
        wrongs = paired(neither, only_first, only_second, both)  # right and wrong change names
        assert wrongs.ci95 == pytest.approx(swapped.ci95, abs=1e-12)


def test_images_are_matched_by_place() -> None:
    first = np.array([True, True, False, False, True])
    second = np.array([True, False, True, True, True])
    result = paired_difference(first, second)
    assert (result.only_first, result.only_second, result.difference) == (1, 2, pytest.approx(0.2))
    order = np.array([3, 0, 4, 2, 1])
    assert paired_difference(first[order], second[order]) == result


@pytest.mark.parametrize("total", [50, 150, 500])
@pytest.mark.parametrize("chances", [(0.6, 0.1, 0.1, 0.2), (0.85, 0.05, 0.03, 0.07), (0.4, 0.3, 0.1, 0.2)])
def test_interval_covers_the_truth_as_often_as_it_says(total: int, chances: tuple[float, ...]) -> None:
    truth = chances[1] - chances[2]
    drawn = np.random.default_rng(total).multinomial(total, chances, size=1500)
    intervals = [paired(*map(int, table)).ci95 for table in drawn]
    covered = np.mean([lower <= truth <= upper for lower, upper in intervals])
    assert 0.935 <= covered <= 0.998


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.array([], dtype=bool), np.array([], dtype=bool), "at least one"),
        (np.array([True]), np.array([True, False]), "got 1 and 2"),
        (np.array([1, 0]), np.array([True, False]), "first_right: expected booleans"),
        (np.array([True, False]), np.array([[True, False]]), "second_right: expected booleans"),
    ],
)
def test_paired_difference_refuses_what_is_not_paired(first: np.ndarray, second: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(first, second)


# --- classes


def test_confusion_has_the_truth_in_rows() -> None:
    labels, predictions = np.array([0, 0, 0, 2, 2]), np.array([0, 1, 1, 2, 0])
    found = Confusion.of(labels, predictions, 3)
    assert found.to_json() == found.rows().tolist() == [[1, 2, 0], [0, 0, 0], [1, 0, 1]]
    assert found.mistakes(5) == [(0, 1, 2), (2, 0, 1)] and found.right == 2 and found.totals().tolist() == [3, 0, 2]
    assert Confusion.of_rows(found.to_json()) == found
    assert Confusion.total([found, found]).rows().tolist() == [[2, 4, 0], [0, 0, 0], [2, 0, 2]]
    assert found.most_confused(2) == [0, 1] and found.most_confused(1) == [0]
    assert found.rows([0, 2]).tolist() == [[1, 0], [1, 1]]


def test_confusion_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import confusion_matrix

    rng = np.random.default_rng(3)
    labels, predictions = rng.integers(0, 9, 500), rng.integers(0, 9, 500).astype(np.uint8)
    rows = Confusion.of(labels, predictions, 10).to_json()
    assert rows == confusion_matrix(labels, predictions, labels=range(10)).tolist()
    assert all(type(count) is int for row in rows for count in row)


def test_per_class_keeps_names_and_order_and_says_none_for_a_class_without_images() -> None:
    labels, predictions = np.array([1, 1, 1, 0]), np.array([1, 2, 1, 1])
    scores = per_class(labels, predictions, ["cat", "ant", "bee"])
    assert list(scores) == ["cat", "ant", "bee"]
    assert scores["cat"] == {"correct": 0, "total": 1, "accuracy": 0.0}
    assert scores["ant"] == {"correct": 2, "total": 3, "accuracy": 2 / 3}
    assert scores["bee"] == {"correct": 0, "total": 0, "accuracy": None}


def test_classes_that_cannot_be_are_refused() -> None:
    one, three, minus = np.array([1]), np.array([3]), np.array([-1])
    with pytest.raises(ValueError, match="labels: expected 0 to 2, got 3 to 3"):
        Confusion.of(three, one, 3)
    with pytest.raises(ValueError, match="predictions: expected 0 to 2, got -1 to -1"):
        per_class(one, minus, ["a", "b", "c"])
    with pytest.raises(ValueError, match="one shape"):
        Confusion.of(one, np.array([1, 1]), 3)
    with pytest.raises(ValueError, match="integers"):
        Confusion.of(one, np.array([0.5]), 3)
    for pairs, said in (
        (([0], [1], []), "as many of each"),
        (([0], [3], [1]), "classes from 0 to 2"),
        (([0], [1], [0]), "each pair"),
        (([1, 0], [1, 1], [1, 1]), "in order"),
        (([0], [1], [2**70]), "below 2"),
    ):
        with pytest.raises(ValueError, match=said):
            Confusion(3, *pairs)
    with pytest.raises(ValueError, match="twice"):
        per_class(one, one, ["a", "a"])


def test_importing_loads_neither_scipy_nor_torch() -> None:
    program = "import sys, finetune.report.comparison; assert not {'scipy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("first", "second"), [(4_980, 5_020), (4_981, 5_020), (5_200, 5_600)])
def test_the_p_value_of_very_many_differing_images(first: int, second: int) -> None:
    from scipy.special import bdtr

    result, at_most = paired(9, second, first, 9), bdtr(first, first + second, 0.5)
    assert result.exact_p == pytest.approx(2 * at_most, rel=1e-9)
    assert result.mid_p == pytest.approx(at_most + bdtr(first - 1, first + second, 0.5), rel=1e-9)


# --- the size of a test set


@pytest.mark.parametrize(("share", "total"), [(0.08, 2_000), (0.08, 10_000), (0.2, 150)])
def test_what_is_detectable_is_shown_four_times_in_five(share: float, total: int) -> None:
    difference = mcnemar_detectable(round(share * total), total)
    assert difference is not None
    rng = np.random.default_rng(0)
    shown = 0
    for differing in rng.binomial(total, share, 400):
        second = int(rng.binomial(differing, (1 + difference / share) / 2))
        shown += paired(0, second, int(differing) - second, total - int(differing)).mid_p < 0.05
    assert 0.74 < shown / 400 < 0.88


@pytest.mark.parametrize("differing", [0, 3, 160, 2_000])
def test_as_many_images_as_there_are_show_just_what_is_detectable(differing: int) -> None:
    difference = mcnemar_detectable(differing, 2_000)
    assert difference is not None
    assert mcnemar_images(differing, 2_000, difference) <= 2_000 < mcnemar_images(differing, 2_000, 0.99 * difference)


def test_images_needed_by_connors_formula() -> None:
    z, z_power = 1.959964, 0.841621
    expected = (z * sqrt(0.08) + z_power * sqrt(0.08 - 0.0001)) ** 2 / 0.0001
    assert mcnemar_images(160, 2_000) == pytest.approx(expected, abs=1)
    assert mcnemar_images(0, 2_000) == mcnemar_images(20, 2_000)  # a point of difference needs a point that differs
    assert mcnemar_detectable(3, 3) is None
    for bad in ((3, 2, 0.01, 0.8), (0, 0, 0.01, 0.8), (1, 9, 0.0, 0.8), (1, 9, 0.01, 1.0)):
        with pytest.raises(ValueError, match="expected"):
            mcnemar_images(*bad)
