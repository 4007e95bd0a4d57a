"""Pretrained weights for timm's networks: fetched from a loopback Hub, fitted, adapted to grey, and refused."""

import os
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from timm_hub import served, settings

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


FETCH = """
import sys
from timm.models._registry import _model_pretrained_cfgs
from finetune.errors import FinetuneError
_model_pretrained_cfgs["test_vit2.r160_in1k"].hf_hub_id += "@v2"  # none of timm's own tags has a revision
from finetune.models.timm.weights import download_weights
for line in sys.stdin:
    try:
        print(download_weights(line.strip()), flush=True)
    except FinetuneError as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.fixture(scope="module")
def servers():
    with served(to_bytes({"weight": torch.arange(4.0)})) as pair:
        yield pair


@pytest.fixture
def hub(servers):
    for server in servers:
        server.fault, server.spoil = None, False
    servers[0].asked.clear()
    return servers


@pytest.fixture(scope="module")
def fetchers(servers, tmp_path_factory):
    """Two processes of their own, since huggingface_hub reads its settings at import: one online, one offline."""
    home = tmp_path_factory.mktemp("hub")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH],
            env={**os.environ, **settings(servers, home), "HF_HUB_OFFLINE": offline},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for offline in "01"
    ]
    yield [lambda name, child=child: ask(child, name) for child in children]
    for child in children:
        child.communicate()


def ask(child, name):
    child.stdin.write(name + "\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


def test_weights_are_fetched_once_and_found_offline(hub, fetchers):
    online, offline = fetchers
    path = online("timm/test_resnet.r160_in1k")
    assert load_file(path)["weight"].tolist() == [0, 1, 2, 3]
    assert ("HEAD", "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors") in hub[0].asked
    asked = len(hub[0].asked)
    assert offline("timm/test_resnet") == path, "the default tag is the same file"
    assert len(hub[0].asked) == asked
    said = offline("timm/test_vit")
    assert said.startswith("DownloadError") and "not in the Hub's cache" in said and "HF_HUB_OFFLINE" in said


def test_the_revision_of_a_tag_is_the_one_that_is_fetched(hub, fetchers):
    path = fetchers[0]("timm/test_vit2")
    assert ("HEAD", "/timm/test_vit2.r160_in1k/resolve/v2/model.safetensors") in hub[0].asked
    assert fetchers[1]("timm/test_vit2") == path and path.endswith("model.safetensors")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ((401, "RepoNotFound"), "DownloadError timm/test_vit: the Hub has no timm/test_vit.r160_in1k"),
        ((404, "RepoNotFound"), "DownloadError timm/test_vit: the Hub has no timm/test_vit.r160_in1k"),
        ((403, "GatedRepo"), "DownloadError timm/test_vit: timm/test_vit.r160_in1k is gated"),
        ((403, ""), "DownloadError timm/test_vit: timm/test_vit.r160_in1k"),
        ((404, "EntryNotFound"), "SettingError timm/test_vit: timm/test_vit.r160_in1k has no model.safetensors"),
    ],
)
def test_what_the_hub_refuses_is_said(hub, fetchers, fault, says):
    hub[0].fault = fault
    assert fetchers[0]("timm/test_vit").startswith(says)


def test_a_file_that_arrives_damaged_is_not_kept(hub, fetchers):
    hub[1].spoil = True
    said = fetchers[0]("timm/test_vit")
    assert said.startswith("DownloadError") and "another sha256" in said
    hub[1].spoil = False
    assert fetchers[0]("timm/test_vit").endswith("model.safetensors")


def test_a_tag_without_weights_is_said_without_asking_anyone():
    from finetune.models.timm.weights import download_weights

    with pytest.raises(SettingError, match="timm/gcvit_base: timm has no weights on the Hub for it; no other tag"):
        download_weights("timm/gcvit_base")
    with pytest.raises(SettingError, match="unknown tag"):
        download_weights("timm/resnet18.nothing")
