"""The three verdicts, their borders, and the sentence a person reads."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from finetune.report.comparison import (
    Comparison,
    Score,
    compare,
    compare_answers,
    compare_over_seeds,
    comparison_from,
    distinct,
    sentence,
    sentences,
)
from finetune.report.metrics import Answers
from finetune.report.statistics import mcnemar_detectable, mcnemar_images, paired_difference, wilson


def rights(both: int, only_second: int, only_first: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_second, only_first, neither]
    return np.repeat([True, False, True, False], counts), np.repeat([True, True, False, False], counts)


def test_score_counts_the_rights() -> None:
    score = Score.of(np.array([True, False, True, True]))
    assert score == Score(3, 4, 0.75, wilson(3, 4))
    assert type(score.correct) is int
    assert type(score.accuracy) is float


@pytest.mark.parametrize("right", [np.array([], dtype=bool), np.array([1, 0]), np.array([[True]])])
def test_score_refuses_what_is_not_a_list_of_rights(right: np.ndarray) -> None:
    with pytest.raises(ValueError):
        Score.of(right)


def test_comparison_carries_the_paired_difference() -> None:
    first, second = rights(40, 9, 4, 7)
    pair, comparison = paired_difference(first, second), compare(first, second)
    assert (comparison.difference, comparison.ci95) == (pair.difference, pair.ci95)
    assert (comparison.p_value, comparison.exact_p_value) == (pair.mid_p, pair.exact_p)


@pytest.mark.parametrize(
    ("only_second", "only_first", "verdict"),
    [
        (5, 0, "better"),  # mid-p = 1/32 = 0.03, exact p = 0.06
        (0, 5, "worse"),
        (4, 0, "no difference shown"),  # mid-p = 1/16 = 0.06
        (0, 4, "no difference shown"),
        (7, 1, "better"),  # mid-p = 0.039, exact p = 0.070
        (3, 3, "no difference shown"),
        (0, 0, "no difference shown"),
    ],
)
def test_the_verdict_turns_where_the_mid_p_test_does(only_second: int, only_first: int, verdict: str) -> None:
    assert compare(*rights(20, only_second, only_first, 3)).verdict == verdict


def test_one_training_against_one_names_its_size_and_no_cause() -> None:
    gap = "by 3.10 points (95 % interval 2.59 to 3.62 over test images, p < 0.0001)"
    won, lost = compare(*rights(9000, 500, 190, 310)), compare(*rights(9000, 190, 500, 310))
    more = "takes 3 seeds or more: --seeds 5"
    assert sentence(won, "after", "scratch") == (
        f"after beats scratch {gap}: this training did better; whether starting from these weights helps {more}"
    )
    assert sentence(won, "after", "linear_probe") == f"after beats linear probe {gap}: after did better"
    assert sentence(won, "new", "old") == f"new beats old {gap}: new did better"
    assert sentence(lost, "after", "before") == (
        f"after falls behind before {gap}: this training did worse; whether fine-tuning hurts {more}"
    )


def table(seeds: int, *counts: int, turned: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same answers in all seeds, but for `turned` images more that each seed after the first gets wrong."""
    first, second = (np.tile(right, (seeds, 1)) for right in rights(*counts))
    for seed in range(seeds):
        second[seed, : seed * turned] = False
    return first, second


@pytest.mark.parametrize(("seeds", "verdict"), [(2, "better"), (3, "helps"), (5, "helps")])
def test_the_cause_is_named_from_three_seeds_on(seeds: int, verdict: str) -> None:
    found = compare_over_seeds(*table(seeds, 9000, 500, 190, 310))
    assert (found.verdict, found.design, found.seeds) == (verdict, "seeds x images", seeds)
    said = sentence(found, "after", "scratch")
    assert f"over {seeds} seeds and the test images" in said
    assert ("starting from these weights helps (of the uncertainty" in said) == (seeds >= 3)
    hurts = compare_over_seeds(*reversed(table(seeds, 9000, 500, 190, 310)))
    assert hurts.verdict == {"better": "worse", "helps": "hurts"}[verdict]


