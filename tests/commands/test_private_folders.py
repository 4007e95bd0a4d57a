"""What is made to be passed on names no folder of the machine: checkpoints, pages, notes of reports, what is pushed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import adapt_recipe, phase, worked

from finetune.io.sanitize import without_folders


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/jane doe/my pics: left out: a/b.png", "my pics: left out: a/b.png"),
        ("a link to /a/b c/x.png; d/e.png", "a link to x.png; d/e.png"),
        ("/a/b.png, /c/d.png and /e/f.png", "b.png, d.png and f.png"),
        (r"C:\Users\jane\x.png, \\host\share\y.png; ~/z/w.png", "x.png, y.png; w.png"),
        ("https://example.org/a/b, 300 images/s, 1/2, and/or", "https://example.org/a/b, 300 images/s, 1/2, and/or"),
    ],
)
def test_of_an_absolute_path_the_last_name_is_left(text: str, left: str) -> None:
    assert without_folders(text) == left


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_nothing_that_is_passed_on_names_a_folder(kind: str, folder: Path, orchard: Path, pretrained: Path) -> None:
    secret = folder / "secret"
    pictures = secret / "pictures"
    for path in sorted(orchard.rglob("*.png")):
        place = pictures / path.relative_to(orchard)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    (secret / "elsewhere.png").write_bytes(path.read_bytes())
    (pictures / "train/apple/link.png").symlink_to(secret / "elsewhere.png")
    (pictures / "train/apple/broken.png").write_bytes(b"no picture")
    table = secret / "table.csv"
    rows = [f"{p.absolute()},{p.parent.name},{p.parent.parent.name}" for p in sorted(pictures.rglob("*.png"))]
    table.write_text("\n".join(["path,label,split", *rows]))
    Path("r.yaml").write_text(adapt_recipe(phase("head", "steps: 2"), "{on_bad_image: skip}"))
    source = secret / "source.safetensors"
    source.write_bytes(pretrained.read_bytes())
    target = pictures if kind == "folder" else table
    new = secret / "new.safetensors"
    worked("adapt", "--recipe", "r.yaml", "--from", source, "--target", target, "--out", new, "--html")
    worked("push", new, "ada/new", "--dry-run", "--quiet")
    report = json.loads((secret / "new.report.json").read_text())
    assert report["target"]["notes"] and report["source"].pop("path") == str(source)  # where `verify` finds it
    written = [path.read_bytes() for path in (*Path("hub").rglob("*"), new) if path.is_file()]
    assert len(written) == 6
    for content in (*written, (secret / "new.report.html").read_bytes(), json.dumps(report).encode()):
        assert str(folder).encode() not in content
