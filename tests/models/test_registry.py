"""The article's network, the registry, and the head swap."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finetune.errors import SettingError
from finetune.models.cnn import ArticleCNN
from finetune.models.head import class_means, swap_head
from finetune.models.registry import MODELS, build_model


class AsWritten(nn.Module):
    """The article's network, transcribed plainly."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.head(F.relu(self.fc1(x.view(-1, 64 * 7 * 7))))


def test_the_cnn_is_the_articles_network():
    torch.manual_seed(0)
    ours, plain, images = ArticleCNN(10), AsWritten(), torch.randn(7, 1, 28, 28)
    assert sum(p.numel() for p in ours.parameters()) == 421_642
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(images), plain(images), rtol=0, atol=0)
    for network in (ours, plain):
        F.cross_entropy(network(images), torch.arange(7)).backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad, msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_in_exactly_one_stage_and_the_head_is_last(name):
    network = build_model(name, 5, {})
    row = MODELS[name]
    assert network.stages == row.stages and network.stages[-1] == "head"
    owned = [id(p) for stage in network.stages for p in network.stage_parameters(stage)]
    assert sorted(owned) == sorted(id(p) for p in network.parameters())
    assert network.head.out_features == 5


@pytest.mark.parametrize("name", MODELS)
def test_a_network_can_be_cut_at_every_stage(name):
    network = build_model(name, 5, {}).eval()
    spec = MODELS[name].input
    images = torch.randn(2, spec.channels, spec.size, spec.size)
    whole = network(images)
    for cut in range(len(network.stages) + 1):
        torch.testing.assert_close(network.run(network.run(images, stop=cut), start=cut), whole, rtol=0, atol=0)
    assert network.features(images).shape == (2, network.head.in_features)


def test_the_same_seed_gives_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_model("cnn", 10, {}).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_unknown_names_and_arguments_are_refused_with_what_there_is():
    with pytest.raises(SettingError, match=r"unknown model 'cnm'; did you mean 'cnn'\? Models are cnn, and timm/NAME"):
        build_model("cnm", 10, {})
    with pytest.raises(SettingError, match=r"unknown model 'zzz'; models are cnn, and timm/NAME"):
        build_model("zzz", 10, {})
    with pytest.raises(SettingError, match="unknown argument 'drop_rate'"):
        build_model("cnn", 10, {"drop_rate": 0.1})


def test_class_means_pick_the_nearest_mean():
    torch.manual_seed(0)
    labels = torch.arange(200) % 4
    features = torch.randn(200, 6) + torch.randn(4, 6)[labels] * 2
    means = torch.stack([features[labels == c].mean(0) for c in range(4)])
    found = class_means(features, labels, 4)
    logits = features.double() @ found.weight.T + found.bias
    assert torch.equal(logits.argmax(1), torch.cdist(features, means).argmin(1))


def test_rows_of_shared_classes_are_copied_whatever_their_order():
    torch.manual_seed(0)
    head = nn.Linear(5, 3)
    new, reused = swap_head(head, ["a", "b", "c"], ["c", "a", "b"], means=None, keep_rows=True)
    assert reused == {"c": "c", "a": "a", "b": "b"}
    assert torch.equal(new.weight, head.weight[[2, 0, 1]]) and torch.equal(new.bias, head.bias[[2, 0, 1]])


def test_new_classes_start_from_their_means_beside_kept_rows():
    torch.manual_seed(0)
    head, labels = nn.Linear(6, 2), torch.arange(90) % 3
    features = torch.randn(90, 6) + 3 * torch.randn(3, 6)[labels]
    means = class_means(features, labels, 3)
    new, reused = swap_head(head, ["x", "y"], ["n", "y", "m"], means=means, keep_rows=True)
    assert reused == {"y": "y"}
    assert torch.equal(new.weight[1], head.weight[1]) and torch.equal(new.bias[1], head.bias[1])
    for row in (0, 2):
        same_direction = F.cosine_similarity(new.weight[row].double(), means.weight[row], dim=0)
        assert same_direction > 0.999999
    old, fresh = head.weight.norm(dim=1).mean(), new.weight[[0, 2]].norm(dim=1).mean()
    torch.testing.assert_close(fresh, old)


def test_without_kept_rows_every_row_is_new():
    torch.manual_seed(0)
    head = nn.Linear(5, 3)
    new, reused = swap_head(head, ["a", "b", "c"], ["a", "b", "c"], means=None, keep_rows=False)
    assert reused == {} and not torch.equal(new.weight, head.weight)
