"""`finetune pull` and `hub:` sources against a loopback Hub: the same bytes, the right commit, offline afterwards."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from hub_home import OTHER_TOKEN, TOKEN, Loopback, loopback, make_checkpoint, write_report

from finetune.errors import HubRefusal
from finetune.hub.timm_config import HubConfig, parse_config


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with loopback(tmp_path_factory.mktemp("hub-pull")) as found:
        yield found


@pytest.fixture(scope="module")
def checkpoint(hub):
    path = make_checkpoint(hub.work / "kmnist.safetensors")
    write_report(path)
    return path


@pytest.fixture(scope="module")
def newer(hub):
    return make_checkpoint(hub.work / "newer.safetensors", seed=1)


@pytest.fixture(scope="module")
def pushed(hub, checkpoint, newer):
    """A repository with the first model, tagged v1, and then the newer one; the commits of both."""
    hub.worked("push", checkpoint, "ada/cnn", "--tag", "v1")
    hub.worked("push", newer, "ada/cnn", "--yes")
    new, old = (commit["id"] for commit in hub.commits("ada/cnn")[:2])
    return {"old": old, "new": new}


def test_pull_gives_the_same_bytes_from_every_kind_of_revision(hub: Loopback, pushed, checkpoint, newer, tmp_path):
    for name, source, commit in [
        ("ada/cnn", newer, "new"),
        ("ada/cnn@main", newer, "new"),
        ("ada/cnn@v1", checkpoint, "old"),
        (f"ada/cnn@{pushed['old']}", checkpoint, "old"),
        (f"ada/cnn@{pushed['old'][:9]}", checkpoint, "old"),
    ]:
        values = json.loads(hub.worked("pull", name, "--out", tmp_path / "x.safetensors", "--json").out)
        assert (tmp_path / "x.safetensors").read_bytes() == source.read_bytes(), name
        assert values["id"] == f"hub:ada/cnn@{pushed[commit]}"
        assert values["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_pull_names_the_file_brings_the_report_and_moves_another_aside(hub: Loopback, pushed, checkpoint, tmp_path):
    hub.worked("pull", "ada/cnn", cwd=tmp_path)
    folder = tmp_path / "checkpoints"
    assert {p.name for p in folder.iterdir()} == {"cnn.safetensors", "cnn.report.json"}
    first = (folder / "cnn.safetensors").read_bytes()
    hub.worked("pull", "ada/cnn", cwd=tmp_path)
    assert {p.name for p in folder.iterdir()} == {"cnn.safetensors", "cnn.report.json"}, (
        "the same again changes nothing"
    )
    done = hub.worked("pull", "ada/cnn@v1", cwd=tmp_path)
    assert (folder / "cnn.safetensors").read_bytes() == checkpoint.read_bytes()
    aside = f"cnn.was-{hashlib.sha256(first).hexdigest()[:8]}"
    assert (folder / f"{aside}.safetensors").read_bytes() == first and aside in done.err
    assert json.loads((folder / "cnn.report.json").read_text())["comparisons"]["after_vs_before"]["verdict"] == "helps"


def test_what_was_pulled_once_works_offline(hub: Loopback, pushed, tmp_path):
    home = hub.new_home()
    hub.worked("pull", "ada/cnn@v1", "--out", tmp_path / "a.safetensors", home=home)
    before = len(hub.log())
    for name in ("ada/cnn@v1", f"ada/cnn@{pushed['old']}"):
        out = tmp_path / "b.safetensors"
        hub.worked("pull", name, "--out", out, home=home, HF_HUB_OFFLINE="1", HF_TOKEN=None)
        assert out.read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    assert '"kmnist"' in hub.worked("inspect", "hub:ada/cnn@v1", "--json", home=home, HF_HUB_OFFLINE="1").out
    said = hub.refused("pull", "ada/cnn", home=home, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in said and "it has v1" in said
    assert "HF_HUB_OFFLINE" in hub.refused("push", tmp_path / "a.safetensors", "ada/x", home=home, HF_HUB_OFFLINE="1")
    assert len(hub.log()) == before, "offline is offline"


def test_what_is_in_the_cache_is_not_fetched_again(hub: Loopback, pushed, tmp_path):
    home = hub.new_home()
    pull = ("pull", "ada/cnn", "--out", tmp_path / "a.safetensors")
    assert any(row["path"].startswith("/get/") for row in hub.requests_of(*pull, home=home))
    assert not any(row["path"].startswith("/get/") for row in hub.requests_of(*pull, home=home))


def test_a_file_damaged_in_the_cache_is_noticed_and_fetched_again(hub: Loopback, pushed, newer, tmp_path):
    home, out = hub.new_home(), tmp_path / "a.safetensors"
    hub.worked("pull", "ada/cnn", "--out", out, home=home)
    (blob,) = [p for p in home.rglob("*") if p.is_file() and p.name == hashlib.sha256(newer.read_bytes()).hexdigest()]
    blob.write_bytes(newer.read_bytes()[:-1] + b"?")
    hub.worked("pull", "ada/cnn", "--out", out, home=home)
    assert out.read_bytes() == newer.read_bytes()
    blob.write_bytes(newer.read_bytes()[:-1] + b"?")
    assert "damaged" in hub.refused("pull", "ada/cnn", "--out", out, code=1, home=home, HF_HUB_OFFLINE="1")
    assert out.read_bytes() == newer.read_bytes()


def test_private_repositories_are_for_their_owners(hub: Loopback, checkpoint, tmp_path):
    hub.worked("push", checkpoint, "lab/secret", "--private")
    out = tmp_path / "x.safetensors"
    hub.worked("pull", "lab/secret", "--out", out)
    assert "hf auth login" in hub.refused("pull", "lab/secret", "--out", out, HF_TOKEN=None)
    assert "no such repository" in hub.refused("pull", "lab/secret", "--out", out, HF_TOKEN=OTHER_TOKEN)


def test_gated_repositories_say_how_to_ask(hub: Loopback, checkpoint, tmp_path):
    hub.worked("push", checkpoint, "ada/gated")
    hub.change("ada/gated", gated="manual")
    said = hub.refused("pull", "ada/gated", "--out", tmp_path / "x.safetensors", HF_TOKEN=OTHER_TOKEN)
    assert "gated" in said and "ask for access" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pytorch_model.bin": b"PK\x03\x04 pickle"}, "only pickles (pytorch_model.bin)"),
        ({"README.md": b"# hello"}, "no weights"),
        ({"a.safetensors": b"1", "b.safetensors": b"2"}, "weights in parts"),
        ({"model.safetensors": b"\x80\x04pickle under a good name"}, "this is a pickle"),
        ({"model.safetensors": b""}, "empty"),
    ],
)
def test_what_is_not_one_safetensors_file_is_refused(hub: Loopback, files, says, tmp_path):
    repo = "ada/odd-" + hashlib.sha256(says.encode()).hexdigest()[:6]
    hub.add(repo, files)
    assert says in hub.refused("pull", repo, "--out", tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
    asked = [row["path"] for row in hub.log() if f"/{repo}/resolve/" in row["path"]]
    assert not any(path.endswith(".bin") for path in asked)


def test_names_that_are_not_there(hub: Loopback, pushed):
    assert "no such repository" in hub.refused("pull", "ada/nothing")
    assert "no such revision" in hub.refused("pull", "ada/cnn@v99")
    assert "OWNER/NAME" in hub.refused("pull", "cnn")
    assert "ends in .safetensors" in hub.refused("pull", "ada/cnn", "--out", "x.bin")


def test_an_address_behind_a_path_and_a_proxy_that_must_not_be_used(hub: Loopback, pushed, tmp_path):
    out = tmp_path / "x.safetensors"
    hub.worked("pull", "ada/cnn", "--out", out, HF_ENDPOINT=hub.endpoint + "/", HTTP_PROXY="http://127.0.0.1:9")


@pytest.mark.slow
def test_a_hub_source_is_opened_from_python_with_the_same_logits(hub: Loopback, pushed, checkpoint):
    code = f"""
