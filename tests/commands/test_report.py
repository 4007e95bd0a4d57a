"""`finetune report`: the page that --html of the run wrote, of any report there is, whoever wrote it."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from album import scenes
from reports import adapt_report
from rights import closed_folder
from tiny import ROOT, adapt_recipe, make_data, phase, pretrain_recipe, refused, worked

from finetune.errors import SettingError
from finetune.report.report import read_report_values

SHIPPED = ROOT / "checkpoints" / "mnist.report.json"
RUN = ("pretrain", "--recipe", "mnist.yaml", "--quiet", "--html")
NAME = Path("checkpoints/mnist.report.json")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder of a small pretrain with --html; nothing may change it."""
    work = tmp_path_factory.mktemp("ran")
    with contextlib.chdir(work):
        Path("mnist.yaml").write_text(pretrain_recipe(phase(length="steps: 6"), "{name: mnist, validation: 60}"))
        worked(*RUN, "--data-root", data)
    return work


@pytest.fixture
def run(ran: Path, folder: Path) -> Path:
    """A copy of that folder, in which one is."""
    shutil.copytree(ran, folder, dirs_exist_ok=True)
    return folder


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_of_the_report_is_the_page_of_the_run(run):
    page = NAME.with_suffix(".html").read_bytes()
    worked("report", NAME, "--out", "new/page.html")
    assert Path("new/page.html").read_bytes() == page
    assert page.count(b"<img") >= 12, "pictures of mistakes"
    NAME.with_suffix(".html").unlink()
    worked(*RUN, "--resume")
    assert NAME.with_suffix(".html").read_bytes() == page, "a finished run writes its page again"


def test_an_older_page_is_moved_aside_and_nothing_else_is_written(run):
    page = NAME.with_suffix(".html")
    page.write_text("mine")
    before = {path.name for path in page.parent.iterdir()}
    worked("report", NAME)
    new = {path.name for path in page.parent.iterdir()} - before
    assert len(new) == 1 and text_of(page.parent / new.pop()) == "mine"


@pytest.mark.slow
def test_pictures_that_are_gone_or_others_are_said(run, tmp_path):
    worked("report", NAME, "--out", "gone.html", "--data-root", tmp_path / "nowhere")
    make_data(tmp_path / "others", "mnist", noise=90)
    worked("report", NAME, "--out", "others.html", "--data-root", tmp_path / "others")
    NAME.with_name("mnist.safetensors").unlink()
    worked("report", NAME, "--out", "alone.html")
    for name in ("gone", "others", "alone"):
        page = text_of(Path(f"{name}.html"))
        assert "without pictures: " in page and "<img" not in page, name
    assert "not the ones that were measured" in text_of(Path("others.html"))
    NAME.with_name("mnist.predictions.csv").write_text("image,label\n")
    worked("report", NAME, "--out", "bare.html")
    assert "without answers image by image" in text_of(Path("bare.html"))


@pytest.mark.slow
def test_a_folders_pictures_are_shown_with_data(backbone, folder):
    root = scenes(
        folder / "pond", noise=900, train=dict.fromkeys(("eft", "newt"), 8), test=dict.fromkeys(("eft", "newt"), 12)
    )
    Path("adapt.yaml").write_text(adapt_recipe(phase("head", "steps: 1", 8), "{validation: 0}"))
    worked(
        "adapt",
        "--from",
        backbone,
        "--target",
        root,
        "--recipe",
        "adapt.yaml",
        "--out",
        "pond.safetensors",
        "--quiet",
        "--html",
    )
    page = text_of(Path("pond.report.html"))
    assert "<img" in page and "without pictures" not in page
    worked("report", "pond.report.json", "--out", "without.html")
    assert "--data PICTURES" in text_of(Path("without.html"))
    worked("report", "pond.report.json", "--out", "again.html", "--data", root)
    assert text_of(Path("again.html")) == page


def test_reports_of_older_versions_have_pages(folder):
    values = json.loads(SHIPPED.read_text(encoding="utf-8"))
    for key in ("comparisons", "retention", "seeds", "test_set", "folds", "phases_per_seed"):
        values.pop(key, None)
    for result in values["results"].values():
        result.pop("metrics", None)
    Path("old.report.json").write_text(json.dumps(values))
    worked("report", "old.report.json")
    assert "99.61 %" in text_of(Path("old.report.html"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (SHIPPED.read_bytes()[:-200], "cut short at line "),
        (b'{"kind": "adapt",\n "a": nul', "cut short at line 2, column 7"),
        (b"[]", "expected a JSON object"),
        (b"{}", "found JSON that does not say its kind"),
        (b'{"kind": "dream"}', "found kind 'dream'"),
        (b'{"kind": "adapt"}', "not a report of this version: at recipe"),
        (b'{"kind": ["rank"]}', "found kind"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"kind": "\xff"}', "not UTF-8 at byte 10"),
        (b'{"kind": 5,\n x}', "no JSON (Expecting property name enclosed in double quotes) at line 2, column 2"),
        (b'{"kind": "pretrain", "seconds": NaN}', "NaN is no number"),
        (b'{"kind": "pretrain", "seconds": 1e999}', "1e999 is no number"),
    ],
)
def test_what_is_no_report_is_one_message(content, said, folder):
    Path("x.json").write_bytes(content)
    assert said in refused("report", "x.json")
    assert [path.name for path in folder.iterdir()] == ["x.json"]