def test_training_widens_what_test_images_alone_would_show() -> None:
    calm, wild = (compare_over_seeds(*table(5, 900, 40, 20, 40, turned=turned)) for turned in (0, 8))
    assert (
        calm.uncertainty.training == 0 < 0.2 < wild.uncertainty.training
        and wild.ci95[1] - wild.ci95[0] > calm.ci95[1] - calm.ci95[0]
    )
    assert sum(vars(wild.uncertainty).values()) == pytest.approx(1)


def test_weights_that_no_seed_changes_are_one_row() -> None:
    first, second = table(4, 9000, 500, 190, 310)
    assert compare_over_seeds(distinct(first), second).seeds == 4
    assert compare_over_seeds(first[:1], second[:1]) == compare(first[0], second[0])


def test_no_difference_shown_says_what_is_possible_and_what_would_have_been_shown() -> None:
    found = compare(*rights(300, 14, 9, 77))
    assert sentence(found, "after", "scratch") == (
        "no difference shown between after and scratch (+1.25 points, 95 % interval -1.18 to +3.71 over test images, "
        f"p = 0.3075): after may still be anything from 1.18 points worse to 3.71 points better; a true difference of "
        f"{100 * mcnemar_detectable(23, 400):.2f} points would have been shown 4 times in 5, and one of 1 point with "
        f"{mcnemar_images(23, 400):,} test images"
    )
    over = compare_over_seeds(*table(5, 300, 9, 9, 82))
    assert " seeds" in sentence(over, "after", "scratch") and over.one_point.seeds is None
    assert "may have learnt nothing" in sentence(compare(*rights(20, 2, 2, 3)), "after", "majority")


def test_a_row_that_beats_no_floor_is_not_praised_for_beating_another_row() -> None:
    helps, none = Comparison(0.45, (0.4, 0.5), 1e-5, "helps", seeds=3), compare(*rights(95, 0, 0, 5))
    worse = Comparison(-0.1, (-0.2, -0.05), 1e-5, "worse")
    hurts = replace(worse, verdict="hurts", seeds=3)
    said = sentences({"after_vs_majority": none, "after_vs_before": helps, "after_vs_scratch": hurts}, "ok")
    assert said[0].startswith("after is not shown to be better than always answering 'ok' (+0.00 points, ")
    assert said[0].endswith("): it may have learnt nothing")
    assert said[1].startswith("after beats before by 45.00 points") and "helps" not in said[1]
    assert said[1].endswith(": yet it is not shown to be better than always answering 'ok'")
    assert "starting from these weights hurts" in said[2]
    said = sentences({"after_vs_majority": worse, "after_vs_before": helps})
    assert said[0].startswith("after falls behind always naming the commonest class by 10.00 points")
    assert "yet it is not shown to be better than always naming the commonest class" in said[1]
    assert "nothing" not in sentences({"after_vs_majority": none}, learnt=True)[0]
    beaten = sentences({"after_vs_majority": helps, "after_vs_before": helps, "after_vs_scratch": None, "x_vs_": helps})
    assert len(beaten) == 1 and "fine-tuning helps" in beaten[0]


def test_a_difference_of_nothing_has_no_minus_sign() -> None:
    comparison = Comparison(-0.00001, (-0.003, 0.003), 1.0, "no difference shown")
    assert "(+0.00 points," in sentence(comparison, "after", "before")


@pytest.mark.parametrize(("turn", "way"), [(1, "better"), (-1, "worse")])
def test_it_is_said_when_test_and_interval_part(turn: int, way: str) -> None:
    counts = (50, 21, 10, 80) if turn == 1 else (50, 10, 21, 80)
    comparison = compare(*rights(*counts))
    assert min(turn * end for end in comparison.ci95) > 0
    assert comparison.p_value >= 0.05
    assert (
        f"too close to call, as the interval has after 0.03 to 13.51 points {way} but the test is not below p = 0.05;"
        in sentence(comparison, "after", "scratch")
    )


