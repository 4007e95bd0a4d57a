"""Files of a registered data set, with content of one's own."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from finetune.data.registry import DATASETS


def idx(values: np.ndarray) -> bytes:
    """An idx file of these values, uint8 or int32."""
    kind = {np.dtype(np.uint8): 8, np.dtype(np.int32): 12}[values.dtype]
    head = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def make_files(name: str, counts: tuple[int, int] = (130, 70), seed: int = 0) -> dict[str, bytes]:
    """Every file of a data set by name, in its own format, with random images as stored and labels that go round."""
    row, rng = DATASETS[name], np.random.default_rng(seed)
    files = {}
    for (image_file, label_file), count in zip((row.train_files, row.test_files), counts, strict=True):
        files[image_file] = idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        labels = np.arange(count) % len(row.class_names) + row.first_label
        if label_file.endswith("idx2-int"):
            columns = rng.integers(-(2**31), 2**31, (count, 8)).astype(np.int32)
            columns[:, 0] = labels
            files[label_file] = idx(columns)
        else:
            files[label_file] = idx(labels.astype(np.uint8))
    return files


def put(root: Path, name: str, files: dict[str, bytes], packed: bool = False) -> Path:
    """Writes the files under `root`; returns their folder."""
    raw = DATASETS[name].raw_folder(root)
    raw.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (raw / f"{file}.gz" if packed else raw / file).write_bytes(gzip.compress(content) if packed else content)
    return raw
