"""Pretrained weights for timm's networks: fitted, adapted to grey, and refused."""

import pytest
import timm
import torch

from finetune.errors import CheckpointError, SettingError
from finetune.models.registry import build_model
from finetune.models.timm.build import headless_model
from finetune.models.timm.weights import adapt_channels, source_classes, to_timm_state_dict
from finetune.train.device import seeded

VIT = "timm/test_vit.r160_in1k"


def stock(name, **arguments):
    with seeded(0):
        return timm.create_model(name, **arguments).eval()


def ours(name, arguments, state, classes):
    network = build_model(name, classes, arguments)
    network.load_state_dict(state)
    return network.eval()


def pictures(side, channels=3):
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_files_tensors_give_what_timm_gives_and_its_head_stays_where_it_fits():
    vit = stock("test_vit")
    state, x = to_timm_state_dict(VIT, {}, vit.state_dict(), 1000), pictures(160)
    assert torch.equal(ours(VIT, {}, state, 1000)(x), vit(x))
    few = to_timm_state_dict(VIT, {}, vit.state_dict(), 4)
    assert few["head.weight"].shape == (4, 64)
    features = vit.forward_head(vit.forward_features(x), pre_logits=True)
    assert torch.equal(ours(VIT, {}, few, 4).features(x), features)
    headless = {key: t for key, t in vit.state_dict().items() if not key.startswith("head.")}
    assert torch.equal(ours(VIT, {}, to_timm_state_dict(VIT, {}, headless, 4), 4).features(x), features)


def test_position_embeddings_are_resampled_as_timm_does():
    vit = stock("test_vit")
    loaded = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay={"state_dict": vit.state_dict()}, img_size=96
    )
    state = to_timm_state_dict(VIT, {"img_size": 96}, vit.state_dict(), 5)
    assert state["pos_embed"].shape[1] == 37 and torch.equal(state["pos_embed"], loaded.pos_embed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "cs3darknet_focus_s"])
@torch.no_grad()
def test_a_grey_picture_gives_what_three_equal_channels_gave_and_back(name):
    colour, side = stock(name, num_classes=5), 64
    grey = adapt_channels(f"timm/{name}", {}, colour.state_dict(), 1)
    x = pictures(side, 1)
    found = ours(f"timm/{name}", {"in_chans": 1}, grey, 5)(x)
    torch.testing.assert_close(found, colour(x.expand(2, 3, side, side)), rtol=1e-3, atol=1e-5)
    back = ours(f"timm/{name}", {}, adapt_channels(f"timm/{name}", {"in_chans": 1}, grey, 3), 5)
    torch.testing.assert_close(back(x.expand(2, 3, side, side)), found, rtol=1e-3, atol=1e-5)
    again = adapt_channels(f"timm/{name}", {}, grey, 1)
    assert all(torch.equal(again[key], grey[key]) for key in grey)


def test_a_file_may_be_asked_for_in_grey():
    state = to_timm_state_dict("timm/test_resnet", {"in_chans": 1}, stock("test_resnet").state_dict(), 3)
    expected = timm.create_model(
        "test_resnet",
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": stock("test_resnet").state_dict()},
        in_chans=1,
    )
    assert torch.equal(state["conv1.0.weight"], expected.state_dict()["conv1.0.weight"])
    linear = headless_model("timm/naflexvit_base_patch16_parfac_gap", 2, {}).state_dict()
    with pytest.raises(SettingError, match="no convolution that can be adapted; leave in_chans out"):
        adapt_channels("timm/naflexvit_base_patch16_parfac_gap", {}, linear, 1)


def test_tensors_of_something_else_are_refused():
    state = stock("test_vit").state_dict()
    missing = {key: t for key, t in state.items() if "norm1" not in key}
    for wrong in ({**state, "odd": torch.zeros(1)}, missing, stock("test_resnet").state_dict()):
        for classes in (1000, 5):
            with pytest.raises(CheckpointError, match="the tensors do not fit model 'timm/test_vit"):
                to_timm_state_dict(VIT, {}, wrong, classes)
    with pytest.raises(CheckpointError, match="no tensors for model 'timm/test_vit"):
        to_timm_state_dict(VIT, {}, {}, 5)


def test_class_names_are_imagenets_words_each_once():
    names = source_classes(VIT, stock("test_vit").state_dict())
    assert len(names) == len(set(names)) == 1000 and names[0] == "tench, Tinca tinca"
    assert names[134] == "crane (n02012849)" and names[517] == "crane (n03126707)"
    assert source_classes(VIT, {}) == ()
    assert source_classes(VIT, stock("test_vit", num_classes=3).state_dict()) == ("0", "1", "2")
    assert source_classes("timm/vit_base_patch16_224.dino", {"head.weight": torch.zeros(2, 768)}) == ("0", "1")
