"""The report of `finetune curve`: the typed form of `NAME.curve.json`, its CSV, tables and sentences."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from finetune.report.comparison import Comparison, Score
from finetune.report.learning_curve import Forecast, LabelWorth
from finetune.report.plots import Curve
from finetune.report.report import (
    Result,
    SourceSummary,
    TargetSummary,
    TestSetUse,
    json_values,
    report_text,
    result_values,
)
from finetune.report.rows import row_of
from finetune.report.tables import test_set_lines

CSV_COLUMNS = ("shots", "images_per_class", "row", "seed", "correct", "total", "accuracy", "lower", "upper")


@dataclass(frozen=True)
class CurvePoint:
    """One number of labelled images a class.

    shots: as it was asked for; None: all there are. images_per_class: the mean over classes, of which some may have
    fewer. labelled: images in all; validation images are held out of them. results: by row, over seeds.
    """

    shots: int | None
    images_per_class: float
    labelled: int
    results: dict[str, Result]
    comparison: Comparison
    worth: LabelWorth

    @property
    def title(self) -> str:
        """As in '50', '50, on average 47.5' where some classes have fewer, or 'all, 800'."""
        if self.shots is None:
            return f"all, {number(self.images_per_class)}"
        fewer = self.images_per_class != self.shots
        return f"{self.shots:,}" + (f", on average {number(self.images_per_class)}" if fewer else "")


@dataclass(frozen=True)
class CurveForecast:
    """What each row would come to with more labels than were measured. available: whether there are as many."""

    images_per_class: float
    available: bool
    rows: dict[str, Forecast]


@dataclass(frozen=True)
class CurveReport:
    """The report of a learning curve; `points` are in the order of their labels.

    target: `train` counts all images there are to learn from. no_difference_from: the fewest images a class from which
    on no measured number shows a difference; None where the most still show one. form: of the forecasts.
    """

    kind: str
    recipe: dict[str, Any]
    seeds: list[int]
    device: str
    environment: dict[str, Any]
    seconds: float
    source: SourceSummary
    target: TargetSummary
    notes: list[str]
    points: list[CurvePoint]
    no_difference_from: float | None
    form: str
    forecasts: list[CurveForecast]
    test_set: TestSetUse | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        found = asdict(self)
        found["source"] = {k: v for k, v in found["source"].items() if not (k in ("path", "id") and v is None)}
        for point, own in zip(self.points, found["points"], strict=True):
            own["results"] = {name: result_values(result) for name, result in point.results.items()}
        return json_values(found)

    def to_json(self) -> str:
        """The text of `NAME.curve.json`."""
        return report_text(self.to_dict())

    def to_csv(self) -> str:
        """The text of `NAME.curve.csv`: a line for each number of labels, row and seed, and one for their mean."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for point in self.points:
            place = ("all" if point.shots is None else point.shots, f"{point.images_per_class:.6g}")
            for name, result in point.results.items():
                for own in result.per_seed or []:
                    writer.writerow((*place, name, own.seed, own.correct, own.total, f"{own.accuracy:.6f}", "", ""))
                score = (result.accuracy, *result.ci95)
                writer.writerow((*place, name, "mean", result.correct, result.total, *(f"{x:.6f}" for x in score)))
        return text.getvalue()


def no_difference_from(points: Sequence[CurvePoint]) -> float | None:
    """The fewest images a class from which on no measured number shows a difference."""
    found = None
    for point in reversed(points):
        if point.comparison.verdict != "no difference shown":
            break
        found = point.images_per_class
    return found


def curve_parts(report: CurveReport) -> list[RenderableType]:
    """What `finetune curve` shows: a table with a line for each number of labels, and what follows from it."""
    target = report.target
    seeds = "1 seed" if len(report.seeds) == 1 else f"{len(report.seeds)} seeds"
    title = f"{target.name}: {len(target.classes)} classes; {target.test:,} to test; {seeds}; accuracy (95 % interval)"
    table = Table(title=title, title_justify="left")
    table.add_column("a class", no_wrap=True)
    rows = list(report.points[0].results)
    for column in (*(row_of(name).title for name in rows), "difference", "worth"):
        table.add_column(column, justify="right", overflow="fold")
    for point in report.points:
        scores = (_score(point.results[name]) for name in rows)
        table.add_row(point.title, *scores, _difference(point.comparison), _worth(point.worth))
    return [table, *map(Text, [*sentences(report), *test_set_lines(report.test_set)])]


def drawn_curves(report: CurveReport) -> list[Curve]:
    """The curves of the rows, as `plots` draws them."""
    last, found = report.points[-1], []
    for row in last.results:
        results = [point.results[row] for point in report.points]
        start = (last.images_per_class, last.results[row].accuracy, *last.results[row].ci95)
        told = [(f.images_per_class, f.rows[row].accuracy, *f.rows[row].ci95) for f in report.forecasts]
        found.append(
            Curve(
                title="from these weights" if row == "after" else row_of(row).title,
                images=[point.images_per_class for point in report.points],
                means=[result.accuracy for result in results],
                intervals=[result.ci95 for result in results],
                seeds=[[own.accuracy for own in result.per_seed or []] for result in results],
                foretold=[start, *told] if told else [],
            )
        )
    return found


