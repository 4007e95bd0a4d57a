"""The three verdicts, their borders, and the sentence a person reads."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.report.comparison import Comparison, Score, compare, sentence
from finetune.report.statistics import paired_difference, wilson


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
        (5, 0, "helps"),  # mid-p = 1/32 = 0.03, exact p = 0.06
        (0, 5, "hurts"),
        (4, 0, "no difference shown"),  # mid-p = 1/16 = 0.06
        (0, 4, "no difference shown"),
        (7, 1, "helps"),  # mid-p = 0.039, exact p = 0.070
        (3, 3, "no difference shown"),
        (0, 0, "no difference shown"),
    ],
)
def test_the_verdict_turns_where_the_mid_p_test_does(only_second: int, only_first: int, verdict: str) -> None:
    assert compare(*rights(20, only_second, only_first, 3)).verdict == verdict


def test_a_win_names_its_size_and_its_cause() -> None:
    comparison = compare(*rights(9000, 500, 190, 310))
    gap = "by 3.10 points (95 % interval 2.59 to 3.62, p < 0.0001)"
    assert sentence(comparison, "after", "scratch") == f"after beats scratch {gap}: starting from these weights helps"
    assert sentence(comparison, "after", "before") == f"after beats before {gap}: fine-tuning helps"
    assert sentence(comparison, "after", "linear_probe") == (f"after beats linear probe {gap}: after is better")
    assert sentence(comparison, "new", "old") == f"new beats old {gap}: new is better"


def test_a_loss_is_said_in_points_behind_with_the_interval_turned() -> None:
    comparison = compare(*rights(9000, 190, 500, 310))
    gap = "by 3.10 points (95 % interval 2.59 to 3.62, p < 0.0001)"
    assert sentence(comparison, "after", "scratch") == (
        f"after falls behind scratch {gap}: starting from these weights hurts"
    )
    assert sentence(comparison, "new", "old") == f"new falls behind old {gap}: new is worse"


def test_no_difference_shown_says_what_is_still_possible() -> None:
    comparison = Comparison(0.0012, (-0.003, 0.0054), 0.57, "no difference shown")
    assert sentence(comparison, "after", "scratch") == (
        "no difference shown between after and scratch (+0.12 points, 95 % interval -0.30 to +0.54, p = 0.5700): "
        "after may still be anything from 0.30 points worse to 0.54 points better"
    )


def test_a_difference_of_nothing_has_no_minus_sign() -> None:
    comparison = Comparison(-0.00001, (-0.003, 0.003), 1.0, "no difference shown")
    assert "(+0.00 points," in sentence(comparison, "after", "before")


@pytest.mark.parametrize(("turn", "way"), [(1, "better"), (-1, "worse")])
def test_it_is_said_when_test_and_interval_part(turn: int, way: str) -> None:
    counts = (50, 21, 10, 80) if turn == 1 else (50, 10, 21, 80)
    comparison = compare(*rights(*counts))
    assert min(turn * end for end in comparison.ci95) > 0
    assert comparison.p_value >= 0.05
    assert sentence(comparison, "after", "scratch").endswith(
        f"too close to call, as the interval has after 0.03 to 13.51 points {way} but the test is not below p = 0.05"
    )


@pytest.mark.parametrize(("counts", "beats"), [((9000, 6, 0, 300), "beats"), ((9000, 0, 6, 300), "falls behind")])
def test_it_is_said_when_a_shown_difference_has_zero_in_its_interval(counts: tuple[int, ...], beats: str) -> None:
    comparison = compare(*rights(*counts))
    assert comparison.ci95[0] < 0 < comparison.ci95[1]
    assert sentence(comparison, "after", "scratch") == (
        f"after {beats} scratch by 0.06 points (95 % interval 0.00 to 0.13, p = 0.0156): "
        f"starting from these weights {comparison.verdict}, narrowly: the interval still has 0 in it"
    )


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
    assert said in sentence(Comparison(0.1, (0.05, 0.15), p_value, "helps"), "after", "scratch")


@pytest.mark.parametrize(("p_value", "said"), [(0.05, "p = 0.0500)"), (0.05001, "p = 0.0500)"), (1.0, "p = 1.0000)")])
def test_p_of_the_border_and_above(p_value: float, said: str) -> None:
    assert said in sentence(Comparison(0.0, (-0.1, 0.1), p_value, "no difference shown"), "after", "scratch")