import torch, finetune
from finetune.sources.resolve import open_source
here, there = finetune.load({str(checkpoint)!r}), open_source("hub:ada/cnn@v1")
images = torch.rand(4, 1, 28, 28)
assert torch.equal(here.network(images), there.classifier.network(images))
assert there.lineage_of_child()[0]["id"] == "hub:ada/cnn@{pushed["old"]}", there.lineage_of_child()
assert there.name == "cnn"
child = there.classifier.with_classes(["x", "y"])
finetune.save(there.classifier, "copy.safetensors")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=hub.environment(hub.new_home()),
        cwd=hub.work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (hub.work / "copy.safetensors").read_bytes() == checkpoint.read_bytes()


@pytest.mark.slow
def test_push_and_pull_from_python(hub: Loopback, checkpoint):
    code = f"""
import sys, finetune
done = finetune.push({str(checkpoint)!r}, "ada/python", licence="mit", tag="v1")
assert done.made and done.tag == "v1"
got = finetune.pull("ada/python@v1", out="python.safetensors")
assert (got.commit, got.sha256) == (done.commit, done.sha256)
try:
    finetune.pull("ada/absent")
except finetune.errors.HubRefusal as error:
    assert isinstance(error, finetune.errors.UserError) and isinstance(error, finetune.errors.HubError)
"""
    done = subprocess.run(
        [sys.executable, "-c", "import finetune.errors\n" + code],
        env=hub.environment(hub.new_home()),
        cwd=hub.work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"model_type": "vit"}, None),
        ({"architecture": 3}, None),
        (
            {"architecture": "v.a1", "model_args": {"num_classes": 3, "img_size": [64, 64], "x": None}},
            HubConfig(
                "v",
                {"img_size": 64},
                pretrained_cfg={
                    "architecture": "v.a1",
                    "model_args": {"num_classes": 3, "img_size": [64, 64], "x": None},
                    "tag": "a1",
                },
            ),
        ),
        (
            {"architecture": "v", "pretrained_cfg": {"input_size": [1, 96, 96], "fixed_input_size": True}},
            HubConfig(
                "v",
                {"in_chans": 1, "img_size": 96},
                pretrained_cfg={"input_size": [1, 96, 96], "fixed_input_size": True},
            ),
        ),
        ({"architecture": "resnet18"}, HubConfig("resnet18", pretrained_cfg={"architecture": "resnet18"})),
        (
            {"architecture": "resnet18", "pretrained_cfg": {"num_classes": 5, "tag": "a1"}},
            HubConfig("resnet18", {}, 5, None, {"num_classes": 5, "tag": "a1"}),
        ),
        (
            {"architecture": "x", "num_classes": 2, "label_names": {"1": "b", "0": "a"}, "pretrained_cfg": {}},
            HubConfig("x", {}, 2, ("a", "b"), {}),
        ),
    ],
)
def test_config_json_in_all_its_forms(values, expected):
    assert parse_config(values, "x") == expected


