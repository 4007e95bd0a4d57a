"""Checkpoints changed by hand, for tests of what verification finds."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any


def tampered(
    path: str,
    change: Callable[[dict[str, Any]], Any] | None = None,
    bits: tuple[str, int] | None = None,
    seal: bool = False,
) -> str:
    """Writes the file anew with other metadata, or one bit of a tensor turned; `seal` makes the hash fit again."""
    content = bytearray(Path(path).read_bytes())
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    metadata = json.loads(header["__metadata__"]["finetune"])
    numbers = content[end:]
    if bits is not None:
        name, bit = bits
        numbers[header[name]["data_offsets"][0] + bit // 8] ^= 1 << bit % 8
    if change is not None:
        change(metadata)
    if seal:
        lines = ""
        for name in sorted(header.keys() - {"__metadata__"}):
            first, last = header[name]["data_offsets"]
            line = f"{header[name]['dtype']} {json.dumps(header[name]['shape'], separators=(',', ':'))}\n".encode()
            lines += f"{json.dumps(name)} {hashlib.sha256(line + numbers[first:last]).hexdigest()}\n"
        metadata["tensors"] = hashlib.sha256(lines.encode()).hexdigest()
    header["__metadata__"]["finetune"] = json.dumps(metadata)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + numbers)
    return path
