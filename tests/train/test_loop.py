"""The loop, freezing, optimizers, schedules, the cache: properties and references."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import activations
from torch import nn
from training_parts import CPU, NORMALISE, SGD, images, net, phase

from finetune.data.augment.affine import Augment
from finetune.data.loader import Batches
from finetune.errors import SettingError, TrainingError
from finetune.models.cnn import ArticleCNN
from finetune.train.device import Runtime, choose_runtime, environment_diff, seeded, translate_oom
from finetune.train.freeze import frozen_prefix, set_trainable, training_mode
from finetune.train.inference import outputs, predictions
from finetune.train.loop import Training
from finetune.train.meter import Row, Tick, ValidationScore
from finetune.train.optim import WeightAverage, build_optimizer, make_schedule, stage_groups

FLOAT32 = Runtime(CPU, "float32")


def run(network, given, batch_size=16, seed=0, **options):
    pixels, labels = images()
    batches = Batches(pixels, labels, batch_size=batch_size, seed=seed, normalize=NORMALISE)
    with seeded(0):
        return list(Training(network, batches, given, FLOAT32, **options))


def test_training_learns_and_ends_with_a_row():
    network = net()
    events = run(network, phase(steps=120))
    rows = [event for event in events if isinstance(event, Row)]
    assert isinstance(events[-1], Row) and rows[-1].epoch == 30
    assert all(isinstance(event, (Row, Tick)) for event in events)
    pixels, labels = images(seed=1)
    assert (predictions(network, pixels, NORMALISE) == labels).double().mean() > 0.95


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    states = []
    for seed in (0, 0, 1):
        network = net()
        run(network, phase(), seed=seed)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


def test_the_loop_is_plain_sgd_with_torchs_own_optimizer():
    pixels, labels = images()
    ours, plain = net(), net()
    given = phase(steps=8, arguments={"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0})
    run(ours, given)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    plain.train()
    with seeded(0):
        for epoch in range(2):
            for x, y in Batches(pixels, labels, batch_size=16, seed=0, normalize=NORMALISE).epoch(epoch):
                optimizer.zero_grad()
                F.cross_entropy(plain(x), y).backward()
                optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("trained", [("head",), ("body", "head"), ("stem",), ("body",)])
def test_frozen_stages_stay_bit_equal_parameters_and_buffers(trained):
    network = net()
    run(network, phase(steps=2))  # so that running statistics are not at their start
    before = copy.deepcopy(network.state_dict())
    run(network, phase(stages=trained, steps=6))
    for name, value in network.state_dict().items():
        moved = not torch.equal(before[name], value)
        assert moved == (name.partition(".")[0] in trained), name


def test_norms_update_moves_the_statistics_of_frozen_layers_and_nothing_else():
    network = net()
    before = copy.deepcopy(network.state_dict())
    run(network, phase(stages=("head",), norms="update"))
    for name, value in network.state_dict().items():
        moved = not torch.equal(before[name], value)
        assert moved == (name.startswith("head.") or name.rpartition(".")[2].startswith(("running", "num"))), name


def test_frozen_dropout_is_off_and_trained_dropout_on():
    network = net()
    training_mode(network, ("head",), "hold")
    assert not network.body[3].training and not network.body[1].training and network.head.training
    training_mode(network, ("body", "head"), "hold")
    assert network.body[3].training and not network.stem[1].training


def test_set_trainable_counts_and_covers_every_parameter():
    network = ArticleCNN(10)
    assert set_trainable(network, ("fc1", "head")) == 401_536 + 1_290
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {
        "fc1.weight",
        "fc1.bias",
        "head.weight",
        "head.bias",
    }
    assert frozen_prefix(network, ("fc1", "head")) == 2 and frozen_prefix(network, ("conv1", "head")) == 0


def test_layer_decay_falls_from_the_head_to_the_input_and_biases_are_not_decayed():
    network = ArticleCNN(10)
    set_trainable(network, ("conv1", "fc1", "head"))
    rates = {group.stage: group.lr for group in stage_groups(network, 0.1, 0.5)}
    assert rates == pytest.approx({"conv1": 0.0125, "fc1": 0.05, "head": 0.1})
    optimizer = build_optimizer(stage_groups(network, 0.1, 0.5), "sgd", SGD)
    for group in optimizer.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_layer_decay_reaches_the_weights():
    start, steady, falling = net(), net(), net()
    plain = {"lr": 0.01, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    run(steady, phase(steps=1, arguments=plain))
    run(falling, phase(steps=1, arguments=plain, layer_decay=0.5))
    for stage, share in (("head", 1.0), ("body.0", 0.5), ("stem.0", 0.25)):
        name = f"{stage}.weight"
        whole = steady.state_dict()[name] - start.state_dict()[name]
        part = falling.state_dict()[name] - start.state_dict()[name]
        torch.testing.assert_close(part, whole * share, rtol=1e-3, atol=1e-7, msg=name)


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.1, 0.3])
def test_one_cycle_is_torchs(shape, warmup):
    total = 400
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=total + 1,
        pct_start=warmup * total / (total + 1) + 1 / (total + 1),
        anneal_strategy={"cosine": "cos", "linear": "linear"}[shape],
        cycle_momentum=False,
        final_div_factor=1e9,
    )
    ours = make_schedule("one_cycle", warmup=warmup, shape=shape)
    for step in range(total):
        assert ours(step / total) == pytest.approx(reference.get_last_lr()[0], abs=1e-6), step
        optimizer.step()
        reference.step()


def test_the_other_schedules():
    assert [make_schedule("constant")(t) for t in (0.0, 0.5, 0.99)] == [1.0, 1.0, 1.0]
    step = make_schedule("step", at=(0.5, 0.75), factor=0.1)
    assert [step(t) for t in (0.0, 0.49, 0.5, 0.74, 0.75)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cosine = make_schedule("cosine", warmup=0.2)
    assert [cosine(t) for t in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.04, 0.52, 1, 0.5, 0])
    assert make_schedule("cosine", warmup=0.0)(0.0) == 1.0


def test_the_schedule_drives_the_rate():
    last = run(net(), phase(steps=8, schedule=make_schedule("step", at=(0.5,), factor=0.1)))[-1]
    assert last.learning_rate == pytest.approx(0.005)


def test_the_average_is_the_formula_and_is_what_the_network_ends_with():
    layer = nn.Linear(2, 1, bias=False)
    average, expected = WeightAverage(list(layer.parameters()), 0.9), layer.weight.detach().clone()
    for k in range(1, 30):
        with torch.no_grad():
            layer.weight += 1
        average.update()
        keep = min(0.9, (1 + k) / (10 + k))
        expected = keep * expected + (1 - keep) * layer.weight.detach()
    torch.testing.assert_close(average.values[0], expected)
    last = layer.weight.detach().clone()
    average.swap()
    torch.testing.assert_close(layer.weight.detach(), expected)
    average.swap()
    assert torch.equal(layer.weight.detach(), last)


def test_with_an_average_rows_show_it_and_training_goes_on_from_the_weights():
    seen = []
    plain, averaged = net(), net()
    run(plain, phase(steps=250))

    def validate():
        seen.append(averaged.head.bias.detach().clone())
        return ValidationScore(0.0)

    run(averaged, phase(steps=250, ema=0.9), validate=validate)
    assert len(seen) == 3  # two rows of at least 100 steps, and the end
    assert torch.equal(seen[-1], averaged.head.bias)
    assert not torch.equal(averaged.head.bias, plain.head.bias)
    torch.testing.assert_close(averaged.head.bias, plain.head.bias, atol=0.2, rtol=0)
    # Batch statistics come from the forward passes alone: equal only if training was not disturbed by the swaps.
    assert torch.equal(averaged.stem[1].running_mean, plain.stem[1].running_mean)


def test_gradient_clipping_bounds_the_step():
    start, free, clipped = net(), net(), net()
    plain = {"lr": 1.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    run(free, phase(steps=1, arguments=plain))
    run(clipped, phase(steps=1, arguments=plain, clip_norm=1e-3))

    def moved(network):
        pairs = zip(network.parameters(), start.parameters(), strict=True)
        return torch.cat([(a - b).detach().flatten() for a, b in pairs]).norm()

    assert moved(free) > 1e-2
    assert moved(clipped) == pytest.approx(1e-3, rel=1e-2)


def test_label_smoothing_changes_the_loss_as_torch_defines_it():
    pixels, labels = images(count=16)
    network = net()
    training_mode(network, network.stages, "hold")
    with seeded(5), torch.no_grad():
        expected = F.cross_entropy(network(NORMALISE(pixels)), labels, label_smoothing=0.2)
    batches = Batches(pixels, labels, batch_size=16, seed=0, normalize=NORMALISE)
    network = net()
    network.body[3].p = 0.0
    plain = copy.deepcopy(network)
    plain.train()
    with torch.no_grad():
        expected = F.cross_entropy(plain(NORMALISE(pixels)), labels, label_smoothing=0.2)
    row = list(Training(network, batches, phase(steps=1, label_smoothing=0.2), FLOAT32))[-1]
    assert row.train_loss == pytest.approx(float(expected), rel=1e-5)


def test_mixed_images_train_and_the_largest_share_counts_as_right():
    pixels, labels = images()
    network = net()
    options = {"batch_size": 16, "seed": 0, "normalize": NORMALISE}
    batches = Batches(pixels, labels, **options, augment=Augment(mixup=0.2, cutmix=1.0), classes=3)
    with seeded(0):
        rows = list(Training(network, batches, phase(steps=200, label_smoothing=0.1), FLOAT32))
    assert rows[-1].train_accuracy > 0.6
    held, expected = images(seed=1)
    assert (predictions(network, held, NORMALISE) == expected).double().mean() > 0.9


def test_whole_shares_are_the_same_as_labels():
    """Targets of 0 and 1 and their labels: the same loss, smoothed or not, the same weights and accuracy."""
    pixels, labels = images()

    class Shared(Batches):
        def epoch(self, epoch, first=0):
            for inputs, labels in super().epoch(epoch, first):
                yield inputs, F.one_hot(labels, 3).float()

    ends = []
    for kind in (Batches, Shared):
        network = net()
        batches = kind(pixels, labels, batch_size=16, seed=0, normalize=NORMALISE)
        with seeded(0):
            ends.append((network, list(Training(network, batches, phase(label_smoothing=0.1), FLOAT32))[-1]))
    (one, first), (other, second) = ends
    assert first.train_accuracy == second.train_accuracy and first.train_loss == pytest.approx(second.train_loss)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_keep_best_restores_the_best_row():
    scores, seen = iter([0.2, 0.9, 0.5]), []
    network = net()

    def validate():
        seen.append(copy.deepcopy(network.state_dict()))
        return ValidationScore(next(scores))

    run(network, phase(steps=250, keep="best"), validate=validate)
    assert all(torch.equal(network.state_dict()[k], seen[1][k]) for k in seen[1])
    assert not torch.equal(seen[2]["head.weight"], seen[1]["head.weight"])


@pytest.mark.parametrize(("trained", "start"), [(("head",), 2), (("body", "head"), 1)])
def test_a_cached_run_ends_with_the_weights_of_the_uncached_one(trained, start):
    pixels, labels = images()
    plain = net()
    run(plain, phase(steps=2))
    plain.body[3].p = 0.0  # dropout draws another number of values from activations than from the whole
    cached = copy.deepcopy(plain)
    run(plain, phase(stages=trained))
    kept = activations(cached, pixels, NORMALISE, start, FLOAT32)
    batches = Batches(kept, labels, batch_size=16, seed=0)
    list(Training(cached, batches, phase(stages=trained, start=start), FLOAT32))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_later_phases_go_on_with_order():
    first, second = net(), net()
    run(first, phase(steps=4))
    run(second, phase(steps=4), first_epoch=1)
    assert not torch.equal(first.head.weight, second.head.weight)


def test_evaluation_leaves_modes_as_they_were_and_is_not_moved_by_dropout():
    network = net()
    pixels, _ = images()
    training_mode(network, ("head",), "hold")
    modes = {name: module.training for name, module in network.named_modules()}
    once, twice = outputs(network, pixels, NORMALISE), outputs(network, pixels, NORMALISE)
    assert torch.equal(once, twice)
    assert modes == {name: module.training for name, module in network.named_modules()}


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(TrainingError, match=r"no longer a finite number .*lower the learning rate"):
        run(net(), phase(steps=200, arguments={**SGD, "lr": 1e12}))


def test_devices_and_precisions_that_are_not_there_are_refused():
    for name in ("cuda:99", "cpu:1", "gpu", "cuda:x", ""):
        with pytest.raises(SettingError, match="not on this machine, which has cpu"):
            choose_runtime(name, "auto")
    assert choose_runtime("cpu", "float32").precision == "float32"
    assert choose_runtime("cpu", "auto").precision in ("float32", "bfloat16")


def test_seeded_leaves_the_callers_random_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(9):
        torch.rand(100)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (
            64,
            "of 64 images; try a smaller batch_size, for example 32 with a lower learning rate, or fewer other",
        ),
        (1, "of 1 images; try fewer other programs; `finetune plan` shows"),
    ],
)
def test_running_out_of_memory_says_what_to_try(size, said):
    with (
        pytest.raises(TrainingError, match=f"out of memory in phase top with batches {said}"),
        translate_oom("top", size),
    ):
        torch.empty(10**15)
    with pytest.raises(RuntimeError, match="shapes"), translate_oom("top", 64):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_other_machines_are_told_in_words():
    two, one = {"threads": 4, "processes": 2, "backend": "gloo"}, {"threads": 4}
    assert environment_diff(two, one) == ["processes: 2 there, 1 here"]
    assert environment_diff(one, two | {"threads": 8}) == ["processes: 1 there, 2 here", "threads: 4 there, 8 here"]
    assert environment_diff({"gpu": "A"}, {}) == ['gpu: "A" there, and not here']
    assert environment_diff({}, {"gpu": "A"}) == ['gpu: not there, and "A" here']


def test_bfloat16_trains_as_well_as_float32():
    pixels, labels = images()
    held, expected = images(seed=1)
    for precision in ("float32", "bfloat16"):
        network = net()
        batches = Batches(pixels, labels, batch_size=16, seed=0, normalize=NORMALISE)
        with seeded(0):
            list(Training(network, batches, phase(steps=120), Runtime(CPU, precision)))
        assert (predictions(network, held, NORMALISE) == expected).double().mean() > 0.95, precision
        assert all(p.dtype == torch.float32 for p in network.parameters())
