"""The tensors of a safetensors file: read with their header already checked, and made into a file's bytes.

Each is read straight into its own memory and written straight from it. (safetensors' own `load` needs the file's bytes
and then all of the tensors beside them, and its `save` the whole of them twice more.)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from finetune.digest import type_name
from finetune.errors import CheckpointError
from finetune.header import MOST_TENSORS, Header, TensorEntry, parse_header, unreadable
from finetune.machine import memory
from finetune.strangers.regular import open_regular

if TYPE_CHECKING:
    from torch import Tensor

Said = TypeVar("Said")

_MOST_NAMED = 20  # tensors in one message
_CHUNK = 1 << 18  # numbers that are looked at together: what one operation wrote, the next still finds in the cache

# The names that torch has for the format's types. Older torches lack some.
_TORCH = {
    "BOOL": "bool",
    **{f"{sign}{bits}": f"{word}{bits}" for sign, word in (("U", "uint"), ("I", "int")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


def read_tensors(
    path: Path, about: Callable[[Header], Said], *, finite: bool = True, most: int = MOST_TENSORS
) -> tuple[Said, dict[str, Tensor], str]:
    """What `about` makes of the header, the tensors by name, and the sha256 (hex) of a file.

    CheckpointError for damage, for more than `most` tensors, and, but without `finite`, for NaN or infinity. What
    `about` raises comes before any tensor is read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            header = parse_header(path, file, size, most)
            said = about(header)
            if size > (room := memory()):
                raise CheckpointError(f"{path}: {size:,} bytes do not fit the memory of this machine, {room:,} bytes")
            file.seek(0)
            digest = hashlib.sha256(file.read(header.size))
            tensors = {name: _tensor(path, file, name, entry, digest) for name, entry in header.tensors.items()}
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from None
    if finite:
        refuse_nonsense(tensors, str(path))
    return said, tensors, digest.hexdigest()


def _tensor(path: Path, file: BinaryIO, name: str, entry: TensorEntry, digest: hashlib._Hash) -> Tensor:
    """The next tensor of an open file."""
    import torch

    dtype = getattr(torch, _TORCH[entry.dtype], None)
    if dtype is None:
        raise CheckpointError(f"{path}: tensor {name} is {entry.dtype}, which this version of torch does not have")
    raw = torch.empty(entry.end - entry.start, dtype=torch.uint8)
    room = memoryview(raw.numpy())  # type: ignore[arg-type]
    done = 0
    while done < len(room):
        got = file.readinto(room[done:])  # type: ignore[attr-defined]
        if not got:
            raise CheckpointError(f"{path}: cut short while it was read, in tensor {name}; get or make the file again")
        done += got
    digest.update(room)
    if dtype == torch.bool and len(raw) and int(raw.max()) > 1:
        raise CheckpointError(f"{path}: tensor {name} is BOOL, and a byte of it is neither 0 nor 1")
    return raw.view(dtype).reshape(entry.shape)


def pieces(tensors: Mapping[str, Tensor], texts: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
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
        header[name] = {"dtype": type_name(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [start, end]}
    said = json.dumps(header, ensure_ascii=False).encode()
    said += b" " * (-len(said) % 8)  # the format wants the tensors aligned to 8 bytes
    yield len(said).to_bytes(8, "little") + said
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


def refuse_nonsense(tensors: Mapping[str, Tensor], where: str) -> None:
    """CheckpointError that names the tensors with NaN or infinity in them, if there are any."""
    bad = sorted(name for name, t in tensors.items() if not _is_finite(t))
    if bad:
        named = ", ".join(bad[:_MOST_NAMED]) + (f" and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else "")
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
