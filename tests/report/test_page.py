"""The HTML page of a report: what it shows, and that text of a report stays text."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from reports import adapt_report, phases, predictions

from finetune.report.comparison import compare_over_seeds
from finetune.report.confidence import summarize_confidence, with_temperature
from finetune.report.curve_report import CurveForecast, CurvePoint, CurveReport
from finetune.report.learning_curve import Forecast, LabelWorth
from finetune.report.metrics import Answers
from finetune.report.page import (
    MAX_CLASSES,
    MAX_PICTURES,
    MAX_ROWS,
    Material,
    Picture,
    check_page,
    curve_page,
    rank_page,
    report_page,
    sure_and_wrong,
)
from finetune.report.page_figures import history
from finetune.report.ranking import Candidate, RankReport
from finetune.report.report import FrontierPoint, Interpolation, SourceSummary, TargetSummary
from finetune.report.statistics import Confusion
from finetune.report.tables import metric_text, percent, report_tables

NAMES = ("ant", "bee", "cat", "dog")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "{{7*7}}{% raw %}",
    "&lt;b&gt;&amp;",
    "]]></style></svg><svg onload=alert(1)>",
    "x" * 200,
    "猫と犬",
    "قطة",
    "\u202egnorw",
    "a\x00b\x1b[31m\nc",
    "javascript:alert(1)",
    "$x^2$ \\frac",
    "--> <!--",
)
VOID = {"meta", "img", "br", "path", "use", "rect", "link", "input"}


class Page(HTMLParser):
    """A page as a browser reads it: elements with their attributes, and the text in each kind of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.cells: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [found for tag, found in self.elements if tag in tags]


def read(page: str) -> Page:
    """The page, after what holds of every one."""
    found = Page(page)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form", "foreignobject", "link", "b", "image"}
    ids = [own["id"] for _, own in found.elements if "id" in own]
    assert len(set(ids)) == len(ids)
    for tag, own in found.elements:
        assert not any(name.startswith("on") for name in own), own
        for name in ("src", "href", "xlink:href", "style", "clip-path"):
            value = own.get(name) or ""
            assert "//" not in value.partition("base64,")[0] and "javascript" not in value, (tag, own)
            targets = [value[1:]] if value.startswith("#") else re.findall(r"url\(#([^)]*)\)", value)
            assert set(targets) <= set(ids), targets
        assert tag != "img" or (own["alt"] and own["src"].startswith("data:image/png;base64,"))
        assert tag != "figure" or own.get("role") != "img" or own["aria-label"]
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = next(own["content"] for own in found.all("meta") if own.get("http-equiv"))
    assert "default-src 'none'" in policy and "script" not in policy
    assert not re.search(r"https?:", re.sub(r'xmlns(:\w+)?="http://www.w3.org/[^"]*"', "", page))
    assert {own.get("lang") for own in found.all("html")} == {"en"}
    return found


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 3), 9).save(file, "PNG")
    return file.getvalue()


def test_the_same_report_gives_the_same_bytes_whose_numbers_are_the_reports():
    report, found = adapt_report(NAMES), predictions(NAMES)
    material = Material(found, {name: Picture(png(), png()) for name in found.images}, ["a note"], {"x.json": "c" * 64})
    page = report_page(report, material)
    assert page == report_page(report, material)
    shown = read(page)
    after, comparison = report.results["after"], report.comparisons["after_vs_before"]
    _, *lines = report_tables(report)
    assert all(" ".join(line.plain.split()) in shown.text for line in lines)
    assert "fine-tuning helps" in shown.text or "is better" in shown.text
    low, high = (f"{100 * end:.2f}" for end in after.ci95)
    assert [
        "after",
        f"{after.correct} / 400",
        f"{percent(after.accuracy)} ({low} to {high})",
        "fine-tuned",
    ] in shown.cells
    assert any(
        f"after − before {100 * comparison.difference:.2f}" in own["aria-label"]
        for own in shown.all("figure")
        if "aria-label" in own
    )
    for name, own in after.per_class.items():
        row = next(cells for cells in shown.cells if cells[:3] == [name, str(own["correct"]), str(own["total"])])
        assert row[3] == percent(own["accuracy"])
    for name, counts in zip(NAMES, after.confusion.to_json(), strict=True):
        assert [name, *(str(count or "") for count in counts)] in shown.cells
    assert "Calibration error: 3.21 %" in shown.text
    assert "on mnist itself: 98.00 % before, 50.00 % after" in shown.text
    for said in ("3 pictures could not be read", "a note", "x.json: sha256 " + "c" * 64, "a" * 64, "b" * 64):
        assert said in shown.text
    assert "finetune adapt --recipe recipe.yaml --from moths.safetensors" in shown.text


