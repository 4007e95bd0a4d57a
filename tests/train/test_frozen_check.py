"""What a phase freezes stays as it is, and where it does not the run stops and says what moved."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NormNet
from safetensors.torch import load_file
from tiny import Impatient, adapt_recipe, phase, pretrain_recipe, refused, report_of, worked
from torch import nn

from finetune.checkpoint.tensor_hash import hash_named, hash_tensor
from finetune.commands.adapt import adapt
from finetune.errors import DriftError, Interrupted
from finetune.models.cnn import ArticleCNN
from finetune.models.registry import MODELS, build_model
from finetune.models.spec import ModelSpec
from finetune.models.staged import StagedNetwork
from finetune.run.snapshot import SnapshotStore
from finetune.train.device import seeded
from finetune.train.freeze import set_trainable, trainable, training_mode
from finetune.train.frozen_check import FrozenCheck, frozen_tensors
from finetune.train.lora import low_rank_adapters

HEAD = ("head",)
STEM = {"stem.0.weight", "stem.1.weight", "stem.1.bias"}
STEM_NORM = {"stem.1.running_mean", "stem.1.running_var", "stem.1.num_batches_tracked"}
BODY = {name.replace("stem", "body") for name in STEM}
BODY_NORM = {name.replace("stem", "body") for name in STEM_NORM}


@contextlib.contextmanager
def frozen_held(*what: Any, **more: Any) -> Iterator[FrozenCheck]:
    """A phase: the proof is taken, whatever happens in the block, and looked at when that ends well."""
    proof = FrozenCheck(*what, **more)
    yield proof
    proof.check()


def net() -> NormNet:
    with seeded(0):
        return NormNet()


def pictures(network: StagedNetwork) -> torch.Tensor:
    side = 8 if isinstance(network, NormNet) else 28 if isinstance(network, ArticleCNN) else 32
    channels = 1 if side < 32 else 3
    return torch.rand(6, channels, side, side, generator=torch.Generator().manual_seed(1))


def step(network: StagedNetwork, optimizer: torch.optim.Optimizer) -> None:
    loss = nn.functional.cross_entropy(network(pictures(network)), torch.arange(6) % 3)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(network: StagedNetwork, stages: tuple[str, ...], norms: str = "hold", adapters: bool = False) -> None:
    """Two steps of what a phase is, in plain torch; the weight decay would move whatever has a gradient of 0."""
    set_trainable(network, stages, adapters=adapters)
    optimizer = torch.optim.SGD(trainable(network), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        training_mode(network, stages, norms, adapters=adapters)
        step(network, optimizer)


def drift(network: StagedNetwork, act: Any, stages: tuple[str, ...] = HEAD, **settings: Any) -> str:
    """What the proof says when `act(network)` happens in the phase."""
    with pytest.raises(DriftError) as caught, frozen_held(network, "tune", stages, **settings):
        act(network)
    assert caught.value.exit_code == 1
    said = str(caught.value)
    assert said.startswith("phase tune: what it freezes did not stay as it was: ") and "norms: update" in said
    return said.removeprefix("phase tune: what it freezes did not stay as it was: ").partition(". Only ")[0]


# What is frozen


@pytest.mark.parametrize(
    ("stages", "norms", "frozen"),
    [
        (HEAD, "hold", STEM | STEM_NORM | BODY | BODY_NORM),
        (HEAD, "hold_all", STEM | STEM_NORM | BODY | BODY_NORM),
        (HEAD, "update", STEM | BODY),
        (("body", "head"), "hold", STEM | STEM_NORM),
        (("body", "head"), "hold_all", STEM | STEM_NORM | BODY_NORM),
        (("body", "head"), "update", STEM),
        (("stem", "body", "head"), "hold", set()),
        (("stem", "body", "head"), "hold_all", STEM_NORM | BODY_NORM),
        (("stem",), "hold", BODY | BODY_NORM | {"head.weight", "head.bias"}),
    ],
)
def test_what_a_phase_freezes(stages: tuple[str, ...], norms: str, frozen: set[str]) -> None:
    network = net()
    assert set(frozen_tensors(network, stages, norms)) == frozen
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with frozen_held(network, "tune", stages, norms) as proof:
        train(network, stages, norms)
    moved = {name for name, t in network.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == set(before) - frozen, "all else does move in such a phase, so that this is no weaker than it can be"
    assert proof.count == len(frozen) and set(proof.digests) == frozen


@pytest.mark.slow
@pytest.mark.parametrize("norms", ["hold", "update", "hold_all"])
def test_beside_adapters_all_but_the_head_is_frozen(norms: str) -> None:
    network, stages = net(), ("body", "head")
    names = set(network.state_dict())
    with low_rank_adapters(network, stages, 2, 4.0, 0.1):
        assert set(frozen_tensors(network, stages, norms, adapters=True)) == names - {"head.weight", "head.bias"}
        with frozen_held(network, "tune", stages, norms, adapters=True) as proof:
            train(network, stages, norms, adapters=True)
        assert proof.count == len(names) - 2
        found = drift(network, lambda n: n.body[0].base_layer.weight.data.add_(1), stages, adapters=True)
        assert found == "body.0.weight (has other numbers)"
        drift(network, lambda n: n.body[1].running_mean.add_(1), stages, norms=norms, adapters=True)
    assert set(network.state_dict()) == names


def test_adapters_without_the_head() -> None:
    network, stages = net(), ("body",)
    with low_rank_adapters(network, stages, 2, 4.0, 0.0):
        assert "head.bias" in frozen_tensors(network, stages, "hold", adapters=True)
        assert drift(network, lambda n: n.head.bias.data.add_(1), stages, adapters=True).startswith("head.bias")


class Counting(NormNet):
    """A network with a buffer that belongs to no stage and counts the steps of training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def run(self, x: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        self.steps += float(self.training)
        return super().run(x, start, stop)


def test_a_buffer_of_no_stage_is_free_where_all_stages_train() -> None:
    network = Counting()
    with frozen_held(network, "tune", network.stages) as proof:
        train(network, network.stages)
    assert network.steps == 2 and proof.count == 0
    with frozen_held(network, "tune", ("body", "head")) as proof:
        train(network, ("body", "head"))
    assert network.steps == 2 and "steps" in proof.digests, "it does not count there, as dropout would not drop"
    assert drift(network, lambda n: n.steps.add_(1), ("body", "head")) == "steps (has other numbers)"


@pytest.mark.parametrize(
    "name",
    [
        *("cnn", "timm/test_resnet", "timm/test_vit", "timm/test_vit2", "timm/test_convnext", "timm/test_efficientnet"),
        *("timm/test_nfnet", "timm/test_mambaout", "timm/test_byobnet", "timm/test_efficientnet_evos"),
    ],
)
@pytest.mark.parametrize("norms", ["hold", "update", "hold_all"])
def test_no_network_gives_a_false_alarm(name: str, norms: str) -> None:
    with seeded(0):
        network = build_model(name, 3, {})
    for last in (1, 2, len(network.stages) - 1, len(network.stages)):
        stages = network.stages[-last:]
        with frozen_held(network, "tune", stages, norms) as proof:
            train(network, stages, norms)
        parameters = {n for n, _ in network.named_parameters()}
        assert len(proof.digests) >= len(parameters) - sum(len(list(network.stage_parameters(s))) for s in stages)
        assert not any(key.startswith("body.") for key in proof.digests), "the names are those in a checkpoint"


# What is caught


class Drifting(NormNet):
    """A network whose forward counts its calls in a buffer of the stem, in evaluation mode too."""

    def __init__(self, persistent: bool = True) -> None:
        super().__init__()
        self.stem.register_buffer("calls", torch.zeros(()), persistent=persistent)

    def run_stage(self, stage: str, x: torch.Tensor) -> torch.Tensor:
        if stage == "stem":
            self.stem.calls += 1
        return super().run_stage(stage, x)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_forward_pass_that_writes_into_a_frozen_buffer(persistent: bool) -> None:
    network = Drifting(persistent)
    assert drift(network, lambda n: train(n, HEAD)) == "stem.calls (has other numbers)"
    assert drift(network, lambda n: n.eval()(pictures(n))) == "stem.calls (has other numbers)"
    with frozen_held(network, "tune", network.stages):
        train(network, network.stages)  # where the stem trains, it is free


def test_an_optimizer_that_was_given_a_frozen_parameter() -> None:
    def act(network: NormNet) -> None:
        set_trainable(network, network.stages)
        training_mode(network, HEAD, "hold")
        step(network, torch.optim.SGD([*network.head.parameters(), network.stem[1].bias], lr=0.1))

    assert drift(net(), act) == "stem.1.bias (has other numbers)"


def test_weight_decay_alone() -> None:
    def act(network: NormNet) -> None:
        set_trainable(network, HEAD)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1).step()

    assert "stem.0.weight (has other numbers)" in drift(net(), act)


