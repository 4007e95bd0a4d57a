"""oneDNN's own layout gives the numbers of torch's, is used where it is asked for, and nowhere else."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finetune.models import onednn as module
from finetune.models.cnn import ArticleCNN
from finetune.models.onednn import to_dense, use_onednn_layout
from finetune.train.device import Runtime, seeded

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


@pytest.fixture
def network():
    with seeded(0):
        return ArticleCNN(10).to(memory_format=torch.channels_last)


@pytest.fixture
def images():
    return torch.randn(9, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def poolings(monkeypatch):
    """How often the blocked kernel pooled."""
    calls, inner = [], torch.mkldnn_max_pool2d

    def counted(*arguments):
        calls.append(arguments)
        return inner(*arguments)

    monkeypatch.setattr(module.torch, "mkldnn_max_pool2d", counted)
    return calls


def gradients(network, images):
    loss = F.cross_entropy(network(images).float(), torch.arange(len(images)))
    return loss, torch.autograd.grad(loss, list(network.parameters()))


@needs_onednn
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_loss_and_gradients_are_those_of_torchs_layout(network, images, poolings, precision):
    runtime = Runtime(torch.device("cpu"), precision)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        expected, plain = gradients(network, images)
    assert not poolings
    with runtime.autocast():
        found, quick = gradients(network, images)
    assert len(poolings) == 2
    assert torch.allclose(found, expected, atol=TOLERANCE[precision])
    for one, other in zip(quick, plain, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=TOLERANCE[precision] * float(other.abs().max()))


@needs_onednn
def test_what_comes_out_at_a_boundary_is_an_ordinary_tensor(network, images, poolings):
    with use_onednn_layout():
        for stop in (1, 2, 3, None):
            out = network.run(images, stop=stop)
            assert not out.is_mkldnn and out.dtype == torch.float32
        halfway = network.run(network.run(images, stop=1), start=1)
        assert torch.equal(halfway, network(images))
    assert poolings and torch.allclose(halfway, network(images), atol=1e-5)


@needs_onednn
def test_ties_go_to_the_same_pixel(network):
    """Constant images: every window is a tie, and the first pixel of it gets the gradient in both layouts."""
    ties = torch.zeros(3, 1, 28, 28, requires_grad=True)
    (plain,) = torch.autograd.grad(network(ties).sum(), ties)
    with use_onednn_layout():
        (quick,) = torch.autograd.grad(network(ties).sum(), ties)
    assert torch.allclose(quick, plain, atol=1e-6)


def test_outside_the_block_it_can_be_differentiated_twice(network, images, poolings):
    images.requires_grad_()
    (slope,) = torch.autograd.grad(network(images).square().sum(), images, create_graph=True)
    slope.square().sum().backward()
    assert not poolings and network.conv1.weight.grad.abs().sum() > 0


def test_other_convolutions_and_types_take_torchs_way(network, images, poolings):
    other = copy.deepcopy(network)
    other.conv1 = nn.Conv2d(1, 32, kernel_size=3, padding=1)
    other.conv1.load_state_dict(network.conv1.state_dict())
    with use_onednn_layout():
        assert torch.allclose(other(images), network(images), atol=1e-5)
        poolings.clear()
        assert other.run(images, stop=1).shape == (9, 32, 14, 14) and not poolings
        assert network.double()(images.double()).dtype == torch.float64 and not poolings


def test_dense_leaves_an_ordinary_tensor_alone(images):
    assert to_dense(images) is images
