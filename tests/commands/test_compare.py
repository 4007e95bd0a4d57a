"""`finetune compare`: files of predictions against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import refused, worked

import finetune
from finetune.errors import DataError, SettingError
from finetune.report.comparison import compare as compare_rights
from finetune.report.comparison import compare_over_seeds
from finetune.report.crossed import unpaired_difference
from finetune.report.predictions import Column, Predictions, predictions_csv
from finetune.report.statistics import accuracy_interval

IMAGES = tuple(f"{number}.png" for number in range(120))
NAMES = ("ant", "bee", "fly")
LABELS = np.random.default_rng(0).integers(3, size=120)


def training(seed: int, share: float) -> Column:
    random = np.random.default_rng([seed, 1])
    named = np.where(random.random(120) < share, LABELS, random.integers(3, size=120))
    return Column(named, random.uniform(0.4, 1, 120))


BEFORE, AFTER = training(0, 0.5), training(1, 0.8)
SEEDS = {
    (row, seed): training(10 * seed, share) for row, share in (("scratch", 0.5), ("after", 0.8)) for seed in range(4)
}


def written(path: Path, columns: dict[tuple[str, int | None], Column], order: np.ndarray | None = None) -> Path:
    places = np.arange(120) if order is None else order
    moved = {
        key: Column(c.predicted[places], None if c.probability is None else c.probability[places])
        for key, c in columns.items()
    }
    images = tuple(IMAGES[i] for i in places)
    path.write_bytes(predictions_csv(Predictions(images, LABELS[places], NAMES, moved)))
    return path


@pytest.fixture
def both(tmp_path: Path) -> Path:
    return written(tmp_path / "both.csv", {("before", None): BEFORE, ("after", None): AFTER})


def rights(*columns: Column) -> np.ndarray:
    return np.stack([column.predicted == LABELS for column in columns])


def test_two_rows_of_one_file_are_two_files_in_any_order(tmp_path: Path, both: Path) -> None:
    first = written(tmp_path / "a.csv", {("prediction", None): BEFORE})
    second = written(tmp_path / "b.csv", {("after", None): AFTER}, np.random.default_rng(1).permutation(120))
    one, two = finetune.compare(both, against="before"), finetune.compare(first, second)
    expected = compare_rights(rights(BEFORE)[0], rights(AFTER)[0])
    assert one.comparison == two.comparison == expected
    assert one.metrics == two.metrics and list(one.metrics)[-1] == "calibration_error"
    assert (one.only_first, one.only_second) == (
        int((rights(BEFORE) & ~rights(AFTER)).sum()),
        int((rights(AFTER) & ~rights(BEFORE)).sum()),
    )
    assert one.sentence.startswith("after beats before by") and two.sentence.startswith("B beats A by")
    assert one.metrics["accuracy"].p_value == expected.p_value
    back = finetune.compare(second, first)
    assert back.comparison.difference == -two.comparison.difference and back.sentence.startswith("B falls behind A")
    assert back.metrics["macro_f1"].difference == pytest.approx(-two.metrics["macro_f1"].difference)


def test_seeds_pair_up_within_one_file_only(tmp_path: Path) -> None:
    path = written(tmp_path / "s.csv", SEEDS)
    found = finetune.compare(path, row="after", against="scratch")
    tables = [rights(*(column for (name, _), column in SEEDS.items() if name == row)) for row in ("scratch", "after")]
    assert found.paired and found.comparison == compare_over_seeds(*tables)
    assert found.first.seeds == [0, 1, 2, 3] and found.first.accuracy == pytest.approx(tables[0].mean())
    copy = written(tmp_path / "t.csv", SEEDS)
    apart = finetune.compare(path, copy, row="after", against="scratch")
    estimate = unpaired_difference(*tables)
    assert not apart.paired and apart.comparison.ci95 == estimate.ci95 and apart.comparison.verdict == "helps"
    assert apart.metrics["macro_f1"].difference == pytest.approx(found.metrics["macro_f1"].difference)
    fixed = written(tmp_path / "u.csv", {("before", None): BEFORE})
    assert finetune.compare(fixed, path).comparison == compare_over_seeds(rights(BEFORE), tables[1])


def test_the_command_shows_which_is_which(both: Path) -> None:
    shown = worked("compare", both, "--against", "before", "--metric", "macro_f1").out
    for part in (f"A: before of {both}", f"B: after of {both}", "only A is right on", "macro-F1: B is better than A"):
        assert part in shown
    found = worked("compare", both, "--against", "before", "--json").json
    assert found == finetune.compare(str(both), against="before").to_dict()
    assert found["comparison"]["verdict"] == "better" and found["sentence"].startswith("after beats before by")


def test_two_classes_have_what_is_about_the_second(tmp_path: Path) -> None:
    lines = [
        f"{number},{'yes' if number % 3 else 'no'},{'yes' if number % 4 else 'no'},0.{5 + number % 5}"
        for number in range(60)
    ]
    (tmp_path / "p.csv").write_text("\n".join(["image,label,prediction,probability", *lines]))
    (tmp_path / "q.csv").write_text("\n".join(["image,label,prediction", *(line.rsplit(",", 1)[0] for line in lines)]))
    found = finetune.compare(tmp_path / "p.csv", tmp_path / "q.csv")
    assert found.positive == "yes" and "sensitivity" in found.metrics and "auroc" not in found.metrics
    (tmp_path / "r.csv").write_bytes((tmp_path / "p.csv").read_bytes())
    assert finetune.compare(tmp_path / "p.csv", tmp_path / "r.csv").metrics["auroc"].difference == 0
    assert "sensitivity is about class yes" in worked("compare", tmp_path / "p.csv", tmp_path / "q.csv").out


def test_other_images_or_labels_are_refused_by_name(tmp_path: Path, both: Path) -> None:
    head, *lines = both.read_text().splitlines(keepends=True)
    fewer, other = tmp_path / "fewer.csv", tmp_path / "other.csv"
    fewer.write_text(head + "".join(lines[10:]))
    with pytest.raises(DataError) as caught:
        finetune.compare(both, fewer)
    assert f"10 of 120 images of {both} are not in {fewer}: 0.png, 1.png, 2.png, 3.png, 4.png and 5 more" in str(
        caught.value
    )
    name, label, rest = lines[0].split(",", 2)
    wrong = next(n for n in NAMES if n != label)
    other.write_text(head + f"{name},{wrong},{rest}" + "".join(lines[1:]))
    with pytest.raises(DataError, match=rf"1 of 120 images differently: 0.png \({label}, {wrong}\)"):
        finetune.compare(both, other)


def test_rows_that_are_not_there_are_refused(tmp_path: Path, both: Path) -> None:
    for options, message in [
        ({}, "or one and --against ROW"),
        ({"against": "after"}, "row after against itself"),
        ({"row": "aftr", "against": "before"}, "did you mean 'after'"),
        ({"against": "beefore"}, "did you mean 'before'"),
        ({"against": "before", "metric": "auroc"}, "not enough for it; expected one of accuracy"),
        ({"against": "before", "metric": "acc"}, "unknown metric 'acc'"),
    ]:
        with pytest.raises(SettingError, match=message):
            finetune.compare(both, **options)
    rows = written(tmp_path / "rows.csv", {("one", None): BEFORE, ("two", None): AFTER})
    with pytest.raises(SettingError, match="which row"):
        finetune.compare(both, rows)
    assert "there is no such file" in refused("compare", both, "nowhere.csv")


def test_evaluate_writes_what_compare_reads(folder: Path, pretrained: Path, tmp_path: Path) -> None:
    found = worked("evaluate", pretrained, "--data", "mnist", "--predictions", "p.csv", "--json").json
    worked("evaluate", pretrained, "--data", "mnist", "--predictions", "p.csv")
    assert sorted(path.name for path in folder.iterdir()) == ["p.csv"], "the same bytes: nothing is moved"
    text = Path("p.csv").read_text()
    assert text.startswith("image,label,prediction,prediction probability\n0,")
    changed = text.replace(",0.", ",0.0", 1)
    Path("p.csv").write_text(changed)
    worked("evaluate", pretrained, "--data", "mnist", "--predictions", "p.csv")
    [aside] = folder.glob("p.was-*.csv")
    assert Path("p.csv").read_text() == text and aside.read_text() == changed
    compared = finetune.compare("p.csv", aside.name)
    assert compared.first.accuracy == found["accuracy"] == found["metrics"]["accuracy"]["value"]
    assert compared.comparison.verdict == "no difference shown"
    assert found["metrics"]["auroc"]["ci95"][0] < found["metrics"]["auroc"]["value"]


@pytest.mark.parametrize("name", ["p.txt", "notes.csv", "folder.csv"])
def test_evaluate_writes_over_nothing_else(name: str, folder: Path, pretrained: Path) -> None:
    Path("notes.csv").write_text("my,notes\n")
    Path("folder.csv").mkdir()
    said = refused("evaluate", pretrained, "--data", "mnist", "--predictions", name)
    says = {"p.txt": "ends in .csv", "notes.csv": "no file of predictions", "folder.csv": "folder.csv is a folder"}
    assert says[name] in said
    assert Path("notes.csv").read_text() == "my,notes\n"


# --- groups of images

TEN = tuple(f"track {number // 10}" for number in range(120))


def grouped(path: Path, columns: dict[tuple[str, int | None], Column], groups: tuple[str, ...] = TEN) -> Path:
    path.write_bytes(predictions_csv(Predictions(IMAGES, LABELS, NAMES, columns, groups)))
    return path


def test_groups_in_the_files_are_what_is_compared_by(tmp_path: Path) -> None:
    first = grouped(tmp_path / "a.csv", {("prediction", None): BEFORE})
    second = grouped(tmp_path / "b.csv", {("prediction", None): AFTER})
    numbers = np.arange(120) // 10
    found = finetune.compare(first, second)
    assert found.comparison == compare_rights(rights(BEFORE)[0], rights(AFTER)[0], numbers)
    assert found.comparison.groups == found.groups == 12 and found.note is None
    assert found.first.ci95 == accuracy_interval(rights(BEFORE)[0], numbers)
    assert "over 12 groups of test images" in found.sentence
    shown = worked("compare", first, second)
    assert "of 120 images in 12 groups, by which intervals are" in " ".join(shown.out.split())
    assert worked("compare", first, second, "--json").json["groups"] == 12


def test_over_seeds_groups_are_crossed_with_them(tmp_path: Path) -> None:
    both = grouped(tmp_path / "a.csv", SEEDS)
    found, numbers = finetune.compare(both, against="scratch"), np.arange(120) // 10
    tables = [rights(*(SEEDS[row, seed] for seed in range(4))) for row in ("scratch", "after")]
    assert found.comparison == compare_over_seeds(tables[0], tables[1], numbers)
    assert "4 seeds and the 12 groups of test images" in found.sentence


def test_groups_of_one_file_count_for_both_whatever_the_order(tmp_path: Path) -> None:
    first = grouped(tmp_path / "a.csv", {("prediction", None): BEFORE})
    second = written(tmp_path / "b.csv", {("prediction", None): AFTER}, np.random.default_rng(1).permutation(120))
    one, other = finetune.compare(first, second), finetune.compare(second, first)
    assert one.comparison.groups == 12 and one.comparison.p_value == other.comparison.p_value
    assert one.note == "only the file of A says which images belong together; its groups count for both"
    assert other.note is not None and "file of B" in other.note


def test_without_groups_nothing_is_said_of_them(both: Path) -> None:
    found = finetune.compare(both, against="before").to_dict()
    assert "groups" not in found and "groups" not in found["comparison"] and "group" not in found["sentence"]


def test_other_groups_are_refused(tmp_path: Path) -> None:
    first = grouped(tmp_path / "a.csv", {("prediction", None): BEFORE})
    second = grouped(tmp_path / "b.csv", {("prediction", None): AFTER}, ("", *TEN[1:]))
    said = refused("compare", first, second)
    assert "put 1 of 120 images into other groups: 0.png (track 0, none)" in said and "expected one grouping" in said
