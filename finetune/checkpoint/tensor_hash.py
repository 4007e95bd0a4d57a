"""sha256 of tensors, independent of how a file stores them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, dtype


# What safetensors makes of the words in torch's names of types.
_LETTERS = {"float": "F", "bfloat": "BF", "complex": "C", "int": "I", "uint": "U", "bool": "BOOL"}

_EIGHT_BITS = {"float8_e4m3fn": "e4m3", "float8_e8m0fnu": "e8m0"}


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 (hex) of several tensors by name."""
    return hash_named({name: hash_tensor(tensor) for name, tensor in tensors.items()})


def hash_named(digests: Mapping[str, str]) -> str:
    """The same from the digest of each."""
    lines = (f"{json.dumps(name, ensure_ascii=False)} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_tensor(tensor: Tensor) -> str:
    """The sha256 (hex) of one tensor: where it lies in memory, and on which device, has no part in it."""
    import torch

    plain = tensor.detach().cpu()
    plain = (torch.view_as_real(plain) if plain.is_complex() else plain).contiguous()
    size = plain.element_size()
    # As whole numbers, since numpy has no bfloat16.
    numbers = plain.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]).numpy()
    little = numbers.astype(f"<i{size}" if size > 1 else "u1", copy=False)
    line = f"{dtype_name(tensor.dtype)} {json.dumps(list(tensor.shape), separators=(',', ':'))}\n"
    found = hashlib.sha256(line.encode())
    found.update(little.data if little.size else b"")
    return found.hexdigest()


def dtype_name(dtype: dtype) -> str:
    """What safetensors calls a type of torch's: F32 for float32, F8_E4M3 for float8_e4m3fn."""
    name = str(dtype).removeprefix("torch.")
    if name.startswith("float8_"):
        return "F8_" + _EIGHT_BITS.get(name, name).removeprefix("float8_").upper()
    word = name.rstrip("0123456789")
    return _LETTERS.get(word, word) + name.removeprefix(word)
