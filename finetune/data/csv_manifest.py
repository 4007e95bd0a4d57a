"""Reads a CSV of `path,label[,split]`."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

from finetune.data.manifest import (
    MAX_SHOWN,
    SPLIT_NAMES,
    FileRecord,
    Manifest,
    class_name,
    list_some,
    with_test_split,
)
from finetune.errors import DataError
from finetune.io.safe_open import open_regular
from finetune.io.sanitize import printable
from finetune.text import name_hint

COLUMNS = ("path", "label", "split")
MAX_PROBLEMS = 40  # listed one by one
MAX_COUNTED = 10_000  # problems after which reading stops
MAX_LINES = 10_000_000
MAX_ROW_LEN = 1_000_000  # characters
MAX_CELL_SHOWN = 200  # characters of one cell in a message


def read_csv(name: str | Path) -> Manifest:
    """Lists the images that a CSV names, in its order; opens none. UTF-8, with or without a byte order mark.

    With rows of train and only one of validation and test, that one is the test split. DataError has every problem with
    its line, the first MAX_PROBLEMS of them.
    """
    path = Path(name)
    table = _Table(path)
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            table.read(file)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.csv")) if path.parent.is_dir() else []
        hint = name_hint(path.name, near, f"tables in {path.parent}")
        raise DataError(f"{path}: there is no such file{hint}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return table.manifest()


class _Table:
    """The image records of the rows read so far, and the problems of these rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.row_length = 0  # characters read of the present row
        self.records: list[FileRecord] = []
        self.first_rows: dict[str, tuple[int, FileRecord]] = {}  # by the file's real path, with the row's line
        self.repeated: list[str] = []  # names, MAX_SHOWN at most
        self.repetitions = 0
        self.problems: list[str] = []  # MAX_PROBLEMS at most
        self.problem_count = 0

    def read(self, file: io.TextIOWrapper) -> None:
        """Reads every row. DataError at once where the first line or the file itself is no table's."""
        rows = self._rows(file)
        _, head = next(rows, (1, []))
        columns = [cell.strip().lower() for cell in head]
        missing = [column for column in COLUMNS[:2] if column not in columns]
        twice = sorted({column for column in COLUMNS if columns.count(column) > 1})
        if missing or twice:
            fault = f"no column {', '.join(missing)}" if missing else f"the column {', '.join(twice)} twice"
            found = _shorten(", ".join(head)) or "nothing"
            raise DataError(
                f"{self.path}:1: {fault}; expected a first line of path,label or path,label,split, found {found}"
            )
        for line, row in rows:
            if self.problem_count > MAX_COUNTED:
                break
            if len(row) == len(columns):
                self._add(line, dict(zip(columns, row, strict=True)))
            else:
                fault = f"expected {len(columns)} values, found {len(row)}; a path that has a comma needs quotes"
                self._problem(line, fault)

    def _lines(self, file: io.TextIOWrapper) -> Iterator[str]:
        """Yields line after line. DataError for too many, or for a row that is too long."""
        count = 0
        while line := file.readline(MAX_ROW_LEN + 1):
            count += 1
            self.row_length += len(line)
            if self.row_length > MAX_ROW_LEN:
                raise DataError(
                    f"{self.path}:{count}: a row of over {MAX_ROW_LEN:,} characters; is a quote not closed, or is this "
                    "no table?"
                )
            if count > MAX_LINES:
                raise DataError(
                    f"{self.path}: over {MAX_LINES:,} lines, and at most so many are read; divide the table"
                )
            yield line

    def _rows(self, file: io.TextIOWrapper) -> Iterator[tuple[int, list[str]]]:
        """Yields each row that is not empty with the number of its first line."""
        reader, line = csv.reader(self._lines(file), strict=True), 1
        while True:
            self.row_length = 0
            try:
                row = next(reader, None)
            except csv.Error as error:
                self._problem(line, f"not CSV ({error})")
                return
            if row is None:
                return
            if any(cell.strip() for cell in row):
                yield line, row
            line = reader.line_num + 1

    def _problem(self, line: int, fault: str) -> None:
        self.problem_count += 1
        if self.problem_count <= MAX_PROBLEMS:
            self.problems.append(f"{self.path}:{line}: {fault}")

    def _add(self, line: int, row: dict[str, str]) -> None:
        """Adds the record of one row, or its problems; a row that repeats another is only counted."""
        name, label, split_cell = row["path"].strip(), class_name(row["label"]), row.get("split", "train").strip()
        before, split, path = self.problem_count, SPLIT_NAMES.get(split_cell.lower()), self.path.parent / name
        if label is None:
            fault = "empty label" if not row["label"].strip() else "a label that cannot be shown"
            self._problem(line, f"{fault}; expected the name of a class")
        if split is None:
            hint = name_hint(split_cell[:40], SPLIT_NAMES, "splits")
            self._problem(line, f"unknown split {_shorten(split_cell)!r}{hint}")
        if not name:
            self._problem(line, "empty path; expected the name of a picture file")
        elif not _is_file(path):
            self._problem(line, f"there is no file {_shorten(name)} (paths are relative to {self.path.parent}/)")
        if label is None or split is None or self.problem_count > before:
            return
        record = FileRecord(name, label, split, path)
        first_line, first = self.first_rows.setdefault(os.path.realpath(path), (line, record))
        if first is record:
            self.records.append(record)
        elif first.label != label:
            self._problem(line, f"{_shorten(name)} is {label!r} here and {first.label!r} in line {first_line}")
        elif first.split != split:
            fault = f"{_shorten(name)} is in {split_cell} here and in another split in line {first_line}"
            self._problem(line, fault)
        else:
            self.repetitions += 1
            self.repeated += [name] if len(self.repeated) < MAX_SHOWN else []

    def manifest(self) -> Manifest:
        """The manifest of all rows. DataError with the problems found, if any."""
        classes = sorted({record.label for record in self.records})
        if not self.problem_count:
            if not any(record.split == "train" for record in self.records):
                self.problems.append(f"{self.path}: no picture to learn from; expected rows, and some of split train")
            elif len(classes) == 1:
                self.problems.append(f"{self.path}: one class only, {classes[0]!r}; a classifier needs at least two")
        if (more := self.problem_count - MAX_PROBLEMS) > 0:
            at_least = "over " if self.problem_count > MAX_COUNTED else ""
            self.problems.append(f"{self.path}: and {at_least}{more:,} problems more")
        if self.problems:
            raise DataError("\n".join(self.problems))
        notes = []
        if self.repetitions:
            more = self.repetitions - len(self.repeated)
            names = list_some(self.repeated) + (f" and {more:,} more" if more else "")
            notes.append(f"{self.path}: {self.repetitions:,} rows repeat another and count once: {names}")
        return Manifest(str(self.path), with_test_split(self.records), tuple(classes), notes=tuple(notes))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def _shorten(cell: str) -> str:
    return printable(cell[:MAX_CELL_SHOWN])


def _not_utf8(path: Path) -> DataError:
    """Names the line of the first byte that is not UTF-8. Text is decoded ahead of the lines, so it reads again."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    try:
        with open_regular(path) as file:
            chunk = b"."
            while chunk:
                chunk = file.read(1 << 20)
                decoder.decode(chunk, final=not chunk)
                line += chunk.count(b"\n")
    except UnicodeDecodeError as error:
        found = f"the byte {error.object[error.start]:#04x}"
        line += error.object.count(b"\n", 0, error.start)
        return DataError(f"{path}:{line}: expected UTF-8, found {found}; save the table as CSV UTF-8")
    except OSError as error:
        return DataError(f"{path}: cannot be read ({error.strerror or error})")
    return DataError(f"{path}: changed while it was read; try again")
