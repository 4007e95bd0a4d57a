"""Another Hub, which makes every other choice that the contract leaves to a server: the same commands work."""

from __future__ import annotations

import pytest
from hub_home import OTHER_TOKEN, Loopback, loopback, make_checkpoint, write_report


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with loopback(tmp_path_factory.mktemp("hub-other")) as found:
        found.options(other=True)
        yield found


@pytest.fixture(scope="module")
def checkpoint(hub):
    path = make_checkpoint(hub.work / "kmnist.safetensors")
    write_report(path)
    return path


def test_push_and_pull(hub: Loopback, checkpoint, tmp_path):
    for made in (True, False):
        done = hub.worked("push", checkpoint, "ada/cnn", "--tag", "v1", "--license", "mit", "--json")
        assert done.json["made"] is made and len(hub.commits("ada/cnn")) == 2
    head, home = hub.commits("ada/cnn")[0]["id"], hub.new_home()
    for revision in ("", "@v1", f"@{head}"):
        out = tmp_path / "x.safetensors"
        found = hub.worked("pull", f"ada/cnn{revision}", "--out", out, "--json", home=home).json
        assert out.read_bytes() == checkpoint.read_bytes() and found["commit"] == head
    out.unlink()
    hub.worked("pull", "ada/cnn@v1", "--out", out, home=home, HF_HUB_OFFLINE="1")
    assert out.read_bytes() == checkpoint.read_bytes()
    shown = hub.worked("inspect", "hub:ada/cnn", "--json").json
    assert shown["classes"] == ["o", "ki", "su"]


@pytest.mark.slow
def test_a_second_model_is_seen_and_replaced_only_when_said(hub: Loopback, checkpoint, tmp_path):
    hub.worked("push", checkpoint, "ada/busy")
    second = make_checkpoint(tmp_path / "second.safetensors", seed=5)
    said = hub.refused("push", second, "ada/busy")
    assert "--yes" in said and "after 90.00 %" in said
    hub.worked("push", second, "ada/busy", "--yes")
    assert hub.files("ada/busy")["model.safetensors"] == second.read_bytes()
    third = make_checkpoint(tmp_path / "third.safetensors", seed=6)
    for _ in range(2):
        hub.worked("push", third, "ada/busy", "--create-pr")
    assert list(hub.store.load("ada/busy")["pulls"]) == ["1"]


def test_a_changed_byte_on_the_way_is_noticed(hub: Loopback, checkpoint, tmp_path):
    hub.worked("push", checkpoint, "ada/flipped")
    for path in ("/get/", "resolve-cache.*/README.md|/get/"):
        hub.plant({"path": path, "method": "GET", "flip": True, "times": 99})
        said = hub.refused("pull", "ada/flipped", "--out", tmp_path / "x.safetensors", code=1)
        hub.plant()
        assert "sha" in said and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_refusals_without_a_code(hub: Loopback, checkpoint, tmp_path):
    out = tmp_path / "x.safetensors"
    hub.worked("push", checkpoint, "lab/secret", "--private")
    assert "OWNER/NAME" in hub.refused("pull", "lab/secret", "--out", out, HF_TOKEN=OTHER_TOKEN)
    assert "hf auth login" in hub.refused("pull", "lab/secret", "--out", out, HF_TOKEN=None)
    assert "after @" in hub.refused("pull", "lab/secret@v9", "--out", out)
    assert "403" in hub.refused("push", checkpoint, "lab/secret", "--yes", HF_TOKEN=OTHER_TOKEN)
    hub.worked("push", checkpoint, "ada/gated")
    hub.change("ada/gated", gated="manual")
    assert "403" in hub.refused("pull", "ada/gated", "--out", out, HF_TOKEN=OTHER_TOKEN)


def test_no_token_goes_to_the_other_host(hub: Loopback, checkpoint):
    hub.worked("push", make_checkpoint(hub.work / "new.safetensors", seed=7), "ada/tokens")
    hub.worked("pull", "ada/tokens", "--out", hub.work / "back.safetensors")
    storage = [row for row in hub.log() if row["port"] == hub.ports[1]]
    assert {row["method"] for row in storage} >= {"PUT", "GET"}
    assert all(row["authorization"] is None for row in storage)
