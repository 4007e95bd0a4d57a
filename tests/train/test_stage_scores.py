"""Which stages a task asks to train: gradients by hand, boundaries, and the rule."""

import numpy as np
import pytest
import torch
from networks import NormNet
from torch import nn
from training_parts import NORMALISE, images, net

from finetune.errors import TrainingError
from finetune.models.staged import StagedNetwork, eval_mode
from finetune.train.stage_scores import BATCH, boundary_features, choose_stages, pool, relative_gradients


class Linear(StagedNetwork):
    """scale (one weight times the mean of each half of the picture), head."""

    stages = ("scale", "head")

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(2, 2, bias=False)
        self.head = nn.Linear(2, 3)

    def run_stage(self, stage: str, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) if stage == "head" else self.scale(x.unflatten(3, (2, 4)).mean((1, 2, 4)))


def test_a_relative_gradient_is_what_numpy_computes():
    pixels, labels = images(count=BATCH + 36)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Linear()
    found = relative_gradients(network, pixels, labels, NORMALISE)

    halves = NORMALISE(pixels).unflatten(3, (2, 4)).mean((1, 2, 4)).double().numpy()
    scale, weight, bias = (p.detach().double().numpy() for p in network.parameters())
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0)).numpy()
    wanted = []
    for own in np.array_split(order, 2):  # 100 images are two batches
        x, one_hot = halves[own], np.eye(3)[labels.numpy()[own]]
        seen = x @ scale.T
        powers = np.exp(seen @ weight.T + bias)
        slope = (powers / powers.sum(1, keepdims=True) - one_hot) / len(own)
        head = np.sqrt((slope.T @ seen).__pow__(2).sum() + slope.sum(0).__pow__(2).sum())
        below = np.linalg.norm((slope @ weight).T @ x)
        wanted.append((below / np.linalg.norm(scale), head / np.sqrt((weight**2).sum() + (bias**2).sum())))
    np.testing.assert_allclose([found["scale"], found["head"]], np.mean(wanted, 0), rtol=1e-5)
    assert relative_gradients(network, pixels, labels, NORMALISE) == found


def test_a_gradient_that_is_no_number_is_told():
    network, (pixels, labels) = net(), images()
    with torch.no_grad():
        network.stem[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"gradients of stem, body, head .* not finite"):
        relative_gradients(network, pixels, labels, NORMALISE)


def test_one_pass_gives_what_every_boundary_gives():
    network, (pixels, _) = net(), images()
    found = boundary_features(network, pixels, NORMALISE)
    assert list(found) == [1, 2]
    with eval_mode(network), torch.no_grad():
        for cut, features in found.items():
            torch.testing.assert_close(features, pool(network.run(NORMALISE(pixels), stop=cut)))
    assert found[1].shape == (60, 4 * 16)


class Uncut(NormNet):
    cuts = (0, 2, 3)


def test_a_network_is_looked_at_where_it_can_be_cut():
    network, (pixels, labels) = Uncut(), images()
    assert list(boundary_features(network, pixels, NORMALISE)) == [2]
    assert list(relative_gradients(network, pixels, labels, NORMALISE)) == ["stem", "body", "head"]


@pytest.mark.parametrize(
    ("shape", "width"),
    [
        ((2, 8, 12, 12), 8 * 16),  # maps
        ((2, 12, 12, 8), 8 * 16),  # maps with channels last
        ((2, 100, 12, 12), 100 * 4),  # many channels: fewer places
        ((2, 2000, 3, 3), 2000),
        ((2, 8, 2, 2), 8 * 4),  # smaller than 4×4 already
        ((2, 9, 7), 7),  # tokens
        ((2, 7), 7),
    ],
)
def test_outputs_are_pooled_to_few_numbers(shape, width):
    assert pool(torch.zeros(shape)).shape == (2, width)


GRADIENTS = {"conv1": 0.7, "conv2": 0.8, "fc1": 0.3, "head": 0.2}


@pytest.mark.parametrize(
    ("gradients", "probe", "rows", "trains"),
    [
        (GRADIENTS, 0.97, (10, 10), "conv1 conv2"),
        (GRADIENTS, 0.98, (10, 10), "head"),
        (GRADIENTS, None, (10, 10), "conv1 conv2"),
        (GRADIENTS, 0.9, (9, 10), "conv1 conv2 fc1 head"),  # a class is new
        (GRADIENTS, 0.99, (0, 10), "head"),
        (GRADIENTS | {"head": 1.5}, 0.9, (10, 10), "conv2 head"),
        (GRADIENTS | {"fc1": 0.4}, 0.9, (10, 10), "conv1 conv2 fc1"),  # half is enough
        (dict.fromkeys(GRADIENTS, 0.0), None, (10, 10), "conv1 conv2 fc1 head"),
    ],
)
def test_the_stages_with_large_gradients_train(gradients, probe, rows, trains):
    chosen = choose_stages(gradients, probe, rows)
    assert " ".join(s for s, c in zip(gradients, chosen, strict=True) if c.trains) == trains
    assert all(choice.why for choice in chosen)


def test_a_share_below_the_limit_never_reads_as_the_limit():
    chosen = choose_stages({"a": 0.4999, "b": 1.0, "head": 0.9}, None, (2, 2))
    assert chosen[0].why == "its gradient is 0.49 of b's, below 0.5"
