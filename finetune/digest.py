"""What tensors are as one sha256: their names, types, shapes and numbers, in one order. docs/verify.md has the rule.

A tensor's digest is the sha256 of a line with its type, as safetensors writes it, and its shape, as in `F32 [10,128]`,
followed by its numbers row by row, little endian. That of several tensors is the sha256 of a line for each, in the
order of their names: the name as JSON, a space, the tensor's digest. What is only bytes needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# What safetensors makes of the words in torch's names of types: float32 is F32 there.
_LETTERS = {"float": "F", "bfloat": "BF", "complex": "C", "int": "I", "uint": "U", "bool": "BOOL"}


def digest_of(digests: Mapping[str, str]) -> str:
    """The sha256 (hex) of several tensors, from the digest of each by name."""
    lines = (f"{json.dumps(name, ensure_ascii=False)} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """The sha256 (hex) of one tensor: where it lies in memory, and on which device, has no part in it."""
    import torch

    plain = tensor.detach().cpu()
    plain = (torch.view_as_real(plain) if plain.is_complex() else plain).contiguous()
    size = plain.element_size()
    # As whole numbers, since numpy has no bfloat16.
    numbers = plain.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]).numpy()
    little = numbers.astype(f"<i{size}" if size > 1 else "u1", copy=False)
    name = str(tensor.dtype).removeprefix("torch.")
    word = name.rstrip("0123456789")
    kind = _LETTERS.get(word, word) + name.removeprefix(word)
    return _digest(kind, tensor.shape, little.data if little.size else b"")


def file_digests(header: Mapping[str, Any], content: bytes) -> dict[str, str]:
    """The digest of each tensor of a safetensors file that is known to be sound, from its header and its bytes."""
    start = 8 + int.from_bytes(content[:8], "little")
    numbers, found = memoryview(content)[start:], {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            found[name] = _digest(entry["dtype"], entry["shape"], numbers[first:end])
    return found


def _digest(kind: str, shape: Sequence[int], numbers: bytes | memoryview) -> str:
    line = f"{kind} {json.dumps(list(shape), separators=(',', ':'))}\n"
    found = hashlib.sha256(line.encode())
    found.update(numbers)
    return found.hexdigest()