def test_a_normalisation_layer_left_in_training_mode() -> None:
    def act(network: NormNet) -> None:
        train(network, HEAD)
        network.stem.train()
        network(pictures(network))

    found = drift(net(), act)
    assert found == ", ".join(
        f"{name} (has other numbers)" for name in sorted(STEM_NORM, key=list(net().state_dict()).index)
    )
    with frozen_held(net(), "tune", HEAD, "update") as proof:
        act(proof.network)


def test_a_normalisation_layer_that_is_to_be_held_where_its_stage_trains() -> None:
    network, stages = net(), ("body", "head")
    found = drift(network, lambda n: train(n, stages, "hold"), stages, norms="hold_all")
    assert "body.1.running_mean" in found and "stem" not in found and "body.1.weight" not in found


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda n: n.stem[1].num_batches_tracked.add_(1), "stem.1.num_batches_tracked (has other numbers)"),
        (lambda n: n.stem[0].weight.data[3, 0, 2].nextafter_(torch.tensor(9.0)), "stem.0.weight (has other numbers)"),
        (lambda n: n.stem[1].running_var.resize_(2, 2), "stem.1.running_var (has other numbers)"),
        (lambda n: setattr(n.stem[1].bias, "data", n.stem[1].bias.data.double()), "stem.1.bias (has other numbers)"),
        (
            lambda n: setattr(n.stem[1], "bias", nn.Parameter(torch.zeros(4))),
            "stem.1.bias (another tensor in its place)",
        ),
        (lambda n: setattr(n.stem[1], "running_mean", torch.zeros(4)), "stem.1.running_mean (another tensor in its pl"),
        (lambda n: n.body.register_buffer("count", torch.zeros(1)), "body.count (is new)"),
        (lambda n: n.stem[1].register_parameter("bias", None), "stem.1.bias (is gone)"),
        (
            lambda n: n.stem.__delitem__(1),
            "stem.1.weight (is gone), stem.1.bias (is gone), stem.1.running_mean (is gone)",
        ),
    ],
)
def test_every_kind_of_drift_is_named(act: Any, said: str) -> None:
    assert drift(net(), act).startswith(said)