def sentences(report: CurveReport) -> list[str]:
    """What the curve says, one plain sentence each."""
    return [worth_sentence(_telling(report.points)), catch_up_sentence(report), *_forecast_sentences(report)]


def _telling(points: Sequence[CurvePoint]) -> CurvePoint:
    """The point that says most of what the weights are worth: with the most labels among those that say it whole."""
    whole = [p for p in points if None not in (p.worth.times, p.worth.lower, p.worth.upper)]
    told = [p for p in points if p.worth.times is not None]
    return (whole or told or [points[0]])[-1]


def worth_sentence(point: CurvePoint) -> str:
    """As in 'with 50 a class, these weights are worth 2.4 (1.9 to 3.1) times as many labels'."""
    worth = point.worth
    start = f"with {number(point.images_per_class)} a class, these weights are worth"
    lower = f"less than {_times(worth.measured[0])}" if worth.lower is None else _times(worth.lower)
    upper = f"more than {_times(worth.measured[1])}" if worth.upper is None else _times(worth.upper)
    between = f"({lower} to {upper})"
    if worth.times is not None:
        taken = "from scratch it takes that many to get as far"
        return f"{start} {_times(worth.times)} {between} times as many labels: {taken}"
    if not worth.reached:
        most = number(worth.measured[1] * point.images_per_class)
        sure = worth.lower is not None and worth.lower >= worth.measured[1]
        ends = "" if sure else f" (95 % interval from {lower} on)"
        reached = f"from scratch {most} a class, the most measured, do not get as far"
        return f"{start} more than {_times(worth.measured[1])} times as many labels{ends}: {reached}"
    fewest = number(worth.measured[0] * point.images_per_class)
    return f"{start} less than {_times(worth.measured[0])} times as many labels: {fewest} from scratch get farther"


def catch_up_sentence(report: CurveReport) -> str:
    """From where on no difference is shown, or that there is one still."""
    last, start = report.points[-1], report.no_difference_from
    if start is not None:
        many = (
            "with any number measured"
            if start == report.points[0].images_per_class
            else f"from {number(start)} a class on"
        )
        low, high = (_points(end) for end in last.comparison.ci95)
        return (
            f"no difference to scratch shown {many}; with {number(last.images_per_class)} a class it may still be "
            f"anything from {low} to {high} points"
        )
    most = number(last.images_per_class)
    if last.comparison.difference < 0:
        return (
            f"with {most} a class, the most measured, scratch is ahead by {_points(-last.comparison.difference)} points"
        )
    return (
        f"within what was measured scratch does not catch up: with {most} a class it is still "
        f"{_points(last.comparison.difference)} points behind"
    )


def _forecast_sentences(report: CurveReport) -> list[str]:
    found = []
    for each in report.forecasts:
        rows = " and ".join(
            f"{row_of(name).title} {100 * row.accuracy:.1f} % ({100 * row.ci95[0]:.1f} to {100 * row.ci95[1]:.1f})"
            for name, row in each.rows.items()
        )
        there = "which there are" if each.available else "more than there are"
        found.append(f"forecast for {number(each.images_per_class)} a class, {there}: {rows}")
    if not found:
        found.append("no forecast of what more labels would bring: that takes three numbers of labels or more")
    return found


def number(images: float) -> str:
    """As in '50' or '1,234.5'."""
    return f"{images:,.0f}" if float(images).is_integer() else f"{images:,.1f}"


def _times(times: float) -> str:
    return f"{times:.1f}" if times >= 0.95 else f"{times:.2f}"


def _worth(worth: LabelWorth) -> str:
    """As in '2.4 (1.9 to 3.1)'; '> 4.0' where more than can be told."""
    low, high = (f"< {_times(worth.measured[0])}", f"> {_times(worth.measured[1])}")
    ends = (low if worth.lower is None else _times(worth.lower), high if worth.upper is None else _times(worth.upper))
    middle = (low if worth.reached else high) if worth.times is None else _times(worth.times)
    return f"{middle} ({ends[0]} to {ends[1]})"


def _score(score: Score) -> str:
    """As in '91.5 % (90.1 to 92.8)'; one decimal, as four columns have to stand beside each other."""
    return f"{100 * score.accuracy:.1f} % ({100 * score.ci95[0]:.1f} to {100 * score.ci95[1]:.1f})"


def _difference(comparison: Comparison) -> str:
    shown = [f"{round(100 * x, 1) + 0.0:+.1f}" for x in (comparison.difference, *comparison.ci95)]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def _points(fraction: float) -> str:
    return f"{round(100 * fraction, 2) + 0.0:.2f}"
