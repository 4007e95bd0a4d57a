"""Twins are found whatever was done to them, and look-alikes are not taken for twins."""

import numpy as np
import pytest
import torch

from finetune.data import twins
from finetune.data.twins import descriptors, find_twins, fit_model, nearest, thumbnails


def blobs(count, seed=0, side=28, channels=1):
    """Smooth random pictures, uint8 N×C×S×S."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 9, 9, generator=rng)
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return (255 * fine).to(torch.uint8).expand(-1, channels, -1, -1).contiguous()


def pairs_of(images, labels=None):
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    thumbs, every = thumbnails(images), np.arange(len(images))
    found = find_twins(thumbs, labels, descriptors(thumbs), every, every, fit_model(thumbs, labels))
    return {tuple(pair) for pair in found.pairs.tolist()}


def noisy(image):
    noise = 8 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    return (image.float() + noise).clamp(0, 255).to(torch.uint8)


def shifted(image, down, left):
    """The image moved; what comes in at the edges repeats them."""
    wide = torch.nn.functional.pad(image.float(), (0, left, down, 0), mode="replicate").to(torch.uint8)
    return wide[..., : image.shape[-2], left:]


CHANGES = {
    "mirrored": lambda image: image.flip(-1),
    "shifted": lambda image: shifted(image, 2, 1),
    "noisy": noisy,
    "darker": lambda image: (image.float() * 0.8 + 5).to(torch.uint8),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_is_a_twin_and_nothing_else_is(change):
    images = blobs(200)
    assert pairs_of(torch.cat([images, change(images[7:8])])) == {(7, 200)}


def test_what_all_pictures_have_in_common_is_no_evidence():
    frame = torch.zeros(28, 28)
    frame[4:24, 4:24] = 200
    images = (frame + 0.15 * blobs(300, seed=3).float()).clamp(0, 255).to(torch.uint8)
    assert pairs_of(images) == set()


def test_plain_pictures_are_not_called_twins():
    images = torch.cat([blobs(60), torch.full((5, 1, 28, 28), 128, dtype=torch.uint8)])
    assert pairs_of(images) == set()


def test_colour_and_large_pictures_become_grey_thumbnails():
    found = thumbnails(blobs(3, side=70, channels=3))
    assert found.shape == (3, twins.SIDE, twins.SIDE)
    assert torch.allclose(found, thumbnails(blobs(3, side=70)), atol=1e-3)
    assert torch.equal(thumbnails(blobs(3), np.array([2])), thumbnails(blobs(3))[2:])


def test_queries_and_pool_are_the_only_ones_compared(monkeypatch):
    monkeypatch.setattr(twins, "CELLS", 40)  # several blocks
    vectors = descriptors(thumbnails(torch.cat([blobs(30), blobs(30)])))
    pairs = nearest(vectors, np.arange(30, 60), np.arange(30))
    assert {(i, i + 30) for i in range(30)} <= {tuple(pair) for pair in pairs.tolist()}
    assert (pairs[:, 0] < 30).all() and (pairs[:, 1] >= 30).all()
    assert len(nearest(vectors, np.arange(3), np.arange(0))) == 0


def test_few_pictures_and_none_alike_are_no_error():
    assert pairs_of(blobs(2)) == set()
    assert pairs_of(torch.zeros(4, 1, 28, 28, dtype=torch.uint8)) == set()
