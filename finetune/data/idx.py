"""Reads the idx files of MNIST and similar data sets, in torchvision's layout.

The idx format: 0, 0, the type of its numbers, the number of dimensions; their sizes as 4-byte big-endian numbers; the
values (http://yann.lecun.com/exdb/mnist/). The end of a file's name says which: idx3-ubyte are bytes in three
dimensions. The header is checked against the data set and the size of the file before memory is allocated.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune.data.spec import SAMPLES
from finetune.errors import DataError
from finetune.io.safe_open import open_regular

if TYPE_CHECKING:
    from finetune.data.image_dataset import DataSplits, ImageSet
    from finetune.data.spec import DatasetSpec

MAX_ITEMS = 2_000_000  # images or labels in one file; EMNIST's largest has 697,932
LABEL_COLUMNS = 8  # of QMNIST's labels, of which the first is the class
MAX_GZIP_RATIO = 1032  # bytes that one byte of gzip can stand for (RFC 1951: 258 bytes in 2 bits)


@dataclass(frozen=True)
class _Format:
    """A kind of idx file: the bytes that it begins with, and the dtype of its numbers."""

    magic: bytes
    dtype: str

    @property
    def header_bytes(self) -> int:
        return 4 + 4 * self.magic[3]


_FORMATS = {
    "idx3-ubyte": _Format(b"\x00\x00\x08\x03", "u1"),
    "idx1-ubyte": _Format(b"\x00\x00\x08\x01", "u1"),
    "idx2-int": _Format(b"\x00\x00\x0c\x02", ">i4"),
}


def read_splits(row: DatasetSpec, root: Path) -> DataSplits:
    """Reads the train and test images of a data set from `root`, plain or .gz. DataError for a damaged file."""
    from finetune.data.image_dataset import DataSplits

    return DataSplits(_read_split(row, root, "train", row.train_files), _read_split(row, root, "test", row.test_files))


def _read_split(row: DatasetSpec, root: Path, split: str, files: tuple[str, ...]) -> ImageSet:
    import torch

    from finetune.data.image_dataset import ImageSet

    images, classes = (torch.from_numpy(values) for values in read_arrays(row, root, files))
    return ImageSet(images.unsqueeze(1), classes, row.class_names, f"{row.name} {split}")


def read_arrays(
    row: DatasetSpec, root: Path, files: tuple[str, ...]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Reads two files of a data set, images and labels, without torch: uint8 N×H×W, upright, and classes from 0 (N).

    DataError for a damaged file.
    """
    paths = [row.raw_folder(root) / name for name in files]
    image_path, label_path = (path if path.is_file() else path.with_name(f"{path.name}.gz") for path in paths)
    images, labels = _read_idx(image_path, row.size), _read_idx(label_path, row.size)
    if len(images) != len(labels):
        raise _damaged(
            label_path, f"{len(images):,} labels, one for each image of {image_path.name}", f"{len(labels):,}"
        )
    classes = (labels[:, 0] if labels.ndim == 2 else labels).astype(np.int64) - row.first_label
    lowest, highest = int(classes.min()), int(classes.max())
    if lowest < 0 or highest >= len(row.class_names):
        first, last = row.first_label, row.first_label + len(row.class_names) - 1
        found = f"{lowest + row.first_label} to {highest + row.first_label}"
        raise _damaged(label_path, f"labels from {first} to {last}", found)
    upright = np.ascontiguousarray(images.transpose(0, 2, 1)) if row.transposed else images
    return upright.astype(np.uint8, copy=False), classes


def _read_idx(path: Path, side: int) -> npt.NDArray[np.generic]:
    """Reads an idx file, plain or .gz, as an array of the shape in its header. DataError naming the file."""
    kind = _FORMATS["idx" + path.name.removesuffix(".gz").rpartition("-idx")[2]]
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if path.suffix != ".gz":
                return _values(path, kind, side, file, size)
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                return _values(path, kind, side, unpacked, size, packed=True)
    except (EOFError, gzip.BadGzipFile, zlib.error) as fault:
        raise _damaged(path, "a whole gzip file", str(fault)) from None
    except OSError as fault:
        raise DataError(f"{path}: cannot be read: {fault.strerror or fault}") from None


def _values(
    path: Path, kind: _Format, side: int, file: Any, size: int, packed: bool = False
) -> npt.NDArray[np.generic]:
    """Reads an open file of `size` bytes. Allocates no more memory than those bytes can account for."""
    shape = _shape(path, kind, side, file.read(kind.header_bytes))
    inside = " inside" if packed else ""
    expected = kind.header_bytes + math.prod(shape) * np.dtype(kind.dtype).itemsize
    if expected > size * MAX_GZIP_RATIO if packed else expected != size:
        found = f"{size:,} {'compressed ' if packed else ''}bytes"
        raise _damaged(path, f"{expected:,} bytes{inside}, as its header says", found)
    values = np.empty(shape, kind.dtype)
    buffer, done = memoryview(values.reshape(-1).view(np.uint8)), 0  # type: ignore[arg-type]
    while got := file.readinto(buffer[done:]):
        done += got
    if done != len(buffer) or file.read(1):
        found = f"{kind.header_bytes + done:,} bytes" if done != len(buffer) else "more"
        raise _damaged(path, f"{expected:,} bytes{inside}, as its header says", found)
    return values


def _shape(path: Path, kind: _Format, side: int, header: bytes) -> tuple[int, ...]:
    """Reads the sizes in a header. DataError for another kind, no value, or images of another size than `side`."""
    if len(header) < kind.header_bytes:
        raise _damaged(path, f"a header of {kind.header_bytes} bytes", f"{len(header)} bytes")
    if header[:4] != kind.magic:
        raise _damaged(path, f"the bytes {kind.magic.hex(' ')} at its start", header[:4].hex(" "))
    sizes: tuple[int, ...] = struct.unpack(f">{kind.magic[3]}I", header[4:])
    if 0 in sizes:
        raise _damaged(path, "at least one value", f"the sizes {'×'.join(map(str, sizes))} in its header")
    if sizes[0] > MAX_ITEMS:
        raise _damaged(path, f"at most {MAX_ITEMS:,} images or labels", f"{sizes[0]:,} in its header")
    wanted = {1: (), 2: (LABEL_COLUMNS,), 3: (side, side)}[len(sizes)]
    if sizes[1:] != wanted:
        what = f"images of {side}×{side} pixels" if len(sizes) == 3 else f"{LABEL_COLUMNS} numbers a label"
        raise _damaged(path, what, "×".join(map(str, sizes[1:])))
    return sizes


def _damaged(path: Path, expected: str, found: str) -> DataError:
    cure = "delete this file and run again with a network connection, which downloads it anew"
    if path.parent == SAMPLES:
        cure = "it comes with finetune: install that again"
    return DataError(f"{path}: damaged: expected {expected}, found {found}; {cure}")
