"""Order and augmentation are a function of (seed, epoch, image), and of nothing else."""

import pytest
import torch
from torchvision.transforms import Normalize

from finetune.data.augment import Augment, augmented
from finetune.data.batches import Batches, Normaliser, generator

CPU = torch.device("cpu")
ALL = Augment(shift=2, rotate=15, scale=0.1, shear=5, elastic=1.5, erase=3)
COUNT = 150
YESTERDAY = [35, 101, 119, 127, 44, 14]  # the first six of 150 images, seed 3, epoch 4


def pixels(channels=1, side=12, count=COUNT):
    return torch.randint(0, 256, (count, channels, side, side), generator=generator("pixels"), dtype=torch.uint8)


def normaliser(channels=1):
    return Normaliser((0.13, 0.5, 0.2)[:channels], (0.31, 0.25, 1.0)[:channels], CPU)


def batches(inputs=None, *, batch_size=64, seed=3, augment=None, normalise=True, channels=1):
    """The label of an image is its index, so that an epoch shows where each image went."""
    inputs = pixels(channels) if inputs is None else inputs
    given = normaliser(channels) if normalise else None
    labels = torch.arange(len(inputs))
    return Batches(inputs, labels, batch_size=batch_size, seed=seed, normalise=given, augment=augment)


def order(given, epoch):
    return torch.cat([labels for _, labels in given.epoch(epoch)])


def by_index(given, epoch=1):
    found = [None] * given.images_per_epoch
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


@pytest.mark.parametrize("batch_size", [1, 7, 64, 150, 151, 1000])
def test_every_image_comes_once_an_epoch_with_its_label(batch_size):
    given = batches(batch_size=batch_size)
    sizes = [len(labels) for _, labels in given.epoch(0)]
    assert len(sizes) == given.steps_per_epoch == -(-COUNT // batch_size)
    assert all(size == batch_size for size in sizes[:-1]) and sum(sizes) == given.images_per_epoch == COUNT
    assert 1 <= sizes[-1] <= batch_size
    assert torch.equal(order(given, 0).sort().values, torch.arange(COUNT))
    assert torch.equal(by_index(given), given.normalise(given.inputs))


def test_the_order_is_a_function_of_seed_and_epoch_only():
    first = order(batches(), 4)
    torch.manual_seed(99)
    unlike = batches(pixels(3), batch_size=7, augment=ALL, channels=3)
    list(unlike.epoch(0))
    assert torch.equal(order(unlike, 4), first)
    assert torch.equal(order(batches(torch.rand(COUNT, 5), normalise=False), 4), first)
    orders = [order(batches(seed=seed), epoch).tolist() for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len({tuple(o) for o in orders}) == 9
    assert all(o != sorted(o) for o in orders)


def test_seed_and_epoch_do_not_run_into_each_other():
    drawn = {tuple(torch.rand(2, generator=generator(*key)).tolist()) for key in [(1, 23), (12, 3), (123,), (1, 2, 3)]}
    assert len(drawn) == 4
    assert torch.rand(3, generator=generator(1, "a")).equal(torch.rand(3, generator=generator(1, "a")))
    assert not torch.rand(3, generator=generator(1, "a")).equal(torch.rand(3, generator=generator(1, "b")))


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
    drawn = torch.rand(COUNT, ALL.numbers, generator=generator(3, 1, "augment"))
    expected = augmented(given.normalise(given.inputs), drawn, ALL, given.normalise.offset)
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
    expected = given.normalise(black)
    torch.testing.assert_close(by_index(given), expected, rtol=0, atol=1e-5)


def test_the_data_are_left_as_they_were():
    given = batches(augment=ALL)
    before = given.inputs.clone()
    list(given.epoch(0))
    assert torch.equal(given.inputs, before)


def test_activations_pass_through_bit_by_bit():
    kept = torch.randn(COUNT, 4, 3, 3).to(torch.bfloat16)
    assert torch.equal(by_index(batches(kept, normalise=False)), kept)
