"""`finetune predict`: files, folders and lists of paths; what cannot be read is told after what can."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from album import put, scene
from PIL import Image
from rights import closed_folder
from tampering import tampered
from tiny import Done, adapt_recipe, drawn, finetune, refused, report_of, worked

import finetune as toolkit
from finetune.cli.main import main
from finetune.commands.predict import listed_paths
from finetune.errors import DataError, SettingError, UserError

CLASSES = ("apple", "pear", "plum")


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory, backbone: Path, orchard: Path) -> Path:
    """A checkpoint for the pictures of the orchard, without a record of its confidence; nothing may change it."""
    work = tmp_path_factory.mktemp("trees")
    with contextlib.chdir(work):
        Path("trees.yaml").write_text(adapt_recipe("  - {train: head, solver: lbfgs}\n"))
        words = ("--recipe", "trees.yaml", "--target", orchard, "--out", "trees.safetensors", "--quiet")
        worked("adapt", "--from", backbone, *words)
        tampered("trees.safetensors", lambda metadata: metadata.pop("confidence", None))
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
    monkeypatch.setattr(sys, "stdin", typed("\n".join([paths[0], "", f"{paths[1]}\r", paths[2]])))
    found = worked("predict", trees, "-")
    assert [file for file, _ in lines(found)] == paths
    for divided, option in (("\n", ()), ("\0", ["--null"])):
        monkeypatch.setattr(sys, "stdin", typed(divided.join(paths[1:])))
        assert worked("predict", trees, paths[0], "-", *option).out == found.out


def typed(text: str | bytes) -> io.TextIOWrapper:
    """What somebody, or a pipe, has written on standard input."""
    return io.TextIOWrapper(io.BytesIO(text if isinstance(text, bytes) else text.encode()), "utf-8")


def test_a_list_is_read_as_it_comes() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as sink:
        found = listed_paths(stream, b"\n")
        for piece, path in ((b"first\n", "first"), (b"sec", None), (b"ond\r\n\nthi", "second"), (b"rd\n", "third")):
            sink.write(piece)
            assert path is None or next(found) == path
        sink.write(b"\r.png\n\xe9")
        assert next(found) == "\r.png"
        sink.close()
        assert list(found) == ["\udce9"]
    with pytest.raises(DataError, match="a path of over 65,536 bytes; expected paths with line breaks"):
        list(listed_paths(io.BufferedReader(io.BytesIO(b"x" * 200_000)), b"\n"))


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


def test_each_answer_is_in_its_place_and_what_cannot_be_read_is_a_line_too(
    folder: Path, trees: Path, orchard: Path
) -> None:
    Path("text.jpg").write_text("no picture")
    Path("empty.png").touch()
    good = [str(orchard / "test/pear/1.png"), str(orchard / "test/plum/1.png")]
    given = ["text.jpg", good[0], "gone.png", good[1], "empty.png", "n" * 300, good[0]]
    done = finetune("predict", trees, *given)
    assert done.code == 1 and [file for file, *_ in lines(done)] == given
    assert done.err == "finetune: 4 of 7 pictures could not be read; their lines say why\n"
    said = [text.startswith("error: cannot be read") or text for _, text in lines(done)]
    assert said[0] is said[4] is said[5] is True and said[2] == "error: there is no such image file"
    assert said[1] == said[6] and str(said[1]).startswith("pear ")
    whole, each = (finetune("predict", trees, *given, option, "--top", 2) for option in ("--json", "--jsonl"))
    assert whole.code == each.code == 1 and [json.loads(line) for line in each.out.splitlines()] == whole.json
    assert [sight["file"] for sight in whole.json] == given and set(whole.json[0]) == {"file", "error"}
    assert (
        worked("predict", trees, good[0], "--json").out
        == json.dumps([{**whole.json[1], "top": whole.json[1]["top"][:1]}], indent=1) + "\n"
    )
    for option in ("--json", "--jsonl"):
        stopped = finetune("predict", trees, *given[1:], option, "--strict")
        assert stopped.code == 1 and stopped.out.count('"file"') == 1 and good[0] in stopped.out
        assert stopped.err == "finetune: gone.png: there is no such image file\n"
    assert finetune("predict", trees, given[0], "--json", "--strict").json == []


def test_logits_are_those_of_the_network(folder: Path, trees: Path, orchard: Path) -> None:
    files = sorted(map(str, (orchard / "test").rglob("*.png")))[:5]
    found = worked("predict", trees, *files, "--jsonl", "--logits", "--batch", 2)
    own = list(toolkit.load(trees).predict_each(iter(files), batch=1))
    assert len(list(toolkit.predict(trees, iter(files), batch=10**30))) == len(own), "as many as there are"
    for line, one in zip(found.out.splitlines(), own, strict=True):
        np.testing.assert_allclose(json.loads(line)["logits"], one.logits, rtol=1e-4, atol=1e-4)
        assert one.probabilities == pytest.approx(np.exp(one.logits) / np.exp(one.logits).sum(), abs=1e-6)
    assert refused("predict", trees, files[0], "--logits").startswith("--logits: goes with --json or --jsonl")
    assert refused("predict", trees, files[0], "--logits", "--jsonl", "--tta", "flip").startswith("--logits and --tta")
    assert refused("predict", trees, files[0], "--json", "--jsonl").startswith("--json and --jsonl")


def test_weights_that_overflow_give_no_answer(folder: Path, pretrained: Path) -> None:
    classifier = toolkit.load(pretrained)
    for parameter in classifier.parameters():
        parameter.data *= 1e14
    toolkit.save(classifier, "huge.safetensors")
    Image.fromarray(np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)).save("digit.png")
    done = finetune("predict", "huge.safetensors", "digit.png")
    assert (
        done.code == 1
        and done.out == "digit.png\terror: the network's answer is no finite number; its weights overflow\n"
    )


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
    small = Image.fromarray(drawn("mnist", 1, "test")[0][0])
    small.save("digit.png")
    small.resize((280, 280), Image.Resampling.NEAREST).convert("RGB").save("drawn.png")  # grey, in a file of colours
    pretrained = Path(shutil.copy(pretrained, "plain.safetensors"))
    tampered("plain.safetensors", lambda metadata: metadata.pop("confidence"))  # whose novelty score would speak first
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_names_come_out_as_they_are_and_forge_nothing(
    folder: Path, trees: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        b"caf\xe9.png",
        b"a\x1b]0;x\x07.png",
        b"b.png\tpear 99 %\nc.png",
        b'"quoted".png',
        "d\u200de.png".encode(),
        b"e\r.png",
    ]
    for name in names:
        try:
            put(Path("x.png")).rename(os.fsdecode(name))
        except OSError:
            pytest.skip("this file system has no such names")
    names.sort()
    plain = [name for name in names if name.startswith((b"c", b"d"))]
    for given, arguments in ((b"", ["."]), (b"\0".join(names), ["-", "--null"])):
        printed = []
        for option in ([], ["--jsonl"], ["--json"]):
            out = io.TextIOWrapper(io.BytesIO(), "utf-8")
            monkeypatch.setattr(sys, "stdin", typed(given))
            monkeypatch.setattr(sys, "argv", ["finetune", "predict", str(trees), *arguments, *option])
            with contextlib.redirect_stdout(out):
                main()
                out.flush()
            printed.append(out.buffer.getvalue())  # type: ignore[attr-defined]
        rows = [line.split(b"\t") for line in printed[0].splitlines()]
        assert [len(row) for row in rows] == [2] * 6 and [row[0] for row in rows if row[0][:1] != b'"'] == plain
        read = [json.loads(name) if name[:1] == b'"' else os.fsdecode(name) for name, _ in rows]
        for found in (read, [json.loads(line)["file"] for line in printed[1].decode().splitlines()]):
            assert [os.fsencode(name) for name in found] == names
        assert [os.fsencode(one["file"]) for one in json.loads(printed[2].decode())] == names
    screen = Terminal()
    monkeypatch.setattr(sys, "argv", ["finetune", "predict", str(trees), "."])
    with contextlib.redirect_stdout(screen):
        main()
    assert all(c.isprintable() or c in "\t\n" for c in screen.getvalue()) and screen.getvalue().count("\n") == 6


def test_links_out_of_a_folder_are_not_followed(folder: Path, trees: Path, orchard: Path) -> None:
    put(Path("mine/a/real.png"))
    for name, target in {
        "mine/inside.png": Path("a/real.png"),
        "mine/out.png": orchard / "test/pear/1.png",
        "mine/gone.png": Path("nowhere.png"),
        "mine/b": Path("a"),
        "mine/elsewhere": orchard,
        "mine/table.csv": orchard / "any.csv",
    }.items():
        Path(name).symlink_to(target)
    Path("link").symlink_to("mine")
    for named in ("mine", "link"):  # a link that a person names is followed
        done = finetune("predict", trees, named, orchard / "test/pear/1.png")
        rows = dict(lines(done))
        names = ("a/real.png", "elsewhere", "gone.png", "inside.png", "out.png")
        assert done.code == 1 and list(rows) == [*(f"{named}/{name}" for name in names), f"{orchard}/test/pear/1.png"]
        out = f"error: a link that leads out of the folder, to {orchard}"
        assert rows[f"{named}/elsewhere"] == out and rows[f"{named}/out.png"] == f"{out}/test/pear/1.png"
        assert rows[f"{named}/gone.png"] == "error: a link that leads nowhere"
        assert rows[f"{named}/a/real.png"] == rows[f"{named}/inside.png"]


def test_folders_that_may_not_be_entered(pretrained: Path) -> None:
    with closed_folder(pretrained) as closed:
        checkpoint = closed.parent / pretrained.name
        (one,) = toolkit.predict(checkpoint, [closed / "inside.png"])
        assert one.error == "cannot be read as an image (Permission denied)"
        with pytest.raises(DataError, match="closed: the folder cannot be read"):
            toolkit.predict(checkpoint, [closed])
        (one,) = toolkit.predict(checkpoint, [closed.parent])
        assert one.file == str(closed) and one.error == "the folder cannot be read (Permission denied)"
        for call in (toolkit.load, lambda name: toolkit.evaluate(checkpoint, str(name)), toolkit.verify):
            with pytest.raises(UserError, match="may not be entered"):
                call(closed / "inside.safetensors")


@pytest.mark.slow
def test_a_folder_deeper_than_a_program_may_call_itself(folder: Path, pretrained: Path) -> None:
    with contextlib.chdir(folder):
        for _ in range(1_200):
            os.mkdir("d")  # noqa: PTH102
            os.chdir("d")
        Image.new("L", (28, 28)).save("x.png")
    (one,) = toolkit.predict(pretrained, ["d"])
    subprocess.run(["rm", "-r", "d"], check=True)  # which pytest could not
    assert one.error is None and one.file.endswith("d/d/x.png") and len(one.file) == 2 * 1_200 + 5


def test_the_same_from_python(folder: Path, trees: Path, orchard: Path) -> None:
    found = [sight.to_dict() for sight in toolkit.predict(trees, [orchard / "test"], top=2)]
    assert found == worked("predict", trees, orchard / "test", "--top", 2, "--json").json
    right = sum(sight["label"] == Path(sight["file"]).parent.name for sight in found)
    assert right == report_of(trees)["results"]["after"]["correct"]
    assert json.loads(json.dumps(found)) == found
    endless = toolkit.predict(trees, itertools.cycle([orchard / "test/pear/1.png", "gone.png"]), batch=2)
    assert [sight.error for sight in itertools.islice(endless, 4)] == [None, "there is no such image file"] * 2
    with pytest.raises(SettingError, match=r"images: expected texts and paths, found 3 \(int\)"):
        list(toolkit.predict(trees, [3]))  # type: ignore[list-item]
    for images, said in (("x.png", "images: expected "), (["x.png", ""], "an empty text names no picture")):
        with pytest.raises(SettingError, match=re.escape(said)):
            toolkit.predict(trees, images)
    with pytest.raises(SettingError, match="top: expected a number from 1, found 0"):
        toolkit.predict(trees, ["x.png"], top=0)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list_and_a_closed_pipe_ends_quietly(folder: Path, pretrained: Path) -> None:
    Image.fromarray(np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)).save("digit.png")
    program = (
        "import resource, sys; from finetune.cli.main import cli, main\n"
        "try: main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    peaks = []
    for count in (2_000, 16_000):
        Path("list.txt").write_text("digit.png\nno.png\n" * (count // 2))
        with Path("list.txt").open() as given, Path("found.jsonl").open("w") as found:
            words = [sys.executable, "-c", program, "predict", str(pretrained), "-", "--jsonl", "--quiet"]
            done = subprocess.run(words, stdin=given, stdout=found, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 1 and done.stderr.startswith(f"finetune: {count // 2:,} of {count:,} pictures")
        rows = [json.loads(line) for line in Path("found.jsonl").read_text().splitlines()]
        assert [row["file"] for row in rows] == ["digit.png", "no.png"] * (count // 2)
        peaks.append(int(done.stderr.splitlines()[-1]))
    assert peaks[1] < 1.1 * peaks[0], peaks
    head = f"{sys.executable} -m finetune predict {pretrained} - --jsonl < list.txt | head -n 2"
    done = subprocess.run(head, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 2 and done.stderr == ""
