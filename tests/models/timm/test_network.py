"""timm's networks as ours: the same numbers, cut anywhere they can be, frozen still, saved and loaded again."""

import copy

import pytest
import timm
import torch
from networks import activations
from torch import nn

from finetune.data.loader import Batches
from finetune.data.normalize import Normalizer
from finetune.errors import CheckpointError, SettingError
from finetune.models.classifier import Classifier
from finetune.models.registry import build_model, check_size, find_model, list_models
from finetune.sources.resolve import load
from finetune.sources.save import save
from finetune.train.device import Runtime, seeded
from finetune.train.freeze import frozen_prefix, set_trainable, training_mode
from finetune.train.loop import PhaseConfig, Training
from finetune.train.optim import make_schedule, stage_groups

CPU = torch.device("cpu")
FLOAT32 = Runtime(CPU, "float32")
NORMALISE = Normalizer((0.5,) * 3, (0.25,) * 3, CPU)
SGD = {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}

CHAINS = {  # architecture: side of the images given
    "resnet18": 64,
    "mobilenetv2_035": 64,
    "mobilenetv3_small_050": 64,
    "efficientnet_b0": 64,
    "convnext_atto": 64,
    "regnety_002": 64,
    "vit_tiny_patch16_224": 64,
    "test_resnet": 32,
    "test_efficientnet": 32,
    "test_convnext": 32,
    "test_vit": 64,
}
BLOCKS = {"test_maxvit": 160, "test_byobnet": 64, "test_nfnet": 64, "ghostnet_050": 64}
LARGE = CHAINS.keys() - {"mobilenetv3_small_050", "test_resnet", "test_efficientnet", "test_convnext", "test_vit"}
TESTS = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_byobnet"]


def network(name, classes=5, **arguments):
    with seeded(0):
        return build_model(f"timm/{name}", classes, arguments)


def pictures(side, count=2, channels=3):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def stirred(net, side):
    """A copy whose running statistics are not those of a new network."""
    net.train()
    with torch.no_grad(), seeded(1):
        net(pictures(side, 4))
    return net


@pytest.mark.parametrize(
    ("name", "side"),
    [pytest.param(*one, marks=[pytest.mark.slow] * (one[0] in LARGE)) for one in (CHAINS | BLOCKS).items()],
)
@pytest.mark.parametrize("training", [True, False])
def test_it_is_timms_network_bit_for_bit_and_cut_as_well(name, side, training):
    arguments = {"drop_rate": 0.2, **({"img_size": side} if name == "vit_tiny_patch16_224" else {})}
    ours, x = stirred(network(name, **arguments), side), pictures(side)
    stock = timm.create_model(name, num_classes=5, **arguments)
    stock.load_state_dict(ours.state_dict())
    stock.train(training), ours.train(training)
    start = copy.deepcopy(ours.state_dict())
    with seeded(2), torch.no_grad():
        expected = stock(x)
    for cut in ours.cuts:
        ours.load_state_dict(start)  # statistics move in training mode
        with seeded(2), torch.no_grad():
            assert torch.equal(ours.run(ours.run(x, stop=cut), start=cut), expected), cut
    if not training:
        with torch.no_grad():
            assert torch.equal(ours(x), expected)
            assert torch.equal(ours.head(ours.features(x)), expected)
            assert ours.features(x).shape == (2, ours.head.in_features)


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_cut_at_every_stage(name):
    stages = find_model(f"timm/{name}").stages
    assert network(name).cuts == tuple(range(len(stages) + 1))


def test_others_are_cut_before_the_head():
    assert network("test_maxvit").cuts == (0, 5, 6)


def test_stage_names_are_what_people_would_write():
    assert find_model("timm/resnet18").stages == ("stem", "layer1", "layer2", "layer3", "layer4", "head")
    assert find_model("timm/convnext_atto").stages == ("stem", "stages.0", "stages.1", "stages.2", "stages.3", "head")
    assert find_model("timm/mobilenetv3_small_050").stages[-3:] == ("blocks.5", "conv_head", "head")
    vit = network("test_vit")
    assert {"cls_token", "pos_embed"} <= vit.layout.parameters.keys()
    owned = {id(p) for p in vit.stage_parameters("stem")}
    assert id(vit.body.cls_token) in owned and id(vit.body.pos_embed) in owned
    last = {id(p) for p in vit.stage_parameters("blocks.5")}
    assert id(vit.body.norm.weight) in last, "a lone normalisation belongs to the stage before it"


def test_a_head_is_put_where_timm_keeps_it():
    net = network("convnext_atto")
    linear = nn.Linear(net.head.in_features, 3)
    net.set_head(linear)
    assert net.head is linear and net.body.head.fc is linear and net.body.num_classes == 3
    assert net(pictures(64)).shape == (2, 3) and [*net.stage_modules("head")] == [linear]
    assert not any(name.endswith("head.head") for name, _ in net.named_modules())
    with pytest.raises(AssertionError, match="set_head"):
        net.head = linear


