"""Files of predictions: what is written is read back, and what anybody may write is answered with one clear message."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from finetune.errors import DataError
from finetune.report import predictions as module
from finetune.report.predictions import Column, Predictions, image_names, predictions_csv, read_predictions, top_class


def column(predicted: list[int], probability: list[float] | None = None) -> Column:
    return Column(np.array(predicted), None if probability is None else np.array(probability))


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_file_is_as_documented() -> None:
    columns = {
        ("linear_probe", None): column([0, 1], [0.5, 1 / 3]),
        ("after", 0): column([1, 1], [1.0, 1e-9]),
        ("after", 12): column([0, 0]),
    }
    given = Predictions(("a/1.png", "b,2.png"), np.array([0, 1]), ("ant", "bee"), columns)
    assert predictions_csv(given).decode().splitlines() == [
        "image,label,linear_probe,linear_probe probability,after seed 0,after seed 0 probability,after seed 12",
        "a/1.png,ant,ant,0.5,bee,1,ant",
        '"b,2.png",bee,bee,0.333333,bee,1e-09,ant',
    ]


def test_odd_names_come_back_and_the_bytes_are_the_same_again(tmp_path: Path) -> None:
    odd = ("a,b.png", 'say "x".png', "line\nbreak\r\n.png", "cr\rhere", " space ", "=1+1", "\udcff.png", "é")
    classes = ('a "b"', "c,d", "e\nf")
    random = np.random.default_rng(0)
    answers = [random.integers(3, size=8) for _ in range(3)]
    answers[0][:3] = 0, 1, 2
    columns = {("after", 3): Column(answers[1], random.random(8)), ("after", 4): Column(answers[2], random.random(8))}
    given = Predictions(odd, answers[0], classes, columns)
    content = predictions_csv(given)
    found = read_predictions(written(tmp_path / "p.csv", content))
    assert (found.images, found.class_names, found.rows, found.seeds("after")) == (odd, classes, ("after",), (3, 4))
    assert np.array_equal(found.labels, given.labels)
    for key, one in columns.items():
        assert np.array_equal(found.columns[key].predicted, one.predicted)
        np.testing.assert_allclose(found.columns[key].probability, one.probability, rtol=1e-5)
    assert predictions_csv(found) == content


def test_anybody_s_file_is_read(tmp_path: Path) -> None:
    text = "\ufefflabel,probability,image,prediction\r\nb,.5,1,a\r\n\r\na,1e0,2,a\r\n"
    found = read_predictions(written(tmp_path / "p.csv", text))
    assert (found.images, found.class_names, list(found.labels)) == (("1", "2"), ("a", "b"), [1, 0])
    assert list(found.columns) == [("prediction", None)]
    assert list(found.columns["prediction", None].probability) == [0.5, 1.0]


HEAD = "image,label,after,after probability\n"
HOSTILE = {
    "nothing": ("", ":1: no column image and no column label; expected a first line of image,label"),
    "no label": ("image,after\n", ":1: no column label"),
    "semicolons": ("image;label;after\n", ":1: no column image"),
    "no row": ("image,label\nx,a\n", ":1: no column of predictions"),
    "no name": ("image,label,after,\n", ":1: column 4 has no name"),
    "twice": ("image,label,after,after\n", ":1: the column after is there twice"),
    "lone probability": ("image,label,after,before probability\n", "is of no column before"),
    "two probabilities": ("image,label,prediction,probability,prediction probability\n", "are one"),
    "with and without seed": ("image,label,after,after seed 1\n", "the columns after and after seed S are both there"),
    "no image": (HEAD, ":1: no image"),
    "short": (HEAD + "x,a,a,1\n\ny,a,a\n", ":4: expected 4 values, found 3"),
    "long": (HEAD + "x,a,a,1,\n", ":2: expected 4 values, found 5"),
    "image twice": (HEAD + "x,a,a,1\ny,a,a,1\nx,b,b,1\n", ":4: image x is in line 2 too"),
    "no class": (HEAD + "x,a,,1\n", ":2: column after: expected the name of a class, found nothing"),
    "no true class": (HEAD + "x,,a,1\n", ":2: column label: expected the name of a class, found nothing"),
    "open quote": (HEAD + 'x,a,a,1\n"y,a,a,1\n', ":3: not CSV"),
    "long cell": (HEAD + "x" * 200_000 + ",a,a,1\n", ":2: not CSV"),
    "zero byte": (HEAD + "x,a,a,1\ny\0,a,a,1\n", ":3: expected text, found a zero byte"),
    "utf-16": (HEAD.encode("utf-16"), ":1: expected text, found a zero byte"),
    **{
        f"probability {text!r}": (
            f"{HEAD}x,a,a,{text}\n",
            f":2: column after probability: expected a probability from 0 to 1, found {text or 'nothing'}",
        )
        for text in ("", "high", "nan", "inf", "-0.1", "1.1", "50 %")
    },
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_wrong_file_is_answered_with_its_line(case: str, tmp_path: Path) -> None:
    text, message = HOSTILE[case]
    path = written(tmp_path / "p.csv", text)
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}:") and message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_only_a_regular_file_of_some_size_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    large = written(tmp_path / "large", HEAD)
    for path, message in [
        (tmp_path / "pipe", "it is a pipe"),
        (tmp_path, "directory"),
        (tmp_path / "none.csv", "there is no such file"),
        (large, "at most 10"),
    ]:
        with pytest.raises(DataError, match=message):
            read_predictions(path)


def test_wrong_predictions_are_not_written() -> None:
    labels = np.array([0, 1])
    for images, columns in [
        (("x", "x"), {}),
        (("x", "y"), {("after", None): column([0, 2])}),
        (("x", "y"), {("after", None): column([0])}),
        (("x", "y"), {("after", None): column([0, 1], [0.5, np.nan])}),
        (("x", "y"), {("after", None): column([0, 1], [0.5, 1.5])}),
        (("x", "y"), {("label", None): column([0, 1])}),
    ]:
        with pytest.raises(ValueError):
            Predictions(images, labels, ("a", "b"), columns)


def test_names_and_top_classes() -> None:
    assert image_names(("a", "b"), 2) == ("a", "b")
    assert image_names((), 2) == image_names(("a", "a"), 2) == ("0", "1")
    found = top_class(np.array([[0.1, 0.9], [0.5, 0.5]], dtype=np.float32))
    assert list(found.predicted) == [1, 0] and found.probability == pytest.approx([0.9, 0.5])


def test_the_folds_of_a_cross_validation_are_read_and_checked(tmp_path: Path) -> None:
    text = "image,label,fold,after\na,x,2,x\nb,y,1,x\n"
    found = read_predictions(written(tmp_path / "p.csv", text))
    assert found.rows == ("after",) and found.folds is not None and found.folds.tolist() == [2, 1]
    assert predictions_csv(found).decode() == text
    for wrong in ("0", "-1", "one", "", "1.5"):
        with pytest.raises(DataError, match=r"p\.csv:2: column fold: expected the number of a fold"):
            read_predictions(written(tmp_path / "p.csv", text.replace("x,2,", f"x,{wrong},")))
    with pytest.raises(ValueError, match="folds: expected 2 numbers from 1"):
        Predictions(("a", "b"), np.array([0, 1]), ("x", "y"), {}, folds=np.array([0, 1]))


# --- groups of images


def test_groups_come_back_and_a_class_may_be_called_group(tmp_path: Path) -> None:
    given = Predictions(
        ("a", "b", "c"), np.array([0, 1, 0]), ("group", "x"), {("after", None): column([0, 0, 1])}, ("g,1", "", "g,1")
    )
    content = predictions_csv(given)
    assert content.decode().splitlines()[:3] == ["image,label,group,after", 'a,group,"g,1",group', "b,x,,group"]
    found = read_predictions(written(tmp_path / "p.csv", content))
    assert found.groups == given.groups and found.class_names == ("group", "x") and found.rows == ("after",)
    assert predictions_csv(found) == content


def test_a_column_without_any_group_is_none(tmp_path: Path) -> None:
    found = read_predictions(written(tmp_path / "p.csv", "image,group,label,prediction\n1,,a,a\n2,,b,b\n"))
    assert found.groups == ()


@pytest.mark.parametrize("head", ["group,group probability,x", "group seed 0,x,y", "label seed 1,x,y"])
def test_a_row_cannot_have_the_name_of_another_column(tmp_path: Path, head: str) -> None:
    with pytest.raises(
        DataError, match=r":1: a row cannot be called (group|label), which is the column of each image's"
    ):
        read_predictions(written(tmp_path / "p.csv", f"image,label,{head}\n1,a,a,1,a\n"))
    with pytest.raises(ValueError, match="cannot be called 'group'"):
        Predictions(("a",), np.array([0]), ("x",), {("group", None): column([0])})


def test_groups_are_as_many_as_images() -> None:
    with pytest.raises(ValueError, match="a group for each of 1 images, got 2"):
        Predictions(("a",), np.array([0]), ("x",), {}, ("g", "g"))