def test_a_report_that_may_not_be_read_says_so():
    said = r"\(you may not read it\); allow it \(chmod u\+r"
    with closed_folder() as closed, pytest.raises(SettingError, match=said):
        read_report_values(closed / "inside.png")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("results after accuracy", 1e308, "results.after.accuracy: expected 0 to 1"),
        ("results after accuracy", -0.1, "results.after.accuracy: expected 0 to 1"),
        ("results after correct", -(10**30), "a number beyond"),
        ("results after ci95", [0.9, 0.1], "expected the lower end first"),
        ("results after ci95", [0.9], "results.after.ci95"),
        ("results after per_class ant", {"correct": 3, "total": 2}, "per_class of 'ant'"),
        ("results after per_class ant", {"total": "x"}, "per_class of 'ant'"),
        ("results after per_class ant", {}, "per_class of 'ant'"),
        ("results after confusion", [[1, 2]], "confusion: value error, expected 1 rows"),
        ("results after confusion", [[1, 2], [3]], "confusion: value error, expected 2 rows"),
        ("results after confusion", [[1, -2], [3, 4]], "confusion: value error, expected no count below 0"),
        ("results after confusion", [[0] * 3] * 3, "confusion: expected 2 classes"),
        ("results after confusion", [["x", 2], [3, 4]], "at results.after.confusion"),
        (
            "results after confusion",
            {"classes": 2, "true": [0], "predicted": [2], "images": [1]},
            "confusion: value error, expected classes from 0 to 1",
        ),
        ("results after confusion", {"classes": 9, "true": [], "predicted": [], "images": []}, "expected 2 classes"),
        ("phases 0 epochs 0 train_loss", 1e300, "a number beyond"),
        ("phases", "x" * 1_000_000, "at phases"),
        ("comparisons after_vs_before verdict", "<b>", "verdict"),
    ],
)
def test_numbers_that_no_run_has_are_one_message(place, value, said, folder):
    values = json.loads(adapt_report(("ant", "bee")).to_json())
    *keys, last = (int(key) if key.isdigit() else key for key in place.split())
    at = values
    for key in keys:
        at = at[key]
    at[last] = value
    Path("x.json").write_text(json.dumps(values))
    message = refused("report", "x.json")
    assert said in message and len(message) < 600
    assert [path.name for path in folder.iterdir()] == ["x.json"]


def test_what_a_stranger_wrote_at_length_is_shown_and_not_run(folder):
    values = json.loads(adapt_report(("<script>alert(1)</script>", "b" * 1_000_000)).to_json())
    values |= {"device": "{{7*7}}", "a key of a later version": 1}
    Path("x.json").write_text(json.dumps(values))
    worked("report", "x.json")
    page = text_of(Path("x.html"))
    assert len(page) < 300_000
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "{{7*7}}" in page


def test_the_page_has_a_name_of_its_own(folder):
    shutil.copy(SHIPPED, "x.json")
    for out in ("x.json", "page.htm", "page"):
        assert "ends in .html" in refused("report", "x.json", "--out", out)
    Path("folder.html").mkdir()
    assert "is a folder" in refused("report", "x.json", "--out", "folder.html")
    assert "cannot be read" in refused("report", "absent.json")


def test_what_check_prints_has_a_page(folder):
    scenes(folder / "pond", train=dict.fromkeys(("eft", "newt"), 8))
    Path("check.json").write_text(worked("check", "--target", "pond", "--json", "--html").out)
    assert "check of pond" in text_of(Path("studies/pond.check.html"))
    worked("report", "check.json")
    assert "check of pond" in text_of(Path("check.html"))
    found = json.loads(text_of(Path("check.json")))
    for key, value in (("parts", "x"), ("classes", [1]), ("findings", [{}]), ("findings", [[1]])):
        Path("x.json").write_text(json.dumps(found | {key: value}))
        assert "not a report of this version" in refused("report", "x.json")


def test_the_page_of_evaluate_shows_what_it_says(pretrained, folder):
    done = worked("evaluate", pretrained, "--data", "mnist", "--html", "--json").json
    page = text_of(Path("studies/mnist-mnist.evaluate.html"))
    assert f"{100 * done['accuracy']:.2f} %" in page and "confusion" not in page.partition("Classes")[0]
    assert "Most sure and wrong" in page


@pytest.mark.parametrize("path", [".", ""])
def test_a_folder_is_no_report(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is a folder; expected the file of a report" in refused("report", path)