@pytest.mark.parametrize("name", TESTS)
def test_tensors_have_timms_own_names_alone_and_within_a_classifier(name):
    net = network(name)
    spec = find_model(f"timm/{name}").input
    timm.create_model(name, num_classes=5).load_state_dict(net.state_dict(), strict=True)
    whole = Classifier(net, f"timm/{name}", {}, "abcde", spec)
    assert set(whole.state_dict()) == {f"network.{key}" for key in net.state_dict()}
    other = Classifier(build_model(f"timm/{name}", 5, {}), f"timm/{name}", {}, "abcde", spec)
    other.load_state_dict(whole.state_dict())
    twin = copy.deepcopy(other).network
    assert all(torch.equal(t, twin.state_dict()[key]) for key, t in net.state_dict().items())
    with torch.no_grad():
        twin.head.weight.zero_()
    assert net.head.weight.abs().sum() > 0 and other.network.head.weight.abs().sum() > 0


def test_names_of_timms_that_start_like_ours_stay():
    with torch.device("meta"):
        net, stock = network("tresnet_m"), timm.create_model("tresnet_m", num_classes=5)
    assert list(net.state_dict()) == list(stock.state_dict()) and "body.conv1.conv.weight" in net.state_dict()
    whole = torch.nn.Sequential(net)
    assert not any(whole.load_state_dict(whole.state_dict(), assign=True)), "keys missing or unexpected"


@pytest.mark.parametrize(("name", "arguments"), [("test_resnet", {}), ("test_vit", {"img_size": 96, "in_chans": 1})])
def test_saved_and_loaded_again_it_says_the_same(tmp_path, name, arguments):
    spec = find_model(f"timm/{name}", arguments).input
    net = network(name, 3, **arguments).eval()
    sha = save(Classifier(net, f"timm/{name}", arguments, ["x", "y", "z"], spec), tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors")
    x = pictures(spec.size, channels=spec.channels)
    assert torch.equal(again(x), net(x)) and again.input == spec and again.arguments == arguments
    assert save(again, tmp_path / "b.safetensors") == sha


def test_a_checkpoint_may_be_of_another_size_only_where_the_network_takes_it(tmp_path):
    from dataclasses import replace

    for name, arguments, fits in (("test_resnet", {}, True), ("test_vit", {"dynamic_img_size": False}, False)):
        spec = replace(find_model(f"timm/{name}").input, size=64)
        classifier = Classifier(network(name, 2, **arguments), f"timm/{name}", arguments, "ab", spec)
        save(classifier, tmp_path / "a.safetensors")
        if fits:
            assert load(tmp_path / "a.safetensors").input.size == 64
        else:
            with pytest.raises(CheckpointError, match=r"a.safetensors: its metadata does not hold: .*, not 64×64"):
                load(tmp_path / "a.safetensors")


def test_sizes_are_checked_with_the_cure():
    check_size("timm/test_resnet", {}, 64)
    check_size("timm/test_vit", {"dynamic_img_size": False, "img_size": 64}, 64)
    with pytest.raises(SettingError, match=r"takes images of 160×160 pixels, not 64×64: no pass through it"):
        check_size("timm/test_vit", {"dynamic_img_size": False}, 64)
    with pytest.raises(SettingError, match=r"takes images of 224×224 pixels, not 8×8: no pass through it"):
        check_size("timm/vgg11_bn", {}, 8)
    with pytest.raises(SettingError, match="takes images of 28×28 pixels, not 32×32"):
        check_size("cnn", {}, 32)


def small_set(side, count=12):
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(3))
    return pixels.to(torch.uint8), torch.arange(count) % 5


def trained(net, stages, side, *, start=0, inputs=None):
    pixels, labels = small_set(side)
    phase = PhaseConfig("p", stages, 3, "sgd", SGD, make_schedule("constant"), start=start)
    normalize = NORMALISE if inputs is None else None
    batches = Batches(pixels if inputs is None else inputs, labels, batch_size=6, seed=0, normalize=normalize)
    with seeded(0):
        list(Training(net, batches, phase, FLOAT32))


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("last", [1, 2, 3])
def test_frozen_stages_stay_bit_equal_parameters_and_buffers(name, last):
    side = 64
    net = stirred(network(name), side)
    stages, before = net.stages[-last:], copy.deepcopy(net.state_dict())
    trained(net, stages, side)
    moved = {key for key, t in net.state_dict().items() if not torch.equal(before[key], t)}
    assert {net.layout.stage_of(key) for key in moved} == set(stages)
    statistics = {key for key in before if key.endswith("running_mean") and net.layout.stage_of(key) in stages}
    assert statistics <= moved


def test_what_drops_out_by_a_mode_of_its_own_follows_what_is_beneath():
    net = network("test_resnet", drop_rate=0.5)
    training_mode(net, ("layer4", "head"), "hold")
    assert not net.training and not net.body.training and net.body.layer4.training and net.head.training
    assert not net.body.layer3.training and not net.body.maxpool.training
    training_mode(net, net.stages, "hold")
    assert all(module.training for module in net.modules())
    training_mode(net, ("head",), "update")
    assert net.body.bn1.training and not net.body.layer4.training and net.body.layer4[0].bn1.training
    convnext = network("test_convnext", drop_rate=0.5)
    training_mode(convnext, ("head",), "hold")
    assert not convnext.body.head.drop.training, "dropout before the head is the stage's before it"


