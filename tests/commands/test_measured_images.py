"""What `evaluate` measures of a person's own images: the test part, all where there is none, never what was learnt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from album import scenes
from tiny import phase, pretrain_recipe, refused, report_of, worked

CHECKPOINT = "new.safetensors"


@pytest.fixture
def flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of ours, trained for two steps on the flat folder `fruit/`, of 24 pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    scenes(tmp_path, channels=1, fruit={"apple": 12, "pear": 12})
    trained("fruit")
    return tmp_path / "fruit"


def trained(name: str, more: str = "") -> None:
    Path("recipe.yaml").write_text(pretrain_recipe(phase("all", "steps: 2", batch=8), f"{{name: ./{name}{more}}}"))
    worked("pretrain", "--recipe", "recipe.yaml", "--out", CHECKPOINT, "--quiet")


def measured(data: str) -> tuple[Any, str]:
    """What `evaluate` gives as JSON, and what it says beside that."""
    done = worked("evaluate", CHECKPOINT, "--data", data, "--json")
    return done.json, " ".join(done.err.split())


def test_of_a_folder_that_was_trained_on_what_was_held_out_is_measured(flat: Path) -> None:
    found, said = measured("fruit")
    assert (found["part"], found["total"]) == ("held_out", 6)
    assert found["claimed_accuracy"] == found["accuracy"] and "was trained on these" in said and "6 of 24" in said
    shutil.copytree(flat, "fruit of another name")
    assert measured("fruit of another name")[0]["part"] == "held_out", "the pictures are known, not the name"
    assert worked("verify", CHECKPOINT, "--data", "fruit")


def test_of_a_folder_of_the_same_name_all_may_have_been_learnt(flat: Path) -> None:
    scenes(Path("more"), channels=1, fruit={"apple": 15, "pear": 15})
    found, said = measured("more/fruit")
    assert (found["part"], found["total"], found["claimed_accuracy"]) == ("held_out", 7, None)
    assert "a data set of this name, with other pictures" in said


def test_other_folders_are_measured_whole(flat: Path) -> None:
    scenes(Path(), channels=1, noise=200, harvest={"apple": 5, "pear": 4}, single={"pear": 3}, one={"apple": 1})
    for name, total in (("harvest", 9), ("single", 3), ("one", 1)):
        found, said = measured(f"./{name}")
        assert (found["part"], found["total"], found["claimed_accuracy"]) == ("all", total, None)
        assert f"no test part, so all {total} pictures are measured" in said
        assert found["classes"] == ["apple", "pear"], "also for pictures of one class there is a choice"
        assert sum(map(sum, found["confusion"])) == total


def test_a_test_part_alone_is_measured(flat: Path) -> None:
    scenes(Path("alone"), channels=1, Testing={"apple": 5, "pear": 4})
    rows = [f"{path.as_posix()};{path.parent.name};test" for path in sorted(Path("alone").rglob("*.png"))]
    Path("rows.tsv").write_text("\n".join(["image;class;subset", *rows]))
    by_folder, by_table = measured("./alone")[0], measured("rows.tsv")[0]
    assert (by_folder["part"], by_folder["total"]) == ("test", 9)
    assert by_folder["confusion"] == by_table["confusion"] and by_table["part"] == "test"
    message = refused("pretrain", "--recipe", "recipe.yaml", "--set", "data.name=./alone", "--out", "x.safetensors")
    assert "found Testing but no train" in message


def test_pictures_that_were_trained_on_are_no_test(flat: Path) -> None:
    shutil.rmtree("runs", ignore_errors=True)
    scenes(Path("parts"), channels=1, train={"apple": 9, "pear": 9}, test={"apple": 3, "pear": 3})
    for more in ("", ", validation: 4"):
        trained("parts", more)
        found, said = measured("parts/train")
        assert (found["part"], found["total"]) == ("trained_on", 18) and "no test of it" in said
    assert measured("./parts")[0]["part"] == "test"


def test_a_table_with_columns_of_its_own_is_known_again(flat: Path) -> None:
    rows = [f"fruit/{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(Path("fruit").rglob("*.png"))]
    Path("labels.csv").write_text("\n".join(["where,what", *rows]))
    trained("labels.csv", ", columns: {path: where, label: what}")
    assert report_of(CHECKPOINT)["recipe"]["data"]["columns"] == {"path": "where", "label": "what"}
    found, _ = measured("labels.csv")
    assert found["part"] == "held_out" and found["claimed_accuracy"] == found["accuracy"]
    assert measured("rows.csv" if Path("rows.csv").exists() else "./fruit")[0]["total"] == 6


def test_pictures_without_labels_are_for_predict(flat: Path) -> None:
    scenes(Path("raw"), channels=1, test={"": 3})
    assert "test/ has 3 pictures without class folders" in refused("evaluate", CHECKPOINT, "--data", "./raw")
    assert len(worked("predict", CHECKPOINT, "raw/test").out.splitlines()) == 3