@pytest.mark.parametrize(
    "values",
    [
        *({"num_classes": -1}, {"num_classes": "many"}, {"label_names": [1]}, {"num_classes": 3, "label_names": ["a"]}),
        *({"model_args": 3}, {"label_offset": "x"}, {"label_offset": -1}, {"pretrained_cfg": {"label_offset": [1]}}),
    ],
)
def test_a_config_that_cannot_be_is_refused(values):
    with pytest.raises(HubRefusal, match=r"config\.json"):
        parse_config({"architecture": "resnet18", **values}, "ada/x")


def test_the_token_is_nowhere_but_in_requests_to_the_hub(hub: Loopback, checkpoint, tmp_path):
    home = hub.new_home()
    how = {"home": home, "cwd": tmp_path, "HF_HUB_DISABLE_XET": "0"}
    said = [hub.worked("push", checkpoint, "ada/quiet", "--tag", "v1", **how)]
    said += [hub.worked("pull", "ada/quiet@v1", **how), hub.worked("push", checkpoint, "ada/dry", "--dry-run", **how)]
    said += [hub.run("pull", f"ada/{TOKEN}", **how), hub.run("pull", "ada/none", **how)]
    for secret in (TOKEN, OTHER_TOKEN):
        hub.plant({"path": "/api/models/ada/quiet", "status": 403, "message": f"bad token {secret}", "times": 1})
        said += [hub.run("pull", "ada/quiet", **how, HF_TOKEN=secret)]
        assert said[-1].code == 2 and "bad token (token)" in said[-1].err
    written = [p.read_bytes() for folder in (home, tmp_path, hub.work) for p in folder.rglob("*") if p.is_file()]
    written += [content for repo in ("ada/quiet",) for content in hub.files(repo).values()]
    written += [(done.out + done.err).encode() for done in (*said[:3], *said[4:])]
    assert len(written) > 10 and not any(TOKEN.encode() in content for content in written)
    storage = [row for row in hub.log() if row["port"] == hub.ports[1]]
    assert storage and all(row["authorization"] is None for row in storage)
    assert any(row["authorization"] == f"Bearer {TOKEN}" for row in hub.log() if row["port"] == hub.ports[0])
