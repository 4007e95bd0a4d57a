"""Order and augmentation are a function of (seed, epoch, image), and of nothing else."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import Normalize

from finetune.batching import batches_per_epoch
from finetune.data.augment.affine import Augment, augment_affine
from finetune.data.loader import AHEAD, Batches, balanced_draws, keyed_generator, prefetch
from finetune.data.normalize import Normalizer

CPU = torch.device("cpu")
ALL = Augment(shift=2, rotate=15, scale=0.1, shear=5, elastic=1.5, erase=3)
COUNT = 150
YESTERDAY = [35, 101, 119, 127, 44, 14]  # the first six of 150 images, seed 3, epoch 4


def pixels(channels=1, side=12, count=COUNT):
    return torch.randint(0, 256, (count, channels, side, side), generator=keyed_generator("pixels"), dtype=torch.uint8)


def normaliser(channels=1):
    return Normalizer((0.13, 0.5, 0.2)[:channels], (0.31, 0.25, 1.0)[:channels], CPU)


def batches(inputs=None, *, batch_size=64, seed=3, augment=None, normalize=True, channels=1):
    """The label of an image is its index, so that an epoch shows where each image went."""
    inputs = pixels(channels) if inputs is None else inputs
    given = normaliser(channels) if normalize else None
    labels = torch.arange(len(inputs))
    return Batches(inputs, labels, batch_size=batch_size, seed=seed, normalize=given, augment=augment)


def order(given, epoch):
    return torch.cat([labels for _, labels in given.epoch(epoch)])


def by_index(given, epoch=1):
    found = [None] * len(given.labels)
    for inputs, labels in given.epoch(epoch):
        assert len(inputs) == len(labels)
        for image, label in zip(inputs, labels.tolist(), strict=True):
            assert found[label] is None, "an image came twice"
            found[label] = image
    return torch.stack(found)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalising_is_torchvisions(channels):
    given = normaliser(channels)
    mean, std = [0.13, 0.5, 0.2][:channels], [0.31, 0.25, 1.0][:channels]
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, channels, 16, 16)
    expected = Normalize(mean, std)(every.float() / 255)
    torch.testing.assert_close(given(every), expected, rtol=1e-6, atol=1e-6)
    assert given(every).dtype == torch.float32 and given(every).shape == every.shape
    black = torch.zeros(1, channels, 2, 2, dtype=torch.uint8)
    assert torch.equal(given(black), given.offset.expand(1, channels, 2, 2))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 149, 150, 151, 1000])
def test_every_image_comes_once_an_epoch_with_its_label(batch_size):
    given = batches(batch_size=batch_size)
    sizes = [len(labels) for _, labels in given.epoch(0)]
    assert len(sizes) == given.steps_per_epoch
    assert all(size == batch_size for size in sizes[:-1]) and sum(sizes) == len(given.labels) == COUNT
    assert (2 <= sizes[-1] <= batch_size + 1 and sizes[-1] % batch_size == COUNT % batch_size) or batch_size == 1
    assert torch.equal(order(given, 0).sort().values, torch.arange(COUNT))
    assert torch.equal(by_index(given), given.normalize(given.inputs))


def test_the_order_is_a_function_of_seed_and_epoch_only():
    first = order(batches(), 4)
    torch.manual_seed(99)
    unlike = batches(pixels(3), batch_size=7, augment=ALL, channels=3)
    list(unlike.epoch(0))
    assert torch.equal(order(unlike, 4), first)
    assert torch.equal(order(batches(torch.rand(COUNT, 5), normalize=False), 4), first)
    orders = [order(batches(seed=seed), epoch).tolist() for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len({tuple(o) for o in orders}) == 9
    assert all(o != sorted(o) for o in orders)


def test_seed_and_epoch_do_not_run_into_each_other():
    drawn = {
        tuple(torch.rand(2, generator=keyed_generator(*key)).tolist()) for key in [(1, 23), (12, 3), (123,), (1, 2, 3)]
    }
    assert len(drawn) == 4
    assert torch.rand(3, generator=keyed_generator(1, "a")).equal(torch.rand(3, generator=keyed_generator(1, "a")))
    assert not torch.rand(3, generator=keyed_generator(1, "a")).equal(torch.rand(3, generator=keyed_generator(1, "b")))


def test_the_random_numbers_of_today_are_those_of_yesterday():
    """A change here changes every checkpoint that was ever trained from a recipe; then say so in the CHANGELOG."""
    assert order(batches(), 4)[:6].tolist() == YESTERDAY


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [ALL, Augment(shift=2), Augment(erase=3), Augment(elastic=2), None])
def test_an_augmented_image_does_not_depend_on_batch_size_or_neighbours(augment, channels):
    expected = by_index(batches(augment=augment, channels=channels))
    for batch_size in (1, 7, 149, 1000):
        given = batches(batch_size=batch_size, augment=augment, channels=channels)
        assert torch.equal(by_index(given), expected)
    others = pixels(channels)
    others[1:] = 0
    assert torch.equal(by_index(batches(others, augment=augment, channels=channels))[0], expected[0])


def test_an_images_numbers_are_looked_up_by_its_index():
    given = batches(batch_size=7, augment=ALL)
    drawn = torch.rand(COUNT, ALL.numbers, generator=keyed_generator(3, 1, "augment"))
    expected = augment_affine(given.normalize(given.inputs), drawn, ALL, given.normalize.offset)
    assert torch.equal(by_index(given), expected)


def test_augmentation_differs_between_epochs_seeds_and_images():
    same = pixels()[:1].expand(COUNT, 1, 12, 12).contiguous()
    one = by_index(batches(same, augment=ALL))
    assert len({tuple(image.flatten().tolist()) for image in one}) == COUNT
    assert not torch.equal(one, by_index(batches(same, augment=ALL), epoch=2))
    assert not torch.equal(one, by_index(batches(same, augment=ALL, seed=4)))
    assert torch.equal(one, by_index(batches(same, augment=ALL)))


def test_augmentation_that_changes_nothing_is_left_out():
    assert torch.equal(by_index(batches(augment=Augment())), by_index(batches()))


def test_what_comes_in_from_outside_is_black():
    black = torch.zeros_like(pixels(3))
    given = batches(black, augment=ALL, channels=3)
    expected = given.normalize(black)
    torch.testing.assert_close(by_index(given), expected, rtol=0, atol=1e-5)


def test_the_data_are_left_as_they_were():
    given = batches(augment=ALL)
    before = given.inputs.clone()
    list(given.epoch(0))
    assert torch.equal(given.inputs, before)


@pytest.mark.parametrize("augment", [None, Augment(shift=2), Augment(rotate=10, scale=0.1, elastic=1)])
def test_several_batches_prepared_at_once_are_those_prepared_one_at_a_time(augment, monkeypatch):
    pixels = torch.randint(0, 256, (50, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalize = Normalizer((0.1,), (0.3,), torch.device("cpu"))
    given = Batches(pixels, torch.arange(50), batch_size=7, seed=0, normalize=normalize, augment=augment)
    together = list(given.epoch(1, 2))
    monkeypatch.setattr("finetune.data.loader.VALUES_PER_BLOCK", 1)
    alone = list(given.epoch(1, 2))
    assert [len(labels) for _, labels in together] == [7, 7, 7, 7, 8]
    for (images, labels), (own_images, own_labels) in zip(together, alone, strict=True):
        assert torch.equal(images, own_images) and torch.equal(labels, own_labels)


def test_activations_pass_through_bit_by_bit():
    kept = torch.randn(COUNT, 4, 3, 3).to(torch.bfloat16)
    assert torch.equal(by_index(batches(kept, normalize=False)), kept)


# --- a last batch of one ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(33, 16, [16, 17]), (33, 32, [33]), (34, 32, [32, 2]), (1, 32, [1]), (3, 1, [1, 1, 1]), (3, 2, [3])],
)
def test_a_last_batch_of_one_image_joins_the_one_before(images, batch_size, sizes):
    given = batches(pixels(count=images), batch_size=batch_size)
    assert [len(labels) for _, labels in given.epoch(0)] == sizes
    assert given.steps_per_epoch == batches_per_epoch(images, batch_size) == len(sizes)
    assert [given.local_and_global_count(batch)[1] for batch in range(len(sizes))] == sizes
    found = [given.images_of(0, batch) for batch in range(len(sizes))]
    assert found == [labels.tolist() for _, labels in given.epoch(0)]


@pytest.mark.parametrize("augment", [None, Augment(flip=True, mixup=0.3)])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("images", "batch_size", "processes"), [(33, 16, 2), (7, 5, 4), (5, 3, 3), (33, 32, 16)])
def test_every_process_has_two_images_where_a_batch_has_two(images, batch_size, processes, balanced, augment):
    labels = torch.arange(images) % 3
    options = {"batch_size": batch_size, "seed": 1, "normalize": normaliser(), "augment": augment, "classes": 3}
    whole = Batches(pixels(count=images), labels, **options, balanced=balanced)
    shards = [whole.shard(rank, processes) for rank in range(processes)]
    for number, (batch, *parts) in enumerate(zip(*(each.epoch(2) for each in (whole, *shards)), strict=True)):
        assert all(len(part[1]) >= min(2, len(batch[1])) for part in parts)
        counts = [shard.local_and_global_count(number) for shard in shards]
        assert [size for _, size in counts] == [len(batch[1])] * processes
        for place in (0, 1):
            own = torch.cat([part[place][:count] for part, (count, _) in zip(parts, counts, strict=True)])
            assert torch.equal(own, batch[place])


# --- classes drawn equally often --------------------------------------------------------------------------------------

TAIL = torch.tensor([0] * 50 + [1] * 20 + [2] * 3)


def tail_batches(**options):
    options = {"batch_size": 10, "seed": 3, "normalize": normaliser(), "classes": 3, **options}
    return Batches(pixels(count=len(TAIL)), TAIL, **options, balanced=True)


def drawn(given, epoch):
    return torch.tensor([image for batch in range(given.steps_per_epoch) for image in given.images_of(epoch, batch)])


def test_classes_come_equally_often_and_the_images_of_a_class_too():
    given = tail_batches()
    every = [drawn(given, epoch) for epoch in range(30)]
    for images in every:
        assert len(images) == len(TAIL)
        counts = TAIL[images].bincount(minlength=3)
        assert counts.max() - counts.min() <= 1
    times = torch.cat(every).bincount(minlength=len(TAIL))
    for label in range(3):
        own = times[label == TAIL]
        assert own.max() - own.min() <= 1 and own.sum() == 30 * len(TAIL) // 3
    assert len({tuple(images.tolist()) for images in every}) == 30


def test_draws_are_a_function_of_seed_and_epoch_and_come_with_their_labels():
    given, again, other = tail_batches(), tail_batches(), tail_batches(seed=4)
    assert torch.equal(drawn(given, 7), drawn(again, 7)) and not torch.equal(drawn(given, 7), drawn(other, 7))
    assert torch.equal(torch.cat([labels for _, labels in given.epoch(7)]), TAIL[drawn(given, 7)])
    whole, rest = list(given.epoch(7)), list(again.epoch(7, 3))
    assert all(
        torch.equal(a, b) for one, two in zip(whole[3:], rest, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_more_classes_than_draws_take_turns_from_epoch_to_epoch():
    labels = torch.arange(7)
    found = torch.cat([balanced_draws(labels[:7], 0, epoch) for epoch in range(3)])
    assert found.tolist() == [*range(7)] * 3
    few = torch.tensor([5, 5, 9])  # classes without an image are none
    assert torch.cat([balanced_draws(few, 0, epoch) for epoch in range(2)]).bincount().tolist()[2] == 3


def test_an_image_that_comes_again_in_an_epoch_is_changed_anew_and_activations_are_not():
    inputs, images = torch.cat([x for x, _ in tail_batches(augment=ALL).epoch(0)]), drawn(tail_batches(), 0)
    own = inputs[images == 72]
    assert len(own) > 5 and len({tuple(image.flatten().tolist()) for image in own}) == len(own)
    kept = torch.randn(2 * len(TAIL), 4)  # of two views
    views = Batches(kept, TAIL, batch_size=10, seed=3, views=2, balanced=True)
    for epoch in (0, 1):
        found = torch.cat([rows for rows, _ in views.epoch(epoch)])
        assert torch.equal(found, kept[drawn(views, epoch) + epoch * len(TAIL)])
    augmented = tail_batches(augment=ALL, views=2)
    seen = torch.cat([x for x, _ in augmented.epoch(0)])
    torch.testing.assert_close(seen, augmented.input_fn(0)(drawn(augmented, 0)), rtol=0, atol=0)


@pytest.mark.parametrize("augment", [None, ALL, Augment(flip=True, cutmix=1.0)])
def test_drawn_images_that_are_read_are_those_that_are_resident(augment):
    options = {"batch_size": 10, "seed": 3, "normalize": normaliser(), "augment": augment, "classes": 3}
    lazy = Batches(Read(pixels(count=len(TAIL))), TAIL, **options, balanced=True)
    for one, two in zip(lazy.epoch(1), tail_batches(augment=augment).epoch(1), strict=True):
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


# --- the evaluation view ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("working", "size"), [(16, 12), (17, 12), (12, 12)])
def test_the_view_is_the_centre_of_what_is_stored(working, size):
    given = Normalizer((0.4,), (0.2,), CPU, size=size, working=working)
    stored, first = pixels(side=working), (working - size) // 2
    expected = Normalizer((0.4,), (0.2,), CPU)(stored[:, :, first : first + size, first : first + size])
    assert torch.equal(given(stored), expected)


@pytest.mark.parametrize("side", [10, 20, 33])
def test_other_sizes_are_resized_with_antialiasing(side):
    given = Normalizer((0.4,), (0.2,), CPU, size=14, working=16)
    stored = pixels(side=side, count=5)
    resized = F.interpolate(stored.float(), size=(14, 14), mode="bilinear", antialias=True)
    torch.testing.assert_close(given(stored), (resized / 255 - 0.4) / 0.2, rtol=0, atol=1e-5)
    wide = stored[:, :, : side // 2]
    assert given(wide).shape == (5, 1, 14, 14)


def test_images_of_the_size_are_taken_as_they_are():
    for given in (Normalizer((0.4,), (0.2,), CPU, size=12), Normalizer((0.4,), (0.2,), CPU, size=12, working=14)):
        assert torch.equal(given(pixels()), Normalizer((0.4,), (0.2,), CPU)(pixels()))


def test_one_channel_serves_for_three():
    given = Normalizer((0.1, 0.2, 0.3), (0.5, 0.4, 0.3), CPU, size=10, working=12)
    assert torch.equal(given(pixels()), given(pixels().expand(-1, 3, -1, -1)))
    assert torch.equal(given.denormalize(given(pixels())), given.center_view(pixels()).expand(-1, 3, -1, -1))


PHOTO = Augment(crop=0.4, flip=True, colour=0.3, erasing=0.3, rotate=5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [12, 14, 16, 30])
@pytest.mark.parametrize("augment", [PHOTO, Augment(flip=True), Augment(shift=2), Augment(flip=True, mixup=0.3)])
def test_augmented_images_have_the_size_and_do_not_depend_on_the_batch(side, channels, augment):
    given = Normalizer((0.1, 0.2, 0.3), (0.5, 0.4, 0.3), CPU, size=14, working=16)
    found = []
    for batch_size in (7, 30):
        made = Batches(
            pixels(channels, side, 30),
            torch.arange(30),
            batch_size=batch_size,
            seed=1,
            normalize=given,
            augment=augment,
            classes=30,
        )
        found.append(torch.cat([inputs for inputs, _ in made.epoch(2)]))
        place = next(iter(torch.randperm(30, generator=keyed_generator(1, 2, "order")).tolist()))
        assert torch.equal(made.at(2, place)[0][0], found[-1][0])
    assert found[0].shape == (30, 3, 14, 14) and torch.equal(*found)


def test_a_crop_reads_beyond_the_view_but_not_from_what_is_far_larger():
    given = Normalizer((0.5,), (0.5,), CPU, size=12, working=16)
    assert given.crop_source(pixels(side=16)).shape[-1] == 16 and given.crop_source(pixels(side=9)).shape[-1] == 9
    assert given.crop_source(pixels(side=40)).shape[-1] == 12
    stored = torch.zeros(50, 1, 16, 16, dtype=torch.uint8)
    stored[:, :, :2] = 255  # seen only by a crop that goes beyond the view
    made = Batches(stored, torch.arange(50), batch_size=50, seed=0, normalize=given, augment=Augment(crop=0.5))
    assert next(iter(made.epoch(0)))[0].max() > 0.9 and given(stored).max() == -1


# --- images that are read ---------------------------------------------------------------------------------------------


class Read:
    """Images of a file, in the place of one: pixels come when rows are asked for."""

    def __init__(self, held):
        self.held, self.asked, self.threads = held, [], set()

    def __len__(self):
        return len(self.held)

    def __getitem__(self, index):
        self.asked.append(index.tolist())
        self.threads.add(threading.current_thread())
        return self.held[index]


@pytest.mark.parametrize("augment", [None, ALL, PHOTO, Augment(flip=True, cutmix=1.0)])
@pytest.mark.parametrize("batch_size", [1, 32, 150])
def test_images_that_are_read_give_what_resident_ones_give(augment, batch_size):
    read = Read(pixels(3))
    options = {"batch_size": batch_size, "seed": 3, "normalize": normaliser(3), "augment": augment, "classes": COUNT}
    lazy = list(Batches(read, torch.arange(COUNT), **options).epoch(4))
    resident = list(Batches(read.held, torch.arange(COUNT), **options).epoch(4))
    assert all(
        torch.equal(a, b) for one, two in zip(lazy, resident, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert len(read.asked) == len(lazy) and threading.main_thread() not in read.threads


def test_a_few_batches_are_read_ahead_and_no_more_when_the_caller_stops():
    read = Read(pixels())
    epoch = Batches(read, torch.arange(COUNT), batch_size=5, seed=0, normalize=normaliser()).epoch(0)
    next(epoch)
    epoch.close()
    assert 1 <= len(read.asked) <= AHEAD + 1
    assert not any(thread.is_alive() for thread in read.threads)


def test_what_waits_is_not_begun_when_the_caller_stops():
    gate, begun = threading.Event(), []

    def read(key):
        begun.append(key)
        if key:
            gate.wait(5)
        return key

    results = prefetch(read, range(100))
    assert next(results) == 0
    threading.Timer(0.2, gate.set).start()
    results.close()
    assert set(begun) <= {0, 1, 2}, "two threads were at work, the third key waited"


def test_reading_ahead_keeps_the_order_and_brings_an_error_in_its_place():
    gate = threading.Event()

    def slow_first(key):
        if key == 0:
            gate.wait(5)
        else:
            gate.set()
        return 10 // (4 - key)

    found = []
    with pytest.raises(ZeroDivisionError):
        for value in prefetch(slow_first, range(9)):
            found.append(value)
    assert found == [2, 3, 5, 10]
    assert list(prefetch(str, [])) == []
