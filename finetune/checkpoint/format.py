"""The checkpoint format: tensors and metadata in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from finetune.checkpoint.confidence import Confidence
from finetune.checkpoint.limits import MAX_INPUT_SIZE, MAX_VALUES, check_metadata_values
from finetune.checkpoint.safetensors_io import (
    MAX_TENSORS,
    Header,
    check_finite,
    check_magnitude,
    read_header,
    read_tensors,
    safetensors_chunks,
)
from finetune.checkpoint.tensor_hash import hash_tensors
from finetune.errors import CheckpointError
from finetune.io.atomic import write_atomic
from finetune.io.sanitize import printable
from finetune.io.strict_json import parse_json

if TYPE_CHECKING:
    from torch import Tensor, nn


FORMAT: Literal[1] = 1
KEY = "finetune"
MAX_METADATA = 8_000_000  # bytes in a header, which has at most MAX_HEADER with all tensors' names
MAX_LISTED = 7  # tensors of each kind named in one message
MAX_SHOWN = 100  # characters of a place in the metadata


class InputMetadata(BaseModel):
    """How an image becomes the model's input: channels, side in pixels, and per channel mean and deviation of 0..1.

    `crop` and `resize` are those of the registry's InputSpec; files without them squash the whole picture.
    `decode` and `bits` say how the files trained on became pixels; where they are left out, exactly and by 16 bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    channels: Literal[1, 3]
    size: int = Field(ge=1, le=MAX_INPUT_SIZE)
    mean: list[FiniteFloat]
    std: list[FiniteFloat]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    crop: float = Field(default=1.0, ge=0.1, le=1)
    resize: Literal["squash", "shorter_side"] = "squash"
    decode: Literal["exact", "scaled"] = "exact"
    bits: Literal[8, 10, 12, 14, 16] = 16

    @model_serializer(mode="wrap")
    def _without_default_decoding(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        defaults = {key: InputMetadata.model_fields[key].default for key in ("decode", "bits")}
        plain: dict[str, Any] = serialize(self)
        return {key: value for key, value in plain.items() if key not in defaults or value != defaults[key]}

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> InputMetadata:
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise ValueError("needs one mean and one positive deviation per channel")
        return self


class Metadata(BaseModel):
    """The JSON metadata of a checkpoint. Accuracies are fractions; `lineage` lists parents, nearest first.

    `tensors` is the sha256 of the tensors (`hash_tensors`), filled in by `encode`; older files have none. `confidence`
    is None, and then left out, where nothing was held out to calibrate on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    format: Literal[1] = FORMAT
    model: str
    arguments: dict[str, Any]
    classes: list[str] = Field(min_length=1)
    input: InputMetadata
    recipe: dict[str, Any]
    data: dict[str, Any]
    results: dict[str, Any]
    lineage: list[dict[str, Any]]
    versions: dict[str, str]
    tensors: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    confidence: Confidence | None = None

    @model_validator(mode="after")
    def _can_be_written(self) -> Metadata:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("needs class names that differ")
        check_metadata_values(self.model_dump())
        _metadata_text(self).encode()  # UnicodeEncodeError, a ValueError, for half a character
        return self


@dataclass(frozen=True)
class Weights:
    """Any safetensors file as read: tensors by name, sha256 (hex) of its bytes, texts of its metadata."""

    tensors: dict[str, Tensor]
    sha256: str
    texts: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: tensors by name, metadata, and the sha256 (hex) of the file's bytes."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: Metadata
    sha256: str


def encode(tensors: Mapping[str, Tensor], metadata: Metadata) -> bytes:
    """A checkpoint's bytes, the same for the same tensors and metadata. CheckpointError for NaN or infinity."""
    check_finite(tensors, "not written")
    check_magnitude(tensors, "not written")
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    said = metadata.model_copy(update={"tensors": hash_tensors(plain)})
    return b"".join(safetensors_chunks(plain, {KEY: _metadata_text(said), "format": "pt"}))


def check_saveable(metadata: Metadata) -> None:
    """ValueError for metadata that would be refused when the file is read, which is asked before a long training."""
    text = _metadata_text(metadata)
    if (size := len(json.dumps(text, ensure_ascii=False).encode())) > MAX_METADATA:
        raise ValueError(f"{size:,} bytes of metadata; at most {MAX_METADATA:,}: shorter class names take less")
    parse_json(text, MAX_VALUES - 4 * MAX_TENSORS)  # whose entries are counted with it


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], metadata: Metadata) -> str:
    """Writes the file, whole or not at all, and returns its sha256."""
    content = encode(tensors, metadata)
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def read_metadata(path: Path) -> Metadata:
    """Reads the metadata alone, without tensors or torch. CheckpointError when it is not a finetune checkpoint."""
    return _parse_metadata(path, read_header(path))


