"""The HTML page of a report: one file without scripts or addresses, the same bytes for the same report.

A page is a list of sections, and a section a list of parts: lines of text, tables, figures, pictures. Each kind of
report has one function that lists its sections; `templates/page.html` draws them. All text of a report is data, which
the template escapes.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from finetune.io.sanitize import printable, printable_lines
from finetune.report.check_report import KINDS, check_parts
from finetune.report.confidence import ConfidenceSummary, ReliabilityBin, confidence_lines, reliability_bins
from finetune.report.curve_report import CurveReport, curve_parts, drawn_curves
from finetune.report.metrics import PLAIN
from finetune.report.page_figures import WIDTH, frontier, history, page_svg, schedule
from finetune.report.plots import ForestRow, curve_figure, forest_figure, reliability_figure
from finetune.report.predictions import Predictions
from finetune.report.ranking import RankReport, rank_forest, rank_parts
from finetune.report.report import Interpolation, Report, Result
from finetune.report.rows import row_of
from finetune.report.statistics import Confusion, wilson
from finetune.report.tables import (
    CALIBRATION,
    confidence_parts,
    confusion_lines,
    interpolation_parts,
    mapping_lines,
    metrics_table,
    percent,
    report_tables,
    verdict_lines,
    where_parts,
)

MAX_CLASSES = 20  # of a confusion matrix; of more classes those with the most mistakes
MAX_ROWS, MAX_FOLDED = 40, 1_000  # of a table: more than the first are folded, more than the second left out
MAX_TEXT = 4_000  # characters of a cell or sentence, which anybody may have written
FINDING_KEYS = ("image", "part", "label", "twin", "twin_label", "likelier")  # of what `check` found, in its table
MAX_PICTURES = 12  # of the most sure and wrong
RELIABILITY = "How often answers of a probability are right; on the dashed line they are right as often as they say."


@dataclass(frozen=True)
class Lines:
    """Sentences, a paragraph each; `lead` ones are what the page is about."""

    lines: Sequence[str]
    lead: bool = False
    kind: str = "lines"


@dataclass(frozen=True)
class Table:
    """A table of text; rows from MAX_ROWS on are folded, from MAX_FOLDED on left out.

    numbers: columns that are set to the right.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    kind: str = "table"

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        return self.rows[:MAX_ROWS]

    @property
    def folded(self) -> Sequence[Sequence[str]]:
        return self.rows[MAX_ROWS:MAX_FOLDED]

    @property
    def left_out(self) -> int:
        return max(0, len(self.rows) - MAX_FOLDED)


@dataclass(frozen=True)
class Figure:
    """A figure: an SVG element, what it shows in words, and a caption."""

    svg: str
    alt: str
    caption: str = ""
    kind: str = "figure"


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: counts by true class (row) and the class that was named, with each row's shares."""

    classes: Sequence[str]
    counts: Sequence[Sequence[int]]
    caption: str
    kind: str = "matrix"

    @property
    def shares(self) -> list[list[int]]:
        """Each count as a percentage of its row."""
        return [[round(100 * count / max(sum(row), 1)) for count in row] for row in self.counts]


@dataclass(frozen=True)
class Picture:
    """A picture of a gallery, and one of what the answer hangs on where there is one: files, PNG or JPEG."""

    file: bytes
    heatmap: bytes | None = None

    @staticmethod
    def address(file: bytes) -> str:
        """The picture within the page."""
        kind = "png" if file.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


@dataclass(frozen=True)
class Shown:
    """A picture with its caption, and its twin where it is about two; None where they are not to be had."""

    name: str
    caption: str
    picture: Picture | None
    twin: Picture | None = None


@dataclass(frozen=True)
class Gallery:
    """Pictures beside each other."""

    pictures: Sequence[Shown]
    kind: str = "gallery"


@dataclass(frozen=True)
class Folded:
    """Text that is shown when it is asked for."""

    title: str
    text: str
    kind: str = "folded"


