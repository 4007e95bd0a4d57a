"""Means and differences over seeds × images: against written-out sums, special cases and simulation."""

from __future__ import annotations

import math
import subprocess
import sys
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from finetune.report import crossed
from finetune.report.crossed import (
    Estimate,
    crossed_difference,
    crossed_mean,
    detectable,
    images_for,
    seeds_for,
    unpaired_difference,
)


def table(seeds: int, images: int, accuracy: float = 0.8, seed: int = 0) -> np.ndarray:
    """Rights whose errors are shared between images and between trainings, as in life."""
    rng = np.random.default_rng([seed, seeds, images])
    latent = rng.standard_normal((seeds, images)) + rng.standard_normal(images) + 0.2 * rng.standard_normal((seeds, 1))
    return latent < stats.norm.ppf(accuracy, scale=sqrt(2))


def anova(values: list[list[float]]) -> tuple[float, float, float]:
    """Mean squares of rows, columns and residual, written out."""
    rows, columns = len(values), len(values[0])
    mean = sum(map(sum, values)) / (rows * columns)
    of_row = [sum(row) / columns for row in values]
    of_column = [sum(row[j] for row in values) / rows for j in range(columns)]
    ms_rows = columns * sum((m - mean) ** 2 for m in of_row) / (rows - 1)
    ms_columns = rows * sum((m - mean) ** 2 for m in of_column) / (columns - 1)
    rest = sum((values[i][j] - of_row[i] - of_column[j] + mean) ** 2 for i in range(rows) for j in range(columns))
    return ms_rows, ms_columns, rest / ((rows - 1) * (columns - 1))


def with_added(first: np.ndarray, second: np.ndarray) -> list[list[float]]:
    differences = second.astype(float) - first
    squares = [column.mean() ** 2 for column in differences.T if column.sum() != 0]
    size = sqrt((1 + sum(squares)) / (1 + len(squares)))
    return [[*row, size, -size] for row in differences]


# --- the estimate


@pytest.mark.parametrize(("seeds", "images"), [(2, 9), (3, 40), (5, 30)])
def test_difference_is_a_written_out_analysis_of_variance(seeds: int, images: int) -> None:
    first, second = table(seeds, images, 0.7, seed=1), table(seeds, images, 0.85, seed=2)
    values, n = with_added(first, second), images + 2
    ms_training, ms_images, ms_residual = anova(values)
    found = crossed_difference(first, second)
    training, of_images = max(ms_training, ms_residual), max(ms_images, ms_residual)
    error = sqrt((max(ms_training, ms_residual / 4) + of_images - ms_residual) / (seeds * n))
    t_seeds, t_images = stats.t.ppf(0.975, seeds - 1), stats.t.ppf(0.975, n - 1)
    squares = max(t_seeds**2 * ms_training, t_images**2 * ms_residual / 4) + t_images**2 * (of_images - ms_residual)
    half, centre = sqrt(squares / (seeds * n)), sum(map(sum, values)) / (seeds * n)

    assert found.mean == pytest.approx(second.mean() - first.mean())
    assert found.standard_error == pytest.approx(error)
    assert found.ci95 == pytest.approx((max(centre - half, -1), min(centre + half, 1)))
    assert stats.t.ppf(0.975, found.degrees_of_freedom) * error == pytest.approx(half)
    assert found.variance.training == pytest.approx((training - ms_residual) / n)
    assert found.variance.images == pytest.approx((of_images - ms_residual) / seeds)
    assert found.variance.residual == pytest.approx(ms_residual)
    assert (found.seeds, found.images) == (seeds, images)


def test_accuracy_has_one_right_and_one_wrong_image_added() -> None:
    right = table(4, 30)
    ms_training, ms_images, ms_residual = anova([[*map(float, row), 1.0, 0.0] for row in right])
    found = crossed_mean(right)
    assert found.mean == pytest.approx(right.mean())
    squared = (max(ms_training, ms_residual / 4) + max(ms_images, ms_residual) - ms_residual) / (4 * 32)
    assert found.standard_error == pytest.approx(sqrt(squared))
    assert crossed_mean(right.astype(float)) == found


def pieces(estimate: Estimate) -> float:
    n, variance = estimate.images + 2, estimate.variance
    return variance.training / estimate.seeds + variance.images / n + variance.residual / (estimate.seeds * n)


