"""Makes strokes into the kind of picture that a data set of handwriting holds.

MNIST's digits were made so (LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist): the ink scaled to fit 20×20
pixels with its shape kept, antialiased, and its centre of mass brought to the centre of 28×28.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError

SIDE = 28  # pixels
MAX_POINTS = 50_000  # of a drawing; a minute of drawing has about 7,000
MAX_COORDINATE = 1e6
_CHUNK = 512  # segments whose distances to all pixels are in memory at once

Stroke: TypeAlias = npt.NDArray[np.float64]  # N×2: x to the right, y down, in any unit


@dataclass(frozen=True)
class InkStyle:
    """How the 28×28 pictures of a data set hold their ink.

    box: the pixels that the longer side of the ink fills. pen: the width of its strokes in pixels. centred: whether the
    centre of mass or of the ink's box is in the middle.
    """

    box: int
    pen: float
    centred: Literal["mass", "box"]


# The medians over each test part: docs/app.md says how they were measured.
MNIST = InkStyle(20, 2.4, "mass")
_KMNIST = InkStyle(28, 2.1, "box")
STYLES = {"kmnist": _KMNIST, "kmnist-sample": _KMNIST}  # by the name of the data set; all others are drawn as MNIST
CENTRE_OF_MASS = 14.0  # of MNIST's pictures, where the first pixel is 0


def ink_style(dataset: str | None) -> InkStyle:
    """How to draw for a network that was trained on this data set."""
    return STYLES.get(dataset or "", MNIST)


def read_strokes(given: object) -> list[Stroke]:
    """The strokes in a page's message, a list of lists of [x, y]. Empty ones are left out. DataError for all else."""
    expected = "expected a drawing, a list of strokes, each a list of [x, y]"
    if not isinstance(given, list) or not all(isinstance(stroke, list) for stroke in given):
        raise DataError(f"{expected}; found {type(given).__name__}")
    if sum(map(len, given)) > MAX_POINTS:
        raise DataError(f"a drawing of more than {MAX_POINTS:,} points; clear it and draw with fewer strokes")
    try:
        strokes = [np.array(stroke, dtype=np.float64) for stroke in given if stroke]
    except (TypeError, ValueError):
        raise DataError(expected) from None
    for stroke in strokes:
        if stroke.ndim != 2 or stroke.shape[1] != 2 or not (np.abs(stroke) <= MAX_COORDINATE).all():
            raise DataError(expected)
    return strokes


def draw(strokes: Sequence[Stroke], style: InkStyle = MNIST) -> npt.NDArray[np.uint8]:
    """Draws strokes as 28×28 grey pixels, ink bright on dark, wherever and however large they were drawn.

    DataError when there is no stroke.
    """
    if not strokes:
        raise DataError("an empty drawing; draw something first")
    points = np.concatenate(strokes)
    low, high = points.min(0), points.max(0)
    room = style.box - style.pen - 1  # between centre lines; the edge of a stroke takes half a pixel more on each side
    longest = float((high - low).max())
    scale = room / longest if longest > 0 else 1.0
    place = (SIDE - 1) / 2 - scale * (low + high) / 2
    placed = [stroke * scale + place for stroke in strokes]
    pixels = _render(placed, style.pen)
    if style.centred == "mass":
        shift = CENTRE_OF_MASS - _centre_of_mass(pixels)
        reach = (SIDE - style.box) / 2  # further, and ink would be cut off
        shift = np.clip(shift, -reach, reach)
        pixels = _render([stroke + shift for stroke in placed], style.pen)
    return np.rint(pixels * 255).astype(np.uint8)


def _render(strokes: Sequence[Stroke], pen: float) -> npt.NDArray[np.float64]:
    """Ink from 0 to 1 of each of 28×28 pixels, by its distance to the nearest stroke; edges are one pixel wide."""
    pixels = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 1, 2)
    starts = np.concatenate([stroke[:-1] if len(stroke) > 1 else stroke for stroke in strokes])
    ends = np.concatenate([stroke[1:] if len(stroke) > 1 else stroke for stroke in strokes])
    nearest = np.full(SIDE * SIDE, math.inf)
    for first in range(0, len(starts), _CHUNK):
        start, along = starts[first : first + _CHUNK], (ends - starts)[first : first + _CHUNK]
        length = np.maximum((along**2).sum(-1), 1e-12)
        share = np.clip(((pixels - start) * along).sum(-1) / length, 0, 1)  # of each segment, up to the nearest point
        distances = np.sqrt(((pixels - start - share[..., None] * along) ** 2).sum(-1))
        nearest = np.minimum(nearest, distances.min(1))
    return np.clip(pen / 2 + 0.5 - nearest, 0, 1).reshape(SIDE, SIDE)


def _centre_of_mass(ink: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where the mean of the ink is: x, y."""
    at = np.arange(SIDE)
    centre: npt.NDArray[np.float64] = np.array([(ink.sum(0) * at).sum(), (ink.sum(1) * at).sum()]) / ink.sum()
    return centre
