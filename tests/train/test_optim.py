"""Our optimizers take torch's steps, bit for bit, without loading torch's compiler."""

import subprocess
import sys

import pytest
import torch
from networks import NormNet
from training_parts import CPU, NORMALISE, images, net, phase

from finetune.data.loader import Batches
from finetune.train.device import Runtime, seeded
from finetune.train.freeze import set_trainable, trainable, training_mode
from finetune.train.loop import Training
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
def test_a_pull_towards_the_source_is_a_term_of_the_loss(name):
    """One step of the loop's training against autograd's gradient of the loss with the penalty written out."""
    source, stages, strength = net(seed=4), ("body", "head"), 0.3
    pixels, labels = images(8)
    batches = Batches(pixels, labels, batch_size=8, seed=0, normalize=NORMALISE)
    inputs, order = next(batches.epoch(0))
    given = phase(stages, optimizer=name, arguments=GIVEN[name], steps=1, l2_sp=strength)
    pulled, by_hand = net(), net()
    with seeded(0):  # for dropout
        list(Training(pulled, batches, given, Runtime(CPU, "float32"), source=source))
    set_trainable(by_hand, stages)
    optimizer = TORCHS[name](
        [{"params": [p], "weight_decay": GIVEN[name]["weight_decay"] * (p.ndim > 1)} for p in trainable(by_hand)],
        **{key: value for key, value in GIVEN[name].items() if key != "weight_decay"},
    )
    training_mode(by_hand, stages, "hold")
    apart = [
        (p - q.detach()).square().sum()
        for p, q in zip(by_hand.body.parameters(), source.body.parameters(), strict=True)
    ]
    with seeded(0):
        loss = torch.nn.functional.cross_entropy(by_hand(inputs), order) + strength / 2 * sum(apart)
    loss.backward()
    optimizer.step()
    for own, wanted in zip(pulled.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(pulled.stem[0].weight, net().stem[0].weight), "what is frozen is not pulled"


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
