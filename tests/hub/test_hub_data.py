"""`hub-data:` against a loopback Hub: the Parquet files of a data set, checked, offline afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_home import Loopback, loopback, make_checkpoint
from shard_files import parquet_set
from tiny import phase, pretrain_recipe

pytest.importorskip("pyarrow")
REPO = "datasets/ada/fruit"
IMPORTED = (
    *("finetune.commands.evaluate", "finetune.commands.pretrain", "finetune.commands.predict", "pyarrow.parquet"),
    *("sklearn.metrics", "scipy.stats", "torch.optim", "PIL.PngImagePlugin"),
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with loopback(tmp_path_factory.mktemp("hub-data"), *IMPORTED) as found:
        yield found


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The files of a data set by their names in a repository."""
    root = parquet_set(tmp_path_factory.mktemp("set"), channels=1)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}


@pytest.fixture(scope="module")
def checkpoint(hub):
    return make_checkpoint(hub.work / "fruit.safetensors", classes=["apple", "pear"])


@pytest.fixture(scope="module")
def commit(hub, shards):
    """The commit of the data set ada/fruit, which has other files too."""
    return hub.add(REPO, {**shards, "README.md": b"---\nlicense: mit\n---\n", "loader.py": b"raise SystemExit"})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def evaluated(hub: Loopback, checkpoint: Path, data: str, **how):
    return json.loads(hub.worked("evaluate", checkpoint, "--data", data, "--json", **how).out)


