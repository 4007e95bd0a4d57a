"""What is exported makes the very same numbers of a decoded picture as the checkpoint's own preprocessing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.exports.picture_input import PictureInput
from finetune.models.classifier import Classifier
from finetune.models.registry import build_model
from finetune.models.spec import InputSpec

SIDES = ((40, 61), (33, 33), (7, 90), (120, 31), (3, 5), (1, 1), (24, 24), (150, 149))  # height and width
CUTS = ((1.0, "squash"), (0.875, "squash"), (1.0, "shorter_side"), (0.9, "shorter_side"))


@pytest.fixture(scope="module")
def network():
    return build_model("cnn", 2, {})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_every_pixel_is_pillows(network, interpolation, channels):
    rng = np.random.default_rng(0)
    for crop, resize in CUTS:
        spec = InputSpec(channels, 24, (0.4,) * channels, (0.2,) * channels, interpolation, crop, resize)
        ours, theirs = Classifier(network, "cnn", {}, ("a", "b"), spec), PictureInput(spec)
        for height, width in SIDES:
            noise = rng.integers(0, 256, (2, height, width, 3)).astype(np.uint8)
            noise[1] = noise[1] // 128 * 255  # black and white overshoot, so that sums are clipped
            expected = torch.stack([ours.preprocess(Image.fromarray(pixels)) for pixels in noise])
            assert torch.equal(theirs(torch.from_numpy(noise)), expected), (crop, resize, height, width)


def test_a_grey_picture_may_be_given_as_three_equal_channels(network):
    spec = InputSpec(1, 24, (0.4,), (0.2,))
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = Classifier(network, "cnn", {}, ("a", "b"), spec).preprocess(Image.fromarray(grey))
    assert torch.equal(PictureInput(spec)(torch.from_numpy(grey)[None, :, :, None].expand(1, 16, 16, 3))[0], expected)
