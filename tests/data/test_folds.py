"""Folds: each image is tested once, classes are spread evenly, and what belongs together stays together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.folds import Fold, FoldedImages, fold_numbers
from finetune.data.image_dataset import DataSplits, ImageSet, MemmapImages, join
from finetune.errors import DataError


def random_set(sizes: list[int], seed: int = 0, values: int = 256, group: int = 0) -> ImageSet:
    """Images 1×3×3, so many of each class, mixed; groups of about `group` images of any class."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.permutation(np.repeat(np.arange(len(sizes)), sizes)))
    images = torch.from_numpy(rng.integers(values, size=(len(labels), 1, 3, 3), dtype=np.uint8))
    groups = tuple(f"g{n}" for n in rng.integers(len(labels) // group, size=len(labels))) if group else ()
    return ImageSet(images, labels, tuple(f"c{i}" for i in range(len(sizes))), "random", groups=groups)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(5, 40), min_size=1, max_size=5), st.integers(2, 5), st.integers(0, 9))
def test_classes_and_images_are_spread_evenly(sizes: list[int], folds: int, seed: int) -> None:
    data = random_set(sizes, seed)
    numbers, notes = fold_numbers(data, folds)
    table = np.stack([np.bincount(numbers[data.labels.numpy() == c], minlength=folds) for c in range(len(sizes))])
    assert np.ptp(table, axis=1).max() <= 1 and np.ptp(table.sum(0)) <= 1 and notes == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0, 4]))
def test_the_fold_of_an_image_does_not_depend_on_the_order(seed: int, group: int) -> None:
    data = random_set([30, 20], seed, values=3, group=group)
    order = np.random.default_rng(seed).permutation(len(data))
    assert np.array_equal(fold_numbers(data.subset(order), 4)[0], fold_numbers(data, 4)[0][order])


def test_equal_pixels_and_groups_are_in_one_fold() -> None:
    repeated, grouped = random_set([60, 60]), random_set([60, 60], group=5)
    repeated = replace(repeated, images=torch.cat([repeated.images[:40]] * 3))
    for data, names in ((repeated, [*map(bytes, repeated.images.numpy())]), (grouped, [*grouped.groups])):
        numbers, _ = fold_numbers(data, 3)
        place: dict[bytes | str, int] = {}
        assert all(place.setdefault(name, number) == number for name, number in zip(names, numbers, strict=True))
        assert len(place) < 60 and np.ptp(np.bincount(numbers)) <= 3


def test_groups_of_uneven_size_are_balanced() -> None:
    data = random_set([300, 300])
    sizes = np.repeat(np.arange(60), np.random.default_rng(1).integers(1, 20, 60))[:600]
    data = data.subset(np.argsort(data.labels.numpy(), kind="stable")[: len(sizes)])
    numbers, _ = fold_numbers(replace(data, groups=tuple(map(str, sizes))), 5)
    assert np.ptp(np.bincount(numbers)) <= 20


def test_names_decide_where_there_are_any_so_that_the_size_of_images_does_not() -> None:
    data = random_set([40, 40])
    named = replace(data, files=tuple(f"{i}.png" for i in range(80)))
    other = replace(named, images=random_set([40, 40], seed=1).images)
    assert np.array_equal(fold_numbers(named, 5)[0], fold_numbers(other, 5)[0])
    assert not np.array_equal(fold_numbers(data, 5)[0], fold_numbers(replace(other, files=()), 5)[0])


@pytest.mark.parametrize("folds", [-1, 0, 1, 51])
def test_too_few_or_too_many_folds(folds: int) -> None:
    with pytest.raises(DataError, match=f"--folds {folds}: expected 2 to 50.*the smallest class is c1 with 10"):
        fold_numbers(random_set([40, 10]), folds)


def test_a_class_of_one_image_or_group_is_refused_and_a_small_one_is_told() -> None:
    with pytest.raises(DataError, match=r"fewer than 2 pictures that differ of c1 \(1\).*data.classes"):
        fold_numbers(random_set([40, 1]), 3)
    one = random_set([40, 4])
    groups = tuple("g" if label else str(i) for i, label in enumerate(one.labels.tolist()))
    with pytest.raises(DataError, match=r"fewer than 2 groups of c1 \(1\)"):
        fold_numbers(replace(one, groups=groups), 3)
    numbers, notes = fold_numbers(one, 5)
    assert notes == ["fewer pictures that differ than folds, so some folds do not test: c1 (4)"]
    assert set(np.bincount(numbers, one.labels.numpy(), minlength=5)) == {0, 1}
    assert len(set(fold_numbers(random_set([3, 3]), 6)[0])) == 6, "each image may be a fold of its own"


def test_all_parts_are_joined_and_each_image_is_tested_once() -> None:
    train, validation, test = (random_set([10, 10], seed) for seed in range(3))
    notes = ("of pixels", "of parts")
    folded = FoldedImages.of(DataSplits(train, test, validation, notes, split_notes=("of parts",)), 4)
    assert len(folded.images) == 60 and folded.notes == ("of pixels",)
    assert folded.own_test == {"images": 20, "fingerprint": test.fingerprint()}
    tested = []
    for number in range(4):
        splits = folded.splits(Fold(number, 4))
        assert len(splits.train) + len(splits.test) == 60 and splits.validation is None
        tested += [bytes(image) for image in splits.test.images.numpy()]
        assert not {bytes(i) for i in splits.train.images.numpy()} & {bytes(i) for i in splits.test.images.numpy()}
    assert len(set(tested)) == len(tested) == 60
    every = folded.splits(Fold(None, 4))
    assert (len(every.train), len(every.test)) == (60, 0)


def test_memory_mapped_images_are_joined_without_being_read() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(20, 1, 3, 3), dtype=np.uint8)
    labels = torch.arange(10) % 2
    parts = [
        ImageSet(MemmapImages(pixels, rows), labels, ("a", "b"), "part", groups=groups)
        for rows, groups in ((np.arange(10), ()), (np.arange(10, 20), ("g",) * 10))
    ]
    found = join(parts, "whole")
    assert isinstance(found.images, MemmapImages) and found.images.pixels is pixels
    assert found.groups == ("",) * 10 + ("g",) * 10 and found.origin == "whole"
    assert torch.equal(found.images[:], torch.from_numpy(pixels))