def test_a_sign_of_zero_and_a_nan_count_by_their_bits() -> None:
    assert "stem.1.bias" in drift(net(), lambda n: n.stem[1].bias.data.neg_()), "zeros, which are now minus zero"
    network = net()
    network.stem[1].bias.data.fill_(float("nan"))
    with frozen_held(network, "tune", HEAD):
        train(network, HEAD)


def test_a_run_that_is_stopped_for_another_reason_says_that_one() -> None:
    network = net()
    with pytest.raises(KeyboardInterrupt), frozen_held(network, "tune", HEAD):
        network.stem[1].bias.data += 1
        raise KeyboardInterrupt


def test_kept_activations_are_held_too() -> None:
    network, kept = net(), torch.rand(5, 3)
    with frozen_held(network, "tune", HEAD) as proof:
        proof.add("activations of body", kept)
        assert set(proof.digests) == set(network.state_dict()) - {"head.weight", "head.bias"}, "they are no part of it"

    def act(network: NormNet) -> None:
        proof = FrozenCheck(network, "tune", HEAD)
        proof.add("activations of body", kept)
        kept.relu_().sub_(1)
        proof.check()

    assert drift(network, act) == "activations of body (has other numbers)"


# Going on after a stop


def test_the_proof_goes_on_where_a_stopped_phase_goes_on() -> None:
    network = net()
    expected = json.loads(json.dumps(FrozenCheck(network, "tune", HEAD).digests))
    assert all(type(name) is str and len(digest) == 64 for name, digest in expected.items())
    train(network, HEAD)
    with frozen_held(network, "tune", HEAD, expected=expected) as proof:
        train(network, HEAD)
    assert proof.digests == expected
    network.stem[1].running_mean += 1
    with pytest.raises(
        DriftError, match=r"phase tune: it would go on with other frozen tensors .*: stem\.1\.running_mean;"
    ):
        FrozenCheck(network, "tune", HEAD, expected=expected)


@pytest.mark.parametrize("change", [{"stem.1.bias": "0" * 64}, {"more": "0" * 64}, {"stem.1.bias": None}])
def test_facts_of_another_run_are_refused(change: dict[str, Any]) -> None:
    expected = FrozenCheck(net(), "tune", HEAD).digests | change
    with pytest.raises(DriftError, match=next(iter(change))):
        FrozenCheck(net(), "tune", HEAD, expected=expected)
    with pytest.raises(DriftError, match=r"head\.weight"):
        FrozenCheck(net(), "tune", ("body",), expected=FrozenCheck(net(), "tune", ("body", "head")).digests)


# Whole runs


def test_the_report_has_the_digest_of_what_was_frozen(folder: Path, pretrained: Path) -> None:
    phases = (
        phase("head", "steps: 3", more="name: one")
        + phase("{last: 2}", "steps: 3", more="name: two")
        + phase(length="steps: 3", more="name: three")
    )
    Path("a.yaml").write_text(adapt_recipe("  - {train: head, solver: lbfgs, name: zero}\n" + phases))
    worked("adapt", "--from", pretrained, "--target", "kmnist", "--recipe", "a.yaml", "--out", "new.safetensors")
    found = {one["name"]: one["frozen"] for one in report_of("new.safetensors")["phases"]}
    digests = {name: hash_tensor(t) for name, t in load_file(pretrained).items()}
    first = hash_named({name: digest for name, digest in digests.items() if not name.startswith("head.")})
    second = hash_named({name: digest for name, digest in digests.items() if name.startswith("conv")})
    assert found == {
        "zero": {"tensors": 6, "sha256": first},
        "one": {"tensors": 6, "sha256": first},
        "two": {"tensors": 4, "sha256": second},
        "three": None,
    }


