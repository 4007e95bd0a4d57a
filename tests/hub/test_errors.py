"""What goes wrong on the way to the Hub ends in one clear message, and never in half a file or in two commits."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterable
from typing import Any

import pytest
from hub_home import Loopback, loopback, make_checkpoint


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with loopback(tmp_path_factory.mktemp("hub-faults")) as found:
        yield found


@pytest.fixture(scope="module")
def checkpoint(hub):
    return make_checkpoint(hub.work / "cnn.safetensors")


@pytest.fixture(scope="module")
def pushed(hub, checkpoint):
    hub.worked("push", checkpoint, "ada/cnn")
    return "ada/cnn"


@pytest.fixture(autouse=True)
def no_faults(hub):
    hub.plant()
    hub.options()


SEEDS = itertools.count(100)


def unseen(hub):
    """A checkpoint whose weights the Hub does not have yet, so that they have to be sent."""
    seed = next(SEEDS)
    return make_checkpoint(hub.work / f"unseen{seed}.safetensors", seed=seed)


def blobs(home):
    """What the cache holds under its name: finished files only may be there."""
    return [p for p in home.rglob("*") if p.is_file() and "blobs" in p.parts]


PULL_FAULTS = {
    "a server fault, then success": ({"path": "/api/models/ada/cnn", "status": 500}, None),
    "too busy for a second": ({"path": "/api/models/ada/cnn", "status": 429, "headers": {"Retry-After": "1"}}, None),
    "too busy for long": (
        {"path": "/api/models/ada/cnn", "status": 429, "headers": {"Retry-After": "900"}, "times": 9},
        "try again in 900 s",
    ),
    "cut off once": ({"path": "/get/", "cut": 5000}, None),
    "no answer to the question, once": ({"path": "/api/models/ada/cnn", "cut_after": True}, None),
    "one byte wrong, once": ({"path": "/get/", "flip": True}, None),
    "one byte wrong, always": ({"path": "/get/", "flip": True, "times": 9}, "does not have the sha256"),
    "a wrong config, always": ({"path": "/config.json", "method": "GET", "flip": True, "times": 9}, "git sha1"),
    "the storage refuses": ({"path": "/get/", "status": 403, "times": 9}, "403"),
    "the storage lost it": ({"path": "/get/", "status": 404, "times": 9}, "not found (404)"),
    "not allowed": ({"path": "/api/models/ada/cnn", "status": 403, "times": 9}, "does not permit it (403)"),
    "a status nobody expects": ({"path": "/api/models/ada/cnn", "status": 418, "times": 9}, "418"),
    "not the Hub at all": ({"path": "/api/models/ada/cnn", "status": 404, "times": 9}, "check OWNER/NAME"),
}


def parameters(faults: Iterable[str], *quick: str) -> list[Any]:
    """Those that are not quick take the same way through the retries as one that is."""
    return [pytest.param(fault, marks=[pytest.mark.slow] * (fault not in quick)) for fault in faults]


QUICK = ("a server fault, then success", "too busy for long", "cut off once", "one byte wrong, always")


@pytest.mark.parametrize("case", parameters(PULL_FAULTS, *QUICK, "a wrong config, always", "the storage refuses"))
def test_pull_survives_or_says_why(hub: Loopback, pushed, checkpoint, case, tmp_path):
    fault, says = PULL_FAULTS[case]
    hub.plant({"times": 1, **fault})
    home, out = hub.new_home(), tmp_path / "x.safetensors"
    done = hub.run("pull", pushed, "--out", out, home=home)
    assert "Traceback" not in done.err
    if says is None:
        assert done.code == 0 and out.read_bytes() == checkpoint.read_bytes(), done.err
        return
    assert done.code in (1, 2) and says in done.err.split("finetune: ")[1], done.err
    assert not list(tmp_path.iterdir())
    hub.plant()
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    wrong = [b for b in blobs(home) if b.name == digest and hashlib.sha256(b.read_bytes()).hexdigest() != digest]
    assert not wrong and not [b for b in blobs(home) if b.name.endswith(".incomplete")]
    hub.worked("pull", pushed, "--out", out, home=home)
    assert out.read_bytes() == checkpoint.read_bytes(), "the same command works once the fault is gone"


def test_a_file_of_the_wrong_length_is_not_taken(hub: Loopback, pushed, tmp_path):
    hub.plant({"path": "/get/", "short": True, "times": 99})
    home = hub.new_home()
    said = hub.refused("pull", pushed, "--out", tmp_path / "x.safetensors", "--quiet", code=1, home=home)
    assert "another size" in said and "signature" not in said and not blobs(home) and not list(tmp_path.iterdir())


def test_no_network_is_said_at_once(hub: Loopback, checkpoint):
    before = time.monotonic()
    for words in (("pull", "ada/cnn"), ("push", checkpoint, "ada/cnn")):
        said = hub.refused(*words, code=1, HF_ENDPOINT="http://name:secret-password@127.0.0.1:9", NO_PROXY="*")
        assert "no connection to http://127.0.0.1:9" in said and "secret-password" not in said
    assert time.monotonic() - before < 15


@pytest.mark.parametrize("variable", ["HF_HOME", "out"])
def test_a_full_disk_is_said_and_leaves_nothing(hub: Loopback, pushed, checkpoint, variable, tmp_path):
    home, out = hub.new_home(), tmp_path / "x.safetensors"
    if variable == "out":  # the cache has it already
        hub.worked("pull", pushed, "--out", tmp_path / "y.safetensors", home=home)
        (tmp_path / "y.safetensors").unlink()
        (tmp_path / "y.report.json").unlink()
    done = hub.run("pull", pushed, "--out", out, home=home, largest_file=len(checkpoint.read_bytes()) - 1000)
    cure = {"HF_HOME": "make room", "out": "name another place"}[variable]
    assert done.code == 2 and cure in done.err and "Traceback" not in done.err, done.err
    assert not list(tmp_path.iterdir())
    hub.worked("pull", pushed, "--out", out, home=home)


PUSH_FAULTS = {
    "upload cut off": {"path": "/put/", "cut_after": True},
    "upload answered 500": {"path": "/put/", "status": 500},
    "upload question cut off": {"path": "/objects/batch", "cut_after": True},
    "commit answered 503": {"path": "/commit/main", "status": 503},
    "commit's answer lost": {"path": "/commit/main", "cut_after": True},
    "creation's answer lost": {"path": "/repos/create", "cut_after": True},
    "check of the card 502": {"path": "/validate-yaml", "status": 502},
    "tag's answer lost": {"path": "/tag/", "cut_after": True},
}


@pytest.mark.parametrize(
    "case", parameters(PUSH_FAULTS, "upload cut off", "commit's answer lost", "creation's answer lost")
)
def test_a_fault_that_passes_ends_in_one_commit(hub: Loopback, case):
    checkpoint = unseen(hub)
    repo = "ada/once-" + hashlib.sha256(case.encode()).hexdigest()[:6]
    hub.options(preupload_oid=False)  # then only what the push itself finds out keeps it from a second commit
    hub.plant({"times": 1, **PUSH_FAULTS[case]})
    hub.worked("push", checkpoint, repo, "--tag", "v1")
    assert json.loads((hub.store.root / "faults.json").read_text())[0]["times"] == 0, "the fault was met"
    assert [c["title"] for c in hub.commits(repo)[1:]] == ["initial commit"]
    assert hub.files(repo)["model.safetensors"] == checkpoint.read_bytes()
    assert hub.store.load(repo)["tags"] == {"v1": hub.commits(repo)[0]["id"]}


STOPPED = {
    "before the upload": ({"path": "/objects/batch", "status": 403, "times": 9}, 2, "403"),
    "after the upload": ({"path": "/objects/verify", "status": 400, "times": 9}, 1, "400"),
    "at the commit": ({"path": "/commit/main", "status": 400, "times": 9}, 1, "400"),
    "by a conflict": ({"path": "/commit/main", "status": 409, "times": 9}, 1, "conflicts"),
    "at the tag": ({"path": "/tag/", "status": 403, "times": 9}, 2, "403"),
}


@pytest.mark.parametrize("case", parameters(STOPPED, "after the upload", "at the tag"))
def test_a_push_that_stopped_ends_in_one_commit_when_run_again(hub: Loopback, case):
    checkpoint = unseen(hub)
    fault, code, says = STOPPED[case]
    repo = "ada/stop-" + hashlib.sha256(case.encode()).hexdigest()[:6]
    hub.plant(fault)
    said = hub.refused("push", checkpoint, repo, "--tag", "v1", code=code, HF_HUB_DISABLE_XET="1")
    assert says in said and (f"to delete it: hf repos delete {repo}" in said) == ("tag" not in case)
    hub.plant()
    hub.worked("push", checkpoint, repo, "--tag", "v1")
    assert len(hub.commits(repo)) == 2 and set(hub.store.load(repo)["tags"]) == {"v1"}


@pytest.mark.parametrize("moment", [pytest.param("/put/", marks=pytest.mark.slow), "/commit/main"])
def test_a_push_that_is_killed_ends_in_one_commit_when_run_again(hub: Loopback, moment):
    checkpoint = unseen(hub)
    before = len(hub.log())
    repo = "ada/killed-" + moment.strip("/").replace("/", "-")
    hub.plant({"path": moment, "sleep": 60})
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", "push", str(checkpoint), repo],
        env=hub.environment(hub.new_home()),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not any(moment in row["path"] for row in hub.log()[before:]):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.plant()
    hub.worked("push", checkpoint, repo)
    assert len(hub.commits(repo)) == 2 and hub.files(repo)["model.safetensors"] == checkpoint.read_bytes()


def test_somebody_elses_push_in_between_is_not_replaced(hub: Loopback, checkpoint):
    hub.add("ada/raced", {"README.md": b"# first"})
    hub.plant({"path": "/commit/main", "status": 412, "message": "A commit has happened since"})
    said = hub.refused("push", checkpoint, "ada/raced", code=1)
    assert "412" in said and "push again" in said and hub.commits("ada/raced")[0]["title"] == "by hand"
    hub.plant({"path": "/preupload/", "commit": {"notes.txt": "mine"}})
    said = hub.refused("push", checkpoint, "ada/raced", code=1)
    assert "412" in said
    assert [c["title"] for c in hub.commits("ada/raced")] == ["by hand", "by hand", "initial commit"]


def test_what_the_hub_has_after_the_commit_is_looked_at(hub: Loopback):
    checkpoint = unseen(hub)
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    hub.plant({"path": "/api/models/ada/damaged/revision/", "replace": [[digest, "0" * 64]], "times": 9})
    said = hub.refused("push", checkpoint, "ada/damaged", code=1)
    assert "model.safetensors arrived damaged" in said and "push again" in said


def test_a_push_that_cannot_be_looked_at_afterwards_is_found_again(hub: Loopback):
    checkpoint = unseen(hub)
    hub.plant({"path": "/api/models/ada/unseen/revision/", "times": 9, "status": 403})
    hub.refused("push", checkpoint, "ada/unseen")
    hub.plant()
    assert "no new commit" in hub.worked("push", checkpoint, "ada/unseen").out
    assert len(hub.commits("ada/unseen")) == 2


@pytest.mark.skipif(__import__("importlib.util").util.find_spec("hf_xet") is None, reason="hf-xet is not installed")
def test_with_hf_xet_present_a_hub_without_it_is_served_over_http(hub: Loopback, checkpoint, tmp_path):
    done = hub.worked("push", checkpoint, "ada/xet", HF_HUB_DISABLE_XET=None)
    assert "without hf-xet" in done.err and "no such storage" in done.err and len(hub.commits("ada/xet")) == 2
    assert hub.worked("push", checkpoint, "ada/xet-quiet", "--quiet", HF_HUB_DISABLE_XET=None).err == ""
    out = tmp_path / "x.safetensors"
    hub.worked("pull", "ada/xet", "--out", out, HF_HUB_DISABLE_XET=None)
    assert out.read_bytes() == checkpoint.read_bytes()


@pytest.mark.slow
def test_quiet_is_quiet_and_bars_are_for_terminals(hub: Loopback, pushed, tmp_path):
    done = hub.worked("pull", pushed, "--out", tmp_path / "x.safetensors", "--quiet")
    assert done.err == ""
    done = hub.worked("pull", pushed, "--out", tmp_path / "x.safetensors")
    assert "%" not in done.err
    assert "%|" in on_terminal(hub, "pull", pushed, "--out", tmp_path / "y.safetensors")
    assert on_terminal(hub, "pull", pushed, "--quiet", "--out", tmp_path / "z.safetensors") == ""


def on_terminal(hub, *words):
    """What a command that works says on standard error, when that is a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", *map(str, words)],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env=hub.environment(hub.new_home()),
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 4096):
            said += piece
    except OSError:  # a terminal whose other end is closed
        pass
    assert process.wait(timeout=30) == 0, said
    return said.decode()
