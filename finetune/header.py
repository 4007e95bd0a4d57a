"""The header of a safetensors file, read and checked without torch: what tensors there are, and where.

The format: 8 bytes with the header's length (little endian), the header as JSON, the tensors' bytes
(https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError

HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors format itself


def read_header(path: Path) -> dict[str, Any]:
    """A safetensors file's header: by tensor dtype, shape and data_offsets, and `__metadata__`, whose texts it has."""
    try:
        with path.open("rb") as file:
            return parse_header(path, file.read(8), file.read, path.stat().st_size)
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from None


def parse_header(path: Path, start: bytes, read: Any, size: int) -> dict[str, Any]:
    """The safetensors header: 8 bytes with its length (little endian), then JSON."""
    if size == 0:
        raise CheckpointError(f"{path}: the file is empty; expected a .safetensors checkpoint")
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
    # A safetensors header may well have a length that starts with a pickle's first byte: 128 and 640 bytes do.
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and (length is None or length > HEADER_LIMIT)):
        raise CheckpointError(
            f"{path}: this is a pickle or a zip of one (torch.save), which can run code when it is opened; "
            "finetune reads safetensors only"
        )
    if length is None or length > HEADER_LIMIT:
        raise CheckpointError(f"{path}: not a safetensors file: it starts with {start!r} instead of a header's length")
    if length > size - 8:
        raise CheckpointError(f"{path}: cut short: the header alone has {length:,} bytes, the file {size:,}")
    try:
        header = json.loads(read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if not all(type(end) is int and 0 <= end < 2**63 for end in ends):
            raise ValueError
        expected = 8 + length + max(ends, default=0)
    except (ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError):
        raise CheckpointError(f"{path}: not a safetensors file: its header is not the JSON it should be") from None
    if size != expected:
        fault = "cut short" if size < expected else "has bytes too many"
        raise CheckpointError(
            f"{path}: {fault}: expected {expected:,} bytes, found {size:,}; get or make the file again"
        )
    return header  # type: ignore[no-any-return]


def unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        near = sorted(p.name for p in path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
        there = f"; {path.parent} has {', '.join(near)}" if near else ""
        return f"{path}: there is no such checkpoint{there}; `finetune pretrain` makes one"
    return f"{path}: expected a .safetensors file, but it cannot be read ({error.strerror})"
