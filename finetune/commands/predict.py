"""`finetune predict`: what a checkpoint sees in pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.data.image_io import IMAGE_SUFFIXES
from finetune.errors import DataError, SettingError
from finetune.models.classifier import Classifier
from finetune.sources.resolve import locate, open_source
from finetune.train.device import choose_runtime
from finetune.train.inference import eval_batch_size

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class FilePrediction:
    """One picture: its most probable classes with their probabilities, best first; or why it could not be read."""

    file: str
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For programs: the same as JSON values."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        label, probability = self.top[0]
        top = [{"label": name, "probability": value} for name, value in self.top]
        return {"file": self.file, "label": label, "probability": probability, "top": top}


def predict(
    checkpoint: str | Path,
    images: Sequence[str | Path],
    *,
    top: int = 1,
    flip: bool = False,
    device: str = "auto",
    bars: bool = False,
) -> Iterator[FilePrediction]:
    """Looks at each picture and yields what it shows, in order, a batch at a time.

    `images` are files, folders (all pictures beneath them, by name), and "-" for paths on standard input. `top` is the
    number of classes to name; `flip` averages the probabilities with those of the mirrored picture; `bars` shows how a
    download goes. A picture that cannot be read is yielded with its error. SettingError, DataError and CheckpointError
    for everything else.
    """
    files = list(_files(images))
    classifier = open_source(locate(checkpoint, bars=bars)).classifier
    if not classifier.class_names:
        raise SettingError(f"{checkpoint}: these weights have no head, so they name no class; adapt makes one")
    runtime = choose_runtime(device, "float32")
    runtime.place(classifier.network)
    return _predict_batch(classifier, files, min(top, len(classifier.class_names)), flip, runtime.device)


def _files(images: Sequence[str | Path]) -> Iterator[str]:
    for image in images:
        if str(image) == STANDARD_INPUT:
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif Path(image).is_dir():
            inside = sorted(p for p in Path(image).rglob("*") if _is_picture(p, Path(image)))
            if not inside:
                raise DataError(f"{image}: no picture in this folder; known endings are {_endings()}")
            yield from map(str, inside)
        else:
            yield str(image)


def _is_picture(path: Path, folder: Path) -> bool:
    """By its name, and not hidden, such as what macOS puts beside the files of a zip."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()


def _endings() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _predict_batch(
    classifier: Classifier, files: Sequence[str], top: int, flip: bool, device: torch.device
) -> Iterator[FilePrediction]:
    def read(file: str) -> Tensor | str:
        try:
            return classifier.preprocess(file)
        except DataError as error:
            return str(error)

    waiting = iter(files)
    size = eval_batch_size(classifier.input.size**2, device)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(waiting, size)):
            found = list(pool.map(read, batch))
            inputs = [item for item in found if isinstance(item, Tensor)]
            rows = iter(_probabilities(classifier, torch.stack(inputs).to(device), flip) if inputs else ())
            for file, item in zip(batch, found, strict=True):
                if isinstance(item, str):
                    yield FilePrediction(file, error=item)
                else:
                    yield FilePrediction(file, _best(next(rows), classifier.class_names, top))


@torch.no_grad()
def _probabilities(classifier: Classifier, inputs: Tensor, flip: bool) -> Tensor:
    found: Tensor = classifier(inputs).softmax(1)
    if flip:
        found = (found + classifier(inputs.flip(-1)).softmax(1)) / 2
    return found.cpu()


def _best(row: Tensor, names: Sequence[str], top: int) -> tuple[tuple[str, float], ...]:
    values, places = row.sort(descending=True, stable=True)
    return tuple((names[int(k)], float(p)) for p, k in zip(values[:top], places[:top], strict=True))
