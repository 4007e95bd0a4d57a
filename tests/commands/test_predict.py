"""`finetune predict`: files, folders and lists of paths; what cannot be read is told after what can."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from album import put, scene
from PIL import Image
from tiny import Done, adapt_recipe, finetune, refused, report_of, worked

import finetune as toolkit
from finetune.cli.main import main

CLASSES = ("apple", "pear", "plum")


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory, backbone: Path, orchard: Path) -> Path:
    """A checkpoint for the pictures of the orchard; nothing may change it."""
    work = tmp_path_factory.mktemp("trees")
    with contextlib.chdir(work):
        Path("trees.yaml").write_text(adapt_recipe("  - {train: head, solver: lbfgs}\n"))
        words = ("--recipe", "trees.yaml", "--target", orchard, "--out", "trees.safetensors", "--quiet")
        worked("adapt", "--from", backbone, *words)
    return work / "trees.safetensors"


def lines(done: Done) -> list[list[str]]:
    return [line.split("\t") for line in done.out.splitlines()]


def test_files_come_back_in_the_order_given(folder: Path, trees: Path, orchard: Path) -> None:
    given = [orchard / "test" / name for name in ("plum/3.png", "apple/0.png", "pear/7.png", "apple/0.png")]
    found = lines(worked("predict", trees, *given))
    assert [file for file, _ in found] == list(map(str, given)) and found[1] == found[3]
    for (_, text), one in zip(found, toolkit.load(trees).predict(given), strict=True):
        assert text == f"{one.label} {100 * one.probability:.2f} %"


def test_a_folder_is_all_pictures_beneath_it_by_name(folder: Path, trees: Path) -> None:
    names = ("b/deep/2.PNG", "a.jpg", "b/1.webp", "c/z.tif", "c.gif")
    for name in names:
        put(folder / "mine" / name)
    for name in ("notes.txt", ".hidden/x.png", "._a.jpg", "__MACOSX/a.jpg", "b/sidecar.json"):
        (folder / "mine" / name).parent.mkdir(exist_ok=True)
        put(folder / "any.png").rename(folder / "mine" / name)
    found = lines(worked("predict", trees, "mine"))
    assert [file for file, *_ in found] == [
        f"mine/{n}" for n in ("a.jpg", "b/1.webp", "b/deep/2.PNG", "c/z.tif", "c.gif")
    ]
    whole = worked("predict", trees, "mine", "mine/a.jpg", "mine/b").out.splitlines()
    assert len(whole) == 8 and whole[5] == whole[0] and whole[6:] == whole[1:3]


def test_paths_on_standard_input(folder: Path, trees: Path, orchard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(Path("my own.png"))
    paths = [str(orchard / "test/pear/1.png"), "my own.png", str(orchard / "test/plum/1.png")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([paths[0], "", f"{paths[1]}\r", paths[2]])))
    found = worked("predict", trees, "-")
    assert [file for file, _ in lines(found)] == paths
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(paths[1:])))
    assert worked("predict", trees, paths[0], "-").out == found.out


def test_top_classes_with_their_probabilities(folder: Path, trees: Path, orchard: Path) -> None:
    for top in (1, 2, 3, 9):
        (sight,) = worked("predict", trees, orchard / "test/pear/1.png", "--top", top, "--json").json
        assert list(sight) == ["file", "label", "probability", "top"] and len(sight["top"]) == min(top, 3)
        values = [item["probability"] for item in sight["top"]]
        assert values == sorted(values, reverse=True) and sight["probability"] == values[0]
        assert sight["label"] == sight["top"][0]["label"]
    assert {item["label"] for item in sight["top"]} == set(CLASSES) and sum(values) == pytest.approx(1, abs=1e-6)
    (line,) = lines(worked("predict", trees, orchard / "test/pear/1.png", "--top", 3))
    assert line[1:] == [f"{item['label']} {100 * item['probability']:.2f} %" for item in sight["top"]]


def by_class(sight: Any) -> np.ndarray:
    found = {item["label"]: item["probability"] for item in sight["top"]}
    return np.array([found[name] for name in CLASSES])


def test_flipping_averages_a_picture_and_its_mirror_image(folder: Path, trees: Path, orchard: Path) -> None:
    files = sorted((orchard / "test").rglob("*.png"))
    for index, file in enumerate(files):
        Image.fromarray(np.asarray(Image.open(file))[:, ::-1]).save(f"{index:02}.png")
    plain = worked("predict", trees, *files, "--top", 3, "--json").json
    turned = worked("predict", trees, folder, "--top", 3, "--json").json
    both = worked("predict", trees, *files, "--top", 3, "--json", "--tta", "flip").json
    for one, other, found in zip(plain, turned, both, strict=True):
        np.testing.assert_allclose(by_class(found), (by_class(one) + by_class(other)) / 2, atol=1e-5)
        assert found["label"] == found["top"][0]["label"] == CLASSES[int(by_class(found).argmax())]
    assert any(one["label"] != found["label"] for one, found in zip(plain, both, strict=True))


def test_what_cannot_be_read_is_told_after_what_can(folder: Path, trees: Path, orchard: Path) -> None:
    Path("text.jpg").write_text("no picture")
    Path("empty.png").touch()
    good = [str(orchard / "test/pear/1.png"), str(orchard / "test/plum/1.png")]
    done = finetune("predict", trees, "text.jpg", good[0], "gone.png", good[1], "empty.png")
    assert done.code == 2 and [file for file, _ in lines(done)] == good
    assert done.err.startswith("finetune: 3 of 5 pictures could not be read:\n  text.jpg: ")
    assert "\n  gone.png: there is no such image file" in done.err and "\n  empty.png: " in done.err
    done = finetune("predict", trees, "text.jpg", good[0], "--json")
    first, second = done.json
    assert done.code == 2 and set(first) == {"file", "error"} and first["file"] == "text.jpg"
    assert second["file"] == good[0] and "error" not in second


def test_many_pictures_go_through_in_batches(
    folder: Path, trees: Path, orchard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = worked("predict", trees, orchard, "--json").json
    assert len(whole) == 78
    monkeypatch.setattr("finetune.train.inference.PROCESSOR", (8, 500, 1))  # eight at once
    Path("no.png").touch()
    files = [sight["file"] for sight in whole]
    found = finetune("predict", trees, *files[:20], "no.png", *files[20:], "--json").json
    assert "error" in found.pop(20)
    assert [(s["file"], s["label"]) for s in found] == [(s["file"], s["label"]) for s in whole]


def test_a_grey_network_looks_at_colour_pictures(folder: Path, pretrained: Path) -> None:
    for index in range(6):
        picture = Image.fromarray(scene("three", index))
        picture.save(f"colour{index}.png")
        picture.convert("L").save(f"grey{index}.png")
    found = worked("predict", pretrained, folder, "--top", 10, "--json").json
    assert [sight["top"] for sight in found[:6]] == [sight["top"] for sight in found[6:]]
    assert {sight["label"] for sight in found} <= set("0123456789")


def test_pictures_of_another_kind_are_said(folder: Path, pretrained: Path, trees: Path) -> None:
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)).resize((500, 375))
    photograph.save("ant.jpg")
    photograph.convert("L").save("page.png")
    small = Image.fromarray(np.arange(28 * 28, dtype=np.uint8).reshape(28, 28))
    small.save("digit.png")
    small.resize((280, 280)).convert("RGB").save("drawn.png")  # grey, though in a file of colours
    done = worked("predict", pretrained, "digit.png", "drawn.png", "ant.jpg", "page.png")
    said = "is a colour picture of 500×375, and this network learnt from grey ones of 28×28: its answer means little"
    assert done.err == f"ant.jpg {said}; so it is with 1 more\n" and len(lines(done)) == 4
    assert worked("predict", pretrained, "ant.jpg").err == f"ant.jpg {said}\n"
    assert "is a picture of 500×375" in worked("predict", pretrained, "page.png").err
    assert worked("predict", pretrained, "ant.jpg", "--quiet").err == ""
    assert worked("predict", pretrained, "digit.png", "drawn.png").err == ""
    assert worked("predict", trees, "ant.jpg").err == "", "it learnt from pictures of which nothing is known"
    found = worked("predict", pretrained, "digit.png", "ant.jpg", "--json").json
    assert [sight.get("unlike", "")[:16] for sight in found] == ["", "a colour picture"]


def test_a_colour_network_looks_at_grey_pictures(folder: Path, trees: Path) -> None:
    grey = Image.fromarray(scene("apple", 0)).convert("L")
    grey.save("grey.png")
    grey.convert("RGB").save("three.png")
    first, second = worked("predict", trees, "grey.png", "three.png", "--json").json
    assert {**first, "file": ""} == {**second, "file": ""}


def test_what_is_refused(folder: Path, trees: Path) -> None:
    Path("bare").mkdir()
    Path("bare/notes.txt").touch()
    message = refused("predict", trees, "bare")
    assert (
        message.startswith("bare: no picture in this folder, but 1 .txt file (notes.txt); known endings are .apng, ")
        and ".jpg" in message
    )
    assert refused("predict", "gone.safetensors", "x.png").startswith("gone.safetensors: there is no such checkpoint")
    put(Path("x.png"))
    assert "not on this machine" in refused("predict", trees, "x.png", "--device", "cuda:99")
    assert finetune("predict", trees).code == 2 and finetune("predict", trees, "x.png", "--top", 0).code == 2
    assert finetune("predict", trees, "x.png", "--tta", "rotate").code == 2


def test_a_name_that_is_no_text_comes_out_as_it_is(folder: Path, trees: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = b"caf\xe9.png"  # Latin-1, as old discs have it
    try:
        put(Path("x.png")).rename(os.fsdecode(name))
    except OSError:
        pytest.skip("this file system has no such names")
    for given, arguments in ((b"", ["."]), (name + b"\n", ["-"]), (b"", [".", "--json"])):
        out = io.TextIOWrapper(io.BytesIO(), "utf-8")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
        monkeypatch.setattr(sys, "argv", ["finetune", "predict", str(trees), *arguments])
        with contextlib.redirect_stdout(out):
            main()
            out.flush()
        assert name in out.buffer.getvalue()  # type: ignore[attr-defined]


def test_the_same_from_python(folder: Path, trees: Path, orchard: Path) -> None:
    from finetune.commands.predict import predict

    found = [sight.to_dict() for sight in predict(trees, [orchard / "test"], top=2)]
    assert found == worked("predict", trees, orchard / "test", "--top", 2, "--json").json
    right = sum(sight["label"] == Path(sight["file"]).parent.name for sight in found)
    assert right == report_of(trees)["results"]["after"]["correct"]
    assert json.loads(json.dumps(found)) == found
