"""Low-rank adapters: what moves while they train, and that nothing is left of them but other weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks import NormNet
from safetensors.torch import load_file
from tiny import Impatient, adapt_recipe, phase, refused, report_of, worked

import finetune as toolkit
from finetune.commands.adapt import adapt
from finetune.data.loader import Batches
from finetune.data.normalize import Normalizer
from finetune.errors import Interrupted, SettingError
from finetune.models.registry import build_model
from finetune.models.staged import StagedNetwork
from finetune.train.device import Runtime, seeded
from finetune.train.freeze import set_trainable
from finetune.train.loop import PhaseConfig, Training
from finetune.train.lora import check_adaptable, low_rank_adapters, merged
from finetune.train.meter import Row, ValidationScore
from finetune.train.optim import make_schedule

CPU = torch.device("cpu")
NEW = "new.safetensors"
SOLVED = "  - {train: head, solver: lbfgs}\n"
ADAMW = "{name: adamw, lr: 1e-2}"


def low_rank(train: str = "all", length: str = "steps: 4", more: str = "name: adapters") -> str:
    return phase(train, length, optimizer=ADAMW, more=f"lora: {{rank: 2, alpha: 4}}, {more}")


def network_of(name: str) -> StagedNetwork:
    with seeded(0):
        network = (NormNet() if name == "norm" else build_model(name, 3, {})).eval()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith("weight") and not parameter.any():
                parameter.fill_(1)  # timm starts the last normalisation of a block at 0, and nothing before it learns
    return network


def pictures(name: str, count: int = 2) -> torch.Tensor:
    channels, side = (1, 8) if name == "norm" else (1, 28) if name == "cnn" else (3, 32)
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def state_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in network.state_dict().items()}


def adapters_of(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for name, p in network.named_parameters() if "lora_" in name]


@torch.no_grad()
def stir(network: torch.nn.Module) -> None:
    """Gives the adapters numbers, as training would."""
    generator = torch.Generator().manual_seed(2)
    for parameter in adapters_of(network):
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


# timm's Conv2dSame, a transformer, plain and depthwise convolutions, weight standardisation, a CNN of our own
NETWORKS = (
    "cnn",
    "norm",
    "timm/test_resnet",
    "timm/test_vit",
    "timm/test_convnext",
    "timm/tf_mobilenetv3_small_minimal_100",
)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_adapters_start_as_nothing_and_end_as_the_weights_they_stood_for(name: str) -> None:
    network, x = network_of(name), pictures(name)
    before, original, trains = state_of(network), network(x), [p.requires_grad for p in network.parameters()]
    with low_rank_adapters(network, network.stages, 2, 4.0, 0.0):
        set_trainable(network, network.stages, adapters=True)
        assert torch.equal(network.eval()(x), original) and adapters_of(network)
    assert all(torch.equal(t, before[key]) for key, t in network.state_dict().items())
    with low_rank_adapters(network, network.stages, 2, 4.0, 0.0):
        stir(network)
        adapted = network.eval()(x)
        plain = merged(network)
        assert list(plain.state_dict()) == list(before) and torch.equal(network(x), adapted)
    assert (adapted - original).abs().max() > 1e-4
    torch.testing.assert_close(network(x), adapted, rtol=1e-4, atol=1e-5)
    assert list(network.state_dict()) == list(before) and len(trains) == len(list(network.parameters()))
    assert all(torch.equal(t, plain.state_dict()[key]) for key, t in network.state_dict().items())
    assert type(network) is type(network_of(name)) and not hasattr(network, "peft_config")


def test_a_weight_that_is_changed_before_its_use_has_no_adapter() -> None:
    network = network_of("timm/test_nfnet")
    kinds = {type(network.get_submodule(place)).__name__ for place in check_adaptable(network, network.stages)}
    assert "ScaledStdConv2d" not in kinds
    normal = network_of("timm/test_resnet")
    assert {type(normal.get_submodule(place)).__name__ for place in check_adaptable(normal, normal.stages)} == {
        "Conv2d"
    }
    dilated = NormNet()
    dilated.body[0] = torch.nn.Conv2d(4, 6, 3, padding=2, dilation=2)
    dilated.stem[0] = torch.nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")
    with pytest.raises(SettingError, match="lora: no linear layer or plain convolution"):
        check_adaptable(dilated, dilated.stages)
    with pytest.raises(SettingError, match="in head; train more stages, or drop lora"):
        check_adaptable(normal, ["head"])


@pytest.mark.slow
def test_a_network_may_ask_its_layers_for_what_they_are() -> None:
    """DaViT asks a convolution for its kernel_size on the way, which peft's own layer does not have."""
    network = network_of("timm/davit_tiny")
    with torch.device("meta"):
        network, x = network.to("meta"), torch.empty(1, 3, 64, 64)
    with low_rank_adapters(network, network.stages, 2, 4.0, 0.0):
        assert network(x).shape == (1, 3)


