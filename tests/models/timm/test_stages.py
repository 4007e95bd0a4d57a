"""Every family of timm: its stages, on tensors without numbers; and the families that cannot work, and why."""

from itertools import pairwise

import pytest
import timm
from timm.models import group_parameters

from finetune.errors import SettingError
from finetune.models.registry import find_model
from finetune.models.timm.build import headless_model
from finetune.models.timm.network import TimmNetwork
from finetune.models.timm.stages import find_stages

# The smallest network of each family that can be fine-tuned; where none can, the smallest.
SMALLEST = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_256d",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}

# The families that cannot, and how the message puts it; docs/backbones.md tells the same to people.
CANNOT = {
    "crossvit": "ends in 2 classifiers side by side",
    "csatv2": "no parameter groups",
    "dla": "its classifier is a Conv2d",
    "dpn": "its classifier is a Conv2d",
    "efficientformer": "ends in 2 classifiers side by side",
    "efficientformer_v2": "ends in 2 classifiers side by side",
    "efficientvim": "ends in 4 classifiers side by side",
    "metaformer": "no parameter groups",
    "pit": "no parameter groups",
    "rdnet": "no coarse parameter groups",
    "repvit": "its classifier is 2 linear layers",
    "resnetv2": "its classifier is a Conv2d",
    "swiftformer": "ends in 2 classifiers side by side",
    "volo": "its output is not what its last linear layer gives",
}


def test_no_family_is_forgotten():
    newer = set(timm.list_modules()) - SMALLEST.keys()
    assert not newer, f"timm has more families: put the smallest network of {newer} into the table"


NAMES = set(timm.list_models())  # an older timm has fewer
# One of each kind, and built soon; all take a minute.
QUICK = {
    *("byobnet", "convnext", "cspnet", "efficientnet", "efficientvit_mit", "eva", "fasternet", "hiera", "levit"),
    *("mambaout", "maxxvit", "mobilenetv3", "nest", "nfnet", "pvt_v2", "regnet", "res2net", "resnest", "resnet"),
    *("selecsls", "senet", "sknet", "starnet", "swin_transformer", "vgg", "visformer", "vision_transformer"),
    *("vovnet", "xception"),
}


def there(family):
    return SMALLEST[family] in NAMES


def rows(families):
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in families]


@pytest.mark.parametrize("family", rows(family for family in SMALLEST if there(family) and family not in CANNOT))
def test_stages_hold_every_parameter_once_from_input_to_output(family):
    name = f"timm/{SMALLEST[family]}"
    row = find_model(name)
    body = headless_model(name, 5, {})
    network = TimmNetwork(body, find_stages(body, 5))
    assert network.stages == row.stages and len(set(row.stages)) == len(row.stages)
    owned = [[id(p) for p in network.stage_parameters(stage)] for stage in network.stages]
    assert all(owned), "an empty stage"
    assert sorted(p for stage in owned for p in stage) == sorted(id(p) for p in body.parameters())
    assert network.stages[-1] == "head" and network.head.out_features == 5
    assert owned[-1] == [id(network.head.weight), id(network.head.bias)]
    depth = group_parameters(body, body.group_matcher(coarse=True), reverse=True)
    order = {id(p): depth[path] for path, p in body.named_parameters()}
    depths = [{order[p] for p in stage} for stage in owned]
    assert all(max(a) <= min(b) for a, b in pairwise(depths))
    assert network.cuts[0] == 0 and {len(row.stages) - 1, len(row.stages)} <= set(network.cuts)
    _every_leaf_is_somebodys(network)


def _every_leaf_is_somebodys(network):
    owned = [id(m) for stage in network.stages for root in network.stage_modules(stage) for m in root.modules()]
    assert len(set(owned)) == len(owned)
    for path, module in network.body.named_modules():
        assert id(module) in owned or any(True for _ in module.children()), f"{path} belongs to no stage"
    assert [m for root in network.stage_modules("head") for m in root.modules()] == [network.head]


@pytest.mark.parametrize("family", [family for family in CANNOT if there(family)])
def test_families_that_cannot_say_why(family):
    with pytest.raises(SettingError, match=rf"timm/{SMALLEST[family]}.* cannot be fine-tuned here: .*{CANNOT[family]}"):
        find_model(f"timm/{SMALLEST[family]}")