def test_a_calibrated_network_is_shown_before_and_after():
    report, found = adapt_report(NAMES), predictions(NAMES)
    assert "network's own" not in read(report_page(report, Material(found))).text
    rng = np.random.default_rng(0)
    labels, chances = rng.integers(0, 4, 400), rng.dirichlet(np.ones(4), 400)
    record = {"temperature": 2.5, "images": 50, "how": "validation", "promise": None, "novelty": None}
    calibrated = with_temperature(Answers.of(labels, chances), 2.5)
    summary = summarize_confidence(record, Answers.of(labels, chances), [HOSTILE[0]])
    page = read(report_page(replace(report, confidence=summary), Material(found)))
    own = next(own["aria-label"] for own in page.all("figure") if "Reliability" in own.get("aria-label", ""))
    right = percent((chances.argmax(1) == labels).mean())
    assert f"network's own: answers have a mean probability of {percent(chances.max(1).mean())}, and {right}" in own
    assert f"with its temperature: answers have a mean probability of {percent(calibrated.confidence.mean())}" in own
    loss = ["log loss", *(metric_text("log_loss", own["log_loss"].value) for own in (summary.before, summary.after))]
    row = next(cells for cells in page.cells if cells[0] == "log loss" and len(cells) == 3)
    assert [cell.partition(" (")[0] for cell in row] == loss
    assert page.text.count("temperature 2.5, fitted on 50 validation images") == 1, "in its own section, and only there"
    assert HOSTILE[0] in page.text


def test_the_surest_mistakes_are_shown_surest_first():
    found = predictions(NAMES)
    chosen, column = sure_and_wrong(found, "after"), found.columns["after", None]
    assert len(chosen) == MAX_PICTURES
    sure = column.probability[column.predicted != found.labels]
    np.testing.assert_array_equal(column.probability[chosen], np.sort(sure)[::-1][:MAX_PICTURES])
    page = read(report_page(adapt_report(NAMES), Material(found, {found.images[chosen[0]]: Picture(png(), png())})))
    captions = [own["alt"] for own in page.all("img")]
    named, true = NAMES[column.predicted[chosen[0]]], NAMES[found.labels[chosen[0]]]
    chance = percent(column.probability[chosen[0]])
    assert captions == [f"{found.images[chosen[0]]}: {named} {chance}; is {true}", "what the answer hangs on"]
    assert all(found.images[index] in page.text for index in chosen), "those without a picture by name"


