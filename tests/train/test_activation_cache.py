"""The cache of activations: what is kept is what would be computed, it is found by the weights, and it falls back."""

import copy

import pytest
import torch
from networks import NormNet, opened_cache
from small_disk import no_file_above

from finetune.data.augment.affine import Augment
from finetune.data.loader import Batches
from finetune.data.normalize import Normalizer
from finetune.models.registry import build_model
from finetune.text import amount
from finetune.train import activation_cache
from finetune.train.activation_cache import FILE, MEMORY, TEST, TRAIN, ActivationKey, CachePart, prefix_hashes
from finetune.train.device import Runtime, seeded
from finetune.train.inference import outputs
from finetune.train.loop import PhaseConfig, Training
from finetune.train.optim import make_schedule

CPU = torch.device("cpu")
FLOAT32, BFLOAT16 = Runtime(CPU, "float32"), Runtime(CPU, "bfloat16")
GREY, COLOUR = (Normalizer((0.5,) * channels, (0.25,) * channels, CPU) for channels in (1, 3))
COUNT = 24
# What is run in other batches may differ in the last bits: torch chooses its kernels by the size of a batch. Where the
# first three were tried, the weights are equal bit for bit; 1×1 and depthwise convolutions make a difference, and what
# BatchNorm learns from few images enlarges it. In bfloat16 all were equal.
NETWORKS = {
    "cnn": (28, GREY, 1e-6),
    "timm/test_resnet": (32, COLOUR, 1e-6),
    "timm/test_convnext": (32, COLOUR, 1e-6),
    "timm/mobilenetv3_small_050": (32, COLOUR, 1e-3),
    "timm/test_efficientnet": (32, COLOUR, 1e-5),
}


def network(name="cnn"):
    _, normalize, _ = NETWORKS[name]
    with seeded(0):
        made = build_model(name, 5, {})
        FLOAT32.place(made)
        made.train()(normalize(pictures(name)[:8]))  # so that running statistics are not at their start
    return made


def pictures(name="cnn", count=COUNT):
    side, normalize, _ = NETWORKS[name]
    shape = (count, len(normalize.scale), side, side)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(3)).to(torch.uint8)


LABELS = torch.arange(COUNT) % 5


def trained(made, cut, batches, start, runtime=FLOAT32, steps=6):
    given = PhaseConfig(
        "p", made.stages[cut:], steps, "sgd", {"lr": 1e-3, "momentum": 0.9}, make_schedule("constant"), start=start
    )
    with seeded(0):
        list(Training(made, batches, given, runtime))
    return made.state_dict()


def largest_difference(one, other):
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.fixture
def cache(tmp_path):
    with opened_cache(pictures(), GREY, FLOAT32, tmp_path, other=pictures()) as made:
        yield made


@pytest.fixture
def images_run(monkeypatch):
    """How many images have gone through each stage of a `cnn`."""
    counted = dict.fromkeys(("conv1", "conv2", "fc1", "head"), 0)
    run_stage = type(network()).run_stage

    def counting(made, stage, x):
        counted[stage] += len(x) if len(x) > 8 else 0  # one is for the size, and 8 make statistics
        return run_stage(made, stage, x)

    monkeypatch.setattr(type(network()), "run_stage", counting)
    return counted


