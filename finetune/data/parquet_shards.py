"""Reads Parquet shards of encoded images, as the `datasets` library and the Hub write them.

An image is a struct {bytes, path} or plain bytes; a label is a number, whose ClassLabel names are in the metadata of
the schema, or a text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from finetune.data.manifest import ImageRecord, Manifest
from finetune.data.parquet_file import (
    ParquetShard,
    RowReader,
    column_bytes,
    import_pyarrow,
    listed_columns,
    open_file,
    rows_at_once,
    said,
)
from finetune.data.parquet_schema import find_layout, is_number, schema_difference
from finetune.data.shards import (
    MAX_ROWS,
    PARQUET,
    Label,
    Shard,
    choose_names,
    find_shards,
    label_class,
    make_manifest,
    read_class_list,
    shard_split,
)
from finetune.data.split_names import MAIN_NAMES, split_of
from finetune.data.table_columns import ColumnNames
from finetune.errors import DataError
from finetune.io.sanitize import printable
from finetune.text import name_hint

if TYPE_CHECKING:
    import pyarrow.parquet as pq


@dataclass(frozen=True)
class ParquetRecord(ImageRecord):
    """An image in one row of a Parquet file."""

    reader: RowReader
    shard: ParquetShard
    row: int

    @property
    def where(self) -> str:
        place = f"{self.shard.name} row {self.row}"
        return place if self.name.startswith(self.shard.name) else f"{place} ({self.name})"

    def open(self) -> bytes:
        return self.reader.read(self.shard, self.row)

    def size(self) -> int | None:
        return self.shard.mean_size


class _Row(NamedTuple):
    """One row as it is listed: where it is, and the class and names it has."""

    shard: ParquetShard
    row: int
    split: str
    label: str | None
    group: str
    inner: str


def read_parquet(name: str, columns: ColumnNames | None = None, folder: Path | None = None) -> Manifest:
    """Lists the images of a folder of Parquet shards, or of one, in the order of their files' names; opens none.

    Splits are those that the names of files or folders say, as in train-00000-of-00002.parquet, else those of a column
    `split`. Images in a column `group` of equal values are one group. folder: where the shards lie, if `name` is
    another name for them. DataError where a shard cannot be read or has another schema than the first.
    """
    found = _ParquetSet(name, columns or ColumnNames(), folder, labelled=True)
    rows = [row for index in range(len(found.shards)) for row in found.rows(index)]
    names = _names(rows)
    reader = RowReader(found.layout.image)
    records = [
        ParquetRecord(name, row.label, row.split, reader, row.shard, row.row, group=row.group)  # type: ignore[arg-type]
        for name, row in zip(names, rows, strict=True)
        if row.label is not None
    ]
    unlabelled = [name for name, row in zip(names, rows, strict=True) if row.label is None]
    return make_manifest(name, records, found.notes, found.spellings, unlabelled)


def unlabelled_parquet(name: str, folder: Path | None = None) -> list[ParquetRecord]:
    """All images of Parquet shards, with "" for labels and splits that do not matter, to be classified. DataError."""
    found = _ParquetSet(name, ColumnNames(), folder, labelled=False)
    rows = [row for index in range(len(found.shards)) for row in found.rows(index)]
    reader = RowReader(found.layout.image)
    return [
        ParquetRecord(name, "", "test", reader, row.shard, row.row)
        for name, row in zip(_names(rows), rows, strict=True)
    ]


def _names(rows: Sequence[_Row]) -> Sequence[str]:
    return choose_names([row.inner for row in rows], [f"{row.shard.name}#{row.row}" for row in rows])


class _ParquetSet:
    """The files of a data set, which have one schema, and the columns used. `notes` are for people."""

    def __init__(self, title: str, columns: ColumnNames, folder: Path | None, *, labelled: bool) -> None:
        import_pyarrow(title)
        self.title, place = title, folder or Path(title)
        self.files, self.notes = find_shards(place, PARQUET, title)
        with self._open(self.files[0]) as first:
            self.schema = first.schema_arrow
            self.layout = find_layout(self.schema, f"{title}: {self.files[0].name}", columns, labelled)
        self.split_column = None if any(shard_split(file.name, title) for file in self.files) else self.layout.split
        self.class_names = self.layout.class_names or read_class_list(place, title)
        self.shards = [self._describe(file) for file in self.files]
        self.spellings: dict[str, set[str]] = defaultdict(set)  # by class name, the labels that were normalized to it
        if labelled and self.class_names is None and is_number(self.schema, self.layout.label):
            self.notes.append(
                f"{title}: the labels are numbers without names, so the classes are called by their numbers; a file "
                "classes.txt beside the shards, one name a line, names them"
            )
        if (count := sum(shard.starts[-1] for shard in self.shards)) > MAX_ROWS:
            raise DataError(f"{title}: {count:,} rows, and at most {MAX_ROWS:,} are read; name fewer of its files")

    @contextmanager
    def _open(self, file: Shard, texts: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
        """An open file. DataError, which names it, for whatever goes wrong with it in the block."""
        opened = None
        try:
            opened = open_file(file.path, texts)
            yield opened
        except DataError:
            raise
        except Exception as error:  # as in RowReader
            _refuse(f"{self.title}: {file.name}", error)
        finally:
            if opened is not None:
                opened.close(force=True)

    def _describe(self, file: Shard) -> ParquetShard:
        """What the file's footer says of rows and bytes. DataError where its schema is not the first file's."""
        with self._open(file) as opened:
            if difference := schema_difference(self.layout, self.schema, opened.schema_arrow):
                raise DataError(
                    f"{self.title}: {file.name} has another schema than {self.files[0].name}: {difference}; expected "
                    "shards of one data set, all written in the same way"
                )
            starts, batches, total, metadata = [0], [], 0, opened.metadata
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                size = column_bytes(group, self.layout.image)
                starts.append(starts[-1] + group.num_rows)
                batches.append(rows_at_once(size))
                total += size
        return ParquetShard(file.path, file.name, tuple(starts), tuple(batches), total // max(1, starts[-1]))

    def rows(self, index: int) -> Iterator[_Row]:
        """The rows of one file, of which everything but the images is read. DataError names a row that is wrong."""
        file, shard, layout = self.files[index], self.shards[index], self.layout
        wanted = [*layout.plain, *([layout.inner] if layout.inner else [])]
        texts = [name for name in layout.plain if not is_number(self.schema, name)]
        classes: dict[Label, str | None] = {}
        with self._open(file, texts) as opened:
            row = 0
            for values in listed_columns(opened, wanted) if wanted else _nothing(shard.starts[-1]):
                for value in values:
                    cells = dict(zip(wanted, value, strict=False))
                    yield self._row(shard, file, row, cells, classes)
                    row += 1

    def _row(
        self, shard: ParquetShard, file: Shard, row: int, cells: dict[str, Any], classes: dict[Label, Any]
    ) -> _Row:
        layout, label = self.layout, None
        if layout.label is not None:
            value = cells[layout.label]
            try:
                if value not in classes:
                    classes[value] = label_class(value, self.class_names)
                    if classes[value] is not None:
                        self.spellings[classes[value]].add(str(value))
                label = classes[value]
            except ValueError as error:
                raise DataError(f"{self.title}: {file.name} row {row}: {error}") from None
        split: str = file.split
        if self.split_column is not None:
            given = str(cells[self.split_column]).strip()
            found = split_of(given)
            if found is None:
                raise DataError(
                    f"{self.title}: {file.name} row {row}: unknown split {printable(given[:40])!r}"
                    f"{name_hint(given[:40], MAIN_NAMES, 'splits')}"
                )
            split = found
        group = cells.get(layout.group) if layout.group else None
        inner = cells.get(layout.inner) if layout.inner else None
        return _Row(shard, row, split, label, "" if group is None else str(group), inner or "")


def _nothing(count: int) -> Iterator[list[tuple[()]]]:
    yield [()] * count


def _refuse(where: str, error: Exception) -> NoReturn:
    if isinstance(error, OSError) and error.strerror:
        raise DataError(f"{where}: cannot be read ({error.strerror})") from None
    raise DataError(f"{where}: cannot be read as Parquet ({said(error)}); it is damaged, cut short, or something else")
