"""`finetune inspect`: what is in a checkpoint. Reads the header only; needs no torch."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from finetune.checkpoint.format import has_metadata
from finetune.checkpoint.safetensors_io import read_header
from finetune.sources.resolve import SourceRef, locate, read_source_metadata

MAX_TEXT = 1_000  # characters of each text in other people's files that are shown


def inspect(checkpoint: str | Path, *, bars: bool = False) -> dict[str, Any]:
    """A checkpoint's metadata as JSON values: model, classes, input, recipe, data, results, lineage, versions.

    checkpoint: a file, or hub:OWNER/NAME[@REVISION]. Of weights that finetune did not write: where they are, what
    config.json beside them on the Hub says, and their tensors. bars: show how a download goes.
    """
    found = locate(checkpoint, bars=bars)
    if found.path is None or has_metadata(found.path):
        values = read_source_metadata(found).model_dump()
        if values["confidence"] is None:
            del values["confidence"]  # as it is in the file
        for layer in (values.get("confidence", {}).get("novelty") or {}).get("layers", ()):
            layer["vectors"] = f"{layer['count'] * layer['width']:,} bytes"
        return values
    return _third_party_values(found, found.path)


def _third_party_values(found: SourceRef, path: Path) -> dict[str, Any]:
    header, hub = read_header(path), found.hub
    values: dict[str, Any] = {"source": found.text, "made by": "others: there is no metadata of finetune"}
    config = hub.config if hub is not None else None
    if hub is not None:
        values["sha256"] = hub.sha256
    if config is not None:
        names = list(config.label_names) if config.label_names is not None else None
        values |= {"model": config.model, "arguments": config.model_args}
        values |= {"number of classes": config.num_classes, "classes": names, "pretrained_cfg": config.pretrained_cfg}
    kinds: Counter[str] = Counter()
    for entry in header.tensors.values():
        kinds[entry.dtype] += prod(entry.shape)
    texts = {key: text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..." for key, text in header.texts.items()}
    values |= {"texts in the file": texts, "tensors": len(header.tensors), "numbers by type": dict(kinds)}
    model = "" if config is not None else " --model timm/NAME"
    return values | {"use it with": f"finetune adapt --from {found.text}{model} --target DATA"}
