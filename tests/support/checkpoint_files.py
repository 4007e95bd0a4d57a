"""Small checkpoint files, whole or with a header of one's own."""

import json
import struct

import pytest

from finetune.checkpoint.format import (
    KEY,
    Metadata,
    read_checkpoint,
)
from finetune.errors import CheckpointError

OLD_INPUT = {"channels": 1, "size": 28, "mean": [0.1307], "std": [0.3081], "interpolation": "bilinear"}


INPUT = {**OLD_INPUT, "crop": 1.0, "resize": "squash"}


PLAIN = {
    "model": "cnn",
    "arguments": {},
    "classes": ["null", "größer", "三"],
    "input": INPUT,
    "recipe": {"seed": 0, "phases": [{"lr": 1e-3, "at": [0.1, 1 / 3]}]},
    "data": {"name": "mnist", "validation": None},
    "results": {"test": {"accuracy": 0.9953, "correct": 9953}},
    "lineage": [{"id": "parent.safetensors", "sha256": "0" * 64, "task": None}],
    "versions": {"torch": "2"},
}


def metadata(**changes):
    return Metadata.model_validate({**PLAIN, **changes})


def raw(header, data=b""):
    """A safetensors file from a header (bytes or JSON values) and the bytes after it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def with_metadata(text, **entries):
    return raw({"__metadata__": {KEY: text if isinstance(text, str) else json.dumps(text)}, **entries}, b"\0" * 4)


def one_tensor(**changes):
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}


def full():
    """The metadata as JSON values, as a file has them."""
    return metadata().model_dump()


def refusal(path, content, reader=read_checkpoint):
    """What a damaged file is refused with: one CheckpointError that names the file."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        reader(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)
