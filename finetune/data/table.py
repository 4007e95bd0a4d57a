"""A CSV that names pictures: columns path, label and, if wanted, split (train, val or test).

Paths are relative to the CSV's folder. An absolute path and one with `..` are taken as they stand: whoever wrote the
table may keep pictures anywhere. That is safe with a stranger's table too: it can name files, but not look for any (no
wildcards, no `~`, no variables, no addresses), and each is only ever decoded as a picture; of what is none, nothing but
its first bytes is shown, on this computer.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data.listing import (
    PART_NAMES,
    Listing,
    PictureFile,
    class_name,
    one_test_part,
    shown_list,
)
from finetune.errors import DataError, name_hint
from finetune.strangers.printable import printable

MOST_PROBLEMS = 40
COLUMNS = ("path", "label", "split")


def read_table(name: str | Path) -> Listing:
    """The pictures a CSV names, in its order; none is opened. UTF-8, with or without a byte order mark.

    With rows of train and only one of validation and test, that one is the test part. DataError has every problem with
    its line, the first MOST_PROBLEMS of them.
    """
    path = Path(name)
    rows = _Rows(path)
    rows.read(_text(path))
    return rows.listing()


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(_not_there(path)) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: expected UTF-8, found the byte {content[error.start]:#04x}; save the table as CSV UTF-8"
        ) from None


def _not_there(path: Path) -> str:
    near = sorted(p.name for p in path.parent.glob("*.csv")) if path.parent.is_dir() else []
    return f"{path}: there is no such file{name_hint(path.name, near, f'tables in {path.parent}')}"


@dataclass
class _Rows:
    """What the rows read so far gave, and what is wrong with them."""

    path: Path
    files: list[PictureFile] = field(default_factory=list)
    first: dict[str, tuple[int, PictureFile]] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def read(self, text: str) -> None:
        rows = self._rows(text)
        _, head = next(rows, (1, []))
        names = [cell.strip().lower() for cell in head]
        missing = [column for column in COLUMNS[:2] if column not in names]
        twice = sorted({column for column in COLUMNS if names.count(column) > 1})
        if missing or twice:
            fault = f"no column {', '.join(missing)}" if missing else f"the column {', '.join(twice)} twice"
            found = printable(", ".join(head))[:200] or "nothing"
            raise DataError(
                f"{self.path}:1: {fault}; expected a first line of path,label or path,label,split, found {found}"
            )
        for line, row in rows:
            if len(row) == len(names):
                self._take(line, dict(zip(names, row, strict=True)))
            else:
                self.problem(
                    line, f"expected {len(names)} values, found {len(row)}; a path that has a comma needs quotes"
                )

    def _rows(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """Each row that is not empty with the number of its first line."""
        reader, line = csv.reader(io.StringIO(text, newline=""), strict=True), 1
        while True:
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
        self.problems.append(f"{self.path}:{line}: {fault}")

    def _take(self, line: int, row: dict[str, str]) -> None:
        """One row becomes a file, a repeated one a note, and every problem of it is kept."""
        name, label, split = row["path"].strip(), class_name(row["label"]), row.get("split", "train").strip()
        before = len(self.problems)
        part = PART_NAMES.get(split.lower())
        if label is None:
            fault = "empty label" if not row["label"].strip() else "a label that cannot be shown"
            self.problem(line, f"{fault}; expected the name of a class")
        if part is None:
            self.problem(line, f"unknown split {printable(split)!r}{name_hint(split, PART_NAMES, 'splits')}")
        path = self._picture(line, name)
        if path is None or label is None or part is None or len(self.problems) > before:
            return
        file = PictureFile(path, name, label, part)
        known = self.first.setdefault(os.path.realpath(path), (line, file))
        if known[1] is file:
            self.files.append(file)
        elif known[1].label != label:
            self.problem(line, f"{printable(name)} is {label!r} here and {known[1].label!r} in line {known[0]}")
        elif known[1].part != part:
            self.problem(line, f"{printable(name)} is in {split} here and in another split in line {known[0]}")
        else:
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
            self.problem(line, f"there is no file {printable(name)[:200]} (paths are relative to {self.path.parent}/)")
        return None

    def listing(self) -> Listing:
        classes = sorted({file.label for file in self.files})
        if not self.problems:
            if not any(file.part == "train" for file in self.files):
                self.problems.append(f"{self.path}: no picture to learn from; expected rows, and some of split train")
            elif len(classes) == 1:
                self.problems.append(f"{self.path}: one class only, {classes[0]!r}; a classifier needs at least two")
        if self.problems:
            more = len(self.problems) - MOST_PROBLEMS
            last = [f"{self.path}: and {more:,} problems more"] if more > 0 else []
            raise DataError("\n".join([*self.problems[:MOST_PROBLEMS], *last]))
        notes = []
        if self.repeated:
            notes.append(
                f"{self.path}: {len(self.repeated):,} rows repeat another and count once: {shown_list(self.repeated)}"
            )
        return Listing(str(self.path), one_test_part(self.files), tuple(classes), (), tuple(notes))