Part = Lines | Table | Figure | Matrix | Gallery | Folded


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """As in `most-sure-and-wrong`."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Material:
    """What a page shows beside the report itself.

    predictions: answers image by image. pictures: by the names of images. notes: why some of this is missing.
    sha256: of files, by their names.
    """

    predictions: Predictions | None = None
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    notes: Sequence[str] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)


def _safe_text(text: object) -> str:
    """Text as the page shows it: what cannot be shown replaced, and cut to MAX_TEXT characters."""
    shown = printable(text)
    return shown if len(shown) <= MAX_TEXT else f"{shown[: MAX_TEXT - 1]}…"


def render(title: str, sections: Sequence[Section]) -> str:
    """The HTML of a page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("finetune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(safe_text=_safe_text, safe_lines=printable_lines)
    kept = [section for section in sections if section.parts]
    return environment.get_template("page.html").render(title=title, sections=kept)


# --- the pages of each kind of report


def report_page(report: Report, material: Material) -> str:
    """The page of a training, or of several with other seeds or folds."""
    table, *lines = report_tables(replace(report, where=None))
    told = [line.plain for line in lines if isinstance(line, Text)]
    elsewhere = {*confidence_lines(report.confidence)}
    row = report.own_row or ""
    own = report.results.get(row)
    lead = verdict_lines(report)[:2] or [_accuracy_line(report, own)]
    kinds = {"pretrain": "training from scratch of", "adapt": "fine-tuning on"}
    title = f"{kinds.get(report.kind, report.kind)} {report.target.name}"
    sections = [
        Section("Verdict", [Lines(lead, lead=True), Lines([line for line in told if line not in {*lead, *elsewhere}])]),
        Section("Results", [*_forests(report), *html_parts([table])]),
        Section("Interpolated weights", _interpolation_parts(report.interpolation)),
        Section("Classes", _class_parts(report, own)),
        Section("Confidence", _confidence_parts(report.confidence, own, material.predictions, row)),
        Section("Most sure and wrong", _mistake_parts(material, row)),
        Section("Stages", html_parts(where_parts(report))),
        Section("Training", _training_parts(report)),
        Section("Data", [Lines([*report.target.notes, *_count_lines(report), *material.notes])]),
        Section("Provenance", _provenance(report, material)),
    ]
    return render(title, sections)


def curve_page(report: CurveReport) -> str:
    """The page of a learning curve."""
    table, *lines = curve_parts(report)
    told = [line.plain for line in lines if isinstance(line, Text)]
    svg = page_svg("curve", lambda: curve_figure(drawn_curves(report), size=(WIDTH, 3.4)))
    alt = f"Accuracy against labelled images a class, from these weights and from scratch, on {report.target.name}"
    sections = [
        Section("Verdict", [Lines(told[:2], lead=True), Lines(told[2:])]),
        Section("Curve", [Figure(svg, alt, "Bands are 95 % intervals, dots single trainings."), *html_parts([table])]),
        Section("Data", [Lines([*report.target.notes, *report.notes])]),
        Section("Provenance", [*_made_with(report.environment, report.seeds, report.recipe)]),
    ]
    return render(f"how many labels these weights are worth on {report.target.name}", sections)


def rank_page(report: RankReport) -> str:
    """The page of a ranking of sources."""
    table, *lines = rank_parts(report)
    told = [line.plain for line in lines if isinstance(line, Text)]
    rows = rank_forest(report)
    svg = page_svg("rank", lambda: forest_figure(rows, "accuracy after fine-tuning, %", width=WIDTH))
    alt = "Accuracy after fine-tuning with its 95 % interval: " + _alt(rows)
    sections = [
        Section("Verdict", [Lines([report.conclusion], lead=True), Lines(told[:-1])]),
        Section(
            "Sources", [*([Figure(svg, alt, "Ticks are single trainings.")] if rows else []), *html_parts([table])]
        ),
        Section("Data", [Lines([*report.target.notes, *report.notes])]),
        Section("Provenance", [*_made_with(report.environment, report.seeds, report.recipe)]),
    ]
    return render(f"which weights to take for {report.target.name}", sections)


def check_page(found: Mapping[str, Any], material: Material) -> str:
    """The page of `finetune check`, from its JSON values."""
    head, *_ = check_parts({**found, "findings": []})
    assert isinstance(head, Text)
    kinds = [f"{_kind(finding)}: {finding['says']}" for finding in found["findings"]]
    sections = [Section("Found", [Lines([head.plain], lead=True), Lines(kinds or ["nothing found"])])]
    for finding in found["findings"]:
        if finding["pictures"]:
            parts: list[Part] = [Lines([finding["says"]]), *_finding_parts(finding, material)]
            sections.append(Section(_kind(finding).capitalize(), parts))
    counts = [[name, f"{count:,}"] for name, count in found["classes"].items()]
    sections.append(Section("Classes", [Table("", ["class", "images"], counts, [1])]))
    sections.append(Section("How", [Lines([f"labels were compared by {found['features']}", *material.notes])]))
    return render(f"check of {found['data']}", sections)


def evaluation_page(
    found: Mapping[str, Any],
    lines: Sequence[str],
    result: Result,
    confidence: ConfidenceSummary | None,
    material: Material,
) -> str:
    """The page of `finetune evaluate`, from its JSON values and the lines that the command shows."""
    elsewhere = {*confidence_lines(confidence)}
    lines = [line for line in lines if line not in elsewhere]
    rows = [ForestRow("accuracy", result.accuracy, result.ci95)]
    row = material.predictions.rows[0] if material.predictions is not None else ""
    sections = [
        Section(
            "Result", [Lines(lines[:1], lead=True), Lines(lines[1:]), _forest_part("accuracy", rows, "accuracy, %")]
        ),
        Section("Classes", _result_parts(result, found["classes"])),
        Section("Confidence", _confidence_parts(confidence, result, material.predictions, row)),
        Section("Most sure and wrong", _mistake_parts(material, row)),
        Section("Provenance", [Lines([f"{name}: sha256 {digest}" for name, digest in material.sha256.items()])]),
        Section("Data", [Lines(material.notes)] if material.notes else []),
    ]
    return render(f"{found['checkpoint']} on {found['data']}", sections)


# --- their sections


def html_parts(parts: Sequence[RenderableType]) -> list[Part]:
    """What a command shows on a terminal, as parts of a page."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, RichTable):
            columns = [str(column.header) for column in part.columns]
            rows = list(zip(*([str(cell) for cell in column.cells] for column in part.columns), strict=True))
            numbers = [place for place, column in enumerate(part.columns) if column.justify == "right"]
            found.append(Table(str(part.title or ""), columns, rows, numbers))
        elif isinstance(part, Text):
            found.append(Lines([part.plain]))
    return found


def _accuracy_line(report: Report, own: Result | None) -> str:
    if own is None:
        return f"{report.target.name}: no result"
    low, high = (100 * end for end in own.ci95)
    return (
        f"{percent(own.accuracy)} of {report.target.test:,} test images are named rightly (95 % interval {low:.2f} to "
        f"{high:.2f})"
    )


def report_forest(report: Report) -> list[ForestRow]:
    """The rows of the verdict, as a forest plot draws them."""
    return [
        ForestRow(row_of(name).title, result.accuracy, result.ci95, _each(result))
        for name, result in report.results.items()
        if result is not None
    ]


def _forests(report: Report) -> list[Part]:
    """Rows of the verdict, and what comparing them shows, with intervals."""
    rows = report_forest(report)
    parts = [_forest_part("rows", rows, "accuracy, %")] if rows else []
    several = any(row.trainings for row in rows)
    by_metric: dict[str, list[ForestRow]] = {}
    for name, found in report.comparisons.items():
        if found is not None:
            of, _, against = name.partition("_vs_")
            title = f"{row_of(of).title} − {row_of(against).title}"
            by_metric.setdefault(found.metric, []).append(ForestRow(title, found.difference, found.ci95))
    for metric, own in by_metric.items():
        axis = f"difference of {metric.replace('_', ' ')}, " + ("× 100" if metric in PLAIN else "points")
        parts.append(_forest_part(f"differences-{metric.replace('_', '-')}", own, axis, zero=True))
    if several and parts:
        parts.append(Lines(["Bars are 95 % intervals, small ticks single trainings; orange: a difference is shown."]))
    elif parts:
        parts.append(Lines(["Bars are 95 % intervals; orange: a difference is shown."]))
    return parts


def _forest_part(name: str, rows: Sequence[ForestRow], axis: str, *, zero: bool = False) -> Part:
    svg = page_svg(f"forest-{name}", lambda: forest_figure(rows, axis, zero=zero, width=WIDTH * 0.72))
    return Figure(svg, f"{axis}, with 95 % intervals: {_alt(rows)}")


def _alt(rows: Sequence[ForestRow]) -> str:
    """The numbers of a forest plot in words."""
    return "; ".join(
        f"{row.title} {100 * row.value:.2f} ({100 * row.interval[0]:.2f} to {100 * row.interval[1]:.2f})"
        for row in rows
    )


def _each(result: Result) -> list[float]:
    return [own.accuracy for own in result.per_fold or result.per_seed or []]


def _interpolation_parts(found: Interpolation | None) -> list[Part]:
    """The mixes of source and fine-tuned weights: what each is worth on the target, and keeps of the source's task."""
    if found is None:
        return []
    svg = page_svg("frontier", partial(frontier, found))
    alt = "Mixes of source and fine-tuned weights by the share of the latter: " + "; ".join(
        f"{point.weight:g}: {percent(point.accuracy)} on the target"
        + ("" if point.source_accuracy is None else f", {percent(point.source_accuracy)} on the source's task")
        for point in found.frontier
    )
    caption = "Each point is a mix, orange the one that was chosen; numbers are shares of the fine-tuned weights."
    if found.retain is not None and found.source_before is not None:
        caption += f" Dashed: {percent(found.retain)} of the source's accuracy."
    *_, table = interpolation_parts(found)
    return [Figure(svg, alt, caption), *html_parts([table])]


def _class_parts(report: Report, own: Result | None) -> list[Part]:
    several = " (all trainings together)" if len(report.seeds) > 1 and report.folds is None else ""
    return [] if own is None else _result_parts(own, report.target.classes, several, max(1, len(report.seeds)))


def _result_parts(result: Result, classes: Sequence[str], several: str = "", trainings: int = 1) -> list[Part]:
    """Metrics, each class's accuracy, the confusion matrix and the most frequent mistakes."""
    parts: list[Part] = html_parts([metrics_table(result.metrics)]) if result.metrics else []
    if result.per_class:
        parts.append(_class_table(result.per_class, several, trainings))
    if result.confusion is not None and result.confusion.classes:
        parts += [_matrix(result.confusion, classes), Lines(confusion_lines(result.confusion, classes))]
    return parts


def _class_table(per_class: Mapping[str, Mapping[str, Any]], several: str, trainings: int) -> Table:
    """Each class's accuracy, worst first; intervals (Wilson) are over images, of which each counts once."""
    rows = []
    scores = [(name, int(own["correct"]), int(own["total"])) for name, own in per_class.items() if own["total"]]
    for name, correct, total in sorted(scores, key=lambda own: own[1] / own[2]):
        low, high = wilson(round(correct / trainings), max(1, round(total / trainings)))
        rows.append(
            [name, f"{correct:,}", f"{total:,}", percent(correct / total), f"{100 * low:.2f} to {100 * high:.2f}"]
        )
    columns = ["class", "right", "total", "accuracy", "95 % interval over images"]
    return Table(f"per class, worst first{several}", columns, rows, [1, 2, 3, 4])


def _matrix(confusion: Confusion, classes: Sequence[str]) -> Part:
    kept = confusion.most_confused(MAX_CLASSES)
    caption = "A row is a true class, a column what it was taken for; colour: the share of the row."
    if len(kept) < len(classes):
        caption += f" Of {len(classes):,} classes the {len(kept)} with the most mistakes."
    return Matrix([classes[place] for place in kept], confusion.rows(kept).tolist(), caption)


def _confidence_parts(
    found: ConfidenceSummary | None, result: Result | None, predictions: Predictions | None, row: str
) -> list[Part]:
    """How often answers of a probability are right, and what the checkpoint records of that."""
    parts = html_parts(confidence_parts(found))
    if found is not None and found.bins_before and found.bins_after:
        sides = dict(zip(CALIBRATION, (found.bins_before, found.bins_after), strict=True))
        return [_reliability_part(sides, RELIABILITY), *parts]
    if predictions is None or row not in predictions.rows:
        return parts
    seed = predictions.seeds(row)[0]
    column = predictions.columns[(row, seed)]
    if column.probability is None:
        return parts
    caption, error = RELIABILITY, (result.metrics or {}).get("calibration_error") if result is not None else None
    if error is not None and error.value is not None:
        caption += f" Calibration error: {percent(error.value)}."
    if seed is not None and len(predictions.seeds(row)) > 1:
        caption += f" Of seed {seed}."
    bins = reliability_bins(column.probability, column.predicted == predictions.labels)
    return [_reliability_part({CALIBRATION[0]: bins}, caption), *parts]


def _reliability_part(sides: Mapping[str, Sequence[ReliabilityBin]], caption: str) -> Part:
    svg = page_svg("reliability", partial(reliability_figure, sides, WIDTH))
    told = []
    for title, bins in sides.items():
        images, right = (sum(getattr(own, name) for own in bins) for name in ("images", "right"))
        mean = sum(own.probability * own.images for own in bins) / images
        told.append(
            f"{title}: answers have a mean probability of {percent(mean)}, and {percent(right / images)} are right"
        )
    return Figure(svg, f"Reliability diagram: {'; '.join(told)}", caption)


def sure_and_wrong(predictions: Predictions, row: str) -> list[int]:
    """The images whose wrong answers are the most probable, by index; of the first seed of a row."""
    if row not in predictions.rows:
        return []
    column = predictions.columns[(row, predictions.seeds(row)[0])]
    if column.probability is None:
        return []
    wrong = np.flatnonzero(column.predicted != predictions.labels)
    order = np.argsort(-column.probability[wrong], kind="stable")
    found: list[int] = wrong[order[:MAX_PICTURES]].tolist()
    return found


def _without_folder(path: str) -> str:
    """An absolute path's last name, since a page is passed on; any other path as it is."""
    return PurePath(path).name if PurePath(path).is_absolute() else path


def _mistake_parts(material: Material, row: str) -> list[Part]:
    predictions = material.predictions
    if predictions is None:
        return []
    shown = []
    chosen = sure_and_wrong(predictions, row)
    for index in chosen:
        column = predictions.columns[(row, predictions.seeds(row)[0])]
        assert column.probability is not None
        named, true = (predictions.class_names[int(x[index])] for x in (column.predicted, predictions.labels))
        name = predictions.images[index]
        caption = f"{named} {percent(float(column.probability[index]))}; is {true}"
        shown.append(Shown(_without_folder(name), caption, material.pictures.get(name)))
    if not shown:
        return [Lines(["no answer is wrong, or probabilities are not known"])]
    heat = any(own.picture is not None and own.picture.heatmap is not None for own in shown)
    line = "Second pictures show what the answer hangs on most (brighter: more)." if heat else ""
    return [Gallery(shown), *([Lines([line])] if line else [])]


def _kind(finding: Mapping[str, Any]) -> str:
    """What a finding is called; one that is not known here (of a later version) by its key."""
    kind: str = finding["kind"]
    return KINDS.get(kind, kind.replace("_", " "))


def _finding_parts(finding: Mapping[str, Any], material: Material) -> list[Part]:
    """The pictures of something that `check` found, worst first."""
    shown = []
    for picture in finding["pictures"][:MAX_PICTURES]:
        name, twin = str(picture["image"]), picture.get("twin")
        caption = str(picture.get("label", ""))
        caption += f" and {picture['twin_label']}" if "twin_label" in picture else ""
        caption += f"; more like {picture['likelier']}" if "likelier" in picture else ""
        names = " and ".join(_without_folder(str(each)) for each in (name, twin) if each is not None)
        shown.append(Shown(names, caption, material.pictures.get(name), material.pictures.get(str(twin))))
    parts: list[Part] = [Gallery(shown)] if any(own.picture is not None for own in shown) else []
    keys = [key for key in FINDING_KEYS if key in finding["pictures"][0]]
    rows = [[str(picture.get(key, "")) for key in keys] for picture in finding["pictures"]]
    return [*parts, Table("", [key.replace("_", " ") for key in keys], rows)]


def _training_parts(report: Report) -> list[Part]:
    parts: list[Part] = []
    every = [phases for phases in (report.phases_per_seed or {"": report.phases}).values() if phases]
    told = [phases for phases in every if any(phase.epochs for phase in phases)]
    if told:
        words = f"{len(told)} trainings" if len(told) > 1 else "the training"
        last = [own[-1] for phases in told if (own := [row for phase in phases for row in phase.epochs])]
        alt = f"Training loss and validation accuracy of {words}; the loss ends at "
        alt += ", ".join(f"{row.train_loss:.4f}" for row in last)
        parts.append(
            Figure(page_svg("history", partial(history, told)), alt, f"Loss and validation accuracy of {words}.")
        )
        alt = "Which stages trained: " + "; ".join(
            f"{phase.name}: {', '.join(phase.trains)}" for phase in report.phases
        )
        svg = page_svg("schedule", partial(schedule, report.phases))
        parts.append(
            Figure(svg, alt, "Blue: the stage trained; grey: it was frozen. Below, the highest learning rate.")
        )
    rows = [
        [
            phase.name,
            ", ".join(phase.trains),
            f"{phase.trainable_parameters:,}",
            "nothing" if phase.frozen is None else f"{phase.frozen.tensors} tensors, unchanged",
            f"{phase.epochs[-1].epoch}" if phase.epochs else "solved",
        ]
        for phase in report.phases
    ]
    if rows:
        parts.append(Table("phases", ["phase", "trained", "parameters", "frozen", "epochs"], rows, [2, 4]))
    return parts


def _count_lines(report: Report) -> list[str]:
    target = report.target
    return [
        f"{target.name}: {target.train:,} images to learn from, {target.validation:,} to validate, {target.test:,} to "
        f"test, {len(target.classes):,} classes"
    ]


def _provenance(report: Report, material: Material) -> list[Part]:
    lines = []
    if report.source is not None:
        named = _without_folder(report.source.path or str(report.source.id))
        lines.append(f"started from {named}, sha256 {report.source.sha256}")
    if report.test_set is not None:
        lines.append(f"test images: fingerprint {report.test_set.fingerprint}")
    lines += [f"{name}: sha256 {digest}" for name, digest in material.sha256.items()]
    lines.append(f"trained on {report.device} in {report.seconds:,.0f} s")
    return [
        Lines(lines),
        *_made_with(report.environment, report.seeds or [report.seed], report.recipe, again=_again(report)),
    ]


def _again(report: Report) -> str:
    """The command that repeats a run, with its recipe in a file."""
    words = ["finetune", report.kind, "--recipe", "recipe.yaml"]
    if report.source is not None:
        words += ["--from", _without_folder(report.source.path or str(report.source.id))]
    if report.folds is not None:
        words += ["--folds", str(report.folds)]
    elif len(report.seeds) > 1:
        words += ["--seeds", ",".join(map(str, report.seeds))]
    metric = next((found.metric for found in report.comparisons.values() if found is not None), "accuracy")
    words += ["--metric", metric] if metric != "accuracy" else []
    return shlex.join(words)


def _made_with(
    environment: Mapping[str, Any], seeds: Sequence[int], recipe: Mapping[str, Any], again: str | None = None
) -> list[Part]:
    """Versions and recipe, and the command that repeats it where that is known."""
    lines = [f"seeds: {', '.join(map(str, seeds))}"]
    parts: list[Part] = [Lines(lines), Folded("made with", "\n".join(mapping_lines(environment)))]
    parts.append(Folded("the recipe, as it was resolved", json.dumps(recipe, indent=1, ensure_ascii=False)))
    if again is not None:
        parts.insert(1, Lines([f"to repeat it, with the recipe below as recipe.yaml: {again}"]))
    return parts
