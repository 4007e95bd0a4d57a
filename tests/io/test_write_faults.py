"""Whatever fails in a write, and wherever: the old or the new is there, whole, and the next write works."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
from fault_cases import CASES
from faulty import BROKEN, DENIED, FULL, KILLED, KILLED_AFTER, KINDS, STOPPED, UNSURE, Plant
from tiny import SUPPORT

HERE = SUPPORT


def driven(*command):
    """By case what a driver found: one process for all, since most of its time goes into importing torch."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {found["name"]: found for found in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def ended():
    """In memory where there is such a place: a thousand real syncs take two minutes on a busy disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        return driven(sys.executable, HERE / "faulty.py", folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_fault_at_any_call_leaves_the_old_or_the_new(name, ended):
    assert "failure" not in ended[name], ended[name]["failure"]
    counts = ended[name]["counts"]
    assert list(counts) == list(KINDS)
    assert counts[KILLED].keys() == counts[KILLED_AFTER].keys() == {"killed"}
    assert counts[STOPPED].keys() == {"stopped"}
    for kind in (FULL, BROKEN, DENIED, UNSURE):
        assert counts[kind]["refused"] and counts[kind].keys() <= {"refused", "done"}


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    return driven(sys.executable, HERE / "full_disk.py", tmp_path_factory.mktemp("limit"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """On a small disk that exists for the driver alone."""
    folder = tmp_path_factory.mktemp("full")
    own = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    probe = [*own, "mount", "-t", "tmpfs", "tmpfs", folder]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    return driven(*own, sys.executable, HERE / "full_disk.py", folder, "mount")


@pytest.mark.parametrize("disk", ["limited", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("all snapshots deleted", "a line")])
def test_a_full_disk_leaves_what_was_there_and_says_how_to_go_on(name, disk, request):
    found = request.getfixturevalue(disk)[name]
    assert "failure" not in found, found["failure"]
    *short, enough = found["counts"].values()
    assert short and all(ended == {"refused": 1} for ended in short) and enough == {"done": 1}


SYNCED = {
    "a file over an older one": "write fsync replace fsync",
    "two files over older ones": "write fsync write fsync replace fsync",
    "a snapshot over two older ones": "write fsync write fsync write fsync fsync rename fsync rename",
    "checkpoint and report over older ones": (
        "write fsync write fsync write fsync link fsync link fsync link fsync replace fsync"
    ),
}


@pytest.mark.parametrize("name", SYNCED)
def test_what_gets_a_name_is_on_the_disk_before_and_its_name_after(name, tmp_path):
    """In this order nothing is lost in a power cut, which no test can wait for."""
    CASES[name].prepare(tmp_path)
    with Plant() as plant:
        CASES[name].operate(tmp_path)
    calls = [call for call in plant.calls if call in ("write", "fsync", "replace", "rename", "link")]
    assert " ".join(call for call, _ in itertools.groupby(calls)) == SYNCED[name].replace("fsync fsync", "fsync")
    assert calls.count("fsync") == SYNCED[name].count("fsync")
