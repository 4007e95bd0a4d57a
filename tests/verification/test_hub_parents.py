"""`finetune verify` of what is on the Hub, and of what came from there: the cache is enough, and nobody is asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_home import Loopback, loopback
from tiny import adapt_recipe

SOLVED = "  - {train: head, solver: lbfgs}\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("hub-verify"), "finetune.verification.checks") as found:
        yield found


@pytest.fixture(scope="module")
def pushed(hub: Loopback, pretrained: Path) -> str:
    """The commit of the checkpoint of mnist in ada/mnist."""
    hub.worked("push", pretrained, "ada/mnist")
    return str(hub.commits("ada/mnist")[0]["id"])


@pytest.fixture(scope="module")
def adapted(hub: Loopback, pushed: str, data: Path) -> Path:
    """A home whose cache has ada/mnist; child.safetensors in the folder to work in is made of it."""
    home = hub.new_home()
    (hub.work / "a.yaml").write_text(adapt_recipe(SOLVED))
    words = ("--target", "kmnist", "--recipe", "a.yaml", "--data-root", data, "--out", "child.safetensors", "--quiet")
    hub.worked("adapt", "--from", "hub:ada/mnist", *words, home=home)
    return home


def checks(hub: Loopback, *words: object, code: int = 0, **how: Any) -> dict[str, Any]:
    done = hub.run("verify", *words, "--json", **how)
    assert done.code == code, done.err
    return {check["check"]: check for check in json.loads(done.out)["checks"]}


@pytest.mark.slow
def test_a_checkpoint_on_the_hub(hub: Loopback, pushed: str, data: Path) -> None:
    found = checks(hub, "hub:ada/mnist", "--data", "mnist", "--data-root", data)
    states = {name: check["state"] for name, check in found.items()}
    assert states == {**dict.fromkeys(states, "ok"), "frozen": "not checked"}
    assert found["report"]["says"].startswith("report.json says the same")
    assert found["hash"]["says"].startswith("the tensors have the recorded sha256"), "it came along"


def test_the_hash_comes_back_with_a_pull(hub: Loopback, pushed: str, pretrained: Path, tmp_path: Path) -> None:
    hub.worked("pull", "ada/mnist", "--out", tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == pretrained.read_bytes()
    assert checks(hub, tmp_path / "x.safetensors")["hash"]["state"] == "ok"


def test_a_parent_on_the_hub_is_found_in_the_cache(hub: Loopback, adapted: Path, pushed: str) -> None:
    before = len(hub.log())
    found = checks(hub, "child.safetensors", home=adapted)
    assert found["parent 1"]["says"] == f"hub:ada/mnist@{pushed} has the recorded sha256"
    assert found["frozen"]["state"] == "ok" and len(found["frozen"]["details"]) == 6
    assert len(hub.log()) == before, "nobody was asked"


def test_a_parent_that_is_not_in_the_cache_is_fetched_only_where_that_is_asked_for(
    hub: Loopback, adapted: Path, pushed: str
) -> None:
    home, before = hub.new_home(), len(hub.log())
    found = checks(hub, "child.safetensors", home=home)
    assert found["parent 1"]["says"].endswith("nor has the Hub's cache; --fetch asks the Hub")
    assert found["frozen"]["state"] == "not checked" and len(hub.log()) == before
    hub.plant({"path": "/api/models/", "status": 403, "times": 99})
    found = checks(hub, "child.safetensors", "--fetch", home=home)
    assert "it could not be fetched: " in found["parent 1"]["says"] and found["parent 1"]["state"] == "not checked"
    hub.plant()
    found = checks(hub, "child.safetensors", "--fetch", home=home)
    assert found["parent 1"]["state"] == found["frozen"]["state"] == "ok"
    assert checks(hub, "child.safetensors", home=home)["frozen"]["state"] == "ok", "and it stays there"


def test_a_copy_of_the_parent_beside_the_checkpoint_does_as_well(
    hub: Loopback, adapted: Path, pretrained: Path, tmp_path: Path
) -> None:
    for path in (pretrained, hub.work / "child.safetensors"):
        shutil.copy(path, tmp_path)
    found = checks(hub, tmp_path / "child.safetensors")
    assert found["frozen"]["state"] == "ok" and "mnist.safetensors has" in found["parent 1"]["says"]


def test_a_parent_that_is_damaged_in_the_cache_is_not_at_hand(hub: Loopback, adapted: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(adapted, home, symlinks=True)
    (blob,) = [path for path in home.rglob("blobs/*") if path.stat().st_size > 1_000_000]
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert checks(hub, "child.safetensors", home=home)["parent 1"]["state"] == "not checked"


def test_a_commit_that_holds_another_file_than_is_recorded(hub: Loopback, adapted: Path, tmp_path: Path) -> None:
    from tampering import tampered

    path = tmp_path / "child.safetensors"
    shutil.copy(hub.work / "child.safetensors", path)
    tampered(str(path), lambda values: values["lineage"][0].update(sha256="0" * 64))
    found = checks(hub, path, home=adapted, code=1)
    assert found["parent 1"]["state"] == "failed" and "and 000000000000… is recorded" in found["parent 1"]["says"]
