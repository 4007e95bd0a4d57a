"""What names, labels and pixels say: groupings, contradicted labels, plain and odd pictures."""

import numpy as np
import pytest
import torch

from finetune.data.quality import (
    contradicted,
    equal_pixels,
    likely_grouping,
    odd_pictures,
    plain_pictures,
    same_but_for_case,
)

CLASSES = ("a", "b")


def bursts(form, alike=True):
    """Names, labels and vectors of 2 classes of 10 scenes, each seen 6 times; `alike`: these are near each other."""
    rng = np.random.default_rng(0)
    names, labels, vectors = [], [], []
    for label in range(2):
        for scene in range(10):
            centre = rng.normal(size=16)
            for frame in range(6):
                names.append(f"{CLASSES[label]}/" + form.format(scene=scene, frame=frame))
                labels.append(label)
                vectors.append((centre if alike else 0) + 0.3 * rng.normal(size=16))
    unit = torch.nn.functional.normalize(torch.tensor(np.array(vectors)))
    return names, np.array(labels), unit, CLASSES


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("{scene:05d}_{frame:05d}.png", r"(.+)_\d+"),
        ("scene{scene}-{frame}.jpg", r"(.+)-\d+"),
        ("holiday{scene} ({frame}).jpg", r"(.+) \(\d+\)"),
        ("patient{scene}/{frame}.png", "folder"),
    ],
)
def test_a_grouping_is_seen_in_names_and_gives_the_pattern(form, pattern):
    found = likely_grouping(*bursts(form))
    assert found is not None and found.pattern == pattern
    assert (found.groups, found.pictures) == (20, 120) and found.alike > 0.9
    assert f"data.group={pattern}" in found.sentence("x").replace("'", "")


def test_names_alone_are_no_grouping():
    assert likely_grouping(*bursts("{scene:05d}_{frame:05d}.png", alike=False)) is None
    assert likely_grouping(*bursts("IMG_{scene}{frame}.png")) is None  # one prefix a class


def test_contradicted_labels_come_worst_first():
    labels = np.array([0] * 10 + [1] * 10)
    probabilities = np.where(labels[:, None] == np.arange(2), 0.8, 0.2)
    probabilities[3], probabilities[14], probabilities[5] = (0.2, 0.8), (0.99, 0.01), (0.45, 0.55)
    assert contradicted(labels, probabilities).tolist() == [14, 3]


def test_equal_pixels_count_through_the_parts():
    images = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    assert [own.tolist() for own in equal_pixels([images, images[1:2], images[1:3]])] == [[1, 4, 5], [2, 6]]


def test_plain_and_odd_pictures():
    thumbs = torch.randn(80, 8, 8, generator=torch.Generator().manual_seed(0)) * 30 + 100
    thumbs[5] = 7.0
    assert plain_pictures(thumbs).tolist() == [5]
    features = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    features[17] = 40
    assert odd_pictures(features).tolist() == [17]
    assert len(odd_pictures(features[:10])) == 0


def test_class_names_that_differ_in_case_or_spacing():
    assert same_but_for_case(["Cat", "dog", "cat", "red_fox", "Red Fox"]) == [("Cat", "cat"), ("red_fox", "Red Fox")]