@pytest.mark.parametrize(("name", "last"), [(n, k) for n in TESTS for k in (1, 2)])
def test_a_cached_run_ends_with_the_weights_of_the_uncached_one(name, last):
    side = 64
    plain = stirred(network(name), side)
    cached, stages = copy.deepcopy(plain), plain.stages[-last:]
    start = frozen_prefix(plain, stages)
    assert start in plain.cuts and start <= len(plain.stages) - last and (start or last > 1)
    trained(plain, stages, side)
    if start:
        trained(
            cached, stages, side, start=start, inputs=activations(cached, small_set(side)[0], NORMALISE, start, FLOAT32)
        )
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(cached.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_learning_rates_fall_from_the_head_to_the_input():
    net = network("test_vit")
    assert set_trainable(net, net.stages[-3:]) == sum(p.numel() for p in net.parameters() if p.requires_grad)
    rates = {group.stage: group.lr for group in stage_groups(net, 0.1, 0.5)}
    assert rates == pytest.approx({"blocks.4": 0.025, "blocks.5": 0.05, "head": 0.1})
    assert not net.body.cls_token.requires_grad


def test_the_same_seed_gives_the_same_weights_and_looking_costs_no_random_numbers():
    first, second = network("test_vit").state_dict(), network("test_vit").state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    find_model("timm/test_convnext", {"drop_rate": 0.25})
    assert torch.equal(torch.rand(1), expected)


def test_an_input_is_timms():
    assert (
        find_model("timm/resnet18.a1_in1k").input.as_dict()
        == {
            "channels": 3,
            "size": 224,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "interpolation": "bicubic",
            "crop": 0.95,
            "resize": "shorter_side",
        }
        or find_model("timm/resnet18.a1_in1k").input.crop == timm.get_pretrained_cfg("resnet18.a1_in1k").crop_pct
    )
    grey = find_model("timm/test_vit", {"in_chans": 1, "img_size": 96}).input
    assert (grey.channels, grey.size, len(grey.mean), len(grey.std)) == (1, 96, 1, 1)
    assert grey.working == int(96 / grey.crop)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("timm/resnt18", {}, r"unknown model 'timm/resnt18'; did you mean 'timm/resnet18'.*finetune models 'timm/"),
        ("timm/resnet18.a9_in1k", {}, r"unknown tag 'a9_in1k'.*a1_in1k.*gluon_in1k"),
        ("timm/hf_hub:some/where", {}, "without paths"),
        ("timm/hf-hub:x", {}, "without paths"),
        ("timm/local-dir:/etc", {}, "without paths"),
        ("timm/../../etc", {}, "without paths"),
        ("timm/", {}, "without paths"),
        ("timm/test_resnet", {"checkpoint_path": "/etc/passwd"}, "'checkpoint_path' cannot be set: weights come from"),
        ("timm/test_resnet", {"pretrained": True}, "'pretrained' cannot be set"),
        ("timm/test_resnet", {"pretrained_cfg": "a"}, "'pretrained_cfg' cannot be set"),
        ("timm/test_resnet", {"cache_dir": "/tmp"}, "'cache_dir' cannot be set"),
        ("timm/test_resnet", {"features_only": True}, "only whole classifiers"),
        ("timm/test_resnet", {"num_classes": 3}, "the data's classes decide"),
        ("timm/test_resnet", {"drop_rte": 0.1}, "unknown argument 'drop_rte'; did you mean 'drop_rate'"),
        ("timm/test_resnet", {"img_size": 64}, "unknown argument 'img_size'"),
        ("timm/test_resnet", {"drop_rate": [0.1]}, r"expected a number, true, false or a text, found \[0.1\]"),
        ("timm/test_resnet", {"drop_rate": None}, "expected a number, true, false or a text, found None"),
        ("timm/test_resnet", {"in_chans": 4}, "expected 1 or 3, found 4"),
        ("timm/test_resnet", {"in_chans": True}, "expected 1 or 3, found True"),
        ("timm/test_vit", {"img_size": 0}, "expected the side in whole pixels, found 0"),
        ("timm/test_vit", {"depth": 10**9}, "expected at most 16,384"),
        ("timm/test_vit", {"num_heads": 5}, "cannot be built with num_heads=5"),
        ("timm/test_resnet", {"act_layer": "nonsense"}, "cannot be built with act_layer=nonsense"),
        ("timm/test_resnet", {"global_pool": ""}, "cannot be fine-tuned here"),
    ],
)
def test_names_and_arguments_that_cannot_be_are_refused(name, arguments, says):
    with pytest.raises(SettingError, match=says):
        build_model(name, 3, arguments)


def test_patterns_list_names():
    assert "timm/mobilenetv3_small_050" in list_models("timm/mobilenetv3_small*")
    assert "timm/resnet18.a1_in1k" in list_models("timm/resnet18.a1*")
    assert list_models("c?n") == ["cnn"] and list_models("timm/nothing*") == []
