"""What the tests of whole commands share: generated data, a pretrained checkpoint, and a folder to work in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does; torch reads it when it is imported

import pytest
from album import scenes
from tiny import make_data, phase, pretrain_recipe, worked

from finetune.paths import CACHE_VARIABLE, ROOT_VARIABLE


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where decoded pictures are kept meanwhile, in place of the person's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))  # which it reads when it is imported
        yield folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small mnist and kmnist, whose classes have no name in common. Nothing may change it."""
    root = tmp_path_factory.mktemp("data")
    make_data(root, "mnist")
    make_data(root, "kmnist")
    return root


@pytest.fixture
def folder(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the data folder named by the environment."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv(ROOT_VARIABLE, str(data))
    return work


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A checkpoint trained on the small mnist, with its report; nothing may change it."""
    work = tmp_path_factory.mktemp("pretrained")
    with contextlib.chdir(work):
        Path("mnist.yaml").write_text(
            pretrain_recipe(phase(length="epochs: 4", batch=10), "{name: mnist, validation: 60}")
        )
        worked("pretrain", "--recipe", "mnist.yaml", "--data-root", data, "--quiet")
    return work / "checkpoints" / "mnist.safetensors"


BACKBONE = """kind: pretrain
model: timm/test_resnet
input: {size: 32}
data: {name: meadow}
phases:
  - {train: all, steps: 40, batch_size: 16, optimizer: {name: adamw, lr: 3e-3}, schedule: {name: cosine}}
precision: float32
"""


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timm/test_resnet trained on a small folder `meadow` of three classes; nothing may change it."""
    work = tmp_path_factory.mktemp("backbone")
    with contextlib.chdir(work):
        names = ("ant", "bee", "fly")
        scenes(Path("meadow"), train=dict.fromkeys(names, 20), test=dict.fromkeys(names, 10))
        Path("meadow.yaml").write_text(BACKBONE)
        worked("pretrain", "--recipe", "meadow.yaml", "--quiet")
    return work / "checkpoints" / "meadow.safetensors"


@pytest.fixture(scope="session")
def orchard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 36 pictures to learn from, 18 in `val` and 24 in `test`, of three classes; nothing may change it."""
    names = ("apple", "pear", "plum")
    root = tmp_path_factory.mktemp("pictures") / "orchard"
    return scenes(
        root, noise=400, train=dict.fromkeys(names, 12), val=dict.fromkeys(names, 6), test=dict.fromkeys(names, 8)
    )
