"""Reads and writes safetensors files; a header is checked before anything is allocated."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from finetune.checkpoint.tensor_hash import TORCH_NAMES, dtype_name
from finetune.errors import CheckpointError
from finetune.io.safe_open import open_regular
from finetune.io.sanitize import is_printable, printable, quoted
from finetune.io.strict_json import parse_json
from finetune.system import available_memory
from finetune.text import listed

if TYPE_CHECKING:
    from torch import Tensor


MAX_HEADER = 10_000_000  # bytes; the format itself allows ten times as many
MAX_TENSORS = 20_000  # timm's largest network has 4,000
MAX_NAME_LEN = 500  # characters of a tensor's name
MAX_AXES = 16
_MAX_VALUES = 1_000_000  # of the JSON: of so many the parser makes at most some 100 MB
_MAX_NAMED = 20  # tensors in one message
LARGEST = 1e15  # a weight; the product of two is still far from what float32 can hold
_CHUNK = 1 << 18  # numbers tested for NaN together, so that they stay in the processor's cache

# The types that torch can hold, and their bytes.
BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}

# What files of other kinds begin with.
_PICKLE = "a pickle or a zip of one (torch.save), which can run code when it is opened; finetune reads safetensors only"
_OTHER_KINDS = {
    b"PK\x03\x04": _PICKLE,
    b"\x80": _PICKLE,
    b"version https:/": "a git-LFS pointer, which only says where the file is; `git lfs pull` fetches the file",
    **{
        bytes([8, version, 18]): "an ONNX file, which only `finetune evaluate` takes; name the checkpoint it is of"
        for version in range(7, 14)  # of the format's intermediate representation
    },
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"<": "a web page, perhaps an error that was saved under this name; download the file again",
}
_AGAIN = "get or make the file again"
T = TypeVar("T")


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
        raise CheckpointError(unreadable_error(path, error)) from None


def parse_header(path: Path, file: BinaryIO, size: int, most: int = MAX_TENSORS) -> Header:
    """Parses the header of an open file of `size` bytes, at most `most` tensors, and leaves it at the first tensor.

    CheckpointError names what is wrong; nothing is allocated for tensors.
    """
    if size == 0:
        raise CheckpointError(f"{path}: the file is empty; expected a .safetensors checkpoint")
    begin = file.read(16)
    length = struct.unpack("<Q", begin[:8])[0] if len(begin) >= 8 else None
    if length is None or length > size - 8 or begin[8:9] != b"{":
        for start, what in _OTHER_KINDS.items():
            if begin.lstrip().startswith(start):
                raise CheckpointError(f"{path}: this is {what}")
    if length is None or length > MAX_HEADER:
        says = f"; its first 8 bytes would be a header's length, {length:,}, and" if length is not None else ";"
        raise CheckpointError(
            f"{path}: not a safetensors file: it starts with {begin[:8]!r}{says} at most {MAX_HEADER:,} bytes of "
            "header are read"
        )
    if length > size - 8:
        raise CheckpointError(f"{path}: cut short: the header alone has {length:,} bytes, the file {size:,}")
    file.seek(8)
    try:
        values = _json_object(file.read(length), most)
        texts = _metadata_texts(path, values.pop("__metadata__", {}))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: not a safetensors file: its header is not the JSON it should be ({error}); {_AGAIN}"
        ) from None
    try:
        tensors, end = _in_order({name: _entry(name, value) for name, value in values.items()})
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged safetensors file: {error}; {_AGAIN}") from None
    if end != (found := size - 8 - length):
        fault = "cut short" if found < end else "has bytes too many"
        raise CheckpointError(f"{path}: {fault}: expected {end:,} bytes of tensors, found {found:,}; {_AGAIN}")
    return Header(tensors, texts, 8 + length)


def unreadable_error(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        near = sorted(p.name for p in path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
        there = f"; {path.parent} has {', '.join(map(printable, near))}" if near else ""
        return f"{path}: there is no such checkpoint{there}; `finetune pretrain` makes one"
    return f"{path}: expected a .safetensors file, but it cannot be read ({error.strerror})"


def _json_object(content: bytes, most: int) -> dict[str, Any]:
    if not content.startswith(b"{"):  # the format says so; what follows it may be filled up with spaces
        raise ValueError(f"it starts with {content[:8]!r} instead of {{")
    if content.count(b'"data_offsets"') > most:
        raise ValueError(f"more than {most:,} tensors")
    values: dict[str, Any] = parse_json(content, _MAX_VALUES)
    if len(values) > most:
        raise ValueError(f"more than {most:,} tensors")
    return values


def _metadata_texts(path: Path, said: Any) -> dict[str, str]:
    if not isinstance(said, Mapping):
        raise ValueError("__metadata__ is no mapping of texts")
    for key, value in said.items():
        if not isinstance(value, str):
            raise CheckpointError(f"{path}: its metadata does not hold at {printable(key)[:60]}: expected a text")
    return dict(said)


def _entry(name: str, value: Any) -> TensorEntry:
    """One tensor as its entry has it. ValueError unless type, shape and bytes agree."""
    if not name or len(name) > MAX_NAME_LEN or not is_printable(name):
        raise ValueError(f"the tensor name {quoted(name)} is empty, has over {MAX_NAME_LEN} characters or strange ones")
    what = f"tensor {quoted(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what}: expected dtype, shape and data_offsets alone")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        found = quoted(dtype) if isinstance(dtype, str) else "no text"
        raise ValueError(f"{what}: expected one of the types {', '.join(BYTES)}, found {found}")
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(map(_is_count, shape)):
        raise ValueError(f"{what}: expected a shape of at most {MAX_AXES} whole numbers from 0")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise ValueError(f"{what}: expected data_offsets of two whole numbers from 0")
    if math.prod(side for side in shape if side) * BYTES[dtype] >= 2**63:  # torch counts even what has a side of 0
        raise ValueError(f"{what}: a shape of more numbers than can be counted")
    return TensorEntry(dtype, tuple(shape), *offsets)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0  # True is an int to Python


def _in_order(tensors: dict[str, TensorEntry]) -> tuple[dict[str, TensorEntry], int]:
    """The tensors in the order of their bytes, and where these end. ValueError for a gap, an overlap, a wrong size."""
    place, before = 0, "the header"
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    for name, entry in ordered.items():
        what, found = f"tensor {quoted(name)}", entry.end - entry.start
        if found != (needs := math.prod(entry.shape) * BYTES[entry.dtype]):
            shape = "×".join(map(str, entry.shape)) or "one number"
            raise ValueError(f"{what} is {entry.dtype} {shape}: expected {needs:,} bytes, found {found:,}")
        if entry.start != place:
            kind = "overlaps" if entry.start < place else "leaves a gap after"
            raise ValueError(f"{what} {kind} {before}: expected it at byte {place:,}, found {entry.start:,}")
        place, before = entry.end, what
    return ordered, place


def read_tensors(
    path: Path, about: Callable[[Header], T], *, finite: bool = True, most: int = MAX_TENSORS
) -> tuple[T, dict[str, Tensor], str]:
    """Reads a whole file: `about(header)`, the tensors by name, and the sha256 (hex) of its bytes.

    CheckpointError for damage, for more than `most` tensors and, with `finite`, for NaN or infinity. `about` runs
    before any tensor is read. The file's size is what this takes of memory.
    """
    # Not safetensors.safe_open, which maps the file (0.9 of the time): who writes into the file later would change
    # numbers whose hash was checked, and who cuts it short would kill this process (SIGBUS).
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            header = parse_header(path, file, size, most)
            said = about(header)
            if size > (room := available_memory()):
                raise CheckpointError(f"{path}: {size:,} bytes do not fit the memory of this machine, {room:,} bytes")
            file.seek(0)
            digest = hashlib.sha256(file.read(header.size))
            tensors = {name: _tensor(path, file, name, entry, digest) for name, entry in header.tensors.items()}
    except OSError as error:
        raise CheckpointError(unreadable_error(path, error)) from None
    if finite:
        check_finite(tensors, str(path))
        check_magnitude(tensors, str(path))
    return said, tensors, digest.hexdigest()


def _tensor(path: Path, file: BinaryIO, name: str, entry: TensorEntry, digest: hashlib._Hash) -> Tensor:
    """Reads and hashes the tensor that an open file has next."""
    import torch

    dtype = getattr(torch, TORCH_NAMES[entry.dtype], None)
    if dtype is None:
        raise CheckpointError(f"{path}: tensor {name} is {entry.dtype}, which this version of torch does not have")
    raw = torch.empty(entry.end - entry.start, dtype=torch.uint8)
    room = memoryview(raw.numpy())  # type: ignore[arg-type]
    if file.readinto(room) < len(room):  # type: ignore[attr-defined]
        raise CheckpointError(f"{path}: cut short while it was read, in tensor {name}; {_AGAIN}")
    digest.update(room)
    if dtype == torch.bool and len(raw) and int(raw.max()) > 1:
        raise CheckpointError(f"{path}: tensor {name} is BOOL, and a byte of it is neither 0 nor 1")
    return raw.view(dtype).reshape(entry.shape)


def safetensors_chunks(
    tensors: Mapping[str, Tensor], texts: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file with `texts` as its metadata: its head, then a tensor at a time.

    The order of the mapping does not matter: wide types come first, which aligns every tensor to its type, and those as
    wide by name. Of float32 and int64 tensors, safetensors' own `save` makes the same.
    """
    import torch

    assert "__metadata__" not in tensors
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {} if texts is None else {"__metadata__": dict(texts)}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [start, end]}
    said = json.dumps(header, ensure_ascii=False).encode()
    said += b" " * (-len(said) % 8)  # the format wants the tensors aligned to 8 bytes
    yield len(said).to_bytes(8, "little") + said
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


