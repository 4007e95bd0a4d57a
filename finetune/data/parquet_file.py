"""Opens Parquet files and reads their columns in a bounded amount of memory, whatever the size of a row group.

Needs pyarrow (the extra `shards`), which is imported when a file is opened.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune.data.image_io import MAX_BYTES
from finetune.errors import DataError
from finetune.io.safe_open import open_regular
from finetune.io.sanitize import printable
from finetune.text import first_line, install_hint

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 32  # images read at once, at most
LISTED_ROWS = 1_000  # rows without their images read at once, at most
BATCH_BYTES = 64 << 20  # of memory for the rows read at once
WINDOW_BYTES = 64 << 20  # of rows read last, kept for threads that are behind
WINDOW_BATCHES = 64
BUFFER = 1 << 20  # bytes of a file read at once


def import_pyarrow(title: str) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise DataError(
            f"{title}: reading Parquet needs the package pyarrow, which is not installed; to get it: "
            f"{install_hint('shards')}"
        ) from None


def open_file(path: Path, texts: Sequence[str] = ()) -> pq.ParquetFile:
    """Opens a regular file. texts: columns of texts, of which each different one is read once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    open_regular(path).close()  # or a pipe would be waited for
    file = pa.OSFile(str(path), "rb")
    try:
        return pq.ParquetFile(
            file,
            read_dictionary=list(texts) or None,
            buffer_size=BUFFER,
            pre_buffer=False,
            page_checksum_verification=True,
        )
    except BaseException:
        file.close()
        raise


@dataclass(frozen=True)
class ParquetShard:
    """One file. starts: the first row of each row group, and behind the last the number of rows."""

    path: Path
    name: str
    starts: tuple[int, ...]
    batch_rows: tuple[int, ...]  # of each row group, so that BATCH_BYTES suffice
    mean_size: int  # bytes of an image


class _Batch(NamedTuple):
    """Rows from `start` to `stop` of one file."""

    shard: ParquetShard
    start: int
    stop: int
    values: Any  # a pyarrow array of bytes


@dataclass(eq=False)
class RowReader:
    """Reads one binary column of many files row by row. Rows asked for in their order are read from the disk once.

    It keeps one file open and the rows read last, a bounded number of bytes, whatever the size of a row group. Safe in
    many threads at once.
    """

    column: str
    lock: Lock = field(default_factory=Lock)
    window: deque[_Batch] = field(default_factory=deque)
    window_bytes: int = 0
    file: Any = None
    batches: Iterator[Any] = field(default_factory=lambda: iter(()))
    position: tuple[str, int, int] | None = None  # the file, row group and row that `batches` goes on with
    broken: dict[tuple[str, int], tuple[int, str]] = field(default_factory=dict)  # by file and row group

    def read(self, shard: ParquetShard, row: int) -> bytes:
        """The bytes of one row. DataError where there are none, or the file cannot be read there."""
        with self.lock:
            batch = self._kept(shard, row) or self._advance(shard, row)
            value = batch.values[row - batch.start].as_py()
        if value is None:
            raise DataError("has no bytes of a picture; pictures that lie beside the shard are not read")
        if len(value) > MAX_BYTES:
            raise DataError(f"cannot be read as an image ({len(value):,} bytes, and at most {MAX_BYTES:,} are read)")
        return bytes(value)

    def _kept(self, shard: ParquetShard, row: int) -> _Batch | None:
        fitting = (b for b in reversed(self.window) if b.shard is shard and b.start <= row < b.stop)
        return next(fitting, None)

    def _advance(self, shard: ParquetShard, row: int) -> _Batch:
        """Reads on to this row, from the start of its row group where the reader is elsewhere."""
        number = bisect_right(shard.starts, row) - 1
        if (fault := self.broken.get((shard.name, number))) and row >= fault[0]:
            raise DataError(fault[1])
        at = self.position
        if at is None or at[:2] != (shard.name, number) or at[2] > row:
            at = self.position = (shard.name, number, shard.starts[number])
        try:
            if at[2] == shard.starts[number]:
                self._open(shard, number)
            while True:
                if (read := next(self.batches, None)) is None:
                    raise ValueError("fewer rows than it says")
                values = leaf_of(read.column(0))
                batch = _Batch(shard, at[2], at[2] + len(values), values)
                at = self.position = (shard.name, number, batch.stop)
                self._keep(batch)
                if row < batch.stop:
                    return batch
        except Exception as error:  # the errors of pyarrow's readers have no common base
            fault = (at[2], f"cannot be read from the shard ({said(error)})")
            self.broken[shard.name, number], self.position = fault, None
            raise DataError(fault[1]) from None

    def _open(self, shard: ParquetShard, number: int) -> None:
        if self.file is None or self.file[0] is not shard:
            self.close()
            self.file = (shard, open_file(shard.path))
        self.batches = self.file[1].iter_batches(
            batch_size=shard.batch_rows[number], row_groups=[number], columns=[self.column], use_threads=False
        )

    def _keep(self, batch: _Batch) -> None:
        self.window.append(batch)
        self.window_bytes += batch.values.nbytes
        while len(self.window) > WINDOW_BATCHES or (len(self.window) > 2 and self.window_bytes > WINDOW_BYTES):
            self.window_bytes -= self.window.popleft().values.nbytes

    def close(self) -> None:
        """Closes the file; it is opened again when a row is asked for."""
        self.batches = iter(())
        self.position = None
        if self.file is not None:
            self.file[1].close(force=True)
            self.file = None


def listed_columns(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[list[tuple[Any, ...]]]:
    """Yields lists of rows, tuples of these columns' values. A column may be a leaf of a struct, such as image.path."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        count = rows_at_once(sum(column_bytes(group, column) for column in columns), LISTED_ROWS)
        for batch in file.iter_batches(count, row_groups=[number], columns=list(columns), use_threads=False):
            by_name = {name: batch.column(i) for i, name in enumerate(batch.schema.names)}
            values = [
                (by_name[name] if name in by_name else leaf_of(by_name[name.rpartition(".")[0]])).to_pylist()
                for name in columns
            ]
            yield list(zip(*values, strict=True))


def rows_at_once(size: int, most: int = BATCH_ROWS) -> int:
    """How many rows of a row group to read at once, so that BATCH_BYTES hold them even if all are the largest.

    A value that is there many times may be stored once, so that a row group's size says nothing of the rows' sum.
    """
    return max(1, min(most, BATCH_BYTES // max(1, size)))


def column_bytes(group: pq.RowGroupMetaData, leaf: str) -> int:
    columns = (group.column(i) for i in range(group.num_columns))
    return max(0, sum(int(c.total_uncompressed_size) for c in columns if c.path_in_schema == leaf))


def leaf_of(array: pa.Array) -> pa.Array:
    """The array of the one field of a struct, null where the struct is; any other array as it is."""
    import pyarrow as pa

    return array.flatten()[0] if pa.types.is_struct(array.type) else array


def said(error: Exception) -> str:
    return printable(first_line(str(error))[:300]) or type(error).__name__
