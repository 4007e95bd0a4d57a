"""Predictions image by image: the typed form of `NAME.predictions.csv`, which anybody's program may have written.

One line an image: `image`, `label`, where images come in groups `group`, and for each row of the verdict `ROW`, the
class that it named, and `ROW probability`, of that class; with several seeds `ROW seed S` and `ROW seed S probability`.
A file of `image,label,prediction` or `image,label,prediction,probability` is one of a row called `prediction`. Of a
cross-validation `fold` numbers from 1 the fold in which each image was tested.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError
from finetune.io.safe_open import read_regular
from finetune.io.sanitize import printable
from finetune.text import amount, listed

SUFFIX = ".csv"
PREDICTION = "prediction"  # the row of a file that has only one
PROBABILITY = "probability"
IMAGE, LABEL, GROUP, FOLD = "image", "label", "group", "fold"  # columns that are of no row
MAX_BYTES = 500_000_000  # of a file: a million images, ten seeds of two rows
MAX_SHOWN = 80  # characters of one cell in a message
_SEED = re.compile(r"(.+) seed (0|[1-9][0-9]{0,18})", re.DOTALL)
_EXPECTED = "expected a first line of image,label and a column for each row, such as image,label,prediction,probability"

_NO_ROWS = ("image", "label", FOLD)  # columns that are no predictions

ColumnKey = tuple[str, int | None]
"""The row of the verdict and the seed, which is None where there is only one training."""


@dataclass(frozen=True, eq=False)
class Column:
    """What one training said: class indices (int64, N), and their probabilities (float64, N, 0 to 1) if known."""

    predicted: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers to N test images, checked when made.

    images: each one's name, as relative to its data set, or else its index; no two alike. labels: class indices, int64,
    N. class_names: of labels and predictions. columns: by row and seed. groups: the name of each image's group, "" for
    an image that stands alone; () without groups. folds: of a cross-validation, int64, N, from 1. ValueError where any
    of this does not hold.
    """

    images: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    columns: Mapping[ColumnKey, Column]
    groups: tuple[str, ...] = ()
    folds: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        count = len(self.images)
        if len(set(self.images)) < count or len(set(self.class_names)) < len(self.class_names):
            raise ValueError("expected images and classes, each once")
        if self.groups and len(self.groups) != count:
            raise ValueError(f"expected a group for each of {count} images, got {len(self.groups)}")
        self._check_indices("labels", self.labels)
        if self.folds is not None and (self.folds.shape != (count,) or (count and self.folds.min() < 1)):
            raise ValueError(f"folds: expected {count} numbers from 1")
        for (row, seed), column in self.columns.items():
            name = column_name(row, seed)
            if not row or row in (IMAGE, LABEL, GROUP, FOLD, PROBABILITY) or row.endswith(f" {PROBABILITY}"):
                raise ValueError(f"a row of predictions cannot be called {row!r}")
            self._check_indices(name, column.predicted)
            chances = column.probability
            if chances is None:
                continue
            if chances.shape != (count,) or (count and not 0 <= chances.min() <= chances.max() <= 1):
                raise ValueError(f"{name}: expected {count} probabilities from 0 to 1")

    def _check_indices(self, name: str, values: npt.NDArray[np.int64]) -> None:
        if values.shape != (len(self.images),) or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name}: expected {len(self.images)} integers, got {values.dtype} {values.shape}")
        if len(values) and not 0 <= values.min() <= values.max() < len(self.class_names):
            raise ValueError(f"{name}: expected 0 to {len(self.class_names) - 1}")

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows, each once, in the order of the columns."""
        return tuple(dict.fromkeys(row for row, _ in self.columns))

    def seeds(self, row: str) -> tuple[int | None, ...]:
        """The seeds of a row, in the order of the columns; (None,) for a single training."""
        return tuple(seed for name, seed in self.columns if name == row)


def column_name(row: str, seed: int | None) -> str:
    """As in 'after' or 'after seed 3'."""
    return row if seed is None else f"{row} seed {seed}"


def image_names(files: Sequence[str], count: int) -> tuple[str, ...]:
    """What the images are called: their files, or where there are none, or two of one name, their indices."""
    if len(files) == count and len(set(files)) == count:
        return tuple(files)
    return tuple(map(str, range(count)))


def top_class(probabilities: npt.NDArray[np.floating[Any]]) -> Column:
    """The most probable class of each image and its probability, from those of all classes (N×C)."""
    predicted = probabilities.argmax(1).astype(np.int64)
    chance = np.take_along_axis(probabilities, predicted[:, None], 1)[:, 0].astype(np.float64)
    return Column(predicted, np.clip(chance, 0, 1))


def predictions_csv(predictions: Predictions) -> bytes:
    """The bytes of `NAME.predictions.csv`: the same for the same predictions, probabilities with six digits."""
    head, names = [IMAGE, LABEL], predictions.class_names
    values: list[Iterator[str]] = [iter(predictions.images), (names[i] for i in predictions.labels)]
    if predictions.groups:
        head.append(GROUP)
        values.append(iter(predictions.groups))
    if predictions.folds is not None:
        head.append(FOLD)
        values.append(map(str, predictions.folds.tolist()))
    for key, column in predictions.columns.items():
        head.append(column_name(*key))
        values.append(_names(names, column.predicted))
        if column.probability is not None:
            head.append(f"{column_name(*key)} {PROBABILITY}")
            values.append(f"{chance:.6g}" for chance in column.probability.tolist())
    lines = _Lines()
    writer = csv.writer(lines)
    writer.writerow(head)
    writer.writerows(zip(*values, strict=True))
    return "".join(lines).encode("utf-8", "surrogateescape")  # file names need not be text


class _Lines(list[str]):
    """What a csv.writer writes, with \\n as line ends; told to end lines so, it leaves a lone \\r unquoted."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def _names(names: Sequence[str], indices: npt.NDArray[np.int64]) -> Iterator[str]:
    return (names[i] for i in indices)


