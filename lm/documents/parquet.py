"""Parquet files: the values of one column or of all, and the row groups that make a piece."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.config.schema.source import ParquetSource
from lm.documents.faults import NOT_UTF8, Fault, Row, require_column, require_once, text_of
from lm.documents.files import SPAN_BYTES, Span
from lm.system.errors import DataError, first_line

MOST_ROW_GROUP_BYTES = 2**26  # uncompressed, as parquet counts them


def read_parquet(file: str, source: ParquetSource, span: Span | None) -> Iterator[Row]:
    """Yield the values of the column `text_key`. A span is a range of row groups."""
    with _opened(file) as table:
        require_column(file, source.text_key, table.schema_arrow.names)
        groups = None if span is None else list(range(*span))
        batches = table.iter_batches(batch_size=1000, columns=[source.text_key], row_groups=groups)
        values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
        for number, value in enumerate(values, 1):
            try:
                yield number, text_of(value.as_py())
            except UnicodeDecodeError as error:
                yield number, _not_utf8(error)


def parquet_rows(file: str) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """Yield all columns of each row, by their names."""
    with _opened(file) as table:
        for name in table.schema_arrow.names:
            require_once(file, name, table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=100):
            try:
                read = batch.to_pylist()
            except (ValueError, OverflowError):
                read = None  # one by one, to know the row; for all it takes 30 times as long
            for i in range(batch.num_rows):
                number += 1
                if read is not None:
                    yield number, read[i]
                    continue
                row = batch.slice(i, 1)
                try:
                    yield number, row.to_pylist()[0]
                except UnicodeDecodeError as error:
                    yield number, _not_utf8(error)
                except (ValueError, OverflowError) as error:  # such as a date beyond 9999
                    yield number, Fault("value beyond Python's types", first_line(error))


def is_parquet(file: str) -> bool:
    """Return whether the content is Parquet, whatever the file's name."""
    with Path(file).open("rb") as stream:
        return stream.read(4) == b"PAR1"


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Without buffer_size, the whole column of a row group is read at once.
        with pyarrow.parquet.ParquetFile(file, buffer_size=2**20) as table:
            yield table
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # pyarrow's own errors have no errno
            raise
        raise _not_parquet(file, error) from error


def _not_utf8(error: UnicodeDecodeError) -> Fault:
    return Fault(NOT_UTF8, f"byte {error.object[error.start]:#04x}")


def row_group_spans(file: str) -> list[Span] | None:
    """Return ranges of row groups, each large enough for a piece.

    None: one row group alone is more than a process should hold.
    """
    metadata, ranges = _metadata(file), list[Span]()
    first, size = 0, 0
    for group in range(metadata.num_row_groups):
        group_bytes = metadata.row_group(group).total_byte_size
        if group_bytes > MOST_ROW_GROUP_BYTES:
            return None
        size += group_bytes
        if size >= SPAN_BYTES or group == metadata.num_row_groups - 1:
            ranges.append((first, group + 1))
            first, size = group + 1, 0
    return ranges


def rows_before_group(file: str, group: int) -> int:
    """Return the number of rows in the row groups before `group`."""
    metadata = _metadata(file)
    return sum(metadata.row_group(i).num_rows for i in range(group))


def _metadata(file: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(file)
    except pyarrow.ArrowException as error:
        raise _not_parquet(file, error) from error


def _not_parquet(file: str, error: Exception) -> DataError:
    return DataError(f"{file}: not a readable parquet file ({first_line(error)})")
