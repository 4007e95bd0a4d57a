"""Fits what a checkpoint records of its confidence, from images that the network has not learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finetune.checkpoint.confidence import Confidence, NoveltyLayer, Promise
from finetune.data.image_dataset import ImageSet
from finetune.data.normalize import Normalizer
from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from finetune.errors import DataError, SettingError
from finetune.models.novelty import novelty_cuts, run_with_features
from finetune.models.staged import StagedNetwork
from finetune.run.data import RunData
from finetune.text import first_line
from finetune.train.abstention import CONFIDENCE, find_threshold, images_needed, images_that_would_do
from finetune.train.inference import batched_apply, eval_batch_size
from finetune.train.novelty import MAX_REFERENCES, distances, fit_novelty, reference_layer
from finetune.train.temperature import fit_temperature

How = Literal["validation", "folds", "data"]
MIN_IMAGES = 30  # held out, to fit a temperature: with 10 the calibration error doubles, with 20 it stays (docs/log.md)
MIN_ERROR = 0.0001  # that may be promised: it takes 30,000 images
MAX_LOGITS = 16_000_000  # images × classes that are kept


@dataclass(frozen=True)
class HeldOut:
    """What a network makes of images that it has not learnt from.

    logits: float, N×C. labels: int64, N. distances: to the training images, float, N×layers.
    """

    logits: Tensor
    labels: Tensor
    distances: Tensor

    @classmethod
    def joined(cls, parts: Sequence[HeldOut]) -> HeldOut:
        """All of several, as of folds."""
        fields = ("logits", "labels", "distances")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))


def reference_layers(
    network: StagedNetwork, train: ImageSet, normalize: Normalizer, group: ProcessGroup = SINGLE_PROCESS
) -> list[NoveltyLayer]:
    """Makes the novelty score's reference vectors from at most MAX_REFERENCES images, of each class its share."""
    by_class = train.labels.argsort(stable=True)
    chosen = torch.linspace(0, len(train) - 1, min(len(train), MAX_REFERENCES)).round().long()
    _, features = _observed(network, train.subset(by_class[chosen].sort().values), normalize, group)
    return [reference_layer(cut, own) for cut, own in zip(novelty_cuts(network), features, strict=True)]


def observe_held_out(
    network: StagedNetwork,
    images: ImageSet,
    layers: Sequence[NoveltyLayer],
    normalize: Normalizer,
    group: ProcessGroup = SINGLE_PROCESS,
) -> HeldOut:
    """Runs held-out images through the network, in float32 whatever it was trained in."""
    most = max(1, MAX_LOGITS // len(images.class_names))
    if len(images) > most:
        images = images.subset(torch.linspace(0, len(images) - 1, most).round().long())
    logits, features = _observed(network, images, normalize, group)
    return HeldOut(logits, images.labels.cpu(), distances(layers, features))


def _observed(
    network: StagedNetwork, images: ImageSet, normalize: Normalizer, group: ProcessGroup
) -> tuple[Tensor, list[Tensor]]:
    """Logits and, at each of the novelty score's cuts, channel means; all on the CPU."""
    cuts, device = novelty_cuts(network), normalize.scale.device
    widths: list[int] = []

    def columns(part: Tensor) -> Tensor:
        logits, features = run_with_features(network, normalize(part.to(device)), cuts)
        widths[:] = [logits.shape[1], *(own.shape[1] for own in features)]
        return torch.cat([logits.float(), *features], 1)

    size = eval_batch_size(normalize.pixels(images.images), device)
    found = batched_apply(torch.no_grad()(columns), network, images.images, size, group).cpu()
    logits, *features = torch.split(found, widths, 1)
    return logits, features


def fit_confidence(
    held: HeldOut, layers: Sequence[NoveltyLayer], how: How, max_error: float | None
) -> tuple[Confidence | None, list[str]]:
    """The record of a network's confidence, and what to tell of it; None where there are too few held-out images.

    max_error: share of answers that may be wrong, to be promised; None promises nothing.
    """
    count = len(held.labels)
    if count < MIN_IMAGES:
        return None, [too_few(count), *no_promise(max_error)]
    temperature = fit_temperature(held.logits, held.labels)
    promise: Promise | None = None
    notes: list[str] = []
    if max_error is not None:
        promise, notes = make_promise(held, temperature, max_error)
    novelty = fit_novelty(layers, held.distances)
    return Confidence(temperature=temperature, images=count, how=how, promise=promise, novelty=novelty), notes


def calibrate_on_validation(
    network: StagedNetwork,
    data: RunData,
    normalize: Normalizer,
    group: ProcessGroup = SINGLE_PROCESS,
    max_error: float | None = None,
) -> tuple[Confidence | None, list[str]]:
    """What a trained network's checkpoint records of its confidence, from the validation images of its run."""
    if len(data.validation) < MIN_IMAGES:
        return None, [too_few(len(data.validation)), *no_promise(max_error)]
    layers = reference_layers(network, data.train, normalize, group)
    held = observe_held_out(network, data.validation, layers, normalize, group)
    return fit_confidence(held, layers, "validation", max_error)


def too_few(count: int) -> str:
    """Why nothing is fitted on so few images."""
    found = f"{count} held out" if count else "none held out"
    return (
        f"not calibrated: expected at least {MIN_IMAGES} images to calibrate on, found {found}; hold out more with "
        "data.validation, or, to adapt, set calibration_folds"
    )


def no_folds(folds: int, error: DataError) -> str:
    """Why nothing is fitted where too few images are held out and the others cannot be divided into folds."""
    why = first_line(error).replace("--folds", "calibration_folds")
    return f"not calibrated: fewer than {MIN_IMAGES} held out, and no {folds} folds: {why}"


def no_promise(max_error: float | None) -> list[str]:
    """A sentence on what a promise that was asked for would take, where nothing is fitted."""
    if max_error is None:
        return []
    return [
        f"at most {100 * max_error:g} % wrong among the answered cannot be promised: it takes "
        f"{images_needed(max_error, 0):,} held-out images without a mistake"
    ]


def check_max_error(max_error: float | None) -> None:
    """SettingError for a share of errors that cannot be promised."""
    if max_error is not None and not MIN_ERROR <= max_error < 1:
        raise SettingError(
            f"--max-error {max_error:g}: expected a share from {MIN_ERROR:g} and below 1, such as 0.01 for 1 %; no "
            "number of images can promise that nothing is ever wrong"
        )


def make_promise(held: HeldOut, temperature: float, max_error: float) -> tuple[Promise | None, list[str]]:
    """A promise of at most `max_error`; where there can be none, a sentence on what it would take."""
    highest, predicted = (held.logits.double() / temperature).softmax(1).max(1)
    probability, right = highest.numpy(), (predicted == held.labels).numpy()
    count = len(right)
    found = find_threshold(probability, right, max_error)
    if found is not None:
        share = found.answered / count
        promise = Promise(
            max_error=max_error, confidence=CONFIDENCE, threshold=found.probability, answered=share, images=count
        )
        return promise, []
    least, about = images_needed(max_error, 0), images_that_would_do(probability, right, max_error)
    said = (
        f"at most {100 * max_error:g} % wrong among the answered cannot be promised by {count:,} held-out images: even "
        f"without a mistake it takes {least:,}"
    )
    if about is not None and about > least:
        said += f", and with mistakes as often as here about {about:,}"
    elif about is None:
        said += ", and with mistakes as often as here hardly any number would do"
    return None, [said]
