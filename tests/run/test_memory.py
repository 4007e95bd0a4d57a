"""The estimate of memory, and the refusal of what does not fit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import adapt_recipe, phase, pretrain_recipe, refused, report_of, worked

from finetune.models.registry import build_model, find_model
from finetune.models.staged import StagedNetwork
from finetune.run import memory
from finetune.run.memory import shape_network
from finetune.train.memory import MemoryEstimate, training_memory

CNN_BYTES = 421_642 * 4
IMAGE = (1, 28, 28)


@pytest.fixture(scope="module")
def cnn() -> StagedNetwork:
    return build_model("cnn", 10, {})


def estimate(network: StagedNetwork, stages: tuple[str, ...], batch_size: int = 64, **other: int) -> MemoryEstimate:
    return training_memory(network, stages, IMAGE, batch_size, **{"states": 1, "copies": 2, **other})


def test_weights_gradients_and_states_are_counted(cnn: StagedNetwork) -> None:
    found = estimate(cnn, cnn.stages)
    assert (found.weights, found.gradients, found.optimizer) == (3 * CNN_BYTES, CNN_BYTES, CNN_BYTES)
    assert estimate(cnn, cnn.stages, states=2).optimizer == 2 * CNN_BYTES
    # What each image leaves behind: at least the input, the maps before and after pooling, and both hidden layers.
    maps = 28 * 28 + 32 * 28 * 28 + 32 * 14 * 14 + 64 * 14 * 14 + 64 * 7 * 7 + 128
    assert maps * 4 * 64 <= found.activations <= 2 * maps * 4 * 64
    assert estimate(cnn, cnn.stages, 128).activations == 2 * found.activations


def test_frozen_stages_keep_nothing_and_adapters_train_little(cnn: StagedNetwork) -> None:
    head, every = estimate(cnn, ("head",)), estimate(cnn, cnn.stages)
    assert head.gradients == 1290 * 4
    assert head.activations < every.activations / 50
    adapted = training_memory(cnn, cnn.stages, IMAGE, 64, states=1, copies=2, adapters=True)
    assert (adapted.gradients, adapted.activations) == (head.gradients, every.activations)


def test_attention_keeps_no_scores() -> None:
    network, spec = shape_network("timm/test_vit", {}, 10), find_model("timm/test_vit").input
    found = training_memory(network, network.stages, (3, spec.size, spec.size), 2, states=1, copies=0)
    assert {p.device.type for p in network.parameters()} == {"meta"}
    tokens, width, depth = (spec.size // 16) ** 2 + 1, 64, 6
    assert 10 * tokens * width * depth * 4 * 2 < found.activations < 30 * tokens * width * depth * 4 * 2


@pytest.mark.parametrize("command", ["pretrain", "adapt", "plan"])
def test_what_does_not_fit_is_refused_with_its_figures(
    command: str, folder: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = adapt_recipe if command == "adapt" else pretrain_recipe
    Path("r.yaml").write_text(kind(phase("all", "steps: 2", 10)))
    typed = ["--recipe", "r.yaml", "--json"]
    typed += ["--from", str(pretrained), "--target", "kmnist"] if command == "adapt" else []
    typed += [] if command == "plan" else ["--out", "new.safetensors", "--quiet"]
    monkeypatch.setattr(memory, "available_memory", lambda: 5_000_000)
    said = refused(command, *typed)
    for part in ("phase ", "cnn on batches of 10 images of 28×28", "weights", "activations", "has 5.0 MB", "--force"):
        assert part in said
    assert not list(folder.glob("*.safetensors"))
    found = worked(command, *typed, "--force")
    if command == "plan":
        assert sum(found.json["phases"][0]["memory"].values()) > 5_000_000
    else:
        assert report_of("new.safetensors")["kind"] == command


def test_the_cure_is_a_batch_that_fits() -> None:
    found = MemoryEstimate(weights=100, gradients=50, optimizer=50, activations=640)
    assert memory._cure(found, 64, 520).startswith("set batch_size to 32 or less")
    assert "smaller network" in memory._cure(replace(found, weights=1000), 64, 520)


PEAK = """
import resource, sys, torch
from finetune.models.registry import build_model
network = build_model("timm/resnet18", 10, {}).train()
optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
network(torch.randn(2, 3, 96, 96)).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(2):
    optimizer.zero_grad()
    network(torch.randn(256, 3, 96, 96)).sum().backward()
    optimizer.step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_the_estimate_is_near_what_a_step_takes() -> None:
    network = shape_network("timm/resnet18", {}, 10)
    found = training_memory(network, network.stages, (3, 96, 96), 256, states=1, copies=0)
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, timeout=300)
    taken = int(done.stdout) / (found.activations + found.optimizer)
    assert 0.8 < taken < 1.7, taken