@pytest.mark.slow
def test_it_is_fetched_once_checked_and_read_offline_afterwards(hub, checkpoint, commit, tmp_path):
    home = tmp_path / "home"
    found = evaluated(hub, checkpoint, "hub-data:ada/fruit", home=home)
    assert found["total"] == 6 and found["data"] == "fruit" and found["classes"] == ["apple", "pear"]
    again = hub.requests_of("evaluate", checkpoint, "--data", "hub-data:ada/fruit", home=home)
    assert not [row for row in again if row["port"] == hub.ports[1]], "no file is fetched twice"
    asked = len(hub.log())
    for name in ("hub-data:ada/fruit", f"hub-data:ada/fruit@{commit}"):
        assert evaluated(hub, checkpoint, name, home=home, HF_HUB_OFFLINE="1") == found
    assert len(hub.log()) == asked
    cached = {path.name for path in (home / "hub/datasets--ada--fruit/snapshots" / commit).rglob("*.*")}
    assert cached == {f"{n}.parquet" for n in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")}


def test_a_checkpoint_records_the_name_and_the_commit_and_no_folder(hub, commit, tmp_path):
    home = tmp_path / "home"
    (tmp_path / "recipe.yaml").write_text(
        pretrain_recipe(phase("all", "steps: 1"), "{name: 'hub-data:ada/fruit@main'}")
    )
    hub.worked("pretrain", "--recipe", "recipe.yaml", "--out", "new.safetensors", cwd=tmp_path, home=home)
    said = json.loads(hub.worked("inspect", "new.safetensors", "--json", cwd=tmp_path).out)
    assert said["data"]["name"] == "fruit" and said["data"]["id"] == f"hub-data:ada/fruit@{commit}"
    assert said["recipe"]["data"]["name"] == "hub-data:ada/fruit@main"
    for file in tmp_path.glob("new.*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file
    found = evaluated(hub, tmp_path / "new.safetensors", said["data"]["id"], home=home)
    assert found["claimed_accuracy"] == found["accuracy"]
    predicted = hub.worked("predict", tmp_path / "new.safetensors", "hub-data:ada/fruit", home=home)
    assert len(predicted.out.splitlines()) == 24 and predicted.out.startswith("test/apple/0.png\t")


def test_revisions_and_the_hubs_own_conversion(hub, checkpoint, shards, tmp_path):
    repo = "datasets/ada/converted"
    old = hub.add(repo, {"pictures.zip": b"PK"})
    hub.add(repo, {f"default/{n.removeprefix('data/')}": content for n, content in shards.items()})
    state = hub.store.load(repo)
    hub.change(repo, branches={"main": old, "refs/convert/parquet": state["branches"]["main"]})
    home = tmp_path / "home"
    for offline in (None, "1"):
        assert evaluated(hub, checkpoint, "hub-data:ada/converted", home=home, HF_HUB_OFFLINE=offline)["total"] == 6
    said = hub.refused("evaluate", checkpoint, "--data", "hub-data:ada/converted@main", home=home)
    assert "ada/converted@main: expected Parquet files, found .gitattributes, .zip; download the repository" in said
    assert "the repository has no such revision" in hub.refused(
        "evaluate", checkpoint, "--data", "hub-data:ada/converted@v9", home=home
    )


def test_what_cannot_be_had_is_said(hub, checkpoint, commit, shards):
    for data, said in [
        ("hub-data:ada/none", "has no such repository"),
        ("hub-data:fruit", "expected OWNER/NAME"),
        ("hub-data:ada/fruit@a b", "expected the name of a branch, tag or commit"),
    ]:
        assert said in hub.refused("evaluate", checkpoint, "--data", data), data
    offline = hub.refused("evaluate", checkpoint, "--data", "hub-data:ada/fruit", HF_HUB_OFFLINE="1")
    assert "could not look at ada/fruit: HF_HUB_OFFLINE is set, and the cache" in offline
    hub.add("datasets/ada/pictures", {"a.jpg": b"x"})
    assert "expected Parquet files, found .gitattributes, .jpg" in hub.refused(
        "evaluate", checkpoint, "--data", "hub-data:ada/pictures"
    )
    both = {f"{version}/{name}": content for name, content in shards.items() for version in ("fine", "rough")}
    hub.add("datasets/ada/two", both)
    said = hub.refused("evaluate", checkpoint, "--data", "hub-data:ada/two")
    assert "expected one configuration, found fine/data, rough/data" in said


def test_a_file_that_arrives_wrong_is_fetched_again_and_not_kept(hub, checkpoint, commit, tmp_path):
    home = tmp_path / "home"
    flip = {"method": "GET", "path": "^/get/", "flip": True}
    hub.plant(flip)
    done = hub.worked("evaluate", checkpoint, "--data", "hub-data:ada/fruit", home=home)
    assert "that the Hub says; fetching it again" in done.err
    hub.plant({**flip, "times": 9})
    said = hub.refused("evaluate", checkpoint, "--data", "hub-data:ada/fruit", code=1)
    assert "its content does not have the sha256" in said
    hub.plant()
    blob = next(path for path in (home / "hub/datasets--ada--fruit/blobs").iterdir() if path.stat().st_size > 1000)
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    said = hub.refused("evaluate", checkpoint, "--data", "hub-data:ada/fruit", home=home, code=1, HF_HUB_OFFLINE="1")
    assert "It was damaged in the cache; unset HF_HUB_OFFLINE" in said


def test_a_commit_of_which_a_shard_is_missing_is_not_read_offline(hub, checkpoint, commit, tmp_path):
    home = tmp_path / "home"
    evaluated(hub, checkpoint, "hub-data:ada/fruit", home=home)
    snapshot = home / "hub/datasets--ada--fruit/snapshots" / commit
    (snapshot / "data/train-00001-of-00002.parquet").unlink()
    name = f"hub-data:ada/fruit@{commit}"
    said = hub.refused("evaluate", checkpoint, "--data", name, home=home, HF_HUB_OFFLINE="1")
    assert said.startswith(f"{name}: expected 2 files data/train-") and str(home) not in said
    shutil.rmtree(snapshot)
    hub.refused("evaluate", checkpoint, "--data", name, home=home, HF_HUB_OFFLINE="1")


@pytest.mark.slow
def test_another_hub_serves_it_too(hub, checkpoint, commit, tmp_path):
    hub.options(other=True)
    try:
        assert evaluated(hub, checkpoint, "hub-data:ada/fruit", home=tmp_path)["total"] == 6
    finally:
        hub.options()