def trained(name: str, network: StagedNetwork, stages: tuple[str, ...], **more: Any) -> list[Row]:
    inputs, labels = (255 * pictures(name, 12)).to(torch.uint8), torch.arange(12) % 3
    normalize = Normalizer((0.5,) * inputs.shape[1], (0.25,) * inputs.shape[1], CPU)
    batches = Batches(inputs, labels, batch_size=4, seed=0, normalize=normalize)
    settings = {
        "optimizer": "adamw",
        "arguments": {"lr": 0.01, "weight_decay": 0.1},
        "schedule": make_schedule("constant"),
    }
    one = PhaseConfig("p", stages, 6, **{**settings, **more})  # type: ignore[arg-type]
    with seeded(0):
        return [row for row in Training(network, batches, one, Runtime(CPU, "float32")) if isinstance(row, Row)]


@pytest.mark.parametrize("name", ["norm", "timm/test_resnet", "timm/test_vit"])
@pytest.mark.parametrize("norms", ["hold", "update"])
def test_only_adapters_and_the_head_move(name: str, norms: str) -> None:
    network = network_of(name)
    before, stages = state_of(network), network.stages[1:]
    with low_rank_adapters(network, stages, 2, 4.0, 0.1):
        trained(name, network, stages, adapters=True, norms=norms, ema=0.5, clip_norm=1.0)
        still = {key.replace("base_layer.", ""): t for key, t in network.state_dict().items() if "lora_" not in key}
        assert still.keys() == before.keys()
        moved = {key for key in before if not torch.equal(still[key], before[key])}
        assert moved == set(network.head_tensors()), "not a weight, not a buffer"
        places = [key.split(".lora_")[0] for key, _ in network.named_parameters() if "lora_B" in key]
        assert all(p.abs().max() > 0 for key, p in network.named_parameters() if "lora_B" in key)
    after = network.state_dict()
    assert list(after) == list(before)
    changed = {key for key in before if not torch.equal(after[key], before[key])}
    names = {id(t): key for key, t in network.state_dict(keep_vars=True).items()}
    adapted = {names[id(network.get_submodule(place).weight)] for place in places}
    assert changed == adapted | set(network.head_tensors())
    assert not any(names[id(p)] in changed for p in network.stage_parameters(network.stages[0]))


def test_the_best_row_can_be_kept() -> None:
    network = network_of("norm")
    accuracies = iter([0.5, 0.9, 0.1])
    with pytest.MonkeyPatch.context() as patch, low_rank_adapters(network, network.stages, 2, 4.0, 0.0):
        patch.setattr("finetune.train.loop.MIN_ROW_STEPS", 2)
        inputs, labels = (255 * pictures("norm", 8)).to(torch.uint8), torch.arange(8) % 3
        batches = Batches(inputs, labels, batch_size=4, seed=0, normalize=Normalizer((0.5,), (0.25,), CPU))
        one = PhaseConfig(
            "p", network.stages, 6, "sgd", {"lr": 0.1}, make_schedule("constant"), keep="best", adapters=True
        )
        states = []
        for row in Training(
            network, batches, one, Runtime(CPU, "float32"), validate=lambda: ValidationScore(next(accuracies))
        ):
            states.append((row, state_of(network)))
    best, last = states[1][1], states[2][1]
    assert all(torch.equal(best[key], last[key]) for key in best)


# Whole runs