def has_metadata(path: Path) -> bool:
    """Whether a safetensors file is a finetune checkpoint. CheckpointError when it is no safetensors file at all."""
    return KEY in read_header(path).texts


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Reads the shape of every tensor, without tensors or torch. CheckpointError when it is no safetensors file."""
    return {name: list(entry.shape) for name, entry in read_header(path).tensors.items()}


def read_checkpoint(path: Path, *, refuse: bool = True) -> Checkpoint:
    """Reads a checkpoint and checks that every number is finite and the tensors have the hash in its metadata.

    CheckpointError names the fault. Without `refuse` these two checks are left to the caller.
    """
    metadata, tensors, digest = read_tensors(path, lambda header: _parse_metadata(path, header), finite=refuse)
    if refuse and metadata.tensors is not None and metadata.tensors != (found := hash_tensors(tensors)):
        raise CheckpointError(
            f"{path}: its tensors are not those it was written with: expected the sha256 {metadata.tensors[:12]}…, "
            f"found {found[:12]}…; get or make the file again (`finetune verify` says what else holds)"
        )
    return Checkpoint(path, tensors, metadata, digest)


def read_weights(path: Path) -> Weights:
    """Reads any safetensors file. CheckpointError for damage, and for NaN or infinity."""
    texts, tensors, digest = read_tensors(path, lambda header: header.texts)
    return Weights(tensors, digest, texts)


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copies tensors into a network. CheckpointError, listing both sides, unless names, shapes and types agree."""
    check_tensors(network, tensors, where)
    network.load_state_dict(dict(tensors))


def check_tensors(network: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """CheckpointError unless `load_tensors` would succeed; the network's own numbers do not matter."""
    wanted = {name: _describe(t) for name, t in network.state_dict().items()}
    found = {name: _describe(t) for name, t in tensors.items()}
    if wanted == found:
        return
    lines = [f"{where}: the tensors do not fit the model, which has {len(wanted)}; the file has {len(found)}"]
    count: Counter[tuple[bool, bool]] = Counter()  # of tensors that differ, that the file lacks, that the model lacks
    for name in sorted(wanted.keys() | found.keys()):
        ours, theirs = wanted.get(name, "no such tensor"), found.get(name, "no such tensor")
        side = (name in wanted, name in found)
        count[side] += ours != theirs
        if ours != theirs and count[side] <= MAX_LISTED:
            lines.append(f"  {name}: the model has {ours}, the file has {theirs}")
    if more := sum(max(0, number - MAX_LISTED) for number in count.values()):
        lines.append(f"  and {more} more")
    raise CheckpointError("\n".join(lines))


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'×'.join(map(str, tensor.shape)) or '(one number)'}"


def _metadata_text(metadata: Metadata) -> str:
    plain = metadata.model_dump()
    plain["input"] = metadata.input.model_dump(exclude_unset=True)  # an older file's comes out as it was
    if metadata.confidence is None:
        del plain["confidence"]
    return json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _parse_metadata(path: Path, header: Header) -> Metadata:
    if KEY not in header.texts:
        raise CheckpointError(
            f"{path}: a safetensors file without finetune's metadata, so its model and classes are not known; "
            "expected a file written by `finetune pretrain` or `finetune adapt`"
        )
    try:
        return Metadata.model_validate(parse_json(header.texts[KEY], MAX_VALUES))
    except ValidationError as error:
        first = error.errors()[0]
        at = printable(".".join(map(str, first["loc"])) or KEY)[:MAX_SHOWN]
        said = first["msg"][:1].lower() + first["msg"][1:]
        raise CheckpointError(f"{path}: its metadata does not hold at {at}: {said}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata does not hold at {KEY}: {error}") from None
