"""Trainings whose bytes are known: run them, and compare or record the sha256 of what they write.

`python tests/support/golden.py` adds this machine's hashes to golden.json. Do that only when a change of
bytes is meant.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from album import scenes
from tiny import report_of, worked

from finetune.train.device import choose_runtime, environment

RECORDS = Path(__file__).with_name("golden.json")
MNIST = Path(__file__).parents[2] / "checkpoints" / "mnist.safetensors"

QUIET = ("--quiet", "--device", "cpu", "--data-root", "data")  # where nothing is: retention is not measured

ADAPT_TIMM = """kind: adapt
data: {name: orchard, validation: 0.1, augment: {preset: photo}}
head: class_means
phases:
  - {name: solve, train: head, solver: lbfgs}
  - {name: last, train: {last: 2}, steps: 6, batch_size: 8, augment: false, optimizer: {name: sgd, lr: 0.01}}
  - {name: all, train: all, epochs: 2, batch_size: 8, optimizer: {name: adamw, lr: 1e-3}, schedule: {name: cosine}}
compare: [linear_probe, scratch]
precision: float32
"""

PRETRAIN_TIMM = """kind: pretrain
model: timm/test_resnet
input: {size: 32}
data: {name: meadow}
phases:
  - {train: all, steps: 20, batch_size: 16, optimizer: {name: adamw, lr: 3e-3}, schedule: {name: cosine}}
precision: float32
"""


def pretrain(*more: str) -> Path:
    worked("pretrain", "--recipe", "recipes/digits.yaml", *QUIET, *more)
    return Path("checkpoints/digits.safetensors")


def adapt(*more: str) -> Path:
    worked("adapt", "--from", MNIST, "--target", "digits", "--shots", "10", *QUIET, *more)
    return Path("checkpoints/mnist-digits.safetensors")


def adapt_timm() -> Path:
    ours = ("ant", "bee", "fly")
    scenes(Path("meadow"), train=dict.fromkeys(ours, 12), test=dict.fromkeys(ours, 4))
    theirs = ("apple", "pear", "plum")
    scenes(Path("orchard"), noise=400, train=dict.fromkeys(theirs, 9), test=dict.fromkeys(theirs, 6))
    Path("meadow.yaml").write_text(PRETRAIN_TIMM)
    Path("orchard.yaml").write_text(ADAPT_TIMM)
    worked("pretrain", "--recipe", "meadow.yaml", *QUIET)
    source = Path("checkpoints/meadow.safetensors")
    worked("adapt", "--from", source, "--recipe", "orchard.yaml", *QUIET)
    return Path("checkpoints/meadow-orchard.safetensors")


SHORT: dict[str, Callable[[], Path]] = {
    "pretrain": lambda: pretrain("--set", "phases[0].epochs=5"),
    "adapt": lambda: adapt("--set", "phases[1].max_steps=60", "--set", "phases[1].min_steps=60"),
    "adapt_timm": adapt_timm,
}
LONG: dict[str, Callable[[], Path]] = {"pretrain_whole": pretrain, "adapt_whole": adapt}


def machine() -> dict[str, Any]:
    """What the last bits may depend on."""
    said = environment(choose_runtime("cpu", "auto"))
    extra = {"timm": version("timm"), "instructions": _vector_instructions()}
    return {
        key: said[key] for key in ("finetune", "torch", "torchvision", "safetensors", "processor", "threads")
    } | extra


def _vector_instructions() -> str:
    """Which vector and matrix instructions the processor has: machines of one name may differ in them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return " ".join(sorted(flag for flag in line.split() if flag.startswith(("avx", "amx", "fma"))))
    return torch.backends.cpu.get_cpu_capability()


def hashes(make: Callable[[], Path], folder: Path) -> dict[str, str]:
    """Runs one training in an empty folder: the sha256 of its checkpoint, and of its report without times."""
    with contextlib.chdir(folder):
        checkpoint = make()
        report = json.dumps(_without_times(report_of(checkpoint)), sort_keys=True).encode()
        return {
            "checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
            "report": hashlib.sha256(report).hexdigest(),
        }


def known() -> dict[str, dict[str, str]] | None:
    """The hashes recorded on a machine like this one; None when there are none."""
    here = machine()
    return next((row["hashes"] for row in json.loads(RECORDS.read_text()) if row["machine"] == here), None)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        # path: of the source, where the project lies. network: read off the architecture, not what the training gave.
        left = {"seconds", "images_per_second", "environment", "path", "network"}
        return {key: _without_times(inner) for key, inner in value.items() if key not in left}
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value


def record() -> None:
    rows = json.loads(RECORDS.read_text()) if RECORDS.exists() else []
    found = {}
    for name, make in (SHORT | LONG).items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = hashes(make, Path(folder))
    rows = [row for row in rows if row["machine"] != machine()] + [{"machine": machine(), "hashes": found}]
    RECORDS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    record()
