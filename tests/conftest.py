"""What the tests of whole commands share: generated data, a pretrained checkpoint, and a folder to work in."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does; torch reads it when it is imported

import pytest
from tiny import make_data, phase, pretrain_recipe, worked

from finetune.data.root import ROOT_VARIABLE


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
        Path("mnist.yaml").write_text(pretrain_recipe(phase(length="epochs: 4"), "{name: mnist, validation: 60}"))
        worked("pretrain", "--recipe", "mnist.yaml", "--data-root", data, "--quiet")
    return work / "checkpoints" / "mnist.safetensors"
