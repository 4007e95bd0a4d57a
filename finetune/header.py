"""The header of a safetensors file, read and checked without torch: what tensors there are, and where.

The format: 8 bytes with the header's length (little endian), the header as JSON, the tensors' bytes one after the
other (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetune.errors import CheckpointError
from finetune.strangers.printable import is_printable, printable, quoted
from finetune.strangers.regular import open_regular
from finetune.strangers.strict_json import parse_json

MOST_HEADER = 10_000_000  # bytes; the format itself allows ten times as many
MOST_TENSORS = 20_000  # timm's largest network has 4,000
LONGEST_NAME = 500  # characters of a tensor's name
MOST_AXES = 16
_MOST_VALUES = 1_000_000  # of the JSON: of so many the parser makes at most some 100 MB

# The types that torch can hold, and their bytes.
BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}

# What other files begin with, and what to say of them.
_PICKLE = "a pickle or a zip of one (torch.save), which can run code when it is opened; finetune reads safetensors only"
_OTHERS = {
    b"PK\x03\x04": _PICKLE,
    b"\x80": _PICKLE,
    b"version https:/": "a git-LFS pointer, which only says where the file is; `git lfs pull` fetches the file",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"<": "a web page, perhaps an error that was saved under this name; download the file again",
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: its type in the format's word, its shape, and where its bytes are, counted from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says: its tensors in the order of their bytes, and the texts of its metadata.

    `size` is the length in bytes of the file up to the tensors. The tensors fill the rest without gap or overlap.
    """

    tensors: dict[str, TensorEntry]
    texts: dict[str, str]
    size: int


def read_header(path: Path) -> Header:
    """The header of a file, checked. CheckpointError names what is wrong with it."""
    try:
        with open_regular(path) as file:
            return parse_header(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from None


def parse_header(path: Path, file: BinaryIO, size: int, most: int = MOST_TENSORS) -> Header:
    """The header of an open file of `size` bytes, which is left at the first tensor's. CheckpointError as above.

    `most` is how many tensors it may have.
    """
    if size == 0:
        raise CheckpointError(f"{path}: the file is empty; expected a .safetensors checkpoint")
    begin = file.read(16)
    length = struct.unpack("<Q", begin[:8])[0] if len(begin) >= 8 else None
    if length is None or length > size - 8 or begin[8:9] != b"{":
        _refuse_other_kinds(path, begin)
    if length is None or length > MOST_HEADER:
        says = f"; its first 8 bytes would be a header's length, {length:,}, and" if length is not None else ";"
        raise CheckpointError(
            f"{path}: not a safetensors file: it starts with {begin[:8]!r}{says} at most {MOST_HEADER:,} bytes of "
            "header are read"
        )
    if length > size - 8:
        raise CheckpointError(f"{path}: cut short: the header alone has {length:,} bytes, the file {size:,}")
    file.seek(8)
    try:
        values = _object(file.read(length), most)
        texts = _texts(path, values.pop("__metadata__", {}))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: not a safetensors file: its header is not the JSON it should be ({error}); get or make the file "
            "again"
        ) from None
    try:
        tensors = {name: _entry(name, value) for name, value in values.items()}
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    return Header(_in_order(path, tensors, size - 8 - length), texts, 8 + length)


def unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        near = sorted(p.name for p in path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
        there = f"; {path.parent} has {', '.join(map(printable, near))}" if near else ""
        return f"{path}: there is no such checkpoint{there}; `finetune pretrain` makes one"
    return f"{path}: expected a .safetensors file, but it cannot be read ({error.strerror})"


def _refuse_other_kinds(path: Path, begin: bytes) -> None:
    for start, what in _OTHERS.items():
        if begin.lstrip().startswith(start):
            raise CheckpointError(f"{path}: this is {what}")


def _object(content: bytes, most: int) -> dict[str, Any]:
    if not content.startswith(b"{"):  # the format says so; what follows it may be filled up with spaces
        raise ValueError(f"it starts with {content[:8]!r} instead of {{")
    if content.count(b'"data_offsets"') > most:
        raise ValueError(f"more than {most:,} tensors")
    values: dict[str, Any] = parse_json(content, _MOST_VALUES)
    if len(values) > most:
        raise ValueError(f"more than {most:,} tensors")
    return values


def _texts(path: Path, said: Any) -> dict[str, str]:
    if not isinstance(said, Mapping):
        raise ValueError("__metadata__ is no mapping of texts")
    for key, value in said.items():
        if not isinstance(value, str):
            raise CheckpointError(f"{path}: its metadata does not hold at {printable(key)[:60]}: expected a text")
    return dict(said)


def _entry(name: str, value: Any) -> TensorEntry:
    """One tensor as its entry has it. ValueError unless type, shape and bytes agree."""
    if not name or len(name) > LONGEST_NAME or not is_printable(name):
        raise ValueError(f"the tensor name {quoted(name)} is empty, has over {LONGEST_NAME} characters or strange ones")
    what = f"tensor {quoted(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what}: expected dtype, shape and data_offsets alone")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        found = quoted(dtype) if isinstance(dtype, str) else "no text"
        raise ValueError(f"{what}: expected one of the types {', '.join(BYTES)}, found {found}")
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(map(_is_count, shape)):
        raise ValueError(f"{what}: expected a shape of at most {MOST_AXES} whole numbers from 0")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise ValueError(f"{what}: expected data_offsets of two whole numbers from 0")
    if math.prod(side for side in shape if side) * BYTES[dtype] >= 2**63:  # torch counts even what has a side of 0
        raise ValueError(f"{what}: a shape of more numbers than can be counted")
    return TensorEntry(dtype, tuple(shape), *offsets)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0  # True is an int to Python


def _in_order(path: Path, tensors: dict[str, TensorEntry], size: int) -> dict[str, TensorEntry]:
    """The tensors in the order of their bytes. CheckpointError unless they fill the `size` bytes."""
    place, before = 0, "the header"
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    for name, entry in ordered.items():
        what = f"tensor {quoted(name)}"
        needs = math.prod(entry.shape) * BYTES[entry.dtype]
        if entry.end - entry.start != needs:
            shape = "×".join(map(str, entry.shape)) or "one number"
            raise _damaged(
                path, f"{what} is {entry.dtype} {shape}: expected {needs:,} bytes, found {entry.end - entry.start:,}"
            )
        if entry.start != place:
            kind = "overlaps" if entry.start < place else "leaves a gap after"
            raise _damaged(path, f"{what} {kind} {before}: expected it at byte {place:,}, found {entry.start:,}")
        place, before = entry.end, what
    if place != size:
        fault = "cut short" if size < place else "has bytes too many"
        raise CheckpointError(
            f"{path}: {fault}: expected {place:,} bytes of tensors, found {size:,}; get or make the file again"
        )
    return ordered


def _damaged(path: Path, fault: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged safetensors file: {fault}; get or make the file again")