@pytest.mark.parametrize(("counts", "beats"), [((9000, 6, 0, 300), "beats"), ((9000, 0, 6, 300), "falls behind")])
def test_it_is_said_when_a_shown_difference_has_zero_in_its_interval(counts: tuple[int, ...], beats: str) -> None:
    comparison = compare(*rights(*counts))
    assert comparison.ci95[0] < 0 < comparison.ci95[1]
    said = sentence(comparison, "after", "scratch")
    assert said.startswith(f"after {beats} scratch by 0.06 points (95 % interval 0.00 to 0.13 over test images, p = ")
    assert said.endswith(", narrowly: the interval still has 0 in it")


def answers(right: np.ndarray) -> Answers:
    labels = np.arange(len(right)) % 2
    return Answers(labels, np.where(right, labels, 1 - labels), 2)


def test_another_metric_is_compared_and_named() -> None:
    first, second = (answers(right) for right in rights(300, 40, 10, 50))
    found = compare_answers([first], [second], "balanced_accuracy")
    assert found.metric == "balanced_accuracy" and found.verdict == "better" and found.difference > 0
    assert "points of balanced accuracy (95 % interval" in sentence(found, "after", "scratch")
    assert compare_answers([first], [second]) == compare(first.right, second.right)


def test_an_older_report_claims_no_cause_any_more() -> None:
    old = {"difference": 0.1, "ci95": [0.05, 0.15], "p_value": 0.001, "verdict": "helps"}
    assert comparison_from(old).verdict == "better"
    assert comparison_from({**old, "seeds": 5, "design": "seeds x images"}).verdict == "helps"
    assert comparison_from({"difference": "much"}) is None and comparison_from(None) is None


@pytest.mark.parametrize(
    ("p_value", "said"),
    [
        (0.0, "p < 0.0001)"),
        (0.0000999, "p < 0.0001)"),
        (0.0001, "p = 0.0001)"),
        (0.03125, "p = 0.0312)"),
        (0.04999, "p = 0.04999)"),
        (0.0499999, "p = 0.0499999)"),
    ],
)
def test_p_is_never_rounded_onto_the_border(p_value: float, said: str) -> None:
    assert said in sentence(Comparison(0.1, (0.05, 0.15), p_value, "better"), "after", "scratch")


@pytest.mark.parametrize(("p_value", "said"), [(0.05, "p = 0.0500)"), (0.05001, "p = 0.0500)"), (1.0, "p = 1.0000)")])
def test_p_of_the_border_and_above(p_value: float, said: str) -> None:
    assert said in sentence(Comparison(0.0, (-0.1, 0.1), p_value, "no difference shown"), "after", "scratch")


def test_less_is_better_where_it_is_and_is_said_in_its_own_unit() -> None:
    labels, rng = np.zeros(200, dtype=np.int64), np.random.default_rng(0)
    sides = []
    for low in (0.5, 0.8):
        chances = rng.uniform(low, 1, 200)
        sides.append(Answers.of(labels, np.stack([chances, 1 - chances], axis=1)))
    found = compare_answers(sides[:1] * 3, sides[1:] * 3, "log_loss")
    assert found.difference < 0 and found.verdict == "helps"
    assert " log loss (95 % interval 0." in sentence(found, "after", "scratch")
    again = comparison_from(asdict(found))
    assert again == found, "also from a report"
    assert comparison_from({**asdict(found), "metric": "of a later version"}) is None


def test_seeds_that_all_answer_alike_are_still_as_many_seeds() -> None:
    first, second = (answers(right) for right in rights(9000, 500, 190, 310))
    found = compare_answers([first] * 5, [second] * 5)
    assert (found.seeds, found.verdict) == (5, "helps")


def test_two_seeds_that_part_widely_can_show_nothing() -> None:
    first, second = table(2, 500, 200, 200, 100, turned=300)
    found = compare_over_seeds(first, second)
    assert found.detectable is None and "so few seeds show no difference" in sentence(found, "after", "scratch")
