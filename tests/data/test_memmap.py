"""Images in a file are, to everything that uses them, what the same images in memory are."""

import numpy as np
import pytest
import torch

from finetune.data import image_dataset
from finetune.data.image_dataset import ImageSet, MemmapImages
from finetune.data.loader import Batches
from finetune.data.normalize import Normalizer
from finetune.data.split import hold_out, image_hashes, take_shots

NAMES = ("ant", "bee")


@pytest.fixture
def both(tmp_path):
    """The same set in memory and in a file, in which it lies backwards among others."""
    images = torch.randint(256, (40, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels, files = torch.arange(40) % 2, tuple(f"{i}.png" for i in range(40))
    np.save(tmp_path / "a.npy", np.concatenate([np.zeros((2, 3, 5, 5), np.uint8), images.numpy()[::-1]]))
    kept = MemmapImages(np.load(tmp_path / "a.npy", mmap_mode="r"), np.arange(41, 1, -1))
    return ImageSet(images, labels, NAMES, "x", files), ImageSet(kept, labels, NAMES, "x", files)


def test_indexing(both):
    resident, lazy = (data.images for data in both)
    assert len(lazy) == 40 and lazy.shape == resident.shape and lazy.dtype == torch.uint8 and lazy.dim() == 4
    assert lazy.numel() == resident.numel() and lazy.device == resident.device
    for index in (slice(None), slice(3, 9), slice(38, 99), slice(9, 3), torch.tensor([5, 0, 5]), torch.arange(0)):
        assert torch.equal(lazy[index], resident[index])
    lazy[0:1].zero_()
    assert torch.equal(lazy[:], resident), "what is read is a copy"


def test_another_device_is_where_what_is_read_goes(both):
    meta = both[1].images.to(torch.device("meta"))
    assert isinstance(meta, MemmapImages) and meta[:3].device.type == "meta" and meta.cpu()[:3].device.type == "cpu"


def test_subsets_stay_in_the_file_and_keep_the_names(both):
    resident, lazy = both
    for part in (lambda d: d.subset([7, 3, 3]), lambda d: d.with_classes(["bee"]), lambda d: d.subset([])):
        ours, theirs = part(lazy), part(resident)
        assert isinstance(ours.images, MemmapImages) and ours.images.pixels is lazy.images.pixels
        assert torch.equal(ours.images[:], theirs.images) and ours.files == theirs.files
        assert ours.fingerprint() == theirs.fingerprint()
    assert lazy.subset([7, 3, 3]).files == ("7.png", "3.png", "3.png")


@pytest.mark.parametrize("chunk", [1, 200, 1 << 20])
def test_fingerprints_and_splits_are_the_same_a_chunk_at_a_time(both, monkeypatch, chunk):
    monkeypatch.setattr(image_dataset, "CHUNK", chunk)
    resident, lazy = both
    assert lazy.fingerprint() == resident.fingerprint()
    assert np.array_equal(image_hashes(lazy.images, "s"), image_hashes(resident.images, "s"))
    assert [p.fingerprint() for p in hold_out(lazy, 0.2)] == [p.fingerprint() for p in hold_out(resident, 0.2)]
    assert take_shots(lazy, 3, seed=1).files == take_shots(resident, 3, seed=1).files
    assert len(image_hashes(lazy.images[:0], "s")) == len(image_hashes(lazy.subset([]).images, "s")) == 0


def test_batches_are_the_same(both):
    normalize = Normalizer((0.5,) * 3, (0.25,) * 3, torch.device("cpu"))
    epochs = [
        list(Batches(data.images, data.labels, batch_size=16, seed=3, normalize=normalize).epoch(0)) for data in both
    ]
    for (a, x), (b, y) in zip(*epochs, strict=True):
        assert torch.equal(a, b) and torch.equal(x, y)


def test_names_of_files_have_no_part_in_the_fingerprint_but_must_fit(both):
    resident = both[0]
    bare = ImageSet(resident.images, resident.labels, NAMES, "x")
    assert bare.fingerprint() == resident.fingerprint() and bare.subset([1]).files == ()
    with pytest.raises(Exception, match="one file name an image, found 1 for 40"):
        ImageSet(resident.images, resident.labels, NAMES, "x", ("a",))