def test_only_what_a_checkpoint_has_is_counted() -> None:
    with_it, without = Drifting(persistent=False), net()
    without.load_state_dict(with_it.state_dict())
    one, other = FrozenCheck(with_it, "tune", HEAD), FrozenCheck(without, "tune", HEAD)
    assert "stem.calls" in one.digests and (one.count, one.sha256) == (other.count, other.sha256)


def test_beside_adapters_the_report_counts_the_weights_that_they_stand_beside(folder: Path, pretrained: Path) -> None:
    Path("a.yaml").write_text(adapt_recipe(phase("all", "steps: 3", more="lora: {rank: 2}, name: low")))
    worked("adapt", "--from", pretrained, "--target", "kmnist", "--recipe", "a.yaml", "--out", "new.safetensors")
    digests = {n: hash_tensor(t) for n, t in load_file(pretrained).items() if not n.startswith("head.")}
    assert report_of("new.safetensors")["phases"][0]["frozen"] == {"tensors": 6, "sha256": hash_named(digests)}


class DriftingCNN(ArticleCNN):
    def run_stage(self, stage: str, x: torch.Tensor) -> torch.Tensor:
        if stage == "conv2" and not self.head.training:
            self.conv2.bias.data[0] += 1e-3
        return super().run_stage(stage, x)


@pytest.mark.parametrize("how", ["trained", "solved"])
def test_a_run_with_a_network_that_drifts_stops(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cnn = MODELS["cnn"]
    row = ModelSpec("drifts", "here", cnn.stages, cnn.input, lambda classes, arguments: DriftingCNN(classes))
    monkeypatch.setitem(MODELS, "drifting", row)
    second = phase("head", "steps: 3", more="augment: false, name: second")
    if how == "solved":
        second = "  - {train: head, solver: lbfgs, name: second}\n"
    phases = phase(length="steps: 3", more="name: first") + second
    text = pretrain_recipe(phases, "{name: mnist, validation: 60}").replace("model: cnn", "model: drifting")
    Path("a.yaml").write_text(text)
    message = refused("pretrain", "--recipe", "a.yaml", "--quiet", code=1)
    assert "phase second: what it freezes did not stay as it was: conv2.bias (has other numbers). Only head" in message
    last = "second" if how == "trained" else "first"
    assert f"kept: the weights after epoch 1 of 1 of phase {last}" in message
    assert not Path("checkpoints/a.safetensors").exists()


def stopped(folder: Path, source: Path) -> tuple[tuple[object, ...], SnapshotStore]:
    """An adapt that is stopped in its first phase, in which only the head trains, and its snapshots."""
    Path("a.yaml").write_text(adapt_recipe(phase("head", "epochs: 40", 100), "{name: kmnist, validation: 60}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.train.loop.MIN_ROW_STEPS", 3)
        resume = {"snapshot_every": 0.0}
        with pytest.raises(Interrupted):
            adapt(source, recipe="a.yaml", out="new.safetensors", **resume, console=Impatient("epoch 4/"))
    words = ("adapt", "--from", source, "--recipe", "a.yaml", "--out", "new.safetensors", "--resume", "--quiet")
    return words, SnapshotStore(Path("runs/new/snapshots"))


def test_the_proof_covers_a_phase_that_was_stopped_from_its_beginning(folder: Path, pretrained: Path) -> None:
    words, store = stopped(folder, pretrained)
    snapshot, _ = store.newest()
    assert snapshot is not None
    source = {name: hash_tensor(t) for name, t in load_file(pretrained).items() if not name.startswith("head.")}
    assert snapshot.facts["phase"]["proof"] == source
    worked(*words)
    assert report_of("new.safetensors")["phases"][0]["frozen"] == {"tensors": 6, "sha256": hash_named(source)}


def test_drift_before_a_stop_is_found_when_the_run_goes_on(folder: Path, pretrained: Path) -> None:
    words, store = stopped(folder, pretrained)
    snapshot, _ = store.newest()
    assert snapshot is not None
    snapshot.tensors["training/conv2.bias"][0] += 1e-6
    store.save(snapshot)
    message = refused(*words, code=1)
    assert "it would go on with other frozen tensors than it began with: conv2.bias;" in message
    assert not Path("new.safetensors").exists() and "resume with:" not in message
