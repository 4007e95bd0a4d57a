"""Reads a CSV of `path,label[,split]`."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data.manifest import MAX_SHOWN, SPLIT_NAMES, ImageRecord, Manifest, class_name, list_some, one_test_split
from finetune.errors import DataError
from finetune.io.safe_open import open_regular
from finetune.io.sanitize import printable
from finetune.text import name_hint

MAX_PROBLEMS = 40  # told one by one

MAX_COUNTED = 10_000  # problems after which reading stops

MAX_LINES = 10_000_000

MAX_ROW_LEN = 1_000_000  # characters

COLUMNS = ("path", "label", "split")

_MAX_SHOWN_LEN = 200  # characters of one cell in a message


def read_table(name: str | Path) -> Manifest:
    """The pictures a CSV names, in its order; none is opened. UTF-8, with or without a byte order mark.

    With rows of train and only one of validation and test, that one is the test part. DataError has every problem with
    its line, the first MOST_PROBLEMS of them.
    """
    path = Path(name)
    rows = _Rows(path)
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            rows.read(_Lines(path, file))
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except FileNotFoundError:
        raise DataError(_not_there(path)) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return rows.listing()


class _Lines:
    """The lines of a table, one by one. DataError for too many, or a row that is too long; `row` starts the next."""

    def __init__(self, path: Path, file: io.TextIOWrapper) -> None:
        self.path, self.file, self.count, self.length = path, file, 0, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline(MAX_ROW_LEN + 1)
        if not line:
            raise StopIteration
        self.count += 1
        self.length += len(line)
        if self.length > MAX_ROW_LEN:
            raise DataError(
                f"{self.path}:{self.count}: a row of over {MAX_ROW_LEN:,} characters; is a quote not closed, or is "
                "this no table?"
            )
        if self.count > MAX_LINES:
            raise DataError(f"{self.path}: over {MAX_LINES:,} lines, and at most so many are read; divide the table")
        return line

    def row(self) -> None:
        self.length = 0


def _not_utf8(path: Path) -> DataError:
    """Where the first byte is that cannot be. The file is read again: text is decoded far ahead of the lines."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    try:
        with open_regular(path) as file:
            while True:
                chunk = file.read(1 << 20)
                decoder.decode(chunk, final=not chunk)
                line += chunk.count(b"\n")
                if not chunk:
                    break
    except UnicodeDecodeError as error:
        found = f"the byte {error.object[error.start]:#04x}"
        line += error.object.count(b"\n", 0, error.start)
        return DataError(f"{path}:{line}: expected UTF-8, found {found}; save the table as CSV UTF-8")
    except OSError as error:
        return DataError(f"{path}: cannot be read ({error.strerror or error})")
    return DataError(f"{path}: changed while it was read; try again")


def _not_there(path: Path) -> str:
    near = sorted(p.name for p in path.parent.glob("*.csv")) if path.parent.is_dir() else []
    return f"{path}: there is no such file{name_hint(path.name, near, f'tables in {path.parent}')}"


