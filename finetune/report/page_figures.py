"""Figures of the HTML report: SVG that takes its colours from the page, the same bytes for the same numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

from finetune.report.plots import drawable, encoded, new_figure
from finetune.report.report import Interpolation, PhaseSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 4.6  # inches; a telephone shows a point of them as a pixel
MAX_STAGES = 24  # rows of the plot of what trained when
# Colours that no figure uses, and the page's own in their place, for a light and a dark ground.
PAGE_COLOURS = {
    "#010203": "currentColor",
    "#010204": "var(--blue)",
    "#010205": "var(--orange)",
    "#010206": "var(--faint)",
    "#010207": "var(--green)",
}


def page_svg(name: str, draw: Callable[[], Figure]) -> str:
    """The figure that `draw` makes as an SVG element for a page. Its ids begin with `name`, letters and hyphens."""
    from cycler import cycler
    from matplotlib import rc_context

    ink, *colours = PAGE_COLOURS
    style: dict[str, Any] = {"axes.prop_cycle": cycler(color=colours), "grid.color": colours[2], "font.size": 9}
    for own in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"):
        style[own] = ink
    for own in ("figure.facecolor", "savefig.facecolor", "axes.facecolor", "legend.facecolor"):
        style[own] = "none"
    with rc_context(cast(Any, {**style, "svg.fonttype": "none"})):
        text = encoded(draw(), "svg").decode()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"(font: [\d.]+px) [^;\"]+", r"\1 system-ui, sans-serif", text)
    for colour, own in PAGE_COLOURS.items():
        text = text.replace(colour, own)
    opening = text[: text.index(">")]
    return re.sub(r' (width|height|version)="[^"]*"', "", opening) + ' aria-hidden="true"' + text[len(opening) :]


def history(trainings: Sequence[Sequence[PhaseSummary]]) -> Figure:
    """Draws loss and validation accuracy over the epochs of each training, phase after phase."""
    figure = new_figure(WIDTH, 3.6)
    loss, accuracy = figure.add_axes((0, 0.54, 1, 0.46)), figure.add_axes((0, 0, 1, 0.46))
    for phases in trainings:
        for phase, start in zip(phases, _starts(phases), strict=True):
            places = [start + row.epoch for row in phase.epochs]
            alpha = 1 if len(trainings) == 1 else 0.6
            loss.plot(places, [row.train_loss for row in phase.epochs], ".-", color="C0", alpha=alpha, markersize=3)
            pairs = [(x, row.validation_accuracy) for x, row in zip(places, phase.epochs, strict=True)]
            known = [(x, 100 * value) for x, value in pairs if value is not None]
            if known:
                accuracy.plot(*zip(*known, strict=True), ".-", color="C1", alpha=alpha, markersize=3)
    first = trainings[0]
    for axes in (loss, accuracy):
        for start in _starts(first)[1:]:
            axes.axvline(start, color="C2", linewidth=1)
        axes.grid(alpha=0.25)
    loss.set_ylabel("training loss")
    loss.set_xticklabels([])
    accuracy.set_ylabel("validation\naccuracy, %")
    accuracy.set_xlabel("epochs, phase after phase")
    return figure


def schedule(phases: Sequence[PhaseSummary]) -> Figure:
    """Draws which stages trained over the epochs, and the highest learning rate."""
    stages = list(dict.fromkeys(stage for phase in reversed(phases) for stage in phase.trains))[:MAX_STAGES]
    height = max(0.6, 0.22 * len(stages))
    figure = new_figure(WIDTH, height + 1.5)
    share = height / (height + 1.5)
    bars, rates = figure.add_axes((0, 1 - share, 1, share)), figure.add_axes((0, 0, 1, 0.9 - share))
    for phase, start, end in zip(phases, _starts(phases), _ends(phases), strict=True):
        for place, stage in enumerate(reversed(stages)):
            trains = stage in phase.trains
            colour = "C0" if trains else "C2"
            bars.barh(place, end - start, left=start, height=0.7, color=colour, alpha=1 if trains else 0.5, linewidth=0)
        places = [start + row.epoch for row in phase.epochs]
        rates.plot(places, [row.learning_rate for row in phase.epochs], ".-", color="C1", markersize=3)
    bars.set_yticks(range(len(stages)), drawable(list(reversed(stages)))[0], parse_math=False)
    bars.set_xticks([])
    bars.set_xlim(0, _ends(phases)[-1] or 1)
    rates.set_xlim(0, _ends(phases)[-1] or 1)
    if any(row.learning_rate > 0 for phase in phases for row in phase.epochs):
        rates.set_yscale("log")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("epochs, phase after phase")
    rates.grid(alpha=0.25)
    return figure


def frontier(found: Interpolation) -> Figure:
    """Draws accuracy on the target against that on the source's task, of every mix of source and fine-tuned weights.

    Against the mixes' weights where the source's images are not at hand. The chosen mix is orange.
    """
    figure = new_figure(WIDTH, 3)
    axes = figure.add_axes((0, 0, 1, 1))
    known = found.source_before is not None
    places = [
        point.weight if point.source_accuracy is None else 100 * point.source_accuracy for point in found.frontier
    ]
    heights = [100 * point.accuracy for point in found.frontier]
    axes.plot(places, heights, ".-", color="C0", markersize=5)
    for point, x, y in zip(found.frontier, places, heights, strict=True):
        if point.weight == found.weight:
            axes.plot([x], [y], "o", color="C1", markersize=8)
        if known and point.weight in (0, found.weight, 1):
            axes.annotate(f"{point.weight:g}", (x, y), xytext=(4, 4), textcoords="offset points")
    if known and found.retain is not None and found.source_before is not None:
        axes.axvline(100 * found.retain * found.source_before, color="C2", linewidth=1, linestyle="--")
    axes.set_xlabel("accuracy on the source's task, %" if known else "share of the fine-tuned weights")
    axes.set_ylabel("on the target, %")
    axes.grid(alpha=0.25)
    return figure


def _starts(phases: Sequence[PhaseSummary]) -> list[int]:
    return [0, *_ends(phases)[:-1]]


def _ends(phases: Sequence[PhaseSummary]) -> list[int]:
    """How many epochs have passed at the end of each phase."""
    return list(accumulate(max((row.epoch for row in phase.epochs), default=0) for phase in phases))
