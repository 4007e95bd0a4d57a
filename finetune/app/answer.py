"""What a classifier says of one picture, and the picture as it saw it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.errors import DataError
from finetune.models.classifier import Classifier, Prediction

if TYPE_CHECKING:
    from finetune.models.classifier import ImageLike


@dataclass(frozen=True)
class Answer:
    """A prediction, equal to that of `Classifier.predict`, and what the network saw.

    probabilities: of each class by its name, in the classifier's order. seen: uint8 size×size, or size×size×3 in
    colour, resized and cropped, before it is normalised.
    """

    prediction: Prediction
    probabilities: Mapping[str, float]
    seen: npt.NDArray[np.uint8]

    def seen_as_png(self) -> str:
        """What the network saw as the data: address of a PNG, so that a page needs no file for it."""
        from PIL import Image

        content = io.BytesIO()
        Image.fromarray(self.seen).save(content, "PNG")
        return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def answer(classifier: Classifier, picture: ImageLike) -> Answer:
    """Predicts one picture: a file's path, a PIL image or uint8 pixels. DataError when it is no picture."""
    inputs = classifier.preprocess(picture)
    prediction = classifier.predict_preprocessed(inputs[None])[0]
    probabilities = dict(zip(classifier.class_names, prediction.probabilities, strict=True))
    return Answer(prediction, probabilities, _pixels(classifier, inputs))


def answer_file(classifier: Classifier, path: str) -> Answer:
    """Predicts a picture's file. DataError as in `answer`, with the file's name for its whole path."""
    try:
        return answer(classifier, path)
    except DataError as error:
        raise DataError(str(error).replace(path, Path(path).name)) from None


def _pixels(classifier: Classifier, inputs: Tensor) -> npt.NDArray[np.uint8]:
    """The pixels of a network's input C×H×W: uint8 H×W, or H×W×3."""
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (classifier.input.mean, classifier.input.std))
    pixels = ((inputs * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return (pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).contiguous().numpy()