@dataclass
class _Rows:
    """What the rows read so far gave, and what is wrong with them."""

    path: Path
    files: list[ImageRecord] = field(default_factory=list)
    first: dict[str, tuple[int, ImageRecord]] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)  # the first ones
    repetitions: int = 0
    problems: list[str] = field(default_factory=list)  # the first ones
    faults: int = 0  # all problems

    def read(self, lines: _Lines) -> None:
        """Takes every row in. DataError at once where the first line or the file itself is no table's."""
        rows = self._rows(lines)
        _, head = next(rows, (1, []))
        names = [cell.strip().lower() for cell in head]
        missing = [column for column in COLUMNS[:2] if column not in names]
        twice = sorted({column for column in COLUMNS if names.count(column) > 1})
        if missing or twice:
            fault = f"no column {', '.join(missing)}" if missing else f"the column {', '.join(twice)} twice"
            found = _cell(", ".join(head)) or "nothing"
            raise DataError(
                f"{self.path}:1: {fault}; expected a first line of path,label or path,label,split, found {found}"
            )
        for line, row in rows:
            if self.faults > MAX_COUNTED:
                break
            if len(row) == len(names):
                self._take(line, dict(zip(names, row, strict=True)))
            else:
                self.problem(
                    line, f"expected {len(names)} values, found {len(row)}; a path that has a comma needs quotes"
                )

    def _rows(self, lines: _Lines) -> Iterator[tuple[int, list[str]]]:
        """Each row that is not empty with the number of its first line."""
        reader, line = csv.reader(lines, strict=True), 1
        while True:
            lines.row()
            try:
                row = next(reader, None)
            except csv.Error as error:
                self.problem(line, f"not CSV ({error})")
                return
            if row is None:
                return
            if any(cell.strip() for cell in row):
                yield line, row
            line = reader.line_num + 1

    def problem(self, line: int, fault: str) -> None:
        self.faults += 1
        if self.faults <= MAX_PROBLEMS:
            self.problems.append(f"{self.path}:{line}: {fault}")

    def _take(self, line: int, row: dict[str, str]) -> None:
        """One row becomes a file, a repeated one a note, and every problem of it is kept."""
        name, label, split = row["path"].strip(), class_name(row["label"]), row.get("split", "train").strip()
        before = self.faults
        part = SPLIT_NAMES.get(split.lower())
        if label is None:
            fault = "empty label" if not row["label"].strip() else "a label that cannot be shown"
            self.problem(line, f"{fault}; expected the name of a class")
        if part is None:
            self.problem(line, f"unknown split {_cell(split)!r}{name_hint(split[:40], SPLIT_NAMES, 'splits')}")
        path = self._picture(line, name)
        if path is None or label is None or part is None or self.faults > before:
            return
        file = ImageRecord(path, name, label, part)
        known = self.first.setdefault(os.path.realpath(path), (line, file))
        if known[1] is file:
            self.files.append(file)
        elif known[1].label != label:
            self.problem(line, f"{_cell(name)} is {label!r} here and {known[1].label!r} in line {known[0]}")
        elif known[1].part != part:
            self.problem(line, f"{_cell(name)} is in {split} here and in another split in line {known[0]}")
        else:
            self.repetitions += 1
            if len(self.repeated) < MAX_SHOWN:
                self.repeated.append(name)

    def _picture(self, line: int, name: str) -> Path | None:
        """Where the file is; None, and a problem, where there is none."""
        path = self.path.parent / name
        try:
            if name and path.is_file():
                return path
        except (OSError, ValueError):  # a name too long, or with a zero byte
            pass
        if not name:
            self.problem(line, "empty path; expected the name of a picture file")
        else:
            self.problem(line, f"there is no file {_cell(name)} (paths are relative to {self.path.parent}/)")
        return None

    def listing(self) -> Manifest:
        classes = sorted({file.label for file in self.files})
        if not self.faults:
            if not any(file.part == "train" for file in self.files):
                self.problems.append(f"{self.path}: no picture to learn from; expected rows, and some of split train")
            elif len(classes) == 1:
                self.problems.append(f"{self.path}: one class only, {classes[0]!r}; a classifier needs at least two")
        if self.problems:
            more, at_least = self.faults - MAX_PROBLEMS, "over " if self.faults > MAX_COUNTED else ""
            last = [f"{self.path}: and {at_least}{more:,} problems more"] if more > 0 else []
            raise DataError("\n".join([*self.problems, *last]))
        notes = []
        if self.repetitions:
            more = self.repetitions - len(self.repeated)
            names = list_some(self.repeated) + (f" and {more:,} more" if more else "")
            notes.append(f"{self.path}: {self.repetitions:,} rows repeat another and count once: {names}")
        return Manifest(str(self.path), one_test_split(self.files), tuple(classes), (), tuple(notes))


def _cell(text: str) -> str:
    return printable(text[:_MAX_SHOWN_LEN])
