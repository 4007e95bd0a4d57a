"""A phase stopped after any step and taken up elsewhere ends with the bytes of one that never stopped."""

import json

import pytest
import torch
from networks import NormNet, activations
from safetensors.torch import load, save
from training_parts import NORMALISE, SGD, images, net, phase

from finetune.data.augment.affine import Augment
from finetune.data.loader import Batches
from finetune.errors import NonFiniteError
from finetune.train import meter
from finetune.train.device import Runtime, seeded
from finetune.train.loop import Training, TrainState
from finetune.train.meter import Row, ValidationScore
from finetune.train.nan_guard import DeviceNanGuard

FLOAT32 = Runtime(torch.device("cpu"), "float32")
ADAMW = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.01}
STEPS = 12  # three epochs of four batches
CASES = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "arguments": ADAMW},
    "average": {"ema": 0.9},
    "best": {"keep": "best"},
    "best of averages": {"keep": "best", "ema": 0.9, "clip_norm": 0.5, "layer_decay": 0.5},
    "frozen": {"stages": ("body", "head")},
    "pulled to a source": {"l2_sp": 0.5, "clip_norm": 0.5},
    "statistics go on": {"stages": ("head",), "norms": "update"},
}


@pytest.fixture(autouse=True)
def every_step_is_seen(monkeypatch):
    monkeypatch.setattr(meter, "TICK", 0.0)


def training(network, given, *, augment=None, start=0, held=None, balanced=False):
    pixels, labels = images()
    if start:
        kept = activations(network, pixels, NORMALISE, start, FLOAT32)
        batches = Batches(kept, labels, batch_size=16, seed=0)
    else:
        options = {"normalize": NORMALISE, "augment": augment, "classes": 3, "balanced": balanced}
        batches = Batches(pixels, labels, batch_size=16, seed=0, **options)
    source = net(seed=9)
    FLOAT32.place(source)
    return Training(network, batches, given, FLOAT32, first_epoch=3, validate=held, source=source)


def judge(network):
    """Accuracies that depend on the weights alone, so that the best row is not always the last."""
    return lambda: ValidationScore(float(network.head.weight.detach().double().sum().sin()))


def through_a_file(state):
    """As a snapshot would keep it: everything as bytes, and numbers that JSON has."""
    tensors = load(save({n: t.contiguous() for n, t in state.tensors.items()}))
    network = load(save({n: t.contiguous() for n, t in state.network.items()}))
    return TrainState(network, tensors, json.loads(json.dumps(state.numbers)))


def run_to_the_end(given, stop_after=None, **options):
    """The network's last tensors and the rows; after `stop_after` events, everything is thrown away but the state."""
    network = net()
    FLOAT32.place(network)
    with seeded(0):
        under_way = training(network, given, held=judge(network), **options)
        rows = []
        for count, event in enumerate(under_way):
            rows += [event] if isinstance(event, Row) else []
            if count == stop_after:
                state, chance = through_a_file(under_way.state()), torch.get_rng_state()
                break
        else:
            return network.state_dict(), rows
    network = net(seed=1)
    FLOAT32.place(network)
    with seeded(5):
        network.load_state_dict(state.network)
        under_way = training(network, given, held=judge(network), **options)
        under_way.restore(state)
        torch.set_rng_state(chance)
        rows += [event for event in under_way if isinstance(event, Row)]
    return network.state_dict(), rows


def without_times(rows):
    return [(r.epoch, r.train_loss, r.train_accuracy, r.validation_accuracy, r.learning_rate) for r in rows]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows_every", [1, 100])
def test_stopped_after_any_event_and_taken_up_elsewhere(case, rows_every, monkeypatch):
    monkeypatch.setattr("finetune.train.loop.MIN_ROW_STEPS", rows_every)
    given = phase(**{"steps": STEPS, **CASES[case]})
    wanted, rows = run_to_the_end(given)
    assert len(rows) == (3 if rows_every == 1 else 1)
    for moment in range(11 + len(rows) - 1):  # every step but the last has a sign of life, and every epoch a row
        found, others = run_to_the_end(given, moment)
        assert all(torch.equal(wanted[name], found[name]) for name in wanted), (moment, case)
        assert without_times(others) == without_times(rows), (moment, case)


