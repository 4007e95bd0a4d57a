"""What is said of the package is true of it, and a built wheel works anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from finetune import __version__
from finetune.paths import SHIPPED_CHECKPOINTS, shipped_checkpoint, shipped_folder
from finetune.sources.resolve import locate
from finetune.text import DISTRIBUTION, install_hint

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_one_name_and_one_version() -> None:
    assert PROJECT["name"] == DISTRIBUTION and list(PROJECT["scripts"]) == ["finetune"]
    assert PROJECT["version"] == __version__


def test_every_hint_names_this_distribution_and_an_extra_that_it_has() -> None:
    extras = PROJECT["optional-dependencies"]
    assert install_hint("heic") == f"pip install '{DISTRIBUTION}[heic]'"
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").glob("*.yaml")]
    code = list((ROOT / "finetune").rglob("*.py"))
    named = [extra for path in code for extra in re.findall(r"install_hint\(['\"](\w+)", path.read_text("utf-8"))]
    for path in [*pages, *code]:
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"(?<![\w-])finetune\[[a-z,]+\]|pip install finetune(?![\w-])", text), path
        named += re.findall(rf"{DISTRIBUTION}\[(\w+)\]", text)
    assert {"heic", "shards", "cluster", "lora"} <= set(named) <= set(extras)


def test_the_citation_has_what_its_format_demands() -> None:
    cited = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(cited) and cited["cff-version"] == "1.2.0"
    assert cited["version"] == __version__ and cited["type"] == "software" and cited["authors"][0]["name"]


def test_a_shipped_checkpoint_by_its_name(folder: Path) -> None:
    for name in SHIPPED_CHECKPOINTS:
        found = locate(name)
        assert found.path == shipped_checkpoint(name) == shipped_folder("checkpoints") / f"{name}.safetensors"
        assert found.path.is_file() and found.hub is None
    assert shipped_checkpoint("digits") is None and locate("digits").path == Path("digits")
    (folder / "mnist").mkdir()
    assert locate("mnist").path == shipped_checkpoint("mnist"), "a folder is no checkpoint"
    (folder / "mnist").rmdir()
    (folder / "mnist").touch()
    assert locate("mnist").path == Path("mnist"), "a file of that very name is meant"
    assert locate("./mnist").path == Path("./mnist")


@pytest.mark.parametrize("place", ["lib/python3.11/site-packages", "."])
def test_where_pip_puts_data_files_is_found(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an environment or --prefix; of --target. What strangers put beside the package is not ours."""
    package, shared = tmp_path / place / "finetune", tmp_path / "share" / "finetune" / "recipes"
    for made in (package, shared, tmp_path / place / "recipes"):
        made.mkdir(parents=True)
    monkeypatch.setattr("finetune.paths.__file__", str(package / "paths.py"))
    assert shipped_folder("recipes") == shared


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the checkout, installed into a folder of its own without its dependencies."""
    work = tmp_path_factory.mktemp("wheel")
    for name in ("finetune", "recipes", "checkpoints"):
        shutil.copytree(ROOT / name, work / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels = str(work / "wheels")
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, work / "source"], check=True)
    (wheel,) = (work / "wheels").glob("*.whl")
    assert wheel.name.startswith(f"{DISTRIBUTION.replace('-', '_')}-{__version__}-") and wheel.stat().st_size < 5e6
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", work / "target", wheel], check=True)
    shutil.rmtree(work / "source")
    return work / "target"


@pytest.mark.slow
def test_an_installed_wheel_works_outside_the_checkout(installed: Path, folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "FINETUNE_DATA_ROOT"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, env=environment | {"PYTHONPATH": str(installed)}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import finetune; print(finetune.__file__)").strip() == str(installed / "finetune" / "__init__.py")
    program = ("-m", "finetune")
    assert json.loads(run(*program, "datasets", "--json"))["kmnist-sample"]["present"]
    assert set(json.loads(run(*program, "recipes", "--json"))) == {p.stem for p in (ROOT / "recipes").glob("*.yaml")}
    assert json.loads(run(*program, "inspect", "mnist", "--json"))["classes"] == list("0123456789")
    assert json.loads(run(*program, "verify", "mnist", "--json"))["holds"]
    found = json.loads(run(*program, "evaluate", "mnist", "--data", "digits", "--json"))
    assert found["total"] == 359 and found["accuracy"] > 0.9
    steps = ("--set", "phases[1].max_steps=2", "--set", "phases[1].min_steps=2", "--no-compare", "--quiet")
    run(*program, "adapt", "--from", "mnist", "--target", "kmnist-sample", "--shots", "2", *steps)
    run(*program, "pretrain", "--recipe", "recipes/digits.yaml", "--set", "phases[0].epochs=1", "--quiet")
    made = {path.name for path in Path("checkpoints").glob("*.safetensors")}
    assert made == {"mnist-kmnist-sample.safetensors", "digits.safetensors"}
    child = json.loads(run(*program, "verify", "checkpoints/mnist-kmnist-sample.safetensors", "--json"))
    parent = next(check for check in child["checks"] if check["check"] == "parent 1")
    assert parent["state"] == "ok", "the shipped parent is found"
    licences = [path.name for path in installed.rglob("*") if path.parent.name == "licenses" or "LICENSE" in path.name]
    assert "LICENSE" in licences and "kmnist-sample.LICENSE.txt" in licences