def too_large(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with a number above LARGEST in them."""
    return [name for name, t in tensors.items() if t.is_floating_point() and t.numel() and _largest(t) > LARGEST]


def _largest(tensor: Tensor) -> float:
    """The largest absolute number; 0 for types of 8 bits, none of which has numbers above 60,000."""
    if tensor.element_size() == 1:
        return 0.0
    low, high = tensor.detach().aminmax()
    return max(-float(low), float(high))


def check_magnitude(tensors: Mapping[str, Tensor], where: str) -> None:
    """CheckpointError for numbers that are finite and overflow as soon as a network multiplies with them."""
    if large := too_large(tensors):
        raise CheckpointError(
            f"{where}: numbers above {LARGEST:g} in {listed(large)}; such weights give outputs that are not finite"
        )


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """CheckpointError that names the tensors with NaN or infinity in them, if there are any."""
    bad = sorted(name for name, t in tensors.items() if not _is_finite(t))
    if bad:
        named = ", ".join(bad[:_MAX_NAMED]) + (f" and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else "")
        raise CheckpointError(f"{where}: NaN or infinite numbers in {named}; such weights predict nothing")


def _is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite, a chunk at a time: to ask it of all at once takes as much memory again."""
    import torch

    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point():
        return True
    narrow = tensor.element_size() == 1  # torch 2.11 cannot say it of 8 bits, or says it wrongly
    parts = torch.split(tensor.reshape(-1), _CHUNK)
    return all(bool((part.float() if narrow else part).isfinite().all()) for part in parts)
