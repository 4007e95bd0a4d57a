"""sha256 of tensors, independent of how a file stores them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, dtype


# torch's names for the format's types, and C128, which the format lacks. Older torches lack some.
TORCH_NAMES = {
    "BOOL": "bool",
    **{f"{sign}{bits}": f"{word}{bits}" for sign, word in (("U", "uint"), ("I", "int")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "C64": "complex64",
    "C128": "complex128",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_FORMAT_NAMES = {torch_name: name for name, torch_name in TORCH_NAMES.items()}


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 (hex) of several tensors by name."""
    return hash_named({name: hash_tensor(tensor) for name, tensor in tensors.items()})


def hash_named(digests: Mapping[str, str]) -> str:
    """The sha256 (hex) of several tensors from the digest of each, as `hash_tensors` gives it."""
    lines = (f"{json.dumps(name, ensure_ascii=False)} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_tensor(tensor: Tensor) -> str:
    """The sha256 (hex) of one tensor's type, shape and numbers, whatever its device and memory layout."""
    import torch

    plain = tensor.detach().cpu()
    plain = (torch.view_as_real(plain) if plain.is_complex() else plain).contiguous()
    size = plain.element_size()
    numbers = plain.view(
        {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    ).numpy()  # it has no bfloat16
    little = numbers.astype(f"<i{size}" if size > 1 else "u1", copy=False)
    line = f"{dtype_name(tensor.dtype)} {json.dumps(list(tensor.shape), separators=(',', ':'))}\n"
    found = hashlib.sha256(line.encode())
    found.update(little.data if little.size else b"")
    return found.hexdigest()


def dtype_name(dtype: dtype) -> str:
    """The format's name of a torch type: F32 for float32, F8_E4M3 for float8_e4m3fn."""
    name = str(dtype).removeprefix("torch.")
    return _FORMAT_NAMES.get(name, name)
