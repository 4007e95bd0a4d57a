"""Every system call that a run makes on its files fails once: one message or none, and the next attempt ends well."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from system_calls import ERRORS, Calls
from tiny import finetune, phase, pretrain_recipe

RUN = ("pretrain", "--recipe", "small.yaml", "--snapshot-every", "0", "--html")


@pytest.fixture
def place(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("small.yaml").write_text(pretrain_recipe(phase(length="epochs: 1", batch=100), more="seed: 1\n"))
    assert finetune(*RUN).code == 0  # another run, to be moved aside
    Path("small.yaml").write_text(pretrain_recipe(phase(length="epochs: 1", batch=100)))
    os.rename(folder, folder.with_name("before"))
    shutil.copytree(folder.with_name("before"), folder)
    monkeypatch.chdir(folder)
    return folder


def anew(place):
    """The folder as it was before the run."""
    os.chdir("/")
    shutil.rmtree(place)
    shutil.copytree(place.with_name("before"), place)
    os.chdir(place)


def digest():
    path = Path("checkpoints/small.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def test_all(place):
    with Calls().watched() as calls:
        assert finetune(*RUN).code == 0
    right = digest()
    for site in calls.seen:
        for code in ERRORS:
            anew(place)
            try:
                with Calls(site, code).watched():
                    done = finetune(*RUN)
            except BaseException as e:
                import traceback

                print(
                    "RAISED",
                    site,
                    code,
                    repr(e),
                    traceback.format_exc().split("File")[-1].replace(chr(10), " ")[:200],
                    flush=True,
                )
                continue
            lines = [l for l in done.err.splitlines() if l.startswith(("finetune:", "warning")) or "cannot" in l]
            again = finetune(*RUN, "--resume")
            if "holds a different run" in again.err:
                again = finetune(*RUN)
            print(
                site,
                os.strerror(code)[:6],
                done.code,
                "AGAIN",
                again.code,
                digest() == right,
                lines[:3],
                again.err[-150:] if again.code else "",
                flush=True,
            )
