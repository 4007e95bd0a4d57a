"""What a network costs: parameters and multiply-adds."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from finetune.errors import SettingError
from finetune.models.cost import network_cost
from finetune.models.registry import build_model
from finetune.models.timm.names import published_settings


@pytest.mark.parametrize(
    ("model", "arguments", "channels", "size"),
    [("cnn", {}, 1, 28), ("timm/test_resnet", {"in_chans": 1}, 1, 64), ("timm/test_vit", {"img_size": 64}, 3, 64)],
)
def test_the_counts_are_those_of_the_network_itself(model, arguments, channels, size):
    network = build_model(model, 5, arguments).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.rand(1, channels, size, size))
    found = network_cost(model, arguments, 5, channels, size)
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert found.multiply_adds == counter.get_total_flops() // 2 > 1_000_000


def test_counting_leaves_the_random_state_and_knows_published_numbers():
    state = torch.get_rng_state()
    found = network_cost("timm/resnet18", {}, 1000, 3, 224)  # 11.7 M and 1.8 G in timm's own tables
    assert (found.parameters, found.multiply_adds) == (11_689_512, 1_814_073_344)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(SettingError, match="unknown model"):
        network_cost("cnnn", {}, 10, 1, 28)


def test_what_timm_publishes_of_an_architecture():
    found = published_settings("timm/test_vit2.r160_in1k")
    assert found["hub"] == "timm/test_vit2.r160_in1k" and found["classifier"] == "head"
    assert found["fixed_input_size"] is True and "tag" not in found
    assert "hub" not in published_settings("timm/coatnet_0_224") and published_settings("timm/nothing") == {}
