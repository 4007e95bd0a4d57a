"""A network with its class names and the preprocessing of its input: all that a prediction needs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from finetune.checkpoint.confidence import Confidence
from finetune.data.image_io import CropSpec, center_crop, decode_image, read_image, to_eight_bits
from finetune.errors import CheckpointError, DataError, SettingError
from finetune.models.novelty import NoveltyScore, run_with_features
from finetune.models.spec import InputSpec
from finetune.models.staged import StagedNetwork, eval_mode

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike: TypeAlias = str | Path | bytes | Image | np.ndarray | Tensor

PREDICT_BATCH = 256  # images, of few pixels; of larger ones fewer
MAX_PIXELS = 4_000_000  # in one batch


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one image, and the probability and logit of each class in the classifier's order.

    Probabilities are calibrated where the checkpoint records a temperature; logits are the network's own. unsure: the
    probability is below the threshold of the checkpoint's promise, so that `label` is a guess. novelty: its novelty
    score, None where the checkpoint has none. unlike: that is above the threshold, so that the answer means little.
    """

    label: str
    probability: float
    probabilities: tuple[float, ...]
    logits: tuple[float, ...] = ()
    unsure: bool = False
    novelty: float | None = None
    unlike: bool = False


class Classifier(nn.Module):
    """`forward` takes normalised images (float, N×C×H×W) and gives logits (N×classes); `predict` takes pictures."""

    def __init__(
        self,
        network: StagedNetwork,
        model: str,
        arguments: Mapping[str, Any],
        class_names: Sequence[str],
        input: InputSpec,
    ) -> None:
        super().__init__()
        self.network = network
        self.model = model
        self.arguments = dict(arguments)
        self.class_names = tuple(class_names)
        self.input = input
        self.origin: object | None = None  # the source it was loaded from, for `finetune.save`
        self.confidence: Confidence | None = None
        self.novelty: NoveltyScore | None = None

    def trust(self, confidence: Confidence | None, where: str) -> None:
        """Answers from now on as `confidence` says. CheckpointError, naming `where`, if it is of another network."""
        novelty = confidence.novelty if confidence is not None else None
        score = NoveltyScore.of(novelty) if novelty is not None else None
        if score is not None and not score.fits(self.network):
            raise CheckpointError(
                f"{where}: its metadata does not hold at confidence.novelty: the network cannot be cut behind stages "
                f"{', '.join(map(str, score.cuts))}"
            )
        self.confidence, self.novelty = confidence, score

    def with_classes(self, class_names: Sequence[str]) -> Classifier:
        """Copies the classifier under other class names; its head still has to be replaced."""
        return Classifier(copy.deepcopy(self.network), self.model, self.arguments, class_names, self.input)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    def preprocess(self, image: ImageLike) -> Tensor:
        """Makes one image the network's input: float, C×size×size, normalised.

        `image` is a file's path, the bytes of a file, a PIL image, or uint8 pixels (H×W or H×W×C array; H×W or C×H×W
        tensor). Pictures of another size are resized as the input says, colour is turned grey where the network is
        grey, 16 bits to 8, and what is transparent lies over white. A JPEG file is decoded as those that were trained
        on; a PIL image as it is. DataError when it is no picture.
        """
        spec = self.input
        how = spec.crop_spec(spec.channels)
        square = how.square(_open_picture(image, how))
        pixels = center_crop(torch.from_numpy(square).permute(2, 0, 1), spec.size)
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (spec.mean, spec.std))
        return (pixels.float() / 255 - mean) / std

    def predict(self, images: Iterable[ImageLike]) -> list[Prediction]:
        """Predicts label and probabilities of each picture, in order, in evaluation mode; modes are restored."""
        return list(self.predict_each(images))

    def predict_each(self, images: Iterable[ImageLike], batch: int | None = None) -> Iterator[Prediction]:
        """Yields what `predict` returns, a batch at a time, so that memory does not grow with the number of images.

        batch: images at once; by default as many as suit their size. SettingError for what is no collection of images;
        DataError at the first that cannot be read, after the predictions of the batches before it.
        """
        if isinstance(images, (str, bytes, Path)):
            raise SettingError(f"expected several images, found the one path {images!r}; put it in a list")
        if not isinstance(images, Iterable):
            raise SettingError(f"expected several images, found {type(images).__name__}; put them in a list")
        if batch is not None and batch < 1:
            raise SettingError(f"expected a batch of at least 1 image, found {batch}")
        size = batch or max(8, min(PREDICT_BATCH, MAX_PIXELS // self.input.size**2))
        return self._predict_each(iter(images), min(size, sys.maxsize))

    def _predict_each(self, images: Iterator[ImageLike], batch: int) -> Iterator[Prediction]:
        while inputs := [self.preprocess(image) for image in islice(images, batch)]:
            yield from self.predict_preprocessed(torch.stack(inputs))

    @torch.no_grad()
    def predict_preprocessed(self, inputs: Tensor) -> list[Prediction]:
        """Predicts as `predict` does what `preprocess` made of pictures: float N×C×size×size, in one batch."""
        with eval_mode(self):
            logits, novelty = self.logits_and_novelty(inputs.to(next(self.parameters()).device))
        rows = zip(self.probabilities(logits).tolist(), logits.cpu().tolist(), novelty.tolist(), strict=True)
        return [self._prediction(*row) for row in rows]

    def _prediction(self, row: list[float], logits: list[float], novelty: float) -> Prediction:
        best = max(range(len(row)), key=row.__getitem__)
        return Prediction(
            self.class_names[best],
            row[best],
            tuple(row),
            tuple(logits),
            self.is_unsure(row[best]),
            None if self.novelty is None else novelty,
            self.is_unlike(novelty),
        )

    def logits_and_novelty(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (float32, N×classes) of normalised images on its device, and novelty scores (N, CPU; NaN for none)."""
        if self.novelty is None:
            return self(inputs).float(), torch.full((len(inputs),), torch.nan)
        logits, features = run_with_features(self.network, inputs, self.novelty.cuts)
        return logits.float(), self.novelty.scores(features)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The calibrated probabilities (N×classes, CPU) of logits."""
        if self.confidence is None:
            return logits.softmax(1).cpu()
        return (logits.cpu().double() / self.confidence.temperature).softmax(1).float()

    def is_unsure(self, probability: float) -> bool:
        """Whether an answer of this calibrated probability is below the threshold of a promise."""
        promise = self.confidence.promise if self.confidence is not None else None
        return promise is not None and probability < promise.threshold

    def is_unlike(self, novelty: float) -> bool:
        """Whether a picture of this novelty score is unlike those trained on; no score (NaN) never is."""
        return self.novelty is not None and novelty > self.novelty.record.threshold


def _open_picture(image: ImageLike, spec: CropSpec) -> Image:
    """The picture, upright, of mode L or RGB. DataError when it is none."""
    from PIL import Image

    if isinstance(image, (str, Path)):
        return read_image(image, spec)
    if isinstance(image, bytes):
        return decode_image(image, spec)
    if isinstance(image, Image.Image):
        return to_eight_bits(image, spec.bits or 16)
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
    if not isinstance(image, np.ndarray):
        raise DataError(f"expected a path, bytes, a PIL image, an array or a tensor, found {type(image).__name__}")
    pixels = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (2, 3, 4))
    if pixels.dtype != np.uint8 or not shaped or pixels.size == 0:
        raise DataError(f"expected uint8 pixels of shape H×W or with a channel axis, found {image.dtype} {image.shape}")
    return to_eight_bits(Image.fromarray(pixels))
