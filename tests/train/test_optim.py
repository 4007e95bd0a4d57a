"""Our optimizers take torch's steps, bit for bit, without loading torch's compiler."""

import subprocess
import sys

import pytest
import torch
from networks import NormNet

from finetune.train.device import seeded
from finetune.train.freeze import set_trainable
from finetune.train.optim import build_optimizer, stage_groups

GIVEN = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
    "adamw": {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1},
}
TORCHS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def made():
    with seeded(0):
        network = NormNet()
    set_trainable(network, network.stages)
    return network


def train(network, optimizer):
    network.eval()  # no chance in it
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        loss = network(torch.randn(8, 1, 8, 8, generator=generator)).square().mean()
        optimizer.zero_grad()
        assert all(p.grad is None for p in network.parameters())
        loss.backward()
        optimizer.step()
    return [p.detach().clone() for p in network.parameters()]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_five_steps_are_torchs(name):
    ours, theirs = made(), made()
    given = GIVEN[name]
    found = train(ours, build_optimizer(stage_groups(ours, given["lr"], 1.0), name, given))
    decayed, rest = ([p for p in theirs.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    expected = train(theirs, TORCHS[name](groups, fused=True, **given))
    assert all(map(torch.equal, found, expected)) and not torch.equal(found[0], next(made().parameters()))


def test_what_is_alike_is_one_group():
    network = made()
    same = build_optimizer(stage_groups(network, 0.1, 1.0), "sgd", {**GIVEN["sgd"], "weight_decay": 0.0})
    assert len(same.param_groups) == 1
    assert len(build_optimizer(stage_groups(network, 0.1, 1.0), "sgd", GIVEN["sgd"]).param_groups) == 2
    assert len(build_optimizer(stage_groups(network, 0.1, 0.5), "sgd", GIVEN["sgd"]).param_groups) > 3


@pytest.mark.slow
def test_a_step_does_not_load_the_compiler():
    code = (
        "import sys, torch\n"
        "from finetune.models.cnn import ArticleCNN\n"
        "from finetune.models.cost import network_cost\n"
        "from finetune.train.optim import build_optimizer, stage_groups\n"
        f"for name, given in {GIVEN!r}.items():\n"
        "    network = ArticleCNN(10)\n"
        "    optimizer = build_optimizer(stage_groups(network, 0.1, 1.0), name, given)\n"
        "    optimizer.zero_grad()\n"
        "    network(torch.zeros(2, 1, 28, 28)).sum().backward()\n"
        "    optimizer.step()\n"
        "    assert 'torch._dynamo' not in sys.modules, name\n"
        "network_cost('cnn', {}, 10, 1, 28)\n"
        "assert not {'torch._dynamo', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
