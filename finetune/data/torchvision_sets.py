"""Reads the idx files of MNIST and its kin where torchvision keeps them; a root that is read-only stays as it is.

The idx format: 0, 0, the type of its numbers, how many dimensions; their sizes as 4-byte big-endian numbers; the values
(http://yann.lecun.com/exdb/mnist/). The end of a file's name says which: idx3-ubyte are bytes in three dimensions.
torchvision's readers trust the header, so it is held against the size of the file before they see it.
"""

from __future__ import annotations

import gzip
import math
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file, read_sn3_pascalvincent_tensor

from finetune.data.images import DataSplits, ImageSet
from finetune.errors import DataError, OutputError

if TYPE_CHECKING:
    from finetune.data.catalog import DatasetRow


@dataclass(frozen=True)
class _Format:
    """What a kind of idx file must begin with, and torchvision's reader for it."""

    magic: bytes
    value_bytes: int
    read: Callable[[str], Tensor]

    @property
    def header_bytes(self) -> int:
        return 4 + 4 * self.magic[3]


_FORMATS = {
    "idx3-ubyte": _Format(b"\x00\x00\x08\x03", 1, read_image_file),
    "idx1-ubyte": _Format(b"\x00\x00\x08\x01", 1, read_label_file),
    "idx2-int": _Format(b"\x00\x00\x0c\x02", 4, read_sn3_pascalvincent_tensor),
}

# One byte of gzip can stand for at most 1,032 (RFC 1951: 258 bytes in 2 bits).
_GZIP_LIMIT = 1032


def read_splits(row: DatasetRow, root: Path) -> DataSplits:
    """Both parts of a data set whose files are all under `root`. Raises DataError for one damaged or unreadable."""
    return DataSplits(_read_part(row, root, "train", row.train_files), _read_part(row, root, "test", row.test_files))


def _read_part(row: DatasetRow, root: Path, part: str, files: tuple[str, ...]) -> ImageSet:
    image_path, label_path = (_present(row.raw_folder(root) / name) for name in files)
    images, labels = _read_idx(image_path), _read_idx(label_path)
    if tuple(images.shape[1:]) != (row.size, row.size):
        found = "×".join(str(side) for side in images.shape[1:])
        raise _damaged(image_path, f"images of {row.size}×{row.size} pixels", found)
    if len(images) != len(labels):
        raise _damaged(
            label_path, f"{len(images):,} labels, one for each image of {image_path.name}", f"{len(labels):,}"
        )
    classes = (labels[:, 0] if labels.dim() == 2 else labels).long() - row.first_label
    lowest, highest = int(classes.min()), int(classes.max())
    if lowest < 0 or highest >= len(row.class_names):
        first, last = row.first_label, row.first_label + len(row.class_names) - 1
        found = f"{lowest + row.first_label} to {highest + row.first_label}"
        raise _damaged(label_path, f"labels from {first} to {last}", found)
    upright = images.transpose(1, 2).contiguous() if row.transposed else images
    return ImageSet(upright.unsqueeze(1), classes.contiguous(), row.class_names, f"{row.name} {part}")


def _present(path: Path) -> Path:
    """The file itself, or the .gz beside it where only that is there."""
    return path if path.is_file() else path.with_name(f"{path.name}.gz")


def _read_idx(path: Path) -> Tensor:
    """The values of an idx file, plain or .gz, shaped as its header says. Raises DataError naming the file."""
    kind = _FORMATS["idx" + path.name.removesuffix(".gz").rpartition("-idx")[2]]
    try:
        if path.suffix != ".gz":
            with path.open("rb") as file:
                _check_plain(path, kind, file)
            return kind.read(str(path))
        with gzip.open(path, "rb") as file:
            values = _unpack(path, kind, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as fault:
        raise _damaged(path, "a whole gzip file", str(fault)) from None
    except OSError as fault:
        raise DataError(f"{path}: cannot be read: {fault.strerror or fault}") from None
    return _read_unpacked(kind, values)


def _check_plain(path: Path, kind: _Format, file: BinaryIO) -> None:
    expected = _expected_bytes(path, kind, file.read(kind.header_bytes))
    found = path.stat().st_size
    if found != expected:
        raise _damaged(path, f"{expected:,} bytes, as its header says", f"{found:,} bytes")


def _unpack(path: Path, kind: _Format, file: gzip.GzipFile) -> bytes:
    """The whole idx file inside a .gz. No more memory is taken than the compressed bytes can account for."""
    header = file.read(kind.header_bytes)
    expected = _expected_bytes(path, kind, header)
    packed = path.stat().st_size
    if expected > packed * _GZIP_LIMIT:
        raise _damaged(path, f"{expected:,} bytes inside, as its header says", f"{packed:,} compressed bytes")
    values = header + file.read(expected - len(header))
    if len(values) != expected or file.read(1):
        found = f"{len(values):,} bytes" if len(values) != expected else "more"
        raise _damaged(path, f"{expected:,} bytes inside, as its header says", found)
    return values


def _expected_bytes(path: Path, kind: _Format, header: bytes) -> int:
    """The size of an idx file with this header. Raises DataError for a header not of this kind or without a value."""
    if len(header) < kind.header_bytes:
        raise _damaged(path, f"a header of {kind.header_bytes} bytes", f"{len(header)} bytes")
    if header[:4] != kind.magic:
        raise _damaged(path, f"the bytes {kind.magic.hex(' ')} at its start", header[:4].hex(" "))
    sizes: tuple[int, ...] = struct.unpack(f">{kind.magic[3]}I", header[4:])
    if 0 in sizes:
        raise _damaged(path, "at least one value", f"the sizes {'×'.join(map(str, sizes))} in its header")
    return kind.header_bytes + math.prod(sizes) * kind.value_bytes


def _read_unpacked(kind: _Format, values: bytes) -> Tensor:
    """torchvision's readers take a path only, so the bytes pass through the system's temporary folder."""
    try:
        with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
            path = Path(folder, "unpacked")
            path.write_bytes(values)
            return kind.read(str(path))
    except OSError as fault:
        raise OutputError(
            f"{tempfile.gettempdir()}: cannot hold {len(values):,} unpacked bytes for a moment: "
            f"{fault.strerror or fault}; free some room or set TMPDIR"
        ) from None


def _damaged(path: Path, expected: str, found: str) -> DataError:
    return DataError(
        f"{path}: damaged: expected {expected}, found {found}; delete this file and run again with a network "
        "connection, which downloads it anew"
    )
