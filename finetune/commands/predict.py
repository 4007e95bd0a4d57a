"""`finetune predict`: what a checkpoint sees in pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.data.file_kinds import describe_kinds
from finetune.data.folder_walk import walk_files
from finetune.data.image_io import IMAGE_SUFFIXES, open_image, pixels_in_memory, read_image_bytes
from finetune.data.manifest import ImageRecord
from finetune.data.openers import is_hub_data, unlabelled_records
from finetune.data.registry import DATASETS
from finetune.data.spec import DatasetSpec
from finetune.errors import DataError, SettingError
from finetune.hub.dataset import fetch_dataset
from finetune.io.safe_open import is_folder
from finetune.models.classifier import Classifier
from finetune.sources.resolve import locate, open_source
from finetune.train.device import choose_runtime
from finetune.train.inference import batched_apply, eval_batch_size

STANDARD_INPUT = "-"
MAX_LISTED_BYTES = 65_536  # of one path on standard input
LARGE = 16  # times the side of the training images: so large a picture is another kind of picture
COLOURFUL, COLOURED = 32, 0.1  # a pixel whose channels differ by more, of 255; the share of such pixels


@dataclass(frozen=True)
class FilePrediction:
    """The most probable classes of one picture with their probabilities, best first; or why it could not be read.

    logits: of every class, in the checkpoint's order, where they were asked for. unlike: what sets the picture apart
    from all that the network was trained on, where that is plain. unsure: whether the best class is a guess below the
    threshold of the checkpoint's promise; None where it promises nothing. novelty: the checkpoint's novelty score of
    the picture, where it has one.
    """

    file: str
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    unlike: str | None = None
    logits: tuple[float, ...] = ()
    unsure: bool | None = None
    novelty: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON values."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        top = [{"label": label, "probability": probability} for label, probability in self.top]
        logits = {"logits": list(self.logits)} if self.logits else {}
        others = {"unsure": self.unsure, "novelty": self.novelty, "unlike": self.unlike}
        given = {key: value for key, value in others.items() if value is not None}
        return {"file": self.file, **top[0], "top": top, **logits, **given}


def predict(
    checkpoint: str | Path,
    images: Iterable[str | Path],
    *,
    top: int = 1,
    flip: bool = False,
    logits: bool = False,
    batch: int | None = None,
    null: bool = False,
    device: str = "auto",
    bars: bool = False,
) -> Iterator[FilePrediction]:
    """Classifies picture files and yields a prediction for each, in the order given, a batch at a time.

    checkpoint, device: as in `evaluate`. images: files, folders (all pictures beneath them, by name), Parquet or tar
    shards, hub-data:OWNER/NAME[@REVISION], and "-" for paths on standard input, one a line, or with `null` divided by
    zero bytes. top: how many classes to name. flip: average the probabilities of the picture and its mirror image;
    whether it is unsure goes by the picture alone, as the promise does.
    logits: give those of every class too. batch: pictures at once, by default as many as suit their size. bars: show
    how a download goes.

    Memory grows neither with the number of pictures nor with that of the paths listed. A picture that cannot be read,
    and a link that leads out of a folder, is yielded with its error. SettingError, DataError and CheckpointError, at
    once, for everything else.
    """
    if isinstance(images, (str, Path)):
        raise SettingError(f"expected several pictures or folders, found the one path {images}; put it in a list")
    for name, number in (("top", top), ("batch", batch)):
        if number is not None and number < 1:
            raise SettingError(f"{name}: expected a number from 1, found {number}")
    if logits and flip:
        raise SettingError("--logits and --tta: the mirror image has logits of its own; leave one of the two out")
    opened = (_open(_checked_path(image), bars, null) for image in images)
    pictures = chain.from_iterable(list(opened) if isinstance(images, Sequence) else opened)
    source = open_source(locate(checkpoint, bars=bars))
    classifier, learnt = source.classifier, DATASETS.get(source.dataset or "")
    if not classifier.class_names:
        raise SettingError(f"{checkpoint}: these weights have no head, so they name no class; adapt makes one")
    runtime = choose_runtime(device, "float32")
    runtime.place(classifier.network)
    return _Predictor(classifier, learnt, top, flip, logits, runtime.device).predict(pictures, batch)


@dataclass(frozen=True)
class _Picture:
    """A picture to classify: a file, or a record of a shard; `fault` says why it must not be read."""

    name: str
    fault: str | None = None
    record: ImageRecord | None = None

    def read(self) -> bytes:
        """The encoded picture. DataError, which does not name it."""
        if self.fault is not None:
            raise DataError(self.fault)
        return read_image_bytes(self.name) if self.record is None else self.record.open()


def _checked_path(image: object) -> str:
    if not isinstance(image, (str, os.PathLike)):
        raise SettingError(f"images: expected texts and paths, found {image!r:.80} ({type(image).__name__})")
    return os.fspath(image)


def _open(image: str, bars: bool, null: bool) -> Iterable[_Picture]:
    """The pictures that one argument stands for; DataError for a folder or shards without any."""
    if image == STANDARD_INPUT:
        if sys.stdin is None:
            raise SettingError("-: standard input is closed")
        return (_Picture(name) for name in listed_paths(sys.stdin.buffer, b"\0" if null else b"\n"))
    if not image:
        raise SettingError("an empty text names no picture; the current folder is .")
    fetched = fetch_dataset(image, bars=bars).folder if is_hub_data(image) else None
    if (records := unlabelled_records(image, fetched)) is not None:
        return (_Picture(record.name, record=record) for record in records)
    return _in_folder(image) if is_folder(image) else (_Picture(image),)


def listed_paths(stream: BinaryIO, end: bytes) -> Iterator[str]:
    """Yields each path of a list as soon as it has come; empty ones are passed over, `\\r` before `\\n` is left out.

    DataError for one of over MAX_LISTED_BYTES.
    """
    rest = b""
    while piece := _read_some(stream):
        *whole, rest = (rest + piece).split(end)
        if len(rest) > MAX_LISTED_BYTES:
            divided = "zero bytes" if end == b"\0" else "line breaks (zero bytes, with --null)"
            raise DataError(f"standard input: a path of over {MAX_LISTED_BYTES:,} bytes; expected paths with {divided}")
        yield from (path for one in whole if (path := _listed_path(one, end)))
    if path := _listed_path(rest, end):
        yield path


def _read_some(stream: BinaryIO) -> bytes:
    try:
        piece: bytes = stream.read1(MAX_LISTED_BYTES)  # type: ignore[attr-defined]
    except OSError as error:  # it is closed
        raise SettingError(f"-: standard input cannot be read ({error.strerror}); expected paths there") from None
    return piece


def _listed_path(line: bytes, end: bytes) -> str:
    return os.fsdecode(line.removesuffix(b"\r") if end == b"\n" else line)


def _in_folder(folder: str) -> Iterable[_Picture]:
    """The pictures beneath a folder, by name; DataError at once where there is none or it cannot be listed."""
    root = str(Path(folder))
    files = walk_files(root)
    try:
        found = (_Picture(*one) for one in files if _is_picture(one.path) or (one.fault and is_folder(one.path)))
        first = next(found, None)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror or error})") from None
    if first is not None:
        return chain([first], found)
    others = describe_kinds(os.path.relpath(path, root) for path, _ in walk_files(root))
    instead = f", but {others}" if others else ""
    endings = ", ".join(sorted(IMAGE_SUFFIXES))
    raise DataError(f"{folder}: no picture in this folder{instead}; known endings are {endings}")


def _is_picture(path: str) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


@dataclass(frozen=True)
class _Predictor:
    """Classifies pictures. learnt: the registered data set that the network was trained on, if any."""

    classifier: Classifier
    learnt: DatasetSpec | None
    top: int
    flip: bool
    logits: bool
    device: torch.device

    def predict(self, pictures: Iterable[_Picture], batch: int | None) -> Iterator[FilePrediction]:
        """Yields the predictions in order, a batch at a time."""
        waiting, most = iter(pictures), eval_batch_size(self.classifier.input.size**2, self.device)
        size = min(batch or most, sys.maxsize)
        with ThreadPoolExecutor() as pool:
            while given := list(islice(waiting, size)):
                read = list(pool.map(self._read, given))
                inputs = [found.pixels for found in read if isinstance(found, _Input)]
                rows = iter(self._apply(torch.stack(inputs), min(size, most)) if inputs else ())
                for picture, found in zip(given, read, strict=True):
                    if isinstance(found, FilePrediction):
                        yield found
                    else:
                        yield self._prediction(picture.name, next(rows), found.unlike)

    def _read(self, picture: _Picture) -> _Input | FilePrediction:
        """The network's input, or the prediction that says why there is none."""
        try:
            content = picture.read()
            pixels = self.classifier.preprocess(content)
            return _Input(pixels, None if self.learnt is None else _unlike(content, self.learnt))
        except DataError as error:
            where = picture.record.where if picture.record is not None else picture.name
            return FilePrediction(picture.name, error=f"{error}" if where == picture.name else f"{where}: {error}")

    def _apply(self, inputs: Tensor, size: int) -> Tensor:
        """Logits, calibrated probabilities, the picture's own highest one, and novelty (NaN: none): N×(2·classes+2).

        Probabilities are averaged over both sides with `flip`.
        """

        def classify(x: Tensor) -> Tensor:
            logits, novelty = self.classifier.logits_and_novelty(x)
            found = self.classifier.probabilities(logits)
            highest = found.amax(1)
            if self.flip:
                found = (found + self.classifier.probabilities(self.classifier(x.flip(-1)))) / 2
            return torch.cat([logits.cpu().to(found), found, highest[:, None], novelty[:, None].to(found)], 1)

        return batched_apply(classify, self.classifier.network, inputs.to(self.device), size)

    def _prediction(self, file: str, row: Tensor, unlike: str | None) -> FilePrediction:
        classes = len(self.classifier.class_names)
        logits, probabilities, (highest, novelty) = row[:classes], row[classes:-2], row[-2:].tolist()
        if not bool(row[:-1].isfinite().all()):
            return FilePrediction(file, error="the network's answer is no finite number; its weights overflow")
        if self.classifier.novelty is not None and unlike is None and self.classifier.is_unlike(novelty):
            most = self.classifier.novelty.record.threshold
            unlike = f"unlike anything it was trained on: novelty score {novelty:.2f}, above {most:.2f}"
        values, indices = probabilities.sort(descending=True, stable=True)
        names = self.classifier.class_names
        best = zip(indices[: self.top].tolist(), values[: self.top].tolist(), strict=True)
        top = tuple((names[index], value) for index, value in best)
        record = self.classifier.confidence
        return FilePrediction(
            file,
            top,
            unlike=unlike,
            logits=tuple(logits.float().tolist()) if self.logits else (),
            unsure=self.classifier.is_unsure(highest) if record is not None and record.promise is not None else None,
            novelty=None if self.classifier.novelty is None else novelty,
        )


class _Input(NamedTuple):
    pixels: Tensor
    unlike: str | None


def _unlike(content: bytes, learnt: DatasetSpec) -> str | None:
    """What sets a picture apart from grey, small ones: that it is colourful or many times as large; None for neither.

    Decided by facts alone: a grey picture in a file of colours is grey, and so is a pale one.
    """
    with open_image(content) as image:
        width, height = image.size
        image.draft("RGB", (2 * learnt.size, 2 * learnt.size))
        with pixels_in_memory(image):
            small = np.asarray(image.convert("RGB").resize((learnt.size, learnt.size)), np.int64)
    colourful = (small.max(2) - small.min(2) > COLOURFUL).mean() > COLOURED
    if not colourful and max(width, height) < LARGE * learnt.size:
        return None
    kind = "a colour picture" if colourful else "a picture"
    return f"{kind} of {width}×{height}, and this network learnt from grey ones of {learnt.size}×{learnt.size}"
