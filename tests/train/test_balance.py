"""Losses for uneven classes: weights, adjusted logits, what a solved head makes of them, and which weights are best."""

import copy

import pytest
import torch
import torch.nn.functional as F
from training_parts import NORMALISE, images, net, phase

from finetune.data.loader import Batches
from finetune.errors import SettingError
from finetune.train.balance import LossBalance, balanced_accuracy, balanced_cross_entropy, loss_balance
from finetune.train.device import Runtime, seeded
from finetune.train.inference import outputs
from finetune.train.linear_probe import PENALTIES, _fit, fit_linear_head
from finetune.train.loop import BestWeights, Training
from finetune.train.meter import Row

FLOAT32 = Runtime(torch.device("cpu"), "float32")
LABELS = torch.tensor([0] * 12 + [1] * 6 + [2] * 2)


def logits():
    return torch.randn(len(LABELS), 3, generator=torch.Generator().manual_seed(0))


def balance(method, labels=LABELS, classes=3, sampled=False):
    found = loss_balance(method, labels, classes, sampled=sampled)
    assert found is not None
    return found


def test_weights_are_inverse_to_frequency_with_a_mean_of_one_over_the_images():
    weights = balance("loss").weights
    assert float(weights[LABELS].mean()) == pytest.approx(1)
    assert (weights * torch.tensor([12, 6, 2])).tolist() == pytest.approx([20 / 3] * 3)
    expected = F.cross_entropy(logits(), LABELS, weight=weights.float(), reduction="sum") / len(LABELS)
    torch.testing.assert_close(balanced_cross_entropy(logits(), LABELS, balance("loss")), expected)


def test_adjusted_logits_are_those_of_menon_and_others():
    priors = torch.tensor([0.6, 0.3, 0.1])
    scores = logits().exp() * priors
    expected = -(scores / scores.sum(1, keepdim=True))[torch.arange(len(LABELS)), LABELS].log().mean()
    torch.testing.assert_close(balanced_cross_entropy(logits(), LABELS, balance("logit_adjustment")), expected)


@pytest.mark.parametrize("method", ["loss", "logit_adjustment"])
def test_even_classes_are_trained_as_without_a_balance(method):
    even = torch.arange(21) % 3
    given = torch.randn(21, 3)
    found = balanced_cross_entropy(given, even, balance(method, even), label_smoothing=0.1)
    torch.testing.assert_close(found, F.cross_entropy(given, even, label_smoothing=0.1))
    assert loss_balance(None, even, 3, sampled=False) is None