@pytest.mark.parametrize("seed", range(20))
def test_the_components_add_up_to_the_standard_error(seed: int) -> None:
    first, second, one = table(3, 40, 0.7, seed), table(3, 40, 0.9, seed + 50), table(1, 40, 0.5, seed)
    estimates = [crossed_mean(first), crossed_difference(first, second)]
    estimates += [unpaired_difference(one, second)]
    for estimate in estimates:
        if estimate.variance.training:
            assert estimate.standard_error**2 == pytest.approx(pieces(estimate))
        assert estimate.standard_error**2 <= pieces(estimate) * (1 + 1e-12)
        assert min(estimate.variance.training, estimate.variance.images, estimate.variance.residual) >= 0
        assert estimate.seeds - 1 <= estimate.degrees_of_freedom * (1 + 1e-12)
        assert estimate.degrees_of_freedom <= (estimate.images + 1) * (1 + 1e-12)


def test_trainings_that_all_answer_alike_count_as_one_over_images() -> None:
    """Then only images vary, and the interval is the Bonett and Price one, with Student's quantile."""
    counts = [40, 14, 5, 11]
    first, second = np.repeat([True, False, True, False], counts), np.repeat([True, True, False, False], counts)
    found = crossed_difference(np.tile(first, (4, 1)), np.tile(second, (4, 1)))
    n, gain, loss = 72, 15 / 72, 6 / 72
    error = sqrt((gain + loss - (gain - loss) ** 2) / (n - 1))
    assert found.standard_error == pytest.approx(error)
    reach = stats.t.ppf(0.975, n - 1) * error
    assert found.ci95 == pytest.approx((gain - loss - reach, gain - loss + reach))
    assert (found.variance.training, found.variance.residual) == pytest.approx((0, 0), abs=1e-12)


def test_with_endless_images_it_is_the_t_test_over_seeds() -> None:
    """Trainings that differ by whole images' worth, on images that say nothing: only the rows count."""
    images, shares = 40_000, np.array([0.60, 0.72, 0.66, 0.81])
    rng = np.random.default_rng(0)
    second = np.array([rng.permutation(np.arange(images) < share * images) for share in shares])
    first = np.array([rng.permutation(np.arange(images) < images / 2) for _ in shares])
    test = stats.ttest_1samp(shares - 0.5, 0)
    found = crossed_difference(first, second)
    assert found.p_value == pytest.approx(test.pvalue, rel=0.01)
    assert found.ci95 == pytest.approx(tuple(test.confidence_interval()), abs=0.001)
    assert found.degrees_of_freedom == pytest.approx(3, abs=0.01)
    assert sqrt(found.variance.training) == pytest.approx(shares.std(ddof=1), rel=0.01)


def test_the_interval_is_never_narrower_than_half_of_one_over_images_alone() -> None:
    for seed in range(50):
        first, second = table(3, 60, 0.8, seed), table(3, 60, 0.8, seed + 100)
        found = crossed_difference(first, second)
        columns = np.mean(with_added(first, second), axis=0)
        alone = stats.t.ppf(0.975, 61) * columns.std(ddof=1) / sqrt(62)
        assert found.ci95[1] - found.ci95[0] >= alone * (1 - 1e-12)


@pytest.mark.parametrize("accuracy", [0.8, 0.84, 0.88, 0.92])
def test_p_value_and_interval_never_part(accuracy: float) -> None:
    sides = set()
    for seed in range(60):
        found = crossed_difference(table(3, 150, 0.8, seed), table(3, 150, accuracy, seed + 100))
        assert (found.p_value < 0.05) == (found.ci95[0] > 0 or found.ci95[1] < 0)
        sides.add(found.p_value < 0.05)
    assert accuracy in (0.8, 0.92) or sides == {True, False}


@pytest.mark.parametrize("difference", [crossed_difference, unpaired_difference])
def test_swapped_it_is_negated(difference) -> None:
    first, second = table(3, 50, 0.7, seed=1), table(3, 50, 0.9, seed=2)
    found, swapped = difference(first, second), difference(second, first)
    assert swapped.mean == pytest.approx(-found.mean)
    assert swapped.ci95 == pytest.approx((-found.ci95[1], -found.ci95[0]))
    assert (swapped.p_value, swapped.standard_error) == pytest.approx((found.p_value, found.standard_error))


def test_an_accuracy_of_wrongs_is_the_mirror_of_that_of_rights() -> None:
    found, wrongs = crossed_mean(table(3, 50)), crossed_mean(~table(3, 50))
    assert wrongs.ci95 == pytest.approx((1 - found.ci95[1], 1 - found.ci95[0]))


