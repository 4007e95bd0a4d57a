"""Mixes of source and fine-tuned weights: their tensors, their scores, and which one is chosen."""

import math

import pytest
import torch
from training_parts import net

from finetune.train.interpolation import Mix, best_retaining, mixed_state, nearest_equivalent, score_mix
from finetune.train.temperature import fit_temperature

HEAD = ("head.weight", "head.bias")


def test_at_0_and_1_a_mix_is_source_and_fine_tuned_network_bit_for_bit():
    source, adapted = net(0).state_dict(), net(1).state_dict()
    source["stem.1.running_mean"] += 3
    adapted["stem.1.num_batches_tracked"] += 7
    for weight, wanted in ((0.0, source), (1.0, adapted)):
        found = mixed_state(source, adapted, weight, HEAD)
        assert found.keys() == adapted.keys()
        for name, tensor in found.items():
            theirs = adapted if name in HEAD or not tensor.is_floating_point() else wanted
            assert torch.equal(tensor, theirs[name]), name
    half = mixed_state(source, adapted, 0.5, HEAD)
    mean = (source["stem.1.running_mean"] + adapted["stem.1.running_mean"]) / 2
    torch.testing.assert_close(half["stem.1.running_mean"], mean)


def test_the_head_is_mixed_where_the_source_has_the_same_classes():
    source, adapted = net(0).state_dict(), net(1).state_dict()
    rows = [2, 0, 1]
    theirs = {name: source[name][rows] for name in HEAD}
    found = mixed_state(source, adapted, 0.25, HEAD, theirs)
    for name in HEAD:
        torch.testing.assert_close(found[name], 0.75 * theirs[name] + 0.25 * adapted[name])


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_the_temperature_takes_back_how_sure_logits_are(scale):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4_000, 3, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert fit_temperature(logits * scale, labels) == pytest.approx(scale, rel=0.1)


def test_each_mix_has_a_temperature_of_its_own():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.5], [0.2, 0.9]])
    labels = torch.tensor([0, 1, 1, 1])
    plain, unsure = (score_mix(0.5, scale * logits, labels, 0.7) for scale in (1.0, 0.3))
    assert plain.accuracy == unsure.accuracy == 0.75 and plain.source_accuracy == 0.7
    torch.testing.assert_close(plain.log_losses, unsure.log_losses, rtol=1e-3, atol=1e-3)
    assert float(plain.log_losses.mean()) < math.log(2)


def mix(weight, shift=0.0, spread=0.0, accuracy=0.9, source=None):
    """A mix whose log losses are 0.3 + shift, give or take `spread` in turn."""
    return Mix(weight, 0.3 + shift + spread * torch.tensor([1.0, -1.0] * 50, dtype=torch.float64), accuracy, source)


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        (mix(0, 0.5), mix(0.5, 0.03), 1.0),  # worse
        (mix(0, 0.5), mix(0.5, 0.015), 0.5),  # within the tolerance
        (mix(0, 0.0, spread=0.5), mix(0.5, 0.01), 0.5),  # equal on average, but who knows
        (mix(0, -0.2, spread=0.5), mix(0.5, 0.01), 0.0),  # better for sure
        (mix(0, -0.09, spread=0.5), mix(0.5, 0.5), 1.0),  # better, but not when both tests are counted
        (mix(0, 0.0), mix(0.5, 0.0), 0.0),
    ],
)
def test_the_mix_nearest_to_the_source_that_is_as_good_is_chosen(first, second, chosen):
    assert nearest_equivalent([first, second, mix(1.0)]).weight == chosen


def test_one_image_shows_nothing():
    one = [Mix(weight, torch.tensor([0.1], dtype=torch.float64), 1.0) for weight in (0.0, 1.0)]
    assert nearest_equivalent(one).weight == 1.0


@pytest.mark.parametrize(("least", "chosen"), [(0.0, 1.0), (0.8, 0.5), (0.9, 0.25), (0.99, 0.0)])
def test_of_mixes_that_keep_enough_the_most_accurate_is_chosen(least, chosen):
    mixes = [
        mix(0.0, accuracy=0.5, source=0.95),
        mix(0.25, accuracy=0.8, source=0.9),
        mix(0.5, accuracy=0.8, source=0.85),
        mix(1.0, accuracy=0.9, source=0.3),
    ]
    assert best_retaining(mixes, least).weight == chosen