@pytest.mark.parametrize("method", ["loss", "logit_adjustment"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_shares_of_one_class_are_that_class(method, smoothing):
    found = [
        balanced_cross_entropy(logits(), target, balance(method), label_smoothing=smoothing)
        for target in (LABELS, F.one_hot(LABELS, 3).float())
    ]
    torch.testing.assert_close(*found)


def test_smoothing_leaves_the_right_class_first_however_rare_the_others_are():
    priors, smoothing = torch.tensor([0.9, 0.099, 0.001]), 0.2
    given = torch.zeros(3, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([given], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        adjusted = LossBalance(log_priors=priors.log())
        loss = balanced_cross_entropy(given, torch.arange(3), adjusted, label_smoothing=smoothing)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert given.argmax(1).tolist() == [0, 1, 2]
    wrong = given.detach()[~torch.eye(3, dtype=torch.bool)].reshape(3, 2)
    torch.testing.assert_close(wrong[:, 0], wrong[:, 1], atol=0.05, rtol=0)


def test_a_mixed_image_weighs_what_its_classes_weigh():
    shares, given = torch.tensor([[0.25, 0.0, 0.75]]), logits()[:1]
    weights = balance("loss").weights.float()
    expected = (0.25 * weights[0] + 0.75 * weights[2]) * F.cross_entropy(given, shares)
    torch.testing.assert_close(balanced_cross_entropy(given, shares, balance("loss")), expected)


def test_draws_need_no_other_loss_and_a_head_solved_without_draws_is_weighted():
    assert loss_balance("sampler", LABELS, 3, sampled=True) is None
    assert torch.equal(balance("sampler").weights, balance("loss").weights)


def test_a_class_without_an_image_breaks_nothing():
    labels = torch.tensor([0, 0, 3])
    for method in ("loss", "logit_adjustment"):
        found = balance(method, labels, 4)
        assert torch.isfinite(balanced_cross_entropy(torch.randn(3, 4), labels, found))
    assert balance("loss", labels, 4).weights.tolist() == [0.75, 0, 0, 1.5]


# --- the solved head --------------------------------------------------------------------------------------------------


def features():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(LABELS), 4, dtype=torch.float64, generator=generator) + LABELS[:, None]


def test_an_adjusted_head_is_the_plain_one_less_the_log_shares():
    train, adjusted = (features(), LABELS), balance("logit_adjustment")
    plain = _fit(train, 3, PENALTIES[2], None)
    found = _fit(train, 3, PENALTIES[2], None, adjusted)
    torch.testing.assert_close(found[0], plain[0], atol=1e-4, rtol=0)
    shift = found[1] - plain[1] + adjusted.log_priors
    torch.testing.assert_close(shift, shift.mean().expand(3), atol=1e-4, rtol=0)


def test_a_weighted_head_is_that_of_images_repeated_until_classes_are_even():
    times = torch.tensor([1, 2, 6])[LABELS]
    even = (features().repeat_interleave(times, 0), LABELS.repeat_interleave(times))
    found = _fit((features(), LABELS), 3, PENALTIES[2], None, balance("sampler"))
    torch.testing.assert_close(found, _fit(even, 3, PENALTIES[2], None), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("count", "method"), [(1, None), (1, "logit_adjustment"), (2, "loss"), (3, None)])
def test_a_head_is_found_with_very_few_images_a_class(count, method):
    labels = torch.arange(2).repeat_interleave(count)
    given = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[labels]
    head = fit_linear_head(given, labels, 2, None, loss_balance(method, labels, 2, sampled=False))
    assert torch.equal(head(given).argmax(1), labels)


# --- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "precision"), [("sampler", "float32"), ("loss", "float32"), ("logit_adjustment", "bfloat16")]
)
def test_a_balanced_training_thinks_more_of_rare_classes(method, precision):
    pixels, labels = images(count=120)
    chosen = torch.cat([(labels == label).nonzero().squeeze(1)[:count] for label, count in enumerate((40, 16, 8))])
    pixels, labels, probability = pixels[chosen], labels[chosen], {}
    for given in (None, method):
        network = net()
        batches = Batches(pixels, labels, batch_size=16, seed=0, normalize=NORMALISE, balanced=given == "sampler")
        one = phase(steps=12, balance=loss_balance(given, labels, 3, sampled=True))
        with seeded(0):
            list(Training(network, batches, one, Runtime(FLOAT32.device, precision)))
        answers = outputs(network, images(seed=1)[0], NORMALISE)
        probability[given] = float(answers.softmax(1)[:, 2].mean())
    assert probability[method] > 1.2 * probability[None]


def test_the_best_weights_are_those_of_the_best_balanced_accuracy():
    network, seen = net(), []
    best = BestWeights(network)
    for accuracy, balanced in ((0.9, 0.3), (0.5, 0.6), (0.95, 0.4)):
        seen.append(copy.deepcopy(network.state_dict()))
        best.offer(Row(1, 0.0, 0.0, accuracy, 0.0, 0.0, 0.0, validation_balanced_accuracy=balanced))
        with torch.no_grad():
            network.head.bias.add_(1)
    best.restore()
    assert torch.equal(network.head.bias, seen[1]["head.bias"])


def test_balanced_accuracy_is_the_mean_over_the_classes_there_are():
    assert balanced_accuracy(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 2])) == 0.5
    assert LossBalance().placed(torch.device("cpu")) == LossBalance()


def test_batch_normalisation_over_a_single_value_is_explained():
    network = net()
    network.body[0] = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), network.body[0])
    pixels, labels = images(count=3)
    for batch_size, count, said in (
        (1, 3, "batch_size is 1: make it 2 or more"),
        (16, 1, "there is one to learn from"),
    ):
        batches = Batches(pixels[:count], labels[:count], batch_size=batch_size, seed=0, normalize=NORMALISE)
        with pytest.raises(SettingError, match=f"phase p: .* needs two images or more; {said}"):
            list(Training(network, batches, phase(steps=2), FLOAT32))
    batches = Batches(pixels, labels, batch_size=2, seed=0, normalize=NORMALISE)
    list(Training(network, batches, phase(steps=3), FLOAT32))