def test_order_of_seeds_and_images_does_not_matter() -> None:
    first, second, rng = table(4, 50, 0.7, 1), table(4, 50, 0.9, 2), np.random.default_rng(0)
    rows, columns = rng.permutation(4), rng.permutation(50)
    shuffled = crossed_difference(first[rows][:, columns], second[rows][:, columns])
    assert shuffled.ci95 == pytest.approx(crossed_difference(first, second).ci95)


def test_pairing_of_seeds_counts_where_it_is_told() -> None:
    """Bad seeds that are bad for both: paired, they cancel."""
    rng = np.random.default_rng(0)
    luck = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])[:, None]
    first, second = (rng.standard_normal((5, 500)) + luck < border for border in (0.5, 0.8))
    paired, unpaired = crossed_difference(first, second), unpaired_difference(first, second)
    assert paired.mean == pytest.approx(unpaired.mean)
    assert paired.ci95[0] > 0 > unpaired.ci95[0]
    assert unpaired.variance.training > 50 * paired.variance.training


def test_a_single_row_counts_as_fixed() -> None:
    """Weights as they came beside trainings that all answer alike: images alone vary."""
    first, second = table(1, 80, 0.5), np.tile(table(1, 80, 0.8, seed=1), (3, 1))
    found = unpaired_difference(first, second)
    values = with_added(first, second[:1])[0]
    assert found.standard_error == pytest.approx(np.std(values, ddof=1) / sqrt(82))
    assert found.variance.training == pytest.approx(0, abs=1e-12)
    assert (found.seeds, found.images) == (3, 80)


def test_unpaired_error_adds_the_spread_of_both() -> None:
    """Where images say nothing, the two variances of a mean over seeds add up."""
    images, rng = 40_000, np.random.default_rng(0)
    shares = [np.array([0.5, 0.6, 0.55]), np.array([0.8, 0.6, 0.7, 0.75, 0.66])]
    first, second = (np.array([rng.permutation(np.arange(images) < share * images) for share in arm]) for arm in shares)
    found = unpaired_difference(first, second)
    assert found.mean == pytest.approx(shares[1].mean() - shares[0].mean())
    expected = sum(arm.var(ddof=1) / len(arm) for arm in shares)
    assert found.standard_error**2 == pytest.approx(expected, rel=0.01)
    reach = sqrt(sum(stats.t.ppf(0.975, len(arm) - 1) ** 2 * arm.var(ddof=1) / len(arm) for arm in shares))
    assert (found.ci95[1] - found.ci95[0]) / 2 == pytest.approx(reach, rel=0.01)


# --- where nothing varies


@pytest.mark.parametrize("seeds", [2, 3, 10])
@pytest.mark.parametrize("images", [1, 2, 150])
def test_no_interval_has_width_zero(seeds: int, images: int) -> None:
    perfect = np.ones((seeds, images), dtype=bool)
    same = crossed_difference(perfect, perfect)
    assert (same.mean, same.p_value) == (0, 1)
    assert same.ci95[0] < 0 < same.ci95[1]
    accuracy = crossed_mean(perfect)
    assert accuracy.mean == accuracy.ci95[1] == 1 > accuracy.ci95[0] >= 0
    extreme = crossed_difference(~perfect, perfect)
    assert extreme.mean == extreme.ci95[1] == 1 > extreme.ci95[0] >= -1
    assert crossed_mean(~perfect).ci95[0] == 0


def test_the_mean_lies_inside_its_interval() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        seeds, images, share = int(rng.integers(2, 5)), int(rng.integers(1, 12)), rng.random()
        first, second = rng.random((2, seeds, images)) < share
        for found in (crossed_mean(first), crossed_difference(first, second), unpaired_difference(first[:1], second)):
            assert found.ci95[0] <= found.mean + 1e-12
            assert found.mean <= found.ci95[1] + 1e-12
            assert 0 <= found.p_value <= 1


