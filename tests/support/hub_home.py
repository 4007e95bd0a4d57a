"""A loopback Hub, the command line pointed at it, and a small checkpoint: what the tests of push and pull share."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hub_store import Store
from tiny import ROOT, SUPPORT, Done

from finetune.checkpoint.format import Metadata, write_checkpoint

TOKEN = "hf_" + "aDaLovElAcE" * 3
OTHER_TOKEN = "bobs-token-of-another-form-0123456789"
READ_TOKEN = "hf_" + "rEaDoNlY" * 4
STRANGE_TOKEN = "hf_" + "nObOdYs" * 5
ACCOUNTS = {
    TOKEN: {"name": "ada", "orgs": ["lab"]},
    OTHER_TOKEN: {"name": "bob"},
    READ_TOKEN: {"name": "ada", "orgs": ["lab"], "write": False},
}


class Loopback:
    """The server's folder, and commands run against it, each in a new process with an empty cache unless named."""

    def __init__(self, root: Path, ports: tuple[int, int], runner: subprocess.Popen[str]) -> None:
        self.root, self.ports, self.runner = root, ports, runner
        self.store = Store(root / "hub")
        self.work = root / "work"
        self.work.mkdir()
        self.homes = itertools.count()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def new_home(self) -> Path:
        return self.root / f"home{next(self.homes)}"

    def environment(self, home: Path, **changes: str | None) -> dict[str, str]:
        """The environment of a command; None takes a variable out."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "http", "HTTP", "ALL_"))}
        ours = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
            "FINETUNE_DATA_ROOT": str(self.root / "no-data"),
        }
        return {k: v for k, v in {**kept, **ours, **changes}.items() if v is not None}

    def run(
        self,
        *words: object,
        home: Path | None = None,
        cwd: Path | None = None,
        largest_file: int = 0,
        haste: int = 20,
        **env: str | None,
    ) -> Done:
        """`finetune WORDS...` in a process of its own; pauses before another try are `haste` times shorter."""
        out, err = self.root / "out.txt", self.root / "err.txt"
        asked = {
            "words": [str(w) for w in words],
            "env": self.environment(home or self.new_home(), **env),
            "cwd": str(cwd or self.work),
            "out": str(out),
            "err": str(err),
            "imported": str(self.root / "imported.txt"),
            "largest_file": largest_file,
            "haste": haste,
        }
        assert self.runner.stdin is not None and self.runner.stdout is not None
        self.runner.stdin.write(json.dumps(asked) + "\n")
        self.runner.stdin.flush()
        code = int(self.runner.stdout.readline())
        return Done(code, out.read_text(), err.read_text())

    def worked(self, *words: object, **how: Any) -> Done:
        done = self.run(*words, **how)
        assert done.code == 0, done.err
        return done

    def refused(self, *words: object, code: int = 2, **how: Any) -> str:
        """Runs a command that must fail in the way that is meant for it; returns the one message."""
        done = self.run(*words, **how)
        assert done.code == code, (done.code, done.err)
        assert "Traceback" not in done.err and done.out == "", done
        said = f"\n{done.err}".split("\nfinetune: ")
        assert len(said) == 2, done.err
        return said[1]

    def imported(self) -> set[str]:
        """The packages that were imported by the end of the latest command."""
        return set((self.root / "imported.txt").read_text().split())

    # what the server has and did

    def plant(self, *faults: dict[str, Any]) -> None:
        (self.store.root / "faults.json").write_text(json.dumps(faults))

    def options(self, **given: Any) -> None:
        (self.store.root / "options.json").write_text(json.dumps(given))

    def log(self) -> list[dict[str, Any]]:
        path = self.store.root / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def requests_of(self, *words: object, **how: Any) -> list[dict[str, Any]]:
        """What a command that works asks of the server."""
        before = len(self.log())
        self.worked(*words, **how)
        return self.log()[before:]

    def commits(self, repo: str) -> list[dict[str, Any]]:
        """The history of main, newest first; the last is the Hub's own initial commit."""
        state = self.store.load(repo)
        return self.store.history(state, state["branches"]["main"])

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        state = self.store.load(repo)
        tree = state["commits"][self.store.resolve(state, revision)]["files"]
        return {name: self.store.content(entry) for name, entry in tree.items() if name != ".gitattributes"}

    def change(self, repo: str, **values: Any) -> None:
        self.store.save(repo, {**self.store.load(repo), **values})

    def add(self, repo: str, files: dict[str, bytes], **values: Any) -> str:
        """A commit by somebody else, in a repository that is made if need be; returns its oid."""
        if not self.store.exists(repo):
            self.store.create(repo, private=False)
        entries = {}
        for name, content in files.items():
            if self.store.mode(name, content[:512], len(content)) == "lfs":
                digest = __import__("hashlib").sha256(content).hexdigest()
                self.store.put_object(digest, content)
                entries[name] = self.store.object_file(digest, len(content))
            else:
                entries[name] = self.store.put_blob(content)
        oid, _ = self.store.commit(repo, "main", "by hand", "", files=entries)
        self.change(repo, **values)
        return oid


