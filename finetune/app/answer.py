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
from finetune.models.staged import StagedNetwork
from finetune.train.heatmap import heated, heatmaps

if TYPE_CHECKING:
    from finetune.models.classifier import ImageLike


@dataclass(frozen=True)
class Answer:
    """A prediction, equal to that of `Classifier.predict`, and what the network saw.

    probabilities: of each class by its name, in the classifier's order. seen: uint8 size×size, or size×size×3 in
    colour, resized and cropped, before it is normalised. heated: the same with a heatmap of what the answer hangs on
    (uint8, size×size×3), where there is one. cautions: sentences on why the answer may mean little; none where it is
    as good as promised, or nothing is promised.
    """

    prediction: Prediction
    probabilities: Mapping[str, float]
    seen: npt.NDArray[np.uint8]
    heated: npt.NDArray[np.uint8] | None = None
    cautions: tuple[str, ...] = ()


def png_address(pixels: npt.NDArray[np.uint8]) -> str:
    """The data: address of a PNG of these pixels, so that a page needs no file for it."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def answer(classifier: Classifier, picture: ImageLike, untrained: StagedNetwork | None = None) -> Answer:
    """Predicts one picture: a file's path, a PIL image or uint8 pixels. DataError when it is no picture.

    untrained: the same network with random weights, for a heatmap; there is none where its own would be the same.
    """
    inputs = classifier.preprocess(picture)
    prediction = classifier.predict_preprocessed(inputs[None])[0]
    probabilities = dict(zip(classifier.class_names, prediction.probabilities, strict=True))
    seen = _pixels(classifier, inputs)
    heat = None if untrained is None else _heated(classifier, untrained, seen, prediction.label)
    return Answer(prediction, probabilities, seen, heat, _cautions(classifier, prediction))


def _cautions(classifier: Classifier, prediction: Prediction) -> tuple[str, ...]:
    """What to say of an answer that is unsure, and of a picture that is unlike those trained on."""
    found, promise = [], classifier.confidence.promise if classifier.confidence is not None else None
    if prediction.unlike:
        found.append("Unlike the pictures it was trained on: the answer may mean nothing.")
    if prediction.unsure and promise is not None:
        found.append(
            f"Unsure: from {promise.threshold:.1%} on, at most {100 * promise.max_error:g} % of answers are wrong, as "
            f"promised with {100 * promise.confidence:g} % confidence; this one is below."
        )
    return tuple(found)


def _heated(
    classifier: Classifier, untrained: StagedNetwork, seen: npt.NDArray[np.uint8], label: str
) -> npt.NDArray[np.uint8] | None:
    image = torch.from_numpy(seen if seen.ndim == 3 else seen[..., None]).permute(2, 0, 1)
    device = next(classifier.parameters()).device
    normalize, chosen = classifier.input.normalizer(device), [classifier.class_names.index(label)]
    found = heatmaps(classifier.network, untrained, image[None].to(device), normalize, chosen)
    return heated(image, found.maps[0]).permute(1, 2, 0).contiguous().numpy() if found.depend_on_weights else None


def answer_file(classifier: Classifier, path: str, untrained: StagedNetwork | None = None) -> Answer:
    """Predicts a picture's file. DataError as in `answer`, with the file's name for its whole path."""
    try:
        return answer(classifier, path, untrained)
    except DataError as error:
        raise DataError(str(error).replace(path, Path(path).name)) from None


def _pixels(classifier: Classifier, inputs: Tensor) -> npt.NDArray[np.uint8]:
    """The pixels of a network's input C×H×W: uint8 H×W, or H×W×3."""
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (classifier.input.mean, classifier.input.std))
    pixels = ((inputs * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return (pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).contiguous().numpy()