def test_what_has_no_such_shape_is_refused() -> None:
    good = np.ones((2, 5), dtype=bool)
    for bad in (good[0], good[:1], good[:, :0], good.astype(int), np.ones((2, 5), dtype=float)):
        with pytest.raises(ValueError, match="expected"):
            crossed_difference(good, bad)
        with pytest.raises(ValueError, match="expected"):
            crossed_difference(bad, good)
    for bad in (good[0], good[:, :0], good.astype(int), good[:, :3]):
        with pytest.raises(ValueError, match="expected"):
            unpaired_difference(bad, good)
    with pytest.raises(ValueError, match="one in both"):
        unpaired_difference(good[:1], good[:1])
    with pytest.raises(ValueError, match="same seeds"):
        crossed_difference(good, np.ones((3, 5), dtype=bool))
    for values in (good.astype(int), good[0], good[:1], 1.5 * good, np.where(good, np.nan, 0), good * np.inf):
        with pytest.raises(ValueError, match="expected"):
            crossed_mean(values)


# --- planning


def test_detectable_is_the_sum_of_two_quantiles() -> None:
    found = crossed_difference(table(5, 300, 0.8), table(5, 300, 0.8, seed=1))
    if found.variance.training:
        df, error = found.degrees_of_freedom, found.standard_error
        assert detectable(found) == pytest.approx((stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * error)
        assert detectable(found, 0.5) == pytest.approx(stats.t.ppf(0.975, df) * error)
    assert detectable(found, 0.5) < detectable(found) < detectable(found, 0.95)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_there_shows_just_what_is_detectable(seed: int) -> None:
    found = crossed_difference(table(4, 300, 0.8, seed), table(4, 300, 0.85, seed + 10))
    assert images_for(found, detectable(found) * (1 + 1e-9)) == 300
    assert seeds_for(found, detectable(found) * (1 + 1e-9)) == 4
    more, fewer = images_for(found, detectable(found) * 0.9), images_for(found, detectable(found) * 1.1)
    assert fewer is not None and fewer < 300
    assert more is None or more > 300


def test_no_number_would_do() -> None:
    rng = np.random.default_rng(0)
    luck = np.array([-0.5, 0.0, 0.5])[:, None]
    seeds_differ = crossed_difference(rng.random((3, 1000)) < 0.5, rng.standard_normal((3, 1000)) < luck)
    assert images_for(seeds_differ) is None
    assert seeds_for(seeds_differ, 0.1) is not None
    alike = crossed_difference(np.tile(table(1, 50, 0.8), (3, 1)), np.tile(table(1, 50, 0.8, seed=1), (3, 1)))
    assert seeds_for(alike) is None
    assert images_for(alike) is not None
    for plan in (images_for, seeds_for):
        with pytest.raises(ValueError, match="difference"):
            plan(alike, 0.0)
    with pytest.raises(ValueError, match="power"):
        detectable(alike, 1.0)


# --- simulation


def simulate(spread: float, seeds: int, images: int, replicates: int) -> tuple[float, float]:
    """How often the 95 % interval holds a true difference of 0, and how often one over images alone does.

    Rights are drawn from a probit model in which accuracies of 0.8 spread by `spread` over seeds, in each arm.
    """
    rng, border = np.random.default_rng(0), stats.norm.ppf(0.8)
    held = alone = 0
    for _ in range(replicates):
        luck = spread / stats.norm.pdf(border) * rng.standard_normal((2, seeds, 1))
        easy = sqrt(0.6) * rng.standard_normal(images)
        first, second = sqrt(0.4) * rng.standard_normal((2, seeds, images)) + easy < border + luck
        found = crossed_difference(first, second)
        columns = second.mean(axis=0) - first.mean(axis=0)
        held += found.ci95[0] <= 0 <= found.ci95[1]
        alone += abs(columns.mean()) <= 1.96 * columns.std(ddof=1) / sqrt(images)
    return held / replicates, alone / replicates


@pytest.mark.parametrize(("spread", "seeds"), [(0.0, 5), (0.02, 3), (0.02, 5)])
def test_intervals_hold_the_truth_as_often_as_they_say(spread: float, seeds: int) -> None:
    held, alone = simulate(spread, seeds, images=400, replicates=300)
    assert 0.92 <= held <= 0.99
    if spread:
        assert alone < 0.85  # what an interval would do that ignored the seeds


def test_importing_loads_no_scipy() -> None:
    program = "import sys, finetune.report.crossed; assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_degrees_of_freedom_at_either_end_are_found_in_spite_of_rounding() -> None:
    for low, high in ((1, 101), (2, 361), (4, 2001), (9, 10_001)):
        for ends in (low, high):
            reach = crossed._student(math.exp(math.log(ends)), 0.05)
            assert crossed._equivalent_df(reach, low, high) == pytest.approx(ends, rel=1e-6)
