"""Heatmaps lie where the answer comes from, whatever the layout of a network's activations, and hang on its weights."""

from __future__ import annotations

import pytest
import torch
from tiny import ROOT, drawn
from torch import Tensor, nn

from finetune.data.normalize import Normalizer
from finetune.errors import SettingError
from finetune.models.registry import build_model
from finetune.models.staged import StagedNetwork
from finetune.sources.resolve import locate, open_source
from finetune.train import heatmap
from finetune.train.heatmap import MIN_SIDE, feature_map, heatmaps

SIDE = 16
PLAIN = Normalizer((0.0,), (1.0,), torch.device("cpu"))


class Bright(StagedNetwork):
    """Class 0 is how much of the picture is bright, class 1 how much is dark. layout: of its activation."""

    stages = ("stem", "head")

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout, self.stem, self.head = layout, nn.Conv2d(1, 2, 2, stride=2), nn.Linear(2, 2)
        with torch.no_grad():
            self.stem.weight.copy_(torch.tensor([0.25, -0.25])[:, None, None, None].expand(2, 1, 2, 2))
            self.stem.bias.copy_(torch.tensor([-0.5, 0.5]))
            self.head.weight.copy_(torch.eye(2))

    def run_stage(self, stage: str, x: Tensor) -> Tensor:
        if stage == "stem":
            found = self.stem(x).relu()
            if self.layout == "channels last":
                return found.permute(0, 2, 3, 1)
            if self.layout == "tokens":
                return torch.cat([found.new_zeros(len(x), 1, 2), found.flatten(2).transpose(1, 2)], 1)
            return found
        places = {"channels first": (2, 3), "channels last": (1, 2), "tokens": (1,)}[self.layout]
        return self.head(x.mean(places))


def bright_corners() -> Tensor:
    """Pictures that are bright in one corner each: uint8, 4×1×SIDE×SIDE."""
    pictures, half = torch.zeros(4, 1, SIDE, SIDE, dtype=torch.uint8), SIDE // 2
    for place in range(4):
        top, left = half * (place // 2), half * (place % 2)
        pictures[place, 0, top : top + half, left : left + half] = 255
    return pictures


@pytest.mark.parametrize("layout", ["channels first", "channels last", "tokens"])
def test_the_heat_lies_where_the_answer_comes_from(layout):
    pytest.importorskip("captum")
    pictures = bright_corners()
    untrained = Bright(layout)
    untrained.stem.reset_parameters()
    for answer, seen in ((0, pictures > 0), (1, pictures == 0)):
        found = heatmaps(Bright(layout), untrained, pictures, PLAIN, [answer] * 4)
        assert found.maps.shape == (4, SIDE, SIDE) and found.maps.dtype == torch.float32
        assert found.maps.min() >= 0 and found.maps.amax((1, 2)).tolist() == pytest.approx([1] * 4)
        assert found.method == "Grad-CAM after stem"
        inside, outside = (
            torch.stack([m[s].mean() for m, s in zip(found.maps, own[:, 0], strict=True)]) for own in (seen, ~seen)
        )
        assert (inside > 0.85).all() and (outside < 0.15).all()
    torch.testing.assert_close(found.maps, heatmaps(Bright("channels first"), untrained, pictures, PLAIN, [1] * 4).maps)


def test_a_trained_networks_maps_are_not_those_of_random_weights():
    pytest.importorskip("captum")
    source = open_source(locate(ROOT / "checkpoints" / "mnist.safetensors")).classifier
    torch.manual_seed(0)
    untrained = build_model(source.model, len(source.class_names), source.arguments)
    pictures = torch.from_numpy(drawn("mnist", 12, "test")[0])[:, None]
    normalize = source.input.normalizer(torch.device("cpu"))
    classes = source.network.eval()(normalize(pictures)).argmax(1).tolist()
    found = heatmaps(source.network, untrained, pictures, normalize, classes)
    assert found.depend_on_weights and found.maps.shape == (12, 28, 28)
    same = heatmaps(source.network, source.network, pictures, normalize, classes)
    assert same.correlation == pytest.approx(1) and not same.depend_on_weights
    assert torch.equal(same.maps, found.maps)
    assert all(parameter.grad is None for parameter in source.network.parameters())


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("timm/test_resnet", "Grad-CAM after layer3"),
        pytest.param("timm/test_convnext", "Grad-CAM after stages.2", marks=pytest.mark.slow),
        ("timm/test_vit", "Grad-CAM after blocks.4"),
        pytest.param("timm/test_mambaout", "the gradient's size", marks=pytest.mark.slow),
    ],
)
def test_timms_networks_have_maps_of_the_size_of_the_image(name, method):
    pytest.importorskip("captum")
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(build_model(name, 3, {}))
    pictures = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    found = heatmaps(*networks, pictures, Normalizer((0.5,) * 3, (0.25,) * 3, torch.device("cpu")), [0, 2])
    assert found.method == method and found.maps.shape == (2, 160, 160)
    assert found.maps.isfinite().all() and found.maps.min() >= 0 and found.maps.max() == pytest.approx(1)


def test_activations_without_places_are_no_feature_maps():
    for shape in ((2, 7), (2, MIN_SIDE**2 - 1, 5), (2, 5, MIN_SIDE - 1, MIN_SIDE - 1), (2, 3, 4, 5, 6)):
        assert feature_map(torch.zeros(shape)) is None
    tokens = torch.arange(2 * 18 * 5.0).reshape(2, 18, 5)
    assert torch.equal(feature_map(tokens)[:, :, 0, 0], tokens[:, 2]), "the first two tokens have no place"


def test_without_captum_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(heatmap, "find_spec", lambda name: None)
    network = Bright("tokens")
    with pytest.raises(SettingError, match=r"\[heatmaps\]'"):
        heatmaps(network, network, bright_corners(), PLAIN, [0] * 4)
