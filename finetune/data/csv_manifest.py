"""Reads a table of `path,label[,split][,group]`: a CSV, or one divided by tabs, semicolons or bars."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from finetune.data.file_finder import FileFinder
from finetune.data.manifest import (
    MAX_SHOWN,
    FileRecord,
    Manifest,
    alike_classes,
    class_name,
    list_some,
    with_test_split,
)
from finetune.data.split_names import MAIN_NAMES, SplitName, is_evaluation
from finetune.data.table_columns import ColumnNames, Columns, find_columns, find_delimiter
from finetune.errors import DataError
from finetune.io.safe_open import open_regular
from finetune.io.sanitize import printable
from finetune.text import name_hint

MAX_PROBLEMS = 40  # listed one by one
MAX_COUNTED = 10_000  # problems after which reading stops
MAX_LINES = 10_000_000
MAX_ROW_LEN = 1_000_000  # characters
MAX_CELL_SHOWN = 200  # characters of one cell in a message
_SPREADSHEET = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # a first line that some spreadsheets write and read


def read_csv(name: str | Path, columns: ColumnNames | None = None) -> Manifest:
    """Lists the images that a table names, in its order; opens none. UTF-8, with or without a byte order mark.

    columns: what its columns are called, where not by the usual names. With rows of train and only one of validation
    and test, that one is the test split. DataError has every problem with its line, the first MAX_PROBLEMS of them.
    """
    path = Path(name)
    table = _Table(path, columns or ColumnNames())
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            table.read(file)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
        hint = name_hint(path.name, near, f"tables in {path.parent}")
        raise DataError(f"{path}: there is no such file{hint}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return table.manifest()


class _Table:
    """The image records of the rows read so far, and the problems of these rows."""

    def __init__(self, path: Path, names: ColumnNames) -> None:
        self.path, self.names, self.finder = path, names, FileFinder(path.parent)
        self.row_length = 0  # characters read of the present row
        self.records: list[FileRecord] = []
        self.first_rows: dict[str, tuple[int, FileRecord]] = {}  # by the file's real path, with the row's line
        self.first_of_group: dict[str, tuple[int, SplitName]] = {}  # line and split of each group's first row
        self.spellings: dict[str, set[str]] = {}  # by class name, the labels that were normalized to it
        self.evaluation: set[int] = set()  # indices of the records whose split says `eval`
        self.repeated: list[str] = []  # names, MAX_SHOWN at most
        self.repetitions = 0
        self.notes: list[str] = []
        self.problems: list[str] = []  # MAX_PROBLEMS at most
        self.problem_count = 0

    def read(self, file: io.TextIOWrapper) -> None:
        """Reads every row. DataError at once where the first line or the file itself is no table's."""
        rows = self._rows(file)
        head_line, head = next(rows, (1, []))
        first = next(rows, None)
        try:
            columns = find_columns(head, None if first is None else first[1], self.names)
        except DataError as error:
            raise DataError(f"{self.path}:{head_line}: {error}") from None
        self.notes += [f"{self.path}: {note}" for note in columns.notes]
        for line, row in rows if first is None else itertools.chain([first], rows):
            if self.problem_count > MAX_COUNTED:
                break
            if len(row) == len(head):
                self._add(line, row, columns)
            else:
                fault = f"expected {len(head)} values, found {len(row)}; a path that has a comma needs quotes"
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
        lines, said, before = self._lines(file), None, 0
        head = next(lines, "")
        while head and (not head.strip() or _SPREADSHEET.fullmatch(head.rstrip("\r\n"))):
            said = _SPREADSHEET.fullmatch(head.rstrip("\r\n")) or said
            self.row_length = 0
            head, before = next(lines, ""), before + 1
        delimiter = said[1] if said else find_delimiter(head, self.names)
        reader, line = csv.reader(itertools.chain([head], lines), strict=True, delimiter=delimiter), before + 1
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                self._problem(line, f"not CSV ({error})")
                return
            if row is None:
                return
            if any(cell.strip() for cell in row):
                yield line, row
            line = before + reader.line_num + 1
            self.row_length = 0

    def _problem(self, line: int, fault: str) -> None:
        self.problem_count += 1
        if self.problem_count <= MAX_PROBLEMS:
            self.problems.append(f"{self.path}:{line}: {fault}")

    def _add(self, line: int, row: list[str], columns: Columns) -> None:
        """Adds the record of one row, or its problems; a row that repeats another is only counted."""
        name, label = row[columns.path].strip(), class_name(row[columns.label])
        cell = "train" if columns.split is None else row[columns.split].strip()
        group = "" if columns.group is None else row[columns.group].strip()
        before, split, path = self.problem_count, columns.split_in(cell) if columns.split is not None else "train", None
        if label is None:
            fault = "empty label" if not row[columns.label].strip() else "a label that cannot be shown"
            self._problem(line, f"{fault}; expected the name of a class")
        if split is None:
            hint = name_hint(cell[:40], ("true", "false") if columns.flag else MAIN_NAMES, "splits")
            self._problem(line, f"unknown split {_shorten(cell)!r}{hint}")
        if not name:
            self._problem(line, "empty path; expected the name of a picture file")
        else:
            path = self._find(line, name)
        if label is None or split is None or path is None or self.problem_count > before:
            return
        self.spellings.setdefault(label, set()).add(row[columns.label])
        found_name = name if path == self.path.parent / name else self.finder.name_of(path)
        self._add_record(line, cell, FileRecord(found_name, label, split, path, group=group))

    def _find(self, line: int, name: str) -> Path | None:
        found = self.finder.find(name)
        if len(found) == 1:
            return found[0]
        if found:
            files = list_some([self.finder.name_of(path) for path in found[:MAX_SHOWN]])
            self._problem(line, f"{_shorten(name)} may be any of {len(found)} files: {files}; write the whole path")
        else:
            where = f"paths are relative to {self.path.parent}/"
            self._problem(line, f"there is no file {_shorten(name)} ({where})")
        return None

    def _add_record(self, line: int, cell: str, record: FileRecord) -> None:
        """Adds a record, unless its file has another label or split in an earlier row, or its group another split."""
        name = _shorten(record.name)
        first_line, first = self.first_rows.setdefault(os.path.realpath(record.path), (line, record))
        if first is not record and first.label != record.label:
            self._problem(line, f"{name} is {record.label!r} here and {first.label!r} in line {first_line}")
        elif first is not record and first.split != record.split:
            self._problem(line, f"{name} is in {cell} here and in another split in line {first_line}")
        elif first is not record:
            self.repetitions += 1
            self.repeated += [record.name] if len(self.repeated) < MAX_SHOWN else []
        else:
            if is_evaluation(cell):
                self.evaluation.add(len(self.records))
            self.records.append(record)
            group_line, split = self.first_of_group.setdefault(record.group, (line, record.split))
            if record.group and split != record.split:
                group = _shorten(record.group)
                self._problem(line, f"the group {group} is in {cell} here and in {split} in line {group_line}")

    def manifest(self) -> Manifest:
        """The manifest of all rows. DataError with the problems found, if any, and where there is no row."""
        if not self.problem_count and not self.records:
            self.problems.append(f"{self.path}: no picture; expected rows below the first line")
        if (more := self.problem_count - MAX_PROBLEMS) > 0:
            at_least = "over " if self.problem_count > MAX_COUNTED else ""
            self.problems.append(f"{self.path}: and {at_least}{more:,} problems more")
        if self.problems:
            raise DataError("\n".join(self.problems))
        if self.finder.respelled:
            self.notes.append(
                f"{self.path}: {self.finder.respelled:,} pictures found under another spelling, such as "
                f"{printable(self.finder.example)}"
            )
        if self.repetitions:
            more = self.repetitions - len(self.repeated)
            names = list_some(self.repeated) + (f" and {more:,} more" if more else "")
            self.notes.append(f"{self.path}: {self.repetitions:,} rows repeat another and count once: {names}")
        notes = (*self.notes, *alike_classes(str(self.path), self.spellings))
        records = with_test_split(self._with_evaluation())
        return Manifest(str(self.path), records, tuple(sorted(self.spellings)), notes=notes)

    def _with_evaluation(self) -> list[FileRecord]:
        """The records, with rows of `eval` as validation where other rows are the test's."""
        tested = sum(record.split == "test" for record in self.records)
        if len(self.evaluation) in (0, tested):
            return self.records
        return [
            replace(record, split="validation") if index in self.evaluation else record
            for index, record in enumerate(self.records)
        ]


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