def adapted(source: Path, target: Path | str, recipe: str, *words: object) -> Any:
    Path("recipe.yaml").write_text(recipe)
    typed = ("--recipe", "recipe.yaml", "--target", target, "--out", NEW, "--quiet", "--json")
    return worked("adapt", "--from", source, *typed, *words).json


def test_the_checkpoint_is_a_plain_one(folder: Path, backbone: Path, orchard: Path) -> None:
    recipe = adapt_recipe(SOLVED + low_rank("{last: 3}"), "{augment: photo}", "[scratch]")
    report = adapted(backbone, orchard, recipe)
    old, new = load_file(backbone), load_file(NEW)
    assert list(new) == list(old)
    changed = {name for name in old if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])}
    assert changed and all(name.startswith(("layer3.", "layer4.", "fc.")) for name in changed)
    assert all(new[name].dim() == 4 for name in changed if not name.startswith("fc.")), "no normalisation among them"
    stock = timm.create_model("test_resnet", num_classes=3)
    stock.load_state_dict(new)
    x, classifier = pictures("timm/test_resnet"), toolkit.load(NEW)
    with torch.no_grad():
        assert torch.equal(stock.eval()(x), classifier(x))
    assert [one["name"] for one in report["phases"]] == ["head", "adapters"] and report["results"]["scratch"]
    found = worked("evaluate", NEW, "--data", orchard, "--json").json
    assert found["claimed_accuracy"] == found["accuracy"] == report["results"]["after"]["accuracy"]


def test_phases_before_between_and_after(folder: Path, backbone: Path, orchard: Path) -> None:
    phases = (
        low_rank(more="name: one") + SOLVED + low_rank(more="name: two") + phase("all", "steps: 2", more="name: all")
    )
    report = adapted(backbone, orchard, adapt_recipe(phases))
    counts = [one["trainable_parameters"] for one in report["phases"]]
    whole = sum(t.numel() for n, t in load_file(NEW).items() if not n.endswith(("_mean", "_var", "_tracked")))
    assert counts[0] == counts[2] < counts[3] / 10 and counts[1] == 3 * 96 + 3 and counts[3] == whole
    assert list(load_file(NEW)) == list(load_file(backbone))


def test_the_part_before_the_adapters_may_be_run_once(folder: Path, backbone: Path, orchard: Path) -> None:
    recipe = adapt_recipe(low_rank("{last: 2}"))
    assert adapted(backbone, orchard, recipe)["phases"][0]["cached"]
    cached = load_file(NEW)
    nothing = ("--set", "cache={memory: 0, disk: 0}")
    assert not adapted(backbone, orchard, recipe, *nothing)["phases"][0]["cached"]
    plain = load_file(NEW)
    assert all(torch.allclose(cached[name], plain[name], atol=1e-4) for name in plain)


@pytest.mark.slow
def test_rank_and_alpha_count(folder: Path, backbone: Path, orchard: Path) -> None:
    found = {}
    for change in (
        "{rank: 2, alpha: 4}",
        "{rank: 2, alpha: 8}",
        "{rank: 3, alpha: 4}",
        "{rank: 2, alpha: 4, dropout: 0.5}",
    ):
        adapted(backbone, orchard, adapt_recipe(SOLVED + low_rank()), "--set", f"phases[1].lora={change}")
        found[change] = load_file(NEW)["layer1.0.conv1.weight"]
    values = list(found.values())
    assert all(not torch.equal(values[0], other) for other in values[1:])
    again = adapted(backbone, orchard, adapt_recipe(SOLVED + low_rank()))
    assert torch.equal(load_file(NEW)["layer1.0.conv1.weight"], values[0])
    assert again["phases"][1]["trainable_parameters"] > 3 * 96 + 3


@pytest.mark.slow
def test_plan_counts_the_adapters(folder: Path, backbone: Path, orchard: Path) -> None:
    recipe = adapt_recipe(SOLVED + low_rank("{last: 3}"), "{augment: photo}")
    report = adapted(backbone, orchard, recipe)
    words = ("--recipe", "recipe.yaml", "--from", backbone, "--target", orchard)
    _, one = worked("plan", *words, "--json").json["phases"]
    assert one["trainable_parameters"] == report["phases"][1]["trainable_parameters"]
    assert list(one["learning_rates"]) == one["trains"] == ["layer3", "layer4", "head"]
    assert one["norms"] == "hold_all" and one["frozen"] == ["stem", "layer1", "layer2"]
    worked("plan", *words)