# --- equal to what is not cached --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_at_every_boundary_the_cached_run_ends_with_the_weights_of_the_uncached_one(name, tmp_path):
    _, normalize, tolerance = NETWORKS[name]
    pixels, fresh = pictures(name), network(name)
    cuts = fresh.cuts[1:-1]
    assert len(cuts) == len(fresh.stages) - 1
    keys = [ActivationKey(TRAIN, cut) for cut in cuts]
    with (
        opened_cache(pixels, normalize, FLOAT32, tmp_path) as memory,
        opened_cache(pixels, normalize, FLOAT32, tmp_path) as file,
    ):
        assert memory.keep(fresh, dict.fromkeys(keys, MEMORY)) and file.keep(fresh, dict.fromkeys(keys, FILE))
        for cut in cuts if name == "cnn" else (cuts[0], cuts[len(cuts) // 2], cuts[-1]):
            images = Batches(pixels, LABELS, batch_size=10, seed=0, normalize=normalize)
            plain = trained(copy.deepcopy(fresh), cut, images, 0)
            found = []
            for kept in (memory, file):
                made = copy.deepcopy(fresh)
                batches = Batches(kept.kept[ActivationKey(TRAIN, cut)].rows, LABELS, batch_size=10, seed=0)
                found.append(trained(made, cut, batches, cut))
            assert all(torch.equal(found[0][key], found[1][key]) for key in plain), "memory or file, bit for bit"
            assert largest_difference(found[0], plain) <= tolerance, cut
            frozen = {key for stage in fresh.stages[:cut] for key in plain if key.startswith(f"{stage}.")}
            assert all(torch.equal(plain[key], found[0][key]) for key in frozen)


@pytest.mark.parametrize("where", [MEMORY, FILE])
def test_in_bfloat16_training_images_are_run_as_in_training_and_others_in_float32(where, tmp_path):
    fresh, pixels = network(), pictures()
    with opened_cache(pixels, GREY, BFLOAT16, tmp_path, other=pixels) as kept:
        assert all(kept.keep(fresh, {ActivationKey(part, 2): where}) for part in (TRAIN, "other"))
        rows = kept.kept[ActivationKey(TRAIN, 2)].rows
        images = Batches(pixels, LABELS, batch_size=10, seed=0, normalize=GREY)
        plain = trained(copy.deepcopy(fresh), 2, images, 0, BFLOAT16)
        cached = trained(copy.deepcopy(fresh), 2, Batches(rows, LABELS, batch_size=10, seed=0), 2, BFLOAT16)
        assert rows[:].dtype == torch.bfloat16 and largest_difference(plain, cached) == 0
        assert torch.equal(kept.outputs(fresh, "other"), outputs(fresh, pixels, GREY))


@pytest.mark.parametrize("where", [MEMORY, FILE])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_judged_from_a_boundary_is_what_the_whole_network_says(name, where, tmp_path):
    _, normalize, _ = NETWORKS[name]
    fresh, pixels = network(name), pictures(name)
    with opened_cache(pixels, normalize, FLOAT32, tmp_path, other=pixels) as kept:
        for stop in (None, -1):
            expected = outputs(fresh, pixels, normalize, stop=stop)
            for cut in fresh.cuts[1:-1]:
                kept.release()
                assert kept.keep(fresh, {ActivationKey("other", cut): where})
                assert torch.equal(kept.outputs(fresh, "other", stop), expected), cut


def in_training(network, stop=None):
    """What the network gives for the pictures when it is computed as in training."""
    with FLOAT32.autocast():
        return outputs(network, pictures(), GREY, stop=stop)


# --- found by the weights ---------------------------------------------------------------------------------------------


def test_one_pass_fills_several_boundaries_and_is_not_made_again(cache, images_run):
    fresh = network()
    wanted = {ActivationKey(TRAIN, 1): FILE, ActivationKey(TRAIN, 3): MEMORY, ActivationKey(TRAIN, 2): MEMORY}
    for made in (fresh, copy.deepcopy(fresh)):
        assert cache.keep(made, wanted)
        cache.outputs(made, TRAIN, -1)
        assert images_run == {"conv1": COUNT, "conv2": COUNT, "fc1": COUNT, "head": 0}
    cache.release([ActivationKey(TRAIN, 1)])
    assert cache.keep(fresh, wanted)
    assert images_run == {"conv1": COUNT, "conv2": 2 * COUNT, "fc1": 2 * COUNT, "head": 0}, "from what is still kept"


def test_other_weights_in_front_do_not_find_it_and_others_behind_do(cache, images_run):
    fresh = network()
    assert cache.keep(fresh, {ActivationKey(TRAIN, 2): MEMORY})
    with torch.no_grad():
        fresh.fc1.weight[0, 0] += 1
        fresh.head.bias[0] += 1
    expected = in_training(fresh)
    before = dict(images_run)
    assert torch.equal(cache.outputs(fresh, TRAIN), expected) and images_run["conv1"] == before["conv1"]
    fresh.conv2.bias.data[0] += 1e-3  # behind autograd's back, as adapters are added
    expected = in_training(fresh)
    assert torch.equal(cache.outputs(fresh, TRAIN), expected) and images_run["conv1"] == before["conv1"] + 2 * COUNT
    assert cache.keep(fresh, {ActivationKey(TRAIN, 2): MEMORY})
    assert images_run["conv1"] == before["conv1"] + 3 * COUNT, "what does not fit any more is made anew"


def test_running_statistics_and_the_type_are_part_of_the_identity():
    with seeded(0):
        made = NormNet()
    first = prefix_hashes(made, [1, 2])
    assert prefix_hashes(copy.deepcopy(made), [2, 1]) == first and first[1] != first[2]
    made.body[1].running_mean[0] += 1
    assert prefix_hashes(made, [1])[1] == first[1] and prefix_hashes(made, [2])[2] != first[2]
    made.stem[1].num_batches_tracked += 1
    assert prefix_hashes(made, [1])[1] != first[1]
    assert prefix_hashes(made.half(), [1])[1] not in first.values()


def test_parameters_that_no_stage_in_front_owns_count_as_in_front():
    made = network("timm/test_resnet")
    first = prefix_hashes(made, [1])
    made.register_buffer("of_nobody", torch.zeros(1))
    assert prefix_hashes(made, [1]) != first


def test_onward_does_not_use_what_will_change(cache):
    fresh = network()
    assert cache.keep(fresh, {ActivationKey("other", 3): MEMORY})
    judge = cache.logits_from_cache(fresh, "other", 2)
    with torch.no_grad():
        fresh.fc1.weight.mul_(2)
    assert torch.equal(judge(), outputs(fresh, pictures(), GREY))


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [MEMORY, FILE])
def test_the_first_epochs_with_views_are_those_without_and_then_they_come_again(where, cache):
    fresh, augment, views = network(), Augment(shift=2, rotate=10), 3
    options = {"batch_size": 10, "seed": 4, "normalize": GREY, "augment": augment}
    anew, again = Batches(pictures(), LABELS, **options), Batches(pictures(), LABELS, **options, views=views)
    key = ActivationKey(TRAIN, 2, views)
    assert cache.keep(fresh, {key: where}, again.input_fn) and cache.kept[key].size == views * COUNT * 3136 * 4
    kept = Batches(cache.kept[key].rows, LABELS, batch_size=10, seed=4, views=views)
    for epoch in range(7):
        fronts = [[fresh.run(x, stop=2) for x, _ in made.epoch(epoch)] for made in (anew, again)]
        rows = [x for x, _ in kept.epoch(epoch)]
        for x, y in zip(rows, fronts[1], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(*fronts, strict=True)) == (epoch < views)
        orders = [[y.tolist() for _, y in made.epoch(epoch)] for made in (anew, again, kept)]
        assert orders[0] == orders[1] == orders[2], "the order is the epoch's own"
    plain = trained(copy.deepcopy(fresh), 2, anew, 0, steps=3 * views)
    cached = trained(copy.deepcopy(fresh), 2, kept, 2, steps=3 * views)
    assert largest_difference(plain, cached) < 1e-6


# --- what cannot be kept ----------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_said_once_and_nothing_is_lost(tmp_path, images_run):
    (tmp_path / "file").write_text("in the way")
    said = []
    with opened_cache(pictures(), GREY, FLOAT32, tmp_path / "file", warn=said.append) as kept:
        wanted = {ActivationKey(TRAIN, 2): FILE, ActivationKey(TRAIN, 3): MEMORY}
        assert not kept.keep(network(), wanted) and not kept.kept and images_run["conv1"] == 0
        assert kept.room == {MEMORY: 10**9, FILE: 0}
        (line,) = said
        assert line.startswith(f"{tmp_path / 'file'}: 301 kB of activations cannot be kept there (")
        assert "FINETUNE_CACHE" in line and "--set cache.disk=0" in line and "\n" not in line
        assert torch.equal(kept.outputs(network(), TRAIN), in_training(network()))


def test_a_disk_that_gets_full_on_the_way_loses_only_what_was_to_go_there(tmp_path, monkeypatch):
    monkeypatch.setattr(activation_cache, "_reserve", lambda descriptor, size: None)
    monkeypatch.setattr("finetune.train.inference.PROCESSOR", (5, 5, 1))  # five at once, also in what is expected
    said, fresh = [], network()
    wanted = {ActivationKey(TRAIN, 1): FILE, ActivationKey(TRAIN, 2): FILE, ActivationKey(TRAIN, 3): MEMORY}
    with opened_cache(pictures(), GREY, FLOAT32, tmp_path, warn=said.append) as kept, no_file_above(400_000):
        assert not kept.keep(fresh, wanted)
        assert set(kept.kept) == {ActivationKey(TRAIN, 3)} and kept.room[FILE] == 0 and len(said) == 1
        assert "602 kB of activations cannot be kept there (File too large)" in said[0]
        rows = kept.kept[ActivationKey(TRAIN, 3)].rows
        torch.testing.assert_close(
            rows, in_training(fresh, 3), rtol=1e-5, atol=1e-6
        )  # batches of 5 may round otherwise
        assert not kept.keep(fresh, {ActivationKey(TRAIN, 1): FILE}) or pytest.fail("there is no room")
    assert not list(tmp_path.iterdir())


def test_memory_that_cannot_be_had_is_said(tmp_path):
    said = []
    huge = pictures(count=1).expand(10**12, -1, -1, -1)
    with opened_cache(huge, GREY, FLOAT32, tmp_path, room=(10**18, 0), warn=said.append) as kept:
        assert not kept.keep(network(), {ActivationKey(TRAIN, 1): MEMORY}) and kept.room[MEMORY] == 0
    (line,) = said
    assert line == "25,088.0 TB of activations do not fit into memory; --set cache.memory=0 asks for none"


def test_room_is_given_back(tmp_path):
    with opened_cache(pictures(), GREY, FLOAT32, tmp_path, room=(310_000, 10**9)) as kept:
        for cut in (0, 1, 2, 3):  # 602 kB are too many; 301 kB are not, but leave no room for 12 kB
            kept.keep_in_memory(network(), ActivationKey(TRAIN, cut))
            assert {key.cut for key in kept.kept} == ({2} if cut >= 2 else set())
        kept.release([ActivationKey(TRAIN, 3)])
        kept.keep_in_memory(network(), ActivationKey(TRAIN, 3))
        assert set(kept.kept) == {ActivationKey(TRAIN, 3)}
    assert not kept.kept and not list(tmp_path.iterdir())


# --- another training goes on with it ---------------------------------------------------------------------------------


def parts_of(pixels, test):
    return {TRAIN: CachePart(pixels, training=True), TEST: CachePart(test)}


def test_another_training_finds_what_does_not_depend_on_it(cache):
    fresh, made = network(), Batches(pictures(), LABELS, batch_size=10, seed=0, normalize=GREY, views=2)
    views, plain = ActivationKey(TRAIN, 2, 2), ActivationKey(TRAIN, 2)
    assert cache.keep(fresh, {views: MEMORY}, made.input_fn) and cache.keep(fresh, {plain: MEMORY})
    cache.change_parts(cache.parts)
    assert set(cache.kept) == {plain}, "views are augmented by a seed"
    cache.change_parts(parts_of(pictures(), pictures()))
    assert not cache.kept, "other images"


def test_test_images_give_way_to_those_that_another_training_learns_from(tmp_path):
    train, test, fresh = pictures(), pictures(), network()
    small, large, judged = ActivationKey(TRAIN, 3), ActivationKey(TRAIN, 2), ActivationKey(TEST, 2)
    with opened_cache(train, GREY, FLOAT32, tmp_path, room=(320_000, 0), test=test) as kept:  # 301 kB and 12 kB
        kept.keep_in_memory(fresh, judged)
        kept.change_parts(parts_of(train, test))
        assert kept.keep(fresh, {small: MEMORY}) and set(kept.kept) == {judged, small}
        kept.change_parts(parts_of(train, test))
        kept.release([judged])
        assert kept.keep(fresh, {large: MEMORY}) and set(kept.kept) == {large}


def test_another_training_begins_with_all_the_room(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with opened_cache(pictures(), GREY, FLOAT32, tmp_path / "file", warn=lambda _: None) as kept:
        assert kept.keep(network(), {ActivationKey(TRAIN, 3): MEMORY})
        assert not kept.keep(network(), {ActivationKey(TRAIN, 2): FILE}) and kept.room[FILE] == 0
        kept.change_parts(kept.parts)
        assert kept.room == {MEMORY: 10**9, FILE: 10**9} and not kept.kept


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (301_056, "301 kB"), (2e9, "2.0 GB"), (3e15, "3,000.0 TB")],
)
def test_amounts(size, said):
    assert amount(size) == said
