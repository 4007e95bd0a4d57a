"""finetune check, and its short form before every adapt."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import worked

import finetune
from finetune.errors import DataError, OutputError, SettingError


def scenes(root, tracks=12, frames=5, classes=3):
    """ROOT/cN/TRACK_FRAME.png: each scene is seen several times; only the scene is easy to know again."""
    rng = np.random.default_rng(5)
    for label in range(classes):
        (root / f"c{label}").mkdir(parents=True)
        for track in range(tracks):
            scene = rng.normal(120, 30, (32, 32))
            scene[8:20, 8 : 11 + 4 * label] += 12
            for frame in range(frames):
                down, right = rng.integers(0, 4, 2)
                seen = scene[down : down + 28, right : right + 28] + rng.normal(0, 6, (28, 28))
                picture = Image.fromarray(seen.clip(0, 255).astype(np.uint8))
                picture.save(root / f"c{label}" / f"{track:03d}_{frame:03d}.png")
    return root


def kinds(report):
    return {finding.kind: finding for finding in report.findings}


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def test_tracks_twins_and_how_much_they_flatter_are_told(tmp_path):
    report = finetune.check(str(scenes(tmp_path / "tracks")))
    found = kinds(report)
    assert report.group == r"(.+)_\d+" and r"data.group=(.+)_\d+" in found["grouping"].says
    assert found["twins_across_parts"].count == report.parts["test"] > 0
    assert report.agreement["apart"] > report.agreement["together"] + 0.2 and "flattery" in found
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


@pytest.mark.slow
def test_groups_keep_twins_on_one_side(tmp_path):
    report = finetune.check(str(scenes(tmp_path / "tracks")), settings=[r"data.group=(.+)_\d+"])
    assert not {"twins_across_parts", "grouping"} & kinds(report).keys()


def test_one_picture_under_two_labels_and_plain_ones_are_left_out_of_the_clean_table(tmp_path):
    root = scenes(tmp_path / "x", frames=1)
    shutil.copy(root / "c0" / "003_000.png", root / "c1" / "again.png")
    Image.new("L", (28, 28), 9).save(root / "c2" / "blank.png")
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    (tmp_path / "out").mkdir()
    report = finetune.check(str(root), write=tmp_path / "out" / "clean.csv")
    found = kinds(report)
    assert {p["image"] for p in found["plain"].pictures} == {"c2/blank.png"}
    pair = found["two_labels"].pictures[0]
    assert {pair["image"], pair["twin"]} == {"c0/003_000.png", "c1/again.png"} and pair["exact"]
    assert {"c2/blank.png", "c0/003_000.png", "c1/again.png"} <= set(report.suspects)
    with (tmp_path / "out" / "clean.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(before) - len(report.suspects)
    assert all((tmp_path / "out" / row["path"]).is_file() for row in rows)
    assert before == {path: path.read_bytes() for path in root.rglob("*.png")}
    assert not {"two_labels", "plain"} & kinds(finetune.check(str(tmp_path / "out" / "clean.csv"))).keys()


def test_an_older_table_is_moved_aside_and_the_checked_one_never_replaced(tmp_path):
    root = scenes(tmp_path / "x", frames=1, tracks=4)
    (tmp_path / "clean.csv").write_text("mine")
    finetune.check(str(root), write="clean.csv")
    assert "mine" in {path.read_text() for path in tmp_path.glob("clean.was-*.csv")}
    with pytest.raises(OutputError, match="is what this command reads"):
        finetune.check("clean.csv", write="clean.csv")


def test_what_cannot_be_asked_is_told_before_anything_is_opened(tmp_path):
    with pytest.raises(DataError, match="has no picture files"):
        finetune.check("digits", write="clean.csv")
    with pytest.raises(SettingError, match=r"ends in \.csv"):
        finetune.check("digits", write="clean.txt")
    with pytest.raises(SettingError, match="expected a key of data"):
        finetune.check("digits", settings=["seed=3"])


def test_one_class_and_no_pictures(tmp_path):
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DataError):
        finetune.check(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="one class only"):
        finetune.check(str(scenes(tmp_path / "one", classes=1)))


def test_a_clean_table_has_no_twin_to_learn_from_of_a_test_picture(tmp_path):
    root = scenes(tmp_path / "x")
    clean, again = tmp_path / "clean.csv", tmp_path / "again.csv"
    assert "twins_across_parts" in kinds(finetune.check(str(root), write=clean))
    with clean.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["group"] for row in rows} == {f"c{label}/{track:03d}" for label in range(3) for track in range(12)}
    assert "twins_across_parts" not in kinds(finetune.check(str(clean))), "groups keep twins on one side"
    # of a test part that is given, twins to learn from go, and twins of these
    for row in rows:
        row["split"] = "test" if row["path"].endswith("_000.png") and "/00" in row["path"] else "train"
        row["split"] = "train" if int(row["group"][-3:]) > 5 else row["split"]
    with again.open("w", newline="") as file:
        table = csv.DictWriter(file, ["path", "label", "split"], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    assert "twins_across_parts" in kinds(finetune.check(str(again), write=clean))
    found = kinds(finetune.check(str(clean)))
    assert "twins_across_parts" not in found


def test_the_command_prints_what_was_found(tmp_path):
    root = scenes(tmp_path / "tracks", tracks=6)
    shutil.copy(root / "c0" / "003_000.png", root / "c1" / "again.png")
    Image.new("L", (28, 28), 9).save(root / "c2" / "blank.png")
    shown = worked("check", "--target", "tracks/").out
    assert r"data.group=(.+)_\d+" in shown.replace("\n", "")
    assert "c2/blank.png (c2)\n" in shown
    assert {"c0/003_000.png (c0) ~ c1/again.png (c1)", "c1/again.png (c1) ~ c0/003_000.png (c0)"} & set(lines(shown))
    values = worked("check", "--target", "tracks/", "--json").json
    assert values["group"] == r"(.+)_\d+" and values["findings"]


def lines(text):
    return [line.strip() for line in text.splitlines()]
