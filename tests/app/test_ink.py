"""Strokes become MNIST's kind of picture wherever, however large and with whatever pen they were drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from digit_strokes import DIGITS
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.app.ink import MAX_POINTS, MNIST, STYLES, InkStyle, draw, ink_style, read_strokes
from finetune.errors import DataError


def strokes(digit: str, size: float = 1.0, at: tuple[float, float] = (0.0, 0.0)) -> list[np.ndarray]:
    return [np.array(stroke) * size + at for stroke in DIGITS[digit]]


def box(pixels: np.ndarray) -> tuple[int, int]:
    """Width and height of what has any ink."""
    inked = np.nonzero(pixels)
    return int(np.ptp(inked[1])) + 1, int(np.ptp(inked[0])) + 1


def centre(pixels: np.ndarray) -> np.ndarray:
    y, x = np.indices(pixels.shape)
    return np.array([(x * pixels.astype(float)).sum(), (y * pixels.astype(float)).sum()]) / pixels.sum()


@pytest.mark.parametrize("digit", DIGITS)
def test_a_digit_has_the_box_centre_and_edges_of_mnists(digit: str) -> None:
    pixels = draw(strokes(digit))
    assert pixels.shape == (28, 28) and pixels.dtype == np.uint8
    assert 19 <= max(box(pixels)) <= 20
    assert np.abs(centre(pixels) - 14).max() < 0.1
    assert pixels.max() == 255 and ((pixels > 0) & (pixels < 255)).sum() > 10  # bright ink, antialiased


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(DIGITS)),
    st.floats(0.05, 2000),
    st.tuples(st.floats(-5000, 5000), st.floats(-5000, 5000)),
)
def test_place_and_size_of_the_drawing_do_not_matter(digit: str, size: float, at: tuple[float, float]) -> None:
    there, here = draw(strokes(digit, size, at)).astype(int), draw(strokes(digit)).astype(int)
    assert np.abs(there - here).max() <= 1  # by rounding


def test_more_points_on_the_same_line_and_its_direction_do_not_matter() -> None:
    few = np.array([[0.0, 0.0], [10.0, 40.0]])
    many = few[0] + np.linspace(0, 1, 1200)[:, None] * (few[1] - few[0])
    assert np.abs(draw([few]).astype(int) - draw([many[::-1]]).astype(int)).max() <= 1


def test_its_shape_is_kept() -> None:
    flat = draw([np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 25.0], [0.0, 25.0], [0.0, 0.0]])])
    width, height = box(flat)  # 16.6 pixels and a quarter of it between centre lines, and the pen's width on both
    assert (width, height) == (pytest.approx(20, abs=1), pytest.approx(7.5, abs=1))


@pytest.mark.parametrize("style", [MNIST, STYLES["kmnist"]])
def test_strokes_are_as_wide_as_the_data_sets(style: InkStyle) -> None:
    upright = draw([np.array([[0.0, 0.0], [0.0, 50.0]])], style)
    assert upright[14].sum() / 255 == pytest.approx(style.pen, abs=0.01)


def test_a_set_that_fills_its_pictures_is_drawn_so() -> None:
    assert ink_style("kmnist") == ink_style("kmnist-sample") != ink_style("mnist") == ink_style(None)
    pixels = draw(strokes("7"), ink_style("kmnist"))
    assert 27 <= max(box(pixels)) <= 28


def test_lopsided_ink_is_not_cut_off() -> None:
    club = [np.array([[0.0, 0.0], [100.0, 0.0]]), *(np.array([[0.0, y], [16.0, y]]) for y in np.linspace(-50, 50, 30))]
    pixels = draw(club)
    assert box(pixels)[0] >= 19 and np.abs(centre(pixels) - 14).max() > 0.5


def test_a_dot_is_a_dot_in_the_middle() -> None:
    pixels = draw([np.array([[3.0, 4.0]])])
    assert max(box(pixels)) <= 4 and np.abs(centre(pixels) - 14).max() < 0.05


def test_nothing_drawn_is_no_picture() -> None:
    assert read_strokes([]) == [] and read_strokes([[], []]) == []
    with pytest.raises(DataError, match="empty drawing"):
        draw([])


def test_a_page_sends_lists() -> None:
    (stroke,) = read_strokes(json.loads("[[[1, 2.5], [3, 4]], []]"))
    assert stroke.tolist() == [[1, 2.5], [3, 4]]


@pytest.mark.parametrize(
    "sent",
    [
        *(None, 3, "ink", {"a": 1}, [3], ["ink"], [[3]], [[[1, 2, 3]]], [[[1], [2, 3]]], [[["a", "b"]]], [[[None, 1]]]),
        *([[[float("nan"), 1]]], [[[1e300, 1]]], [[[[1, 2]]]]),
    ],
)
def test_what_is_no_drawing_is_refused(sent: object) -> None:
    with pytest.raises(DataError, match=r"expected a drawing, a list of strokes, each a list of \[x, y\]"):
        read_strokes(sent)


def test_a_drawing_of_too_many_points_is_refused() -> None:
    assert len(draw(read_strokes([[[i % 97, i % 89] for i in range(MAX_POINTS // 25)]]))) == 28
    with pytest.raises(DataError, match="more than 50,000 points"):
        read_strokes([[[1, 2]] * (MAX_POINTS + 1)])
