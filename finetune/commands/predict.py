"""`finetune predict`: what a checkpoint sees in pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.file_kinds import describe_kinds, is_system_name
from finetune.data.image_io import IMAGE_SUFFIXES, decode_image, open_image, pixels_in_memory, read_image_bytes
from finetune.data.manifest import ImageRecord
from finetune.data.openers import is_hub_data, unlabelled_records
from finetune.data.registry import DATASETS
from finetune.data.spec import DatasetSpec
from finetune.errors import DataError, SettingError
from finetune.hub.dataset import fetch_dataset
from finetune.io.safe_open import is_file, is_folder
from finetune.models.classifier import Classifier
from finetune.sources.resolve import locate, open_source
from finetune.train.device import choose_runtime
from finetune.train.inference import batched_apply, eval_batch_size

STANDARD_INPUT = "-"
LARGE = 16  # times the side of the training images: so large a picture is another kind of picture
COLOURFUL, COLOURED = 32, 0.1  # a pixel whose channels differ by more, of 255; the share of such pixels


@dataclass(frozen=True)
class FilePrediction:
    """The most probable classes of one picture with their probabilities, best first; or why it could not be read.

    unlike: what sets the picture apart from all that the network was trained on, where that is plain.
    """

    file: str
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    unlike: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON values."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        top = [{"label": label, "probability": probability} for label, probability in self.top]
        unlike = {} if self.unlike is None else {"unlike": self.unlike}
        return {"file": self.file, **top[0], "top": top, **unlike}


def predict(
    checkpoint: str | Path,
    images: Sequence[str | Path],
    *,
    top: int = 1,
    flip: bool = False,
    device: str = "auto",
    bars: bool = False,
) -> Iterator[FilePrediction]:
    """Classifies picture files and yields a prediction for each, in order, a batch at a time.

    checkpoint, device: as in `evaluate`. images: files, folders (all pictures beneath them, by name), Parquet or tar
    shards, hub-data:OWNER/NAME[@REVISION], and "-" for paths on standard input. top: how many classes to name. flip:
    average the probabilities of the picture and its mirror image. bars: show how a download goes.

    A picture that cannot be read is yielded with its error. SettingError, DataError and CheckpointError for everything
    else.
    """
    files = list(_files(images, bars))
    source = open_source(locate(checkpoint, bars=bars))
    classifier, learnt = source.classifier, DATASETS.get(source.dataset or "")
    if not classifier.class_names:
        raise SettingError(f"{checkpoint}: these weights have no head, so they name no class; adapt makes one")
    runtime = choose_runtime(device, "float32")
    runtime.place(classifier.network)
    found = _predict_files(classifier, files, min(top, len(classifier.class_names)), flip, runtime.device)
    return found if learnt is None else _with_kinds(found, learnt)


def _with_kinds(predictions: Iterator[FilePrediction], learnt: DatasetSpec) -> Iterator[FilePrediction]:
    """Says of each picture file whether it is of another kind than the images of a registered data set."""
    for prediction in predictions:
        unlike = _unlike(prediction.file, learnt) if prediction.error is None else None
        yield replace(prediction, unlike=unlike)


def _unlike(file: str, learnt: DatasetSpec) -> str | None:
    """What sets a picture apart from grey, small ones: that it is colourful or many times as large; None for neither.

    Decided by facts alone: a grey picture in a file of colours is grey, and so is a pale one.
    """
    if not is_file(file):  # in a shard
        return None
    with open_image(read_image_bytes(file)) as image:
        width, height = image.size
        image.draft("RGB", (2 * learnt.size, 2 * learnt.size))
        with pixels_in_memory(image):
            small = np.asarray(image.convert("RGB").resize((learnt.size, learnt.size)), np.int64)
    colourful = (small.max(2) - small.min(2) > COLOURFUL).mean() > COLOURED
    if not colourful and max(width, height) < LARGE * learnt.size:
        return None
    kind = "a colour picture" if colourful else "a picture"
    return f"{kind} of {width}×{height}, and this network learnt from grey ones of {learnt.size}×{learnt.size}"


def _paths_on_input() -> Iterator[str]:
    try:
        yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
    except OSError as error:
        raise SettingError(f"-: standard input cannot be read ({error.strerror}); expected paths there") from None


def _files(images: Sequence[str | Path], bars: bool) -> Iterator[str | ImageRecord]:
    for image in images:
        fetched = fetch_dataset(str(image), bars=bars).folder if is_hub_data(str(image)) else None
        if str(image) == STANDARD_INPUT:
            yield from _paths_on_input()
        elif (records := unlabelled_records(str(image), fetched)) is not None:
            yield from records
        elif is_folder(folder := Path(image)):
            inside = sorted(path for path in folder.rglob("*") if _is_picture(path, folder))
            if not inside:
                files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
                others = describe_kinds(str(path) for path in files if not any(map(is_system_name, path.parts)))
                found = f", but {others}" if others else ""
                endings = ", ".join(sorted(IMAGE_SUFFIXES))
                raise DataError(f"{image}: no picture in this folder{found}; known endings are {endings}")
            yield from map(str, inside)
        else:
            yield str(image)


def _is_picture(path: Path, folder: Path) -> bool:
    """Whether it is one by its name, and not hidden, such as what systems put beside people's files."""
    hidden = any(map(is_system_name, path.relative_to(folder).parts))
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()


def _predict_files(
    classifier: Classifier, files: Sequence[str | ImageRecord], top: int, flip: bool, device: torch.device
) -> Iterator[FilePrediction]:
    def read(file: str | ImageRecord) -> Tensor | str:
        where = f"{file.where}: " if isinstance(file, ImageRecord) else ""  # else the error names the file
        try:
            return classifier.preprocess(file if isinstance(file, str) else decode_image(file.open()))
        except DataError as error:
            return f"{where}{error}"

    def classify(inputs: Tensor) -> Tensor:
        found: Tensor = classifier(inputs).softmax(1)
        return ((found + classifier(inputs.flip(-1)).softmax(1)) / 2 if flip else found).cpu()

    waiting, size = iter(files), eval_batch_size(classifier.input.size**2, device)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(waiting, size)):
            found = list(pool.map(read, batch))
            inputs = [item for item in found if isinstance(item, Tensor)]
            rows = iter(
                batched_apply(classify, classifier.network, torch.stack(inputs).to(device), size) if inputs else ()
            )
            for given, item in zip(batch, found, strict=True):
                file = given.name if isinstance(given, ImageRecord) else given
                if isinstance(item, str):
                    yield FilePrediction(file, error=item)
                else:
                    values, indices = next(rows).sort(descending=True, stable=True)
                    best = zip(indices[:top].tolist(), values[:top].tolist(), strict=True)
                    yield FilePrediction(file, tuple((classifier.class_names[i], value) for i, value in best))
