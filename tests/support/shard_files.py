"""Small Parquet and tar shards of pictures, whole or wrong in some way, for the tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from album import scene
from PIL import Image

NAMES = ("apple", "pear")
Picture = tuple[bytes | None, Any, str | None]
"""Encoded bytes, a label, and a name inside the shard."""


def encoded(pixels: np.ndarray, ending: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, ending)
    return file.getvalue()


def pictures(part: str, count: int, *, channels: int = 3, noise: int = 300) -> list[Picture]:
    """So many pictures, their classes in turn as numbers, named CLASS/NUMBER.png."""
    found: list[Picture] = []
    for index in range(count):
        name = NAMES[index % 2]
        content = encoded(scene(name, f"{part} {index}", channels, noise))
        found.append((content, index % 2, f"{part}/{name}/{index}.png"))
    return found


def table(
    rows: Sequence[Picture],
    names: Sequence[str] | None = NAMES,
    columns: tuple[str, str] = ("image", "label"),
    **more: Sequence[Any],
) -> Any:
    """A table as `datasets` writes it, with the features in the schema's metadata; `names` None leaves these out."""
    import pyarrow as pa

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [label for _, label, _ in rows]
    image = pa.array([{"bytes": content, "path": name} for content, _, name in rows], type=kind)
    found = pa.table({columns[0]: image, columns[1]: pa.array(labels), **{k: pa.array(v) for k, v in more.items()}})
    if names is None:
        return found
    label = {"names": list(names), "_type": "ClassLabel"}
    features = {"info": {"features": {columns[0]: {"_type": "Image"}, columns[1]: label}}}
    return found.replace_schema_metadata({"huggingface": json.dumps(features)})


def put_parquet(path: Path, rows: Sequence[Picture], *, row_group_size: int = 4, **more: Any) -> Path:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(rows, **more), path, row_group_size=row_group_size)
    return path


def parquet_set(root: Path, train: int = 18, test: int = 6, *, channels: int = 3, **more: Any) -> Path:
    """ROOT/data/train-00000-of-00002.parquet, its neighbour, and test-00000-of-00001.parquet."""
    rows = pictures("train", train, channels=channels)
    half = len(rows) // 2
    put_parquet(root / "data" / "train-00000-of-00002.parquet", rows[:half], **more)
    put_parquet(root / "data" / "train-00001-of-00002.parquet", rows[half:], **more)
    put_parquet(root / "data" / "test-00000-of-00001.parquet", pictures("test", test, channels=channels), **more)
    return root


Member = tuple[str | tarfile.TarInfo, bytes]


def put_tar(path: Path, members: Iterable[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(part: str, count: int, label: str = "cls") -> Iterable[Member]:
    """The members of so many pictures, each with its label as text (cls) or JSON (json)."""
    for content, number, name in pictures(part, count):
        assert content is not None and name is not None
        stem = name.removesuffix(".png")
        text = str(number) if label == "cls" else json.dumps({"label": NAMES[number], "group": f"{part}{number}"})
        yield f"{stem}.{label}", text.encode()
        yield f"{stem}.png", content