def test_text_of_a_report_stays_text():
    report = adapt_report(HOSTILE, target=HOSTILE[0])
    files = [f"{name} {k}.png" for k in range(400 // len(HOSTILE)) for name in HOSTILE]
    found = predictions(HOSTILE, files=files)
    target = replace(report.target, notes=list(HOSTILE))
    report = replace(
        report,
        target=target,
        kind=HOSTILE[1],
        device=HOSTILE[0],
        environment={name: name for name in HOSTILE},
        recipe={name: name for name in HOSTILE},
        source=SourceSummary(id=HOSTILE[1], sha256=HOSTILE[0], model="", dataset=None, accuracy=None),
        phases=[replace(own, name=HOSTILE[5], trains=list(HOSTILE)) for own in report.phases],
        results=report.results | {HOSTILE[0]: report.results["before"]},
        comparisons=report.comparisons | {f"after_vs_{HOSTILE[1]}": report.comparisons["after_vs_before"]},
    )
    pictures = {name: Picture(png()) for name in found.images}
    page = report_page(report, Material(found, pictures, HOSTILE, dict.fromkeys(HOSTILE, "0")))
    shown = read(page)
    assert "\x00" not in page and "\x1b" not in page and "\u202e" not in page
    for name in HOSTILE[:9]:
        assert any(cells and cells[0] == name for cells in shown.cells), name
        assert name in shown.text or "  " in name
    assert "49" not in shown.text.split("{{7*7}}")[0][-3:]
    for own in shown.all("p", "pre"):
        assert own.get("dir") == "auto", "names from right to left stand alone"


@pytest.mark.slow
def test_a_thousand_classes_are_folded():
    names = [f"class number {k}" for k in range(1_000)]
    report = adapt_report(names, images=10_000)
    began = time.perf_counter()
    page = report_page(report, Material(predictions(names, 10_000)))
    assert time.perf_counter() - began < 6 and len(page) < 2_000_000
    shown = read(page)
    assert f"{1_000 - MAX_ROWS} more" in shown.text
    matrix = [cells for cells in shown.cells if len(cells) == MAX_CLASSES + 1]
    assert len(matrix) == MAX_CLASSES + 1 and "of 1,000 classes the 20 with the most mistakes" in shown.text.lower()


def test_every_training_of_several_seeds_is_drawn():
    several = adapt_report(NAMES, seeds=3)
    page = read(report_page(several, Material()))
    assert "Loss and validation accuracy of 3 trainings." in page.text and "3 seeds" in page.text
    loss = history(list(several.phases_per_seed.values())).axes[0]
    drawn = [line.get_ydata()[0] for line in loss.lines if len(line.get_ydata()) == 3]
    assert drawn == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0], "two phases of each"
    assert "(all trainings together)" in page.text and "0, 1, 2" in page.text
    intervals = [cells for cells in page.cells if cells[:1] == [NAMES[0]] and len(cells) == 5 and " to " in cells[4]]
    one = report_page(adapt_report(NAMES), Material())
    alone = next(
        cells for cells in read(one).cells if cells[:1] == [NAMES[0]] and len(cells) == 5 and " to " in cells[4]
    )
    width = [float(end) - float(start) for start, _, end in (cells[4].split() for cells in (intervals[0], alone))]
    assert width[0] == pytest.approx(width[1], rel=0.4), "an image counts once, however many trainings answered it"


@pytest.mark.parametrize("without", ["epochs", "phases", "comparisons", "results", "details", "source", "classes"])
def test_what_a_report_lacks_its_page_leaves_out(without):
    report = adapt_report(NAMES)
    after = report.results["after"]
    lacking = {
        "epochs": {"phases": [replace(own, epochs=[]) for own in phases()]},
        "phases": {"phases": []},
        "comparisons": {"comparisons": {"after_vs_before": None}},
        "results": {"results": dict.fromkeys(report.results), "comparisons": {}},
        "details": {"results": {"after": replace(after, per_class=None, confusion=None, metrics=None)}},
        "source": {"source": None, "test_set": None, "retention": None, "seeds": []},
        "classes": {
            "target": replace(report.target, classes=[]),
            "results": {"after": replace(after, confusion=Confusion(0, [], [], []), per_class={})},
        },
    }
    page = read(report_page(replace(report, **lacking[without]), Material(notes=["without answers"])))
    assert "without answers" in page.text and "Verdict" in page.text
    assert ("Loss and validation" in page.text) == (without not in ("epochs", "phases"))
    assert any(cells[-1:] == ["solved"] for cells in page.cells) == (without == "epochs")
    assert "seeds: 0" in page.text


@pytest.mark.parametrize("known", [True, False])
def test_the_mixes_that_were_tried_are_a_plot_and_a_table(known):
    points = [
        FrontierPoint(step / 2, 0.6 + 0.1 * step, 0.9 - 0.1 * step, 0.99 - 0.2 * step if known else None)
        for step in range(3)
    ]
    found = Interpolation(
        weight=0.5,
        retain=0.7,
        images=60,
        source_images=200 if known else None,
        source_part="train" if known else None,
        source_before=0.99 if known else None,
        frontier=points,
        note=None if known else "mnist, which the source was trained on, is not in data",
        weights={"0": 0.5, "1": 1.0},
    )
    report = replace(adapt_report(["a", "b"]), interpolation=found)
    page = read(report_page(report, Material()))
    assert "Each point is a mix, orange the one that was chosen" in page.text
    assert "0.5 of the fine-tuned, the" in page.text and "in each training: 0.5 (0), 1 (1)" in page.text
    if known:
        assert "those with at least 69.30 % on 200 images of the source's data (training images" in page.text
        assert "79.00 %" in page.text and "Dashed: 70.00 % of the source's accuracy." in page.text
    else:
        assert "retain was left out: mnist, which" in page.text and "Dashed" not in page.text


def test_differences_of_log_loss_are_in_a_plot_of_their_own():
    report = adapt_report(NAMES)
    own = replace(report.comparisons["after_vs_before"], metric="log_loss", difference=-0.4, ci95=(-0.5, -0.3))
    several = {"after_vs_scratch": own, "after_vs_before": report.comparisons["after_vs_before"]}
    page = read(report_page(replace(report, comparisons=several), Material()))
    labels = [own["aria-label"] for own in page.all("figure") if "aria-label" in own]
    assert any(said.startswith("difference of accuracy, points") for said in labels)
    assert any(
        said.startswith("difference of log loss, × 100") and "-40.00 (-50.00 to -30.00)" in said for said in labels
    )
    assert "--metric log_loss" in page.text


def curve_report() -> CurveReport:
    one = adapt_report(NAMES, seeds=3)
    rows = {"after": one.results["after"], "scratch": one.results["before"]}
    tables = np.random.default_rng(0).random((2, 3, 400)) < [[[0.5]], [[0.9]]]
    worth = LabelWorth(2.0, 1.5, None, True, (1.0, 4.0))
    points = [CurvePoint(k, float(k), 4 * k, rows, compare_over_seeds(*tables), worth) for k in (2, 8)]
    told = Forecast(16.0, 0.95, (0.9, 0.99))
    return CurveReport(
        kind="curve",
        recipe={},
        seeds=[0, 1, 2],
        device="cpu",
        environment={},
        seconds=1.0,
        source=SourceSummary(path=HOSTILE[0], sha256="a", model="cnn", dataset=None, accuracy=None),
        target=TargetSummary(HOSTILE[1], list(NAMES), 9, 0, 400),
        notes=["a note of the curve"],
        points=points,
        no_difference_from=None,
        form="inverse power",
        forecasts=[CurveForecast(16.0, False, dict.fromkeys(rows, told))],
    )


def test_the_page_of_a_curve():
    report = curve_report()
    page = read(curve_page(report))
    assert curve_page(report) == curve_page(report)
    assert "a note of the curve" in page.text and HOSTILE[1] in page.text
    after = report.points[0].results["after"]
    row = next(cells for cells in page.cells if cells[0] == "2")
    assert row[1].startswith(f"{100 * after.accuracy:.1f} % ("), row


def test_the_page_of_a_ranking():
    one = adapt_report(NAMES, seeds=3).results["after"]
    known = {"model": "cnn", "parameters": 10**6, "bytes": 4 * 10**6, "accuracy": one.accuracy, "ci95": one.ci95}
    best = Candidate(
        source="a", name=HOSTILE[0], random=False, state="fine-tuned", place=1, per_seed=one.per_seed, **known
    )
    failed = Candidate(source="b", name=HOSTILE[1], random=False, state="failed", error=HOSTILE[5])
    report = RankReport(
        target=TargetSummary("moths", list(NAMES), 9, 0, 400),
        recipe={},
        seeds=[0, 1, 2],
        shots_vary=False,
        top=1,
        candidates=[best, failed],
        best=best.name,
        tied=[best.name],
        comparisons=0,
        kendall={"logme": None},
        conclusion=f"take {best.name}",
        seconds={"all": 1.0},
        device="cpu",
        environment={},
    )
    page = read(rank_page(report))
    assert f"take {best.name}" in page.text and f"{100 * one.accuracy:.2f}" in page.text
    assert HOSTILE[1] in page.text, "what failed is told"
    nothing = replace(report, candidates=[failed])
    assert not read(rank_page(nothing)).all("svg"), "no plot of nothing"


def test_the_page_of_a_check_shows_pairs_and_escapes_names():
    pair = {
        "image": HOSTILE[1],
        "part": "test",
        "label": HOSTILE[0],
        "twin": "b.png",
        "twin_label": "ant",
        "score": 0.5,
    }
    found = {
        "data": HOSTILE[5],
        "parts": {"train": 5, "test": 2},
        "classes": dict.fromkeys(HOSTILE, 3),
        "features": "pixels",
        "findings": [
            {"kind": "two_labels", "says": "1 picture under two labels", "count": 1, "pictures": [pair]},
            {"kind": "of_a_later_version", "says": HOSTILE[0], "count": 1, "pictures": []},
        ],
    }
    page = read(check_page(found, Material(pictures={HOSTILE[1]: Picture(png()), "b.png": Picture(png())})))
    assert [own["alt"].partition(": ")[0] for own in page.all("img")] == [f"{HOSTILE[1]} and b.png", "its twin"]
    assert "of a later version" in page.text and HOSTILE[0] in page.text
    clean = read(check_page(found | {"findings": []}, Material()))
    assert "nothing found" in clean.text and not clean.all("img")
