"""The pictures of a data set as they are decoded, before they are cut for a network: what an exported file is fed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune.data.image_dataset import ImageSet
from finetune.data.image_io import decode_image
from finetune.data.manifest import ImageRecord
from finetune.data.openers import is_hub_data, is_image_path, read_manifest
from finetune.data.table_columns import ColumnNames
from finetune.errors import DataError
from finetune.hub.dataset import fetch_dataset
from finetune.io.text_path import unicode_text
from finetune.models.spec import InputSpec
from finetune.recipe.schema import DataSettings
from finetune.report.console import Console
from finetune.run.data import column_names, open_test
from finetune.run.measured import LearntFrom, Part, choose_measured

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PICTURES = 10_000  # that a file is proven on; of more, as many at even distances


@dataclass(frozen=True)
class DecodedPictures:
    """The measured images of a data set and, to calibrate with, others that are never among these.

    records: of a person's own pictures, in the order of `images`; () for a registered set, whose pixels are pictures.
    """

    name: str
    part: Part
    images: ImageSet
    others: ImageSet
    records: Sequence[ImageRecord]
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.images)

    def names(self) -> list[str]:
        """What the pictures are called, in order: their files, or else their indices."""
        return list(self.images.files) or [str(index) for index in range(len(self))]

    def decoded(self, indices: Sequence[int]) -> list[Image]:
        """The pictures at these indices, upright, of mode L or RGB. DataError names one that cannot be read."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self._picture, indices))

    def batches(self, size: int) -> Iterator[list[Image]]:
        """All pictures in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.decoded(range(start, min(start + size, len(self))))

    def _picture(self, index: int) -> Image:
        from PIL import Image

        if self.records:
            record = self.records[index]
            try:
                return decode_image(record.open(), self.spec.crop_spec(self.spec.channels))
            except DataError as error:
                raise DataError(f"{record.where}: {error}") from None
        pixels = self.images.images[index : index + 1][0].numpy()
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))


def as_rgb(picture: Image) -> npt.NDArray[np.uint8]:
    """A decoded picture as an exported file takes it: uint8, H×W×3."""
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def open_decoded(
    data: str, root: Path, spec: InputSpec, checkpoint: str, learnt: LearntFrom, console: Console, *, keep_others: bool
) -> DecodedPictures:
    """The pictures of `data` that `evaluate` would measure a checkpoint on. Errors as there.

    keep_others: where the data set has no test part, not all of them but those that a training holds out, so that
    others are left.
    """
    short, found = open_test(data, root, spec, console, like=learnt.reading(data))
    chosen, part, said = choose_measured(found, short, checkpoint, learnt)
    if keep_others and found.held_out and part == "all" and len(found.test):
        chosen, part, said = found.test, "held_out", ""
    if said:
        console.note(said)
    if len(chosen) > MAX_PICTURES:
        console.note(f"{short}: {MAX_PICTURES:,} of {len(chosen):,} pictures, at even distances")
        chosen = chosen.subset(np.linspace(0, len(chosen) - 1, MAX_PICTURES).astype(np.int64))
    held = set(chosen.files)
    others = found.train
    if found.held_out:
        others = others.subset([index for index, file in enumerate(others.files) if file not in held])
    elif part == "trained_on":
        others = others.subset([])
    return DecodedPictures(short, part, chosen, others, _records(data, chosen, learnt.reading(data), console), spec)


def _records(data: str, images: ImageSet, reading: Mapping[str, Any], console: Console) -> Sequence[ImageRecord]:
    """The record of each image; () where the data set is a registered one."""
    if not is_image_path(data):
        return ()
    fetched = fetch_dataset(data, note=console.note, bars=False).folder if is_hub_data(data) else None
    settings = DataSettings.model_validate({**reading, "name": unicode_text(data)})
    columns = ColumnNames(column_names(settings), required=False)
    found = {record.name: record for record in read_manifest(data, columns, fetched).records}
    return [found[file] for file in images.files]
