"""Texts that become paths: what no file can be called, and what may not be asked about, is one clear message."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rights import closed_folder

import finetune as toolkit
from finetune.errors import DataError, FinetuneError, SettingError
from finetune.io.text_path import MAX_SHOWN, fitting_name, shown_path, to_path, unicode_text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty text names no file; the current folder is ."),
        ("a\0b", "a�b: no file can have this name: it has a zero byte"),
        ("\ud800.png", "half a character"),
        ("n" * 256, r"too long for a file's name \(a name of 256 bytes\)"),
        ("é" * 128, "a name of 256 bytes"),
        ("there/" + "n" * 256 + "/x", "a name of 256 bytes"),
        ("./" * 2100 + "x" + "/y" * 2100, "bytes"),
        ("ring", "links that lead to each other in a ring"),
        (3, "expected a path or its text, found int"),
    ],
)
def test_what_can_be_no_path(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("ring").symlink_to("ring")
    with pytest.raises(DataError, match=said) as caught:
        to_path(text, DataError)
    assert len(str(caught.value)) < MAX_SHOWN + 200 and "\n" not in str(caught.value)


def test_what_is_there_and_what_is_not_can_be_asked_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("dangling").symlink_to("gone")
    for text in ("file", "gone", "file/below", ".", "dangling", "n" * 255, Path("file"), os.fsdecode(b"caf\xe9")):
        path = to_path(text)
        assert path == Path(text) and path.is_dir() == (text == ".") and path.exists() == (str(text) in ("file", "."))


def test_a_folder_that_may_not_be_entered_is_named():
    with closed_folder() as closed, pytest.raises(SettingError) as caught:
        to_path(closed / "inside.png")
    assert f"{closed}/inside.png: the folder {closed} may not be entered" in str(caught.value)


def test_long_and_odd_names_are_shown_short():
    assert shown_path("a\x1b]0;x\x07\n.jpg") == "a�]0;x��.jpg" and len(shown_path("x" * 10_000)) < MAX_SHOWN
    assert unicode_text(os.fsdecode(b"caf\xe9.png")) == "caf\\xe9.png" and unicode_text("é") == "é"


def test_a_name_that_is_too_long_is_cut_and_stays_its_own():
    assert fitting_name("short", ".part") == "short.part" and fitting_name("n" * 250, ".part") == "n" * 250 + ".part"
    names = [fitting_name(stem, ".part") for stem in ("n" * 251, "n" * 252, "é" * 200, os.fsdecode(b"\xe9" * 255))]
    assert all(len(os.fsencode(name)) in (254, 255) and name.endswith(".part") for name in names)
    assert len(set(names)) == len(names)


CALLS = {
    "load": toolkit.load,
    "evaluate": lambda text: toolkit.evaluate(text, "digits"),
    "data": lambda text: toolkit.evaluate("mnist", f"./{text}"),
    "table": lambda text: toolkit.evaluate("mnist", f"{text}.csv"),
    "tars": lambda text: list(toolkit.predict("mnist", [f"{text}.tar"])),
    "root": lambda text: toolkit.evaluate("mnist", "mnist", data_root=text),
    "predictions": lambda text: toolkit.evaluate("mnist", "digits", predictions=f"{text}.csv"),
    "source": lambda text: toolkit.adapt(text, "digits"),
    "target": lambda text: toolkit.adapt("mnist", f"./{text}"),
    "recipe": toolkit.pretrain,
    "seeds": lambda text: toolkit.adapt_seeds(text, "digits"),
    "curve": lambda text: toolkit.curve(text, "digits"),
    "rank": lambda text: toolkit.rank([text, "mnist"], "digits"),
    "compare": lambda text: toolkit.compare(text, "b.csv"),
    "report": toolkit.html_report,
    "check": lambda text: toolkit.check(f"./{text}"),
    "verify": toolkit.verify,
    "push": lambda text: toolkit.push(text, "ada/cnn"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_function_refuses_a_text_that_can_be_no_path(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ring").symlink_to("ring")
    for text in ("n" * 256, "a\0b", "ring/x", "\ud800"):
        with pytest.raises(FinetuneError):
            call(text)
    assert [path.name for path in tmp_path.iterdir()] == ["ring"], "nothing was written"