def read_predictions(path: str | Path) -> Predictions:
    """Reads a file of predictions. DataError, with the line, where it is none.

    class_names are those that occur, sorted; empty lines and a byte order mark are passed over.
    """
    try:
        content = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; expected a CSV of predictions, as adapt writes it") from None
    except OSError as error:
        large = f"; at most {amount(MAX_BYTES)} are read" if "at most" in str(error) else ""
        raise DataError(f"{path}: cannot be read ({error.strerror or error}){large}") from None
    if (zero := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, zero) + 1
        raise DataError(f"{path}:{line}: expected text, found a zero byte; save the table as CSV UTF-8")
    return _Table(str(path)).read(content.decode("utf-8-sig", "surrogateescape"))


class _Table:
    """A table of predictions while it is read; problems are named by file and line."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.classes: dict[str, int] = {}  # in the order in which they are met

    def fail(self, line: int, fault: str) -> DataError:
        return DataError(f"{self.path}:{line}: {fault}")

    def read(self, text: str) -> Predictions:
        """The predictions of a whole file's text."""
        rows = self._rows(text)
        line, head = next(rows, (1, []))
        keys, chances = self._columns(line, head)
        image_at, label_at = head.index(IMAGE), head.index(LABEL)
        group_at = head.index(GROUP) if GROUP in head else None
        groups: list[str] = []
        fold_at, folds = head.index(FOLD) if FOLD in head else None, list[int]()
        images: dict[str, int] = {}  # with their lines
        labels: list[int] = []
        predicted: dict[ColumnKey, list[int]] = {key: [] for key in keys}
        probabilities: dict[ColumnKey, list[float]] = {key: [] for key in chances}
        for line, row in rows:
            if len(row) != len(head):
                fault = f"expected {len(head)} values, found {len(row)}; a name that has a comma needs quotes"
                raise self.fail(line, fault)
            if images.setdefault(row[image_at], line) != line:
                raise self.fail(
                    line,
                    f"image {_shown(row[image_at])} is in line {images[row[image_at]]} too; expected each image once",
                )
            labels.append(self._class(line, LABEL, row[label_at]))
            if group_at is not None:
                groups.append(row[group_at])
            if fold_at is not None:
                folds.append(self._fold(line, row[fold_at]))
            for key, at in keys.items():
                predicted[key].append(self._class(line, head[at], row[at]))
            for key, at in chances.items():
                probabilities[key].append(self._probability(line, head[at], row[at]))
        if not images:
            raise self.fail(line, "no image; expected a line for each after the first line")
        names, order = sorted(self.classes), np.empty(len(self.classes), np.int64)
        order[[self.classes[name] for name in names]] = np.arange(len(names))
        columns = {
            key: Column(order[values], np.array(probabilities[key]) if key in chances else None)
            for key, values in predicted.items()
        }
        named = tuple(groups) if any(groups) else ()
        numbers = np.array(folds, np.int64) if fold_at is not None else None
        return Predictions(tuple(images), order[labels], tuple(names), columns, named, numbers)

    def _rows(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """Yields each row that is not an empty line with the number of its first line."""
        reader, line = csv.reader(io.StringIO(text, newline=""), strict=True), 1
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise self.fail(line, f"not CSV ({error}); is a quote not closed?") from None
            if row is None:
                return
            if row:
                yield line, row
            line = reader.line_num + 1

    def _columns(self, line: int, head: Sequence[str]) -> tuple[dict[ColumnKey, int], dict[ColumnKey, int]]:
        """Where predictions and probabilities of each row and seed are."""
        found = listed(_shown(name) for name in head) or "nothing"
        missing = [name for name in (IMAGE, LABEL) if name not in head]
        if missing:
            raise self.fail(line, f"no column {' and no column '.join(missing)}; {_EXPECTED}, found {found}")
        if twice := sorted({name for name in head if head.count(name) > 1}):
            raise self.fail(line, f"the column {_shown(twice[0])} is there twice; {_EXPECTED}, found {found}")
        suffix = f" {PROBABILITY}"
        keys, chances = {}, {}
        for at, name in enumerate(head):
            if name in (IMAGE, LABEL, GROUP, FOLD):
                continue
            if name == PROBABILITY or name.endswith(suffix):
                of = PREDICTION if name == PROBABILITY else name.removesuffix(suffix)
                self._check_row(line, of)
                if of not in head or _key(of) in chances:
                    fault = (
                        f"the column {_shown(name)} is of no column {_shown(of)}"
                        if of not in head
                        else (f"the columns {PROBABILITY} and {PREDICTION} {PROBABILITY} are one")
                    )
                    raise self.fail(line, f"{fault}; {_EXPECTED}, found {found}")
                chances[_key(of)] = at
            elif name:
                self._check_row(line, _key(name)[0])
                keys[_key(name)] = at
            else:
                raise self.fail(line, f"column {at + 1} has no name; {_EXPECTED}, found {found}")
        if not keys:
            raise self.fail(line, f"no column of predictions; {_EXPECTED}, found {found}")
        if both := {row for row, seed in keys if seed is not None} & {row for row, seed in keys if seed is None}:
            row = _shown(min(both))
            raise self.fail(line, f"the columns {row} and {row} seed S are both there; expected one kind of them")
        return keys, chances

    def _check_row(self, line: int, row: str) -> None:
        """Refuses rows that are called as the columns which are of no row."""
        if row in (IMAGE, LABEL, GROUP):
            raise self.fail(line, f"a row cannot be called {row}, which is the column of each image's {row}; rename it")

    def _class(self, line: int, column: str, name: str) -> int:
        if not name:
            raise self.fail(line, f"column {_shown(column)}: expected the name of a class, found nothing")
        return self.classes.setdefault(name, len(self.classes))

    def _fold(self, line: int, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
            found = _shown(text) or "nothing"
            raise self.fail(line, f"column {FOLD}: expected the number of a fold, from 1 on, found {found}")
        return int(text)

    def _probability(self, line: int, column: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not 0 <= value <= 1:
            raise self.fail(
                line, f"column {_shown(column)}: expected a probability from 0 to 1, found {_shown(text) or 'nothing'}"
            )
        return value


def _key(name: str) -> ColumnKey:
    found = _SEED.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, None)


def _shown(cell: str) -> str:
    return printable(cell if len(cell) <= MAX_SHOWN else f"{cell[:MAX_SHOWN]}...")