@contextlib.contextmanager
def loopback(root: Path, *imported: str) -> Iterator[Loopback]:
    """A running server with its state below `root`, and the process that runs commands, with these modules imported."""
    hub = root / "hub"
    hub.mkdir(parents=True)
    (hub / "accounts.json").write_text(json.dumps(ACCOUNTS))
    server = started([str(SUPPORT / "hub_server.py"), "--root", str(hub)])
    runner = started([str(SUPPORT / "hub_runner.py"), *imported], PYTHONPATH=str(ROOT))
    try:
        assert server.stdout is not None
        first, second = map(int, server.stdout.readline().split())
        yield Loopback(root, (first, second), runner)
    finally:
        for process in (server, runner):
            process.communicate(timeout=10)  # both end with their standard input


def started(command: list[str], **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


RECIPE = {
    "kind": "adapt",
    "data": {"name": "kmnist", "validation": 0.1},
    "phases": [{"train": "all", "epochs": 1, "batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.01}}],
}
RESULTS = {
    "before": {"correct": 40, "total": 100, "accuracy": 0.4, "ci95": [0.309, 0.498], "method": "nearest class mean"},
    "after": {"correct": 90, "total": 100, "accuracy": 0.9, "ci95": [0.826, 0.945]},
    "scratch": None,
}


TIMM_RESNET = {
    "hub": "timm/test_resnet.r160_in1k",
    "classifier": "fc",
    "first_conv": "conv1.0",
    "pool_size": [5, 5],
    "license": "apache-2.0",
    "fixed_input_size": False,
    "input_size": [3, 160, 160],
}
"""What timm publishes of test_resnet, as a report has it."""


def make_checkpoint(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A cnn with random weights that says it was adapted to kmnist; `changes` are of its metadata."""
    import torch

    from finetune.models.registry import build_model, find_model

    classes = changes.pop("classes", ["o", "ki", "su"])
    torch.manual_seed(seed)
    network = build_model("cnn", len(classes), {})
    values = {
        "model": "cnn",
        "arguments": {},
        "classes": classes,
        "input": find_model("cnn").input.as_dict(),
        "recipe": RECIPE,
        "data": {"name": "kmnist", "train": {"images": 900}, "test": {"images": 100}},
        "results": RESULTS,
        "lineage": [{"id": "mnist.safetensors", "sha256": "0" * 64, "task": "mnist"}],
        "versions": {"finetune": "0.1.0"},
    }
    write_checkpoint(path, network.state_dict(), Metadata.model_validate(values | changes))
    return path


def write_report(checkpoint: Path, **changes: Any) -> None:
    """The report beside a checkpoint of `make_checkpoint`."""
    compared = {"difference": 0.5, "ci95": [0.38, 0.61], "p_value": 1e-9, "verdict": "helps"}
    values = {
        "kind": "adapt",
        "recipe": RECIPE,
        "source": {"path": "/home/ada/secret folder/mnist.safetensors", "sha256": "0" * 64},
        "results": RESULTS,
        "comparisons": {"after_vs_before": compared, "after_vs_scratch": None},
        "retention": {"dataset": "mnist", "before": 0.99, "after": 0.66},
        "network": {"model": "cnn", "parameters": 420_739, "multiply_adds": 4_240_256, "timm": None},
    }
    checkpoint.with_suffix(".report.json").write_text(json.dumps(values | changes))
