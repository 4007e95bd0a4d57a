"""What an ImageSet promises: checked when made, and subsets that keep images, labels and names together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.data.image_dataset import DataSplits, ImageSet
from finetune.errors import DataError

NAMES = ("ant", "bee", "wasp")


def small(count: int = 12) -> ImageSet:
    images = torch.arange(count * 6, dtype=torch.uint8).view(count, 1, 2, 3)
    return ImageSet(images, torch.arange(count) % 2, NAMES, "small train")


@pytest.mark.parametrize(
    ("images", "labels", "names", "fault"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), NAMES, "uint8"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), NAMES, "N×C×H×W"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int32), NAMES, "int64"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), NAMES, "3 labels"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 3]), NAMES, "0 to 3"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([-1, 0]), NAMES, "-1 to 0"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "a"), "each once"),
        (torch.zeros(0, 1, 3, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), (), "none"),
    ],
)
def test_what_does_not_hold_together_is_refused(
    images: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...], fault: str
) -> None:
    with pytest.raises(DataError, match=fault):
        ImageSet(images, labels, names, "made up")


def test_subset_keeps_the_order_given() -> None:
    data = small()
    for indices in ([5, 0, 5], np.array([5, 0, 5]), torch.tensor([5, 0, 5])):
        part = data.subset(indices)
        assert torch.equal(part.images, data.images[[5, 0, 5]])
        assert part.labels.tolist() == [1, 0, 1]
    assert len(data.subset([])) == 0
    assert data.subset([]).images.shape == (0, 1, 2, 3)
    read_only = np.array([1])
    read_only.flags.writeable = False
    assert len(data.subset(read_only)) == 1


@pytest.mark.parametrize("indices", [[12], [-1], [0.5], torch.ones(12, dtype=torch.bool), [[1, 2]]])
def test_subset_refuses_what_is_not_an_index(indices: object) -> None:
    with pytest.raises(DataError, match="small train: expected"):
        small().subset(indices)  # type: ignore[arg-type]


def test_with_classes_renumbers_in_the_order_of_the_names() -> None:
    data = small()
    swapped = data.with_classes(["bee", "ant"])
    assert swapped.class_names == ("bee", "ant")
    assert torch.equal(swapped.images, data.images)
    assert torch.equal(swapped.labels, 1 - data.labels)
    bees = data.with_classes(["bee"])
    assert torch.equal(bees.images, data.images[1::2])
    assert bees.counts() == {"bee": 6}


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["bea"], r"did you mean 'bee'\? Classes are ant, bee, wasp"),
        (["ant", "ant"], "each once"),
        ([], "none"),
        (["wasp"], "wasp"),
    ],
)
def test_with_classes_names_the_fault(names: list[str], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        small().with_classes(names)


def test_counts_names_every_class() -> None:
    assert small().counts() == {"ant": 6, "bee": 6, "wasp": 0}
    assert small().subset([]).counts() == {"ant": 0, "bee": 0, "wasp": 0}


def test_fingerprint_changes_with_anything_but_the_origin() -> None:
    data = small()
    other_pixels, other_labels = data.images.clone(), data.labels.clone()
    other_pixels[3, 0, 1, 1] += 1
    other_labels[3] = 2
    changed = [
        ImageSet(other_pixels, data.labels, NAMES, ""),
        ImageSet(data.images, other_labels, NAMES, ""),
        ImageSet(data.images, data.labels, ("ant", "bee", "fly"), ""),
        ImageSet(data.images.view(12, 1, 3, 2), data.labels, NAMES, ""),
        data.subset(range(11)),
        data.subset(range(11, -1, -1)),
        data.subset([]),
    ]
    prints = {data.fingerprint(), *(other.fingerprint() for other in changed)}
    assert len(prints) == len(changed) + 1
    same = ImageSet(data.images.transpose(2, 3).contiguous().transpose(2, 3), data.labels.clone(), NAMES, "elsewhere")
    assert same.fingerprint() == data.fingerprint()


def test_both_parts_name_the_same_classes() -> None:
    with pytest.raises(DataError, match="same classes"):
        DataSplits(small(), small().with_classes(["bee", "ant"]))
