"""Networks that are made for tensors to be loaded into."""

from __future__ import annotations

import pytest
import torch

from finetune.models.registry import build_model
from finetune.models.skip_init import build_without_init

NAMES = ["cnn", "timm/test_resnet", "timm/test_vit", "timm/test_convnext", "timm/test_efficientnet"]


@pytest.mark.parametrize("name", NAMES)
def test_with_the_tensors_of_another_it_is_that_other(name: str) -> None:
    torch.manual_seed(0)
    filled = build_model(name, 5, {}).eval()
    other = build_without_init(name, 5, {}).eval()
    assert [(n, b.equal(dict(filled.named_buffers())[n])) for n, b in other.named_buffers()] == [
        (n, True) for n, _ in filled.named_buffers()
    ], "buffers are there before anything is loaded"
    other.load_state_dict(filled.state_dict())
    side, channels = (28, 1) if name == "cnn" else (64, 3)
    images = torch.randn(2, channels, side, side)
    with torch.no_grad():
        assert torch.equal(other(images), filled(images))


def test_no_random_number_is_drawn() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build_without_init("timm/test_vit", 5, {})
    assert torch.equal(torch.get_rng_state(), before)
    build_model("timm/test_vit", 5, {})
    assert not torch.equal(torch.get_rng_state(), before), "what is made to train from is filled as ever"
