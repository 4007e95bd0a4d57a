"""Intervals and tests by groups of images: written-out cases, twins that count once, and simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from finetune.report.comparison import Score, compare, compare_answers, compare_over_seeds, groups_line, sentence
from finetune.report.crossed import by_group, crossed_difference, crossed_mean, images_for, unpaired_difference
from finetune.report.learning_curve import resampled_means
from finetune.report.metrics import Answers, answers_difference, measure_all, measure_over_seeds
from finetune.report.statistics import (
    accuracy_interval,
    design_effect,
    effective_images,
    paired_difference,
    wilson,
    wilson_by_groups,
)


def alike(groups: np.ndarray, accuracy: float, common: float, seed: int = 0, seeds: int = 1) -> np.ndarray:
    """Rights (seeds, images) of which a group shares as much of what makes them so as `common` says."""
    rng, count = np.random.default_rng(seed), int(groups.max()) + 1
    latent = math.sqrt(common) * rng.standard_normal(count)[groups]
    latent = latent + math.sqrt(1 - common) * rng.standard_normal((seeds, len(groups)))
    return latent < stats.norm.ppf(accuracy)


TRACKS = np.repeat(np.arange(40), 12)
UNEVEN = np.repeat(np.arange(30), np.arange(1, 31))


# --- without groups


def test_groups_of_one_image_are_no_groups() -> None:
    single = np.random.default_rng(0).permutation(480)
    first, second = alike(TRACKS, 0.8, 0.5, seed=1, seeds=3), alike(TRACKS, 0.85, 0.5, seed=2, seeds=3)
    assert accuracy_interval(first[0], single) == wilson(int(first[0].sum()), 480)
    assert Score.of(first[0], single) == Score.of(first[0])
    assert compare(first[0], second[0], single) == compare(first[0], second[0])
    assert compare_over_seeds(first, second, single) == compare_over_seeds(first, second)
    assert unpaired_difference(first[:2], second, single) == unpaired_difference(first[:2], second)
    assert crossed_mean(first, single) == crossed_mean(first)
    assert (resampled_means([first, second], single) == resampled_means([first, second])).all()


# --- the design effect


def test_design_effect_is_the_ratio_of_two_variances_and_one_image_of_the_greatest() -> None:
    right = alike(UNEVEN, 0.9, 0.6)[0]
    sizes, influence = np.bincount(UNEVEN), (right - right.mean()) / len(right)
    totals = [sum(influence[g == UNEVEN]) for g in range(30)]
    greatest, one = sum(sizes**2) / len(right), 1 / len(right) ** 2
    grouped = 30 / 29 * sum(t**2 for t in totals) + greatest * one
    single = len(right) / (len(right) - 1) * sum(influence**2) + one
    assert design_effect(influence, UNEVEN, 1 / len(right)) == pytest.approx(grouped / single)
    assert effective_images(right, UNEVEN) == pytest.approx(len(right) * single / grouped)


def test_groups_that_are_right_or_wrong_as_a_whole_count_as_images() -> None:
    whole = np.arange(40) >= 4
    assert effective_images(whole[TRACKS], TRACKS) == pytest.approx(40, rel=0.03)
    assert accuracy_interval(whole[TRACKS], TRACKS) == pytest.approx(wilson(36, 40, freedom=39), abs=0.005)


@pytest.mark.parametrize("wrong", [0, 1])
def test_without_a_wrong_image_groups_count_and_one_more_is_no_leap(wrong: int) -> None:
    right = np.arange(480) >= wrong
    low, high = accuracy_interval(right, TRACKS)
    assert (high == 1) == (wrong == 0)
    assert wilson(40, 40, freedom=39)[0] - 0.01 < low < wilson(470, 480)[0]
    mirrored = accuracy_interval(~right, TRACKS)
    assert mirrored == pytest.approx((1 - high, 1 - low))
    if not wrong:
        assert (low, high) == pytest.approx(wilson(40, 40, freedom=39))


def test_images_that_avoid_each_other_are_worth_no_more_than_single_ones() -> None:
    right = np.arange(480) % 12 != 0  # one wrong image in each group
    assert effective_images(right, TRACKS) == 480


def test_one_group_shows_nothing_of_others() -> None:
    right, other = np.arange(12) > 3, np.arange(12) > 5
    one = np.zeros(12, dtype=np.int64)
    assert accuracy_interval(right, one) == wilson_by_groups(8, 12, 1.0, 1) == (0.0, 1.0)
    found = compare(right, other, one)
    assert found.ci95 == (-1.0, 1.0) and found.p_value == 0.5 and found.exact_p_value == 1.0
    assert found.verdict == "no difference shown" and found.detectable is None
    assert "over 1 group of test images" in sentence(found, "after", "scratch")


def test_names_and_order_of_groups_and_images_do_not_matter() -> None:
    first, second = (alike(UNEVEN, share, 0.5, seed=9, seeds=3) for share in (0.8, 0.9))
    order = np.random.default_rng(1).permutation(len(UNEVEN))
    renamed = (1000 - 7 * UNEVEN)[order]
    for one, other in ((first[:1], second[:1]), (first, second), (first[:1], second)):
        here, there = (
            compare_over_seeds(one, other, UNEVEN),
            compare_over_seeds(one[:, order], other[:, order], renamed),
        )
        assert here.ci95 == pytest.approx(there.ci95) and here.p_value == pytest.approx(there.p_value)
        assert here.groups == there.groups == 30


# --- one training against another


def test_p_values_count_every_way_to_turn_the_groups_around() -> None:
    sizes = np.array([3, 1, 2, 2, 5, 1, 1, 4])
    groups = np.repeat(np.arange(8), sizes)
    first = np.zeros(len(groups), dtype=bool)
    second = np.isin(groups, [0, 1, 2, 4])
    first[np.isin(groups, [3, 5])] = True
    moved = [int(second[groups == g].sum()) - int(first[groups == g].sum()) for g in range(8)]
    reached = abs(sum(moved))
    ways = [abs(sum(s * m for s, m in zip(signs, moved, strict=True))) for signs in product((1, -1), repeat=8)]
    beyond, equal = (sum(compare_to(w, reached) for w in ways) / 256 for compare_to in (int.__gt__, int.__eq__))
    found = paired_difference(first, second, groups)
    assert found.exact_p == pytest.approx(beyond + equal) and found.mid_p == pytest.approx(beyond + equal / 2)
    assert (found.only_first, found.only_second) == (3, 11)


def test_where_groups_differ_by_one_image_each_it_is_mcnemar_s_test() -> None:
    first, second = np.ones(480, dtype=bool), np.ones(480, dtype=bool)
    first[[0, 12, 24, 36, 48, 60, 72]], second[84] = False, False
    plain, grouped = paired_difference(first, second), paired_difference(first, second, TRACKS)
    assert (grouped.mid_p, grouped.exact_p) == pytest.approx((plain.mid_p, plain.exact_p)) and plain.mid_p < 0.05


def test_of_very_many_groups_the_normal_form_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.repeat(np.arange(400), 5)
    first, second = (alike(groups, share, 0.3, seed=k)[0] for k, share in ((1, 0.8), (2, 0.83)))
    counted = paired_difference(first, second, groups)
    monkeypatch.setattr("finetune.report.statistics.MAX_TURNED", 0)
    assert paired_difference(first, second, groups).mid_p == pytest.approx(counted.mid_p, abs=0.005)


def test_a_classifier_does_not_differ_from_itself() -> None:
    right = alike(TRACKS, 0.9, 0.5)[0]
    found = paired_difference(right, right, TRACKS)
    assert found.mid_p == found.exact_p == 1 and found.ci95[0] < 0 < found.ci95[1]


# --- twins count once


def test_over_seeds_twins_count_once() -> None:
    first, second = (alike(TRACKS, share, 0.3, seed=k, seeds=4) for k, share in ((3, 0.8), (4, 0.85)))
    pairs, one, two = np.repeat(np.arange(480), 2), np.repeat(first, 2, axis=1), np.repeat(second, 2, axis=1)
    for single, twins in (
        (crossed_mean(first), crossed_mean(one, pairs)),
        (crossed_difference(first, second), crossed_difference(one, two, pairs)),
        (unpaired_difference(first[:1], second), unpaired_difference(one[:1], two, pairs)),
    ):
        assert twins.ci95 == pytest.approx(single.ci95) and twins.p_value == pytest.approx(single.p_value)
        assert (twins.images, twins.groups, single.groups) == (960, 480, None)
        needed = images_for(single)
        assert images_for(twins) == (None if needed is None else 2 * needed)


def answered(seed: int, classes: int = 2, images: int = 400) -> tuple[np.ndarray, np.ndarray]:
    labels = np.random.default_rng(0).integers(classes, size=images)
    logits = np.random.default_rng(seed).normal(size=(images, classes))
    logits[np.arange(images), labels] += 2.0
    chances = np.exp(1.5 * logits)
    return labels, chances / chances.sum(1, keepdims=True)


def twice(seed: int, groups: bool = True) -> Answers:
    labels, chances = answered(seed)
    numbers = np.repeat(np.arange(400), 2) if groups else None
    return Answers.of(np.repeat(labels, 2), np.repeat(chances, 2, axis=0), groups=numbers)


def width(ends: tuple[float, float] | None) -> float:
    assert ends is not None
    return ends[1] - ends[0]


def test_twins_count_once_in_every_metric() -> None:
    once = [Answers.of(*answered(seed)) for seed in range(4)]
    both, alone = [twice(seed) for seed in range(4)], [twice(seed, groups=False) for seed in range(4)]
    singles, pairs, naive = measure_all(once[0]), measure_all(both[0]), measure_all(alone[0])
    assert len(singles) == 9
    for name in singles:
        assert pairs[name].value == pytest.approx(singles[name].value)
        assert width(pairs[name].ci95) == pytest.approx(width(singles[name].ci95), rel=0.03), name
        assert width(naive[name].ci95) < 0.8 * width(singles[name].ci95), name
    over, over_pairs = measure_over_seeds(once), measure_over_seeds(both)
    for name in over:
        assert over_pairs[name].ci95 == pytest.approx(over[name].ci95), name
        for seeds in (1, 2):
            single = answers_difference(name, once[:seeds], once[seeds : 2 * seeds])
            twin = answers_difference(name, both[:seeds], both[seeds : 2 * seeds])
            assert twin.ci95 == pytest.approx(single.ci95) and twin.p_value == pytest.approx(single.p_value), name


def test_a_metric_s_comparison_says_its_groups() -> None:
    found = compare_answers([twice(0)], [twice(1)], "macro_f1")
    assert found is not None and found.groups == 400
    assert "over 400 groups of test images" in sentence(found, "after", "scratch")


def test_of_one_group_no_metric_claims_an_interval() -> None:
    labels, chances = answered(0)
    found = measure_all(Answers.of(labels, chances, groups=np.zeros(400, dtype=np.int64)))
    means = {"log_loss", "brier"}
    assert all(found[name].ci95 is None for name in means)
    assert {found[name].note for name in means} == {"no interval: all images are of one group"}
    assert {name for name, value in found.items() if value.ci95 == (0.0, 1.0)} == found.keys() - means


def test_answers_refuse_groups_of_another_shape() -> None:
    with pytest.raises(ValueError, match="groups: expected integers of shape"):
        Answers.of(*answered(0), groups=np.zeros(3, dtype=np.int64))


# --- groups of uneven size


def test_entries_of_groups_have_the_mean_of_the_images() -> None:
    table = alike(UNEVEN, 0.8, 0.5, seeds=3).astype(float)
    entries = by_group(table, UNEVEN)
    assert entries.shape == (3, 30) and entries.mean(axis=1) == pytest.approx(table.mean(axis=1))
    even = by_group(table[:, :480][:, : 40 * 11], np.repeat(np.arange(40), 11))
    assert even == pytest.approx(table[:, :440].reshape(3, 40, 11).mean(axis=2))


def test_resampled_means_draw_groups() -> None:
    groups = np.repeat(np.arange(100), 12)
    table = alike(groups, 0.8, 0.9, seeds=1)
    by_groups, by_images = resampled_means([table], groups), resampled_means([table])
    accuracies = table.reshape(100, 12).mean(axis=1)
    assert by_groups.mean() == pytest.approx(table.mean(), abs=0.005)
    assert by_groups.std() == pytest.approx(accuracies.std() / 10, rel=0.06)
    assert by_images.std() < 0.5 * by_groups.std()


# --- words


def test_sentences_name_the_groups_only_where_there_are_any() -> None:
    first, second = (alike(TRACKS, 0.8, 0.5, seed=5, seeds=4)[rows] for rows in (slice(3), slice(1, 4)))
    said = sentence(compare(first[0], second[0], TRACKS), "after", "scratch")
    assert "over 40 groups of test images" in said and "test images in such groups" in said
    assert "over 3 seeds and the 40 groups of test images" in sentence(
        compare_over_seeds(first, second, TRACKS), "after", "scratch"
    )
    assert "group" not in sentence(compare_over_seeds(first, second), "after", "scratch")
    assert groups_line(480, None) is None
    assert groups_line(480, 40, 97.4) == (
        "480 test images in 40 groups, worth about 97 single ones here: intervals and tests are by groups"
    )


def test_what_one_point_takes_counts_groups() -> None:
    first, second = (alike(TRACKS, 0.8, 0.9, seed=k)[0] for k in (7, 8))
    alone, grouped = compare(first, second), compare(first, second, TRACKS)
    assert alone.one_point is not None and grouped.one_point is not None
    assert alone.one_point.images is not None and grouped.one_point.images is not None
    assert grouped.one_point.images > 3 * alone.one_point.images
    assert alone.detectable is not None and grouped.detectable is not None
    assert grouped.detectable > 1.8 * alone.detectable


# --- coverage


@pytest.mark.parametrize("accuracy", [0.9, 0.95])
def test_intervals_by_groups_hold_the_truth(accuracy: float) -> None:
    groups = np.repeat(np.arange(160), 12)
    tables = [alike(groups, accuracy, 0.7, seed=k)[0] for k in range(300)]
    held, naive = (
        sum(low <= accuracy <= high for low, high in (accuracy_interval(t, given) for t in tables)) / 300
        for given in (groups, None)
    )
    assert 0.92 <= held <= 0.98 and naive < 0.7


def test_claims_by_groups_are_rarely_wrong() -> None:
    groups = np.repeat(np.arange(60), 8)
    pairs = [(alike(groups, 0.85, 0.7, seed=2 * k)[0], alike(groups, 0.85, 0.7, seed=2 * k + 1)[0]) for k in range(200)]
    found, naive = (
        sum(paired_difference(a, b, given).mid_p < 0.05 for a, b in pairs) / 200 for given in (groups, None)
    )
    assert found <= 0.09 and naive > 0.2