def test_with_augmentation_and_with_cached_features():
    augmented = {"augment": Augment(shift=2, mixup=0.5)}
    wanted, _ = run_to_the_end(phase(steps=STEPS))
    for options, given in (
        (augmented, phase(steps=STEPS)),
        ({**augmented, "balanced": True}, phase(steps=STEPS)),
        ({"start": 1}, phase(steps=STEPS, stages=("body", "head"), start=1)),
    ):
        whole, _ = run_to_the_end(given, **options)
        assert not torch.equal(whole["head.weight"], wanted["head.weight"])
        for moment in (0, 4, 9):
            found, _ = run_to_the_end(given, moment, **options)
            assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_the_momentum_lies_in_memory_as_its_weight_does():
    network = net()
    FLOAT32.place(network)
    under_way = training(network, phase(steps=STEPS))
    next(iter(under_way))
    state = through_a_file(under_way.state())
    other = net(seed=1)
    FLOAT32.place(other)
    again = training(other, phase(steps=STEPS))
    again.restore(state)
    strides = {p.stride() == again.optimizer.state[p]["momentum_buffer"].stride() for p in other.parameters()}
    assert strides == {True} and any(p.dim() == 4 and not p.is_contiguous() for p in other.parameters())


def test_a_loss_that_is_not_finite_changes_no_weight_and_names_step_and_images():
    network = net()
    under_way = training(network, phase(steps=STEPS))
    events = iter(under_way)
    for _ in range(5):  # the fifth event is the one after step 5
        next(events)
    with torch.no_grad():
        network.head.bias[0] = float("nan")
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    with pytest.raises(NonFiniteError, match=r"at step 6 of 12 \(epoch 2\); stopped before") as caught:
        next(events)
    after = dict(network.named_parameters())
    assert all(torch.equal(before[name], after[name].detach()) or name == "head.bias" for name in before)
    assert torch.equal(before["head.bias"][1:], after["head.bias"].detach()[1:])
    order = under_way.batches.images_of(4, 1)
    assert list(caught.value.images) == order and len(set(order)) == 16


def test_a_state_with_broken_weights_is_refused():
    network = net()
    under_way = training(network, phase(steps=STEPS))
    next(iter(under_way))
    with torch.no_grad():
        network.stem[0].weight[0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"no longer finite numbers after step 1 .* stem\.0\.weight"):
        under_way.state()


def test_a_row_whose_last_step_broke_the_weights_is_refused(monkeypatch):
    network = net()
    under_way = training(network, phase(steps=1))
    step = under_way.optimizer.step

    def overflow():
        step()
        with torch.no_grad():
            network.stem[0].weight[0] = float("inf")

    monkeypatch.setattr(under_way.optimizer, "step", overflow)
    with pytest.raises(NonFiniteError, match=r"no longer finite numbers after step 1 .* stem\.0\.weight"):
        list(under_way)


@pytest.mark.parametrize("optimizer, arguments", [("sgd", SGD), ("adamw", ADAMW)])
def test_the_guard_of_a_gpu_leaves_the_weights_alone_from_the_first_bad_loss_on(optimizer, arguments):
    network = net()
    under_way = training(network, phase(steps=STEPS, optimizer=optimizer, arguments=arguments))
    under_way.guard = DeviceNanGuard(under_way.optimizer, torch.device("cpu"))
    losses = iter([1.0, 1.0, float("inf"), 1.0, 1.0])
    seen = []
    for step, value in enumerate(losses, 1):
        network.zero_grad()
        network.run(NORMALISE(images()[0])).sum().backward()
        under_way.guard.block_update(torch.tensor(value), step)
        under_way.optimizer.step()
        seen.append(network.head.weight.detach().clone())
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2]) and torch.equal(seen[1], seen[4])
    assert under_way.guard.first_bad_step() == 3
    with pytest.raises(NonFiniteError, match="at step 3 of 12"):
        under_way.state()


def test_the_network_here_has_what_makes_resuming_hard():
    network = NormNet()
    assert any(isinstance(m, torch.nn.Dropout) for m in network.modules()) and dict(network.named_buffers())
