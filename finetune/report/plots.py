"""Plots: confusion matrices, grids of images, learning curves, forest plots, reliability diagrams."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finetune.io.outputs import Note, replace_file
from finetune.report.confidence import ReliabilityBin
from finetune.report.metrics import BINS, bin_numbers
from finetune.report.statistics import Confusion, wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DOTS = 120  # per inch
MAX_NAME_LEN = 24  # characters of a class name
MAX_COUNTS = 30  # classes; above, the counts would not be readable
MAX_CLASSES = 100  # of a confusion matrix; of more classes those with the most mistakes
SMALLEST = 1.0  # inches an image of a grid is wide, at least
# Colours that colour-blind people can tell apart (Okabe and Ito, 2008): C0 to C3 of figures, C2 for what is faint.
COLOURS = ("#0072b2", "#d55e00", "#9a9a9a", "#009e73")
FOREST_ROW = 0.42  # inches of a line of a forest plot
GAP = 2  # pixels between the images of a grid, at the size the images have


def confusion_picture(
    confusion: Confusion, class_names: Sequence[str], path: str | Path, note: Note = lambda text: None
) -> None:
    """Draws how often each class (row) was taken for each (column) as a PNG at `path`.

    A field's colour is its share of the class's images, its number the images. Of more than MAX_CLASSES classes those
    with the most mistakes are drawn. ValueError unless there is a name for each class, and one at least; OutputError
    when the file cannot be written.
    """
    if not class_names or confusion.classes != len(class_names):
        raise ValueError(f"expected a name for each of {confusion.classes} classes, found {len(class_names)}")
    kept = confusion.most_confused(MAX_CLASSES)
    classes, counts = [class_names[place] for place in kept], confusion.rows(kept)
    shares = counts / np.maximum(confusion.totals()[kept][:, None], 1)
    cell = min(0.8, max(0.17, 8 / len(classes)))  # inches
    figure = new_figure(cell * len(classes), cell * len(classes))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    letters = min(9.0, cell * 72 * 0.75)
    names, numbered = drawable(classes)
    places = range(len(classes))
    axes.set_xticks(places, names, rotation=90, fontsize=letters, parse_math=False)
    axes.set_yticks(places, names, fontsize=letters, parse_math=False)
    axes.set_xlabel("predicted" + (" (#: classes by number, from 0, where the font lacks letters)" if numbered else ""))
    axes.set_ylabel("true")
    title = f"{confusion.right:,} of {confusion.totals().sum():,} right; colour: share of the class's images"
    if len(kept) < len(class_names):
        title += f"\nof {len(class_names):,} classes the {len(kept)} with the most mistakes"
    axes.set_title(title)
    if len(classes) <= MAX_COUNTS:
        for row, column in np.argwhere(counts > 0):
            text = str(counts[row, column])
            size = min(letters, cell * 72 * 1.4 / len(text))
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
    _save(figure, Path(path), note)


def grid_picture(
    images: npt.NDArray[np.uint8], labels: Sequence[str], path: str | Path, note: Note = lambda text: None
) -> None:
    """Draws a row for each image as a PNG at `path`: as the network is judged on it, then as it is trained on it.

    `images` is uint8, N×V×H×W×C with 1 or 3 channels, the first of the V versions the evaluation view; `labels` are the
    N classes. ValueError for other shapes; OutputError when the file cannot be written.
    """
    if images.dtype != np.uint8 or images.ndim != 5 or images.shape[4] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"expected uint8 N×V×H×W×(1 or 3), found {images.dtype} of shape {images.shape}")
    if len(labels) != len(images):
        raise ValueError(f"expected {len(images)} labels, found {len(labels)}")
    count, versions, height, width, _ = images.shape
    sheet = np.full((count * (height + GAP) - GAP, versions * (width + GAP) - GAP, 3), 255, np.uint8)
    for row, column in np.ndindex(count, versions):
        top, left = row * (height + GAP), column * (width + GAP)
        sheet[top : top + height, left : left + width] = images[row, column]
    scale = max(1, math.ceil(SMALLEST * DOTS / width)) / DOTS  # inches a pixel; a whole number of dots
    figure = new_figure(scale * sheet.shape[1], scale * sheet.shape[0])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet, interpolation="nearest")
    middles = [row * (height + GAP) + height / 2 for row in range(count)]
    axes.set_yticks(middles, drawable(labels)[0], parse_math=False)
    titles = ["as judged", *(f"epoch {epoch}" for epoch in range(1, versions))]
    axes.set_xticks([column * (width + GAP) + width / 2 for column in range(versions)], titles)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(figure, Path(path), note)


@dataclass(frozen=True)
class Curve:
    """One learning curve to draw, in fractions: measured at `images`, foretold from the last of them on.

    seeds: for each number of images the accuracies of its trainings. foretold: images, accuracy, lower, upper.
    """

    title: str
    images: Sequence[float]
    means: Sequence[float]
    intervals: Sequence[tuple[float, float]]
    seeds: Sequence[Sequence[float]]
    foretold: Sequence[tuple[float, float, float, float]] = ()


def curve_pictures(curves: Sequence[Curve], title: str, endings: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """Draws accuracy against labelled images a class, by ending."""
    return pictures(lambda: curve_figure(curves, title), endings)


def curve_figure(curves: Sequence[Curve], title: str = "", size: tuple[float, float] = (7, 4.5)) -> Figure:
    """Accuracy against labelled images a class. Bands are 95 % intervals, dots are single trainings, dashes foretold.

    size: width and height in inches.
    """
    figure = new_figure(*size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xscale("log")
    for number, curve in enumerate(curves):
        colour = f"C{number}"
        lower, upper = zip(*curve.intervals, strict=True)
        axes.fill_between(curve.images, _percents(lower), _percents(upper), color=colour, alpha=0.2, linewidth=0)
        axes.plot(curve.images, _percents(curve.means), color=colour, marker="o", markersize=4, label=curve.title)
        for images, each in zip(curve.images, curve.seeds, strict=True):
            axes.plot([images] * len(each), _percents(each), ".", color=colour, alpha=0.35, markersize=4)
        if curve.foretold:
            places, middle, low, high = zip(*curve.foretold, strict=True)
            axes.plot(places, _percents(middle), "--", color=colour)
            axes.fill_between(places, _percents(low), _percents(high), color=colour, alpha=0.1, linewidth=0)
    ticks = sorted({images for curve in curves for images in (*curve.images, *(f[0] for f in curve.foretold))})
    axes.set_xticks(ticks, [f"{tick:,.4g}" if tick < 10_000 else f"{tick:,.0f}" for tick in ticks], rotation=45)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("labelled images a class; dashed: a forecast")
    axes.set_ylabel("accuracy, %")
    axes.set_title(drawable([title])[0][0] if title else "", parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", framealpha=0.5)
    return figure


@dataclass(frozen=True)
class ForestRow:
    """One line of a forest plot, in fractions: a value with its 95 % interval, and those of single trainings."""

    title: str
    value: float
    interval: tuple[float, float]
    trainings: Sequence[float] = ()


def forest_figure(rows: Sequence[ForestRow], axis: str, *, zero: bool = False, width: float = 6) -> Figure:
    """Values with their intervals, a line each, in percent. zero: of differences; a line where there is none."""
    figure = new_figure(width, max(2, len(rows)) * FOREST_ROW)
    axes = figure.add_axes((0, 0, 1, 1))
    places = range(len(rows) - 1, -1, -1)
    for place, row in zip(places, rows, strict=True):
        low, high = (100 * end for end in row.interval)
        colour = "C1" if zero and (low > 0 or high < 0) else "C0"
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot([100 * row.value], [place], "o", color=colour, markersize=6)
        if len(row.trainings) > 1:
            axes.plot(_percents(row.trainings), [place - 0.28] * len(row.trainings), "|", color=colour, markersize=5)
    if zero:
        axes.axvline(0, color="C2", linewidth=1, linestyle="--")
    titles, sign = drawable([row.title for row in rows])[0], "+" if zero else ""
    labels = [f"{title}\n{100 * row.value:{sign}.2f}" for title, row in zip(titles, rows, strict=True)]
    axes.set_yticks(list(places), labels, parse_math=False)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(axis)
    axes.grid(axis="x", alpha=0.3)
    return figure


def reliability_picture(
    sides: Mapping[str, Sequence[ReliabilityBin]], path: str | Path, note: Note = lambda text: None
) -> None:
    """Draws `reliability_figure` as a PNG at `path`; an older one is moved aside. OutputError."""
    content = pictures(lambda: reliability_figure(sides), ["png"])
    replace_file(Path(path), content["png"], note)


def reliability_figure(sides: Mapping[str, Sequence[ReliabilityBin]], width: float = 6) -> Figure:
    """Draws how often answers of a probability are right, with Wilson's 95 % interval, and how many there are.

    sides: the bins of one network's answers, or of two to tell apart, by what they are called. width: in inches.
    """
    figure = new_figure(width, 0.83 * width)
    axes, counts = figure.add_axes((0, 0.3, 1, 0.7)), figure.add_axes((0, 0, 1, 0.2))
    axes.plot([0, 100], [0, 100], "--", color="C2", linewidth=1)
    share = 90 / BINS / max(1, len(sides))  # the width of a bar
    for number, (title, bins) in enumerate(sides.items()):
        colour = f"C{number}"
        for own in bins:
            low, high = wilson(own.right, own.images)
            axes.plot([100 * own.probability] * 2, [100 * low, 100 * high], color=colour, linewidth=2)
            place = (int(bin_numbers(np.array(own.probability))) + 0.5) * 100 / BINS
            left = place + share * (number - len(sides) / 2)
            counts.bar(left, own.images, width=share, align="edge", color=colour if len(sides) > 1 else "C2")
        means, shares = [own.probability for own in bins], [own.right / own.images for own in bins]
        axes.plot(_percents(means), _percents(shares), "o", color=colour, markersize=5, label=title)
    for each in (axes, counts):
        each.set_xlim(0, 100)
        each.grid(alpha=0.25)
    axes.set_ylim(0, 100)
    axes.set_ylabel("right, %")
    axes.set_xticklabels([])
    counts.set_ylabel("images")
    counts.set_xlabel("probability of the answer, %")
    if len(sides) > 1:
        axes.legend(loc="lower right", framealpha=0.5)
    return figure


def _percents(fractions: Sequence[float]) -> list[float]:
    return [100 * fraction for fraction in fractions]


def drawable(names: Sequence[str]) -> tuple[list[str], bool]:
    """The names as the font can draw them, and whether any had to be replaced by '#' and its place, from 0.

    A name is replaced when the font has no letter for a part of it, as DejaVu Sans has none for Chinese.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    letters = get_font(findfont(FontProperties())).get_charmap()
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    found = []
    for name in names:
        drawn = bool(name.strip()) and all(ord(c) in letters and c.isprintable() for c in name)
        short = name if len(name) <= MAX_NAME_LEN else name[: MAX_NAME_LEN - 1] + "…"
        found.append(short if drawn else f"#{places[name]}")
    return found, any(new.startswith("#") and new != old for new, old in zip(found, names, strict=True))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure with a surface of its own, of `width` by `height` inches; what stands outside widens it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS)
    FigureCanvasAgg(figure)
    return figure


def pictures(draw: Callable[[], Figure], endings: Sequence[str]) -> dict[str, bytes]:
    """A figure by ending, png or svg, in colours that can be told apart: the same numbers, the same bytes."""
    from cycler import cycler
    from matplotlib import rc_context

    with rc_context({"axes.prop_cycle": cycler(color=COLOURS)}):
        figure = draw()
        return {ending: encoded(figure, ending) for ending in endings}


def _save(figure: Figure, path: Path, note: Note) -> None:
    """Writes the whole picture or nothing; an older one is moved aside, of which `note` is told."""
    replace_file(path, encoded(figure, "png"), note)


def encoded(figure: Figure, ending: str) -> bytes:
    """The picture as PNG or SVG: the same figure, the same bytes."""
    from matplotlib import rc_context

    content = io.BytesIO()
    metadata = {"Software": None} if ending == "png" else {"Date": None, "Creator": None}
    with rc_context({"svg.hashsalt": "finetune"}):
        figure.savefig(content, format=ending, dpi=DOTS, bbox_inches="tight", metadata=metadata)
    return content.getvalue()
