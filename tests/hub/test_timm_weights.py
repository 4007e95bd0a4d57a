"""timm's pretrained weights are fetched from a loopback Hub once, checked, and what goes wrong is said."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from timm_hub import served, settings

from finetune.errors import SettingError
from finetune.hub.timm_weights import download_weights

FETCH = """
import sys
from timm.models._registry import _model_pretrained_cfgs
from finetune.errors import FinetuneError
_model_pretrained_cfgs["test_vit2.r160_in1k"].hf_hub_id += "@v2"  # none of timm's own tags has a revision
from finetune.hub.timm_weights import download_weights
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.raises(SettingError, match="timm/gcvit_base: timm has no weights on the Hub for it; no other tag"):
        download_weights("timm/gcvit_base")
    with pytest.raises(SettingError, match="unknown tag"):
        download_weights("timm/resnet18.nothing")
