"""Reads the digits bundled with scikit-learn, in MNIST's form: data for a first run without a network.

1,797 digits of 13 writers, 8×8 pixels of 0 to 16: the test part of UCI's Optical Recognition of Handwritten Digits
(Alpaydin and Kaynak, 1998, CC BY 4.0). As in MNIST, a digit fills 20×20 pixels in the middle of 28×28.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from finetune.data.image_dataset import DataSplits, ImageSet
from finetune.data.split import hold_out

Integers = npt.NDArray[np.int64]
TEST_FRACTION = 0.2


def read_digits(class_names: tuple[str, ...]) -> DataSplits:
    """Reads 1,438 training and 359 test images, uint8 N×1×28×28, the same bytes on every machine.

    The test split is a stratified fifth, chosen by a hash of each image.
    """
    from sklearn.datasets import load_digits

    bundled: Any = load_digits()
    images = np.pad(enlarge(bundled.images.astype(np.int64)), ((0, 0), (4, 4), (4, 4)))
    labels = torch.from_numpy(bundled.target.astype(np.int64))
    whole = ImageSet(torch.from_numpy(images).unsqueeze(1), labels, class_names, "digits")
    train, test = hold_out(whole, TEST_FRACTION, salt="digits test")
    return DataSplits(
        ImageSet(train.images, train.labels, class_names, "digits train"),
        ImageSet(test.images, test.labels, class_names, "digits test"),
    )


def enlarge(images: Integers) -> npt.NDArray[np.uint8]:
    """Enlarges N×8×8 integers from 0 to 16 to N×20×20 from 0 to 255, bicubic, rounded to nearest and clipped."""
    weights = _bicubic_weights()
    scaled = weights @ images @ weights.T * 255
    unit = 16 * 2000 * 2000
    pixels: npt.NDArray[np.uint8] = np.clip((scaled + unit // 2) // unit, 0, 255).astype(np.uint8)
    return pixels


def _bicubic_weights() -> Integers:
    """Computes the 20×8 matrix of Keys's cubic convolution (1981, a = -1/2), in units of 1/2000; each row sums to 2000.

    Output pixel i lies at (4i - 3)/10 on the input's grid, so every weight is a whole number of these units and the
    enlarged image does not depend on how a machine rounds. Beyond the border the outermost pixel goes on.
    """
    weights = np.zeros((20, 8), dtype=np.int64)
    for row in range(20):
        position = 4 * row - 3  # in tenths of an input pixel
        for pixel in range(position // 10 - 1, position // 10 + 3):
            x = abs(position - 10 * pixel)
            inner, outer = 3 * x**3 - 50 * x**2 + 2000, -(x**3) + 50 * x**2 - 800 * x + 4000
            weights[row, min(max(pixel, 0), 7)] += inner if x <= 10 else outer
    return weights