@pytest.mark.parametrize("after", [0, 1])
def test_what_is_kept_has_no_adapter(
    after: int, folder: Path, backbone: Path, orchard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of the adapters' phase, in its first row and in its second."""
    monkeypatch.setattr("finetune.train.loop.MIN_ROW_STEPS", 2)
    adapted(backbone, orchard, adapt_recipe(SOLVED))
    solved = load_file(NEW)
    Path("recipe.yaml").write_text(adapt_recipe(SOLVED + low_rank(length="epochs: 2"), f"{{name: {orchard}}}"))
    with pytest.raises(Interrupted, match="kept: the weights after ") as caught:
        adapt(backbone, recipe="recipe.yaml", out="stopped.safetensors", console=Impatient("epoch", after + 1))
    kept = load_file("runs/stopped/interrupted.safetensors")
    assert list(kept) == list(load_file(backbone)) and not Path("stopped.safetensors").exists()
    same = all(torch.equal(kept[name], solved[name]) for name in solved)
    assert same == (after == 0), "what the first row brought is there"
    assert ("after epoch 1 of 2 of phase adapters" if after else "after phase head") in str(caught.value)
    assert toolkit.load("runs/stopped/interrupted.safetensors").class_names == ("apple", "pear", "plum")


@pytest.mark.slow
def test_what_adapters_brought_is_kept_when_the_comparison_is_stopped(
    folder: Path, backbone: Path, orchard: Path
) -> None:
    adapted(backbone, orchard, adapt_recipe(SOLVED + low_rank()))
    Path("recipe.yaml").write_text(adapt_recipe(SOLVED + low_rank(), f"{{name: {orchard}}}", "[scratch]"))
    with pytest.raises(Interrupted):
        adapt(backbone, recipe="recipe.yaml", out="stopped.safetensors", console=Impatient("phase scratch"))
    kept, whole = load_file("runs/stopped/interrupted.safetensors"), load_file(NEW)
    assert all(torch.equal(kept[name], whole[name]) for name in whole)


def test_without_peft_it_says_so_before_any_work(
    folder: Path, backbone: Path, orchard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    Path("recipe.yaml").write_text(adapt_recipe(phase("head", "steps: 1") + low_rank()))
    words = ("--recipe", "recipe.yaml", "--from", backbone, "--target", orchard)
    assert refused("adapt", *words) == "lora: needs the package peft; to get it: pip install 'finetune-images[lora]'\n"
    assert not Path("runs").exists()
    assert "finetune-images[lora]" in refused("plan", *words)
    worked("adapt", *words, "--set", "phases[1].lora=null", "--quiet")


def test_a_phase_that_has_nothing_to_adapt(folder: Path, backbone: Path, orchard: Path) -> None:
    Path("recipe.yaml").write_text(adapt_recipe(phase("all", "steps: 1", more="name: a") + low_rank("head")))
    message = refused("adapt", "--recipe", "recipe.yaml", "--from", backbone, "--target", orchard)
    assert message.startswith("lora: no linear layer or plain convolution to put an adapter beside in head; ")
    assert not Path("runs").exists()


# Normalisation held in the stages that train


@pytest.mark.parametrize("norms", ["hold", "hold_all"])
def test_norms_that_are_held_stay_still_while_weights_train(
    norms: str, folder: Path, backbone: Path, orchard: Path
) -> None:
    recipe = adapt_recipe(phase("{last: 3}", "steps: 3", more=f"norms: {norms}"))
    adapted(backbone, orchard, recipe)
    old, new = load_file(backbone), load_file(NEW)
    moved = {name for name in old if not name.startswith("fc.") and not torch.equal(old[name], new[name])}
    buffers = {name for name in old if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert moved - buffers == {n for n in old if n.startswith(("layer3.", "layer4."))} - buffers, "all weights train"
    trained = {name for name in buffers if name.startswith(("layer3.", "layer4."))}
    assert moved & buffers == (trained if norms == "hold" else set())
    assert report_of(NEW)["recipe"]["phases"][0]["norms"] == norms
