"""Small generated data sets in the real file formats, small recipes, and a command line that runs in this process."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from finetune.cli.main import main
from finetune.data.registry import DATASETS
from finetune.report.console import Console

ROOT = Path(__file__).parents[2]  # of the project
SUPPORT = Path(__file__).parent

SGD = "{name: sgd, lr: 0.01}"


def idx(values: np.ndarray) -> bytes:
    """An idx file of these values, uint8 or int32."""
    kind = {np.dtype(np.uint8): 8, np.dtype(np.int32): 12}[values.dtype]
    head = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def drawn(name: str, count: int, part: str, noise: int = 220) -> tuple[np.ndarray, np.ndarray]:
    """Images (uint8, N×28×28) of a coarse pattern per class, faint under noise, and labels that go round from 0."""
    patterns = np.random.default_rng(list(name.encode())).integers(0, 160, (len(DATASETS[name].class_names), 7, 7))
    labels = np.arange(count) % len(patterns)
    rng = np.random.default_rng(list(f"{name} {part}".encode()))
    images = np.kron(patterns[labels], np.ones((1, 4, 4))) + rng.integers(-noise, noise, (count, 28, 28))
    return images.clip(0, 255).astype(np.uint8), labels


def make_data(root: Path, name: str, train: int = 300, test: int = 100, noise: int = 220) -> None:
    """Writes the files of a data set under `root`."""
    row = DATASETS[name]
    row.raw_folder(root).mkdir(parents=True, exist_ok=True)
    for files, count, part in ((row.train_files, train, "train"), (row.test_files, test, "test")):
        images, labels = drawn(name, count, part, noise)
        write_part(root, name, files, images, labels)


def write_part(root: Path, name: str, files: tuple[str, ...], images: np.ndarray, labels: np.ndarray) -> None:
    """Writes the two files of one part; `labels` count from 0."""
    row = DATASETS[name]
    stored = np.ascontiguousarray(images.transpose(0, 2, 1)) if row.transposed else images
    given = labels + row.first_label
    if files[1].endswith("idx2-int"):
        columns = np.zeros((len(given), 8), np.int32)
        columns[:, 0] = given
        content = idx(columns)
    else:
        content = idx(given.astype(np.uint8))
    (row.raw_folder(root) / files[0]).write_bytes(idx(stored))
    (row.raw_folder(root) / files[1]).write_bytes(content)


def phase(train: str = "all", length: str = "epochs: 2", batch: int = 30, optimizer: str = SGD, more: str = "") -> str:
    """One phase as a line of YAML."""
    return f"  - {{train: {train}, {length}, batch_size: {batch}, optimizer: {optimizer}{more and ', '}{more}}}\n"


def pretrain_recipe(phases: str = "", data: str = "{name: mnist}", more: str = "") -> str:
    return f"kind: pretrain\nmodel: cnn\ndata: {data}\nphases:\n{phases or phase()}precision: float32\n{more}"


def adapt_recipe(phases: str = "", data: str = "{validation: 0.1}", compare: str = "[]", more: str = "") -> str:
    return f"kind: adapt\ndata: {data}\nphases:\n{phases or phase()}compare: {compare}\nprecision: float32\n{more}"


@dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def finetune(*words: object) -> Done:
    """Runs `finetune WORDS...` here, through the same `main` as the program."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    typed = ["finetune", *map(str, words)]
    with mock.patch.object(sys, "argv", typed), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Done(code, out.getvalue(), err.getvalue())


def worked(*words: object) -> Done:
    """Runs a command that must end well."""
    done = finetune(*words)
    assert done.code == 0, done.err
    return done


def refused(*words: object, code: int = 2) -> str:
    """Runs a command that must fail in the way that is meant for it; returns the one message."""
    done = finetune(*words)
    assert done.code == code, (done.code, done.err)
    assert done.out == "" and "Traceback" not in done.err
    said = f"\n{done.err}".split("\nfinetune: ")
    assert len(said) == 2, done.err
    return said[1]


def report_of(checkpoint: str | Path) -> Any:
    """The report that lies beside a checkpoint."""
    return json.loads(Path(checkpoint).with_suffix(".report.json").read_text(encoding="utf-8"))


def files_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class Impatient(Console):
    """A person who presses Ctrl-C when a line comes that starts so; the `after` lines before it go by."""

    def __init__(self, start: str, after: int = 0) -> None:
        super().__init__(quiet=True, results=False)
        self.start, self.after = start, after

    def note(self, text: str) -> None:
        if text.strip().startswith(self.start):
            self.after -= 1
            if self.after < 0:
                raise KeyboardInterrupt
