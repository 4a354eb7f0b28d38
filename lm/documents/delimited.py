"""Rows of CSV and TSV files, by the names of their columns."""

from __future__ import annotations

import csv
import functools
import io
import json
import reprlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lm.config.schema.chat import ChatSource
from lm.config.schema.source import CsvSource
from lm.documents.encodings import remedy
from lm.documents.faults import Fault, decoded, require_column, require_once
from lm.documents.files import opened
from lm.system.errors import DataError

NO_QUOTES = "if quotes are ordinary characters here, write quoting: none"
PACKINGS = (".gz", ".bz2", ".xz", ".zst")
FEWEST_LINES = 4  # complete rows in one quoted field, before it is suspicious; with tabs, two


def csv_rows(
    file: str, source: CsvSource | ChatSource, needs: Sequence[str] = ()
) -> Iterator[tuple[int, list[str] | Fault, list[str]]]:
    """Yield each row with the number of its first line, and the names of the columns.

    A row's texts are not decoded yet: see `cell`. A row that is broken, or whose quote opens too
    early, ends with its first line; the lines after it are rows of their own.

    Args:
        file: its path.
        source: the source's section.
        needs: the columns that are read, which must exist; all if there are none.

    Raises:
        DataError: the columns have no names or others, or a quote is never closed.
    """
    csv.field_size_limit(sys.maxsize)
    is_tsv = source.delimiter == "," and suffix(file) in ("tsv", "tab")
    delimiter = "\t" if is_tsv else source.delimiter
    with opened(file, source.encoding) as stream:
        # A byte outside UTF-8 becomes half a surrogate pair, until its row is known.
        text = io.TextIOWrapper(
            stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n"
        )
        lines = _Lines(text)
        parse = functools.partial(
            csv.reader,
            lines,
            delimiter=delimiter,
            strict=True,
            escapechar=source.escape,
            quoting=csv.QUOTE_NONE if source.quoting == "none" else csv.QUOTE_MINIMAL,
        )
        rows = parse()
        names = source.names or _first_line(file, lines, rows, source.encoding)
        if names is None:
            return
        _check_names(file, names, needs, delimiter)
        while True:
            number = lines.begin_row()
            try:
                if (row := next(rows, None)) is None:
                    return
            except csv.Error as error:
                if "unexpected end" in str(error):  # it would contain the rest of the file
                    raise _broken(
                        file, number, "a quote that opens here is never closed"
                    ) from error
                yield number, Fault("broken CSV", f"{error}; {NO_QUOTES}"), names
                lines.read_again()
                rows = parse()
                continue
            if row and len(row) != len(names):
                detail = f"{len(row)} where there are {len(names)} names"
                yield number, Fault("another number of columns", detail), names
            elif source.quoting is None and lines.look_like_rows(delimiter, len(names)):
                last = number + len(lines.of_row) - 1
                detail = (
                    f"the quote that opens here closes on line {last}, and each line up to there is"
                    f" a row by itself; {NO_QUOTES}, or quoting: minimal if they are one row"
                )
                yield number, Fault("quote that takes in rows", detail), names
                lines.read_again()
            else:
                yield number, row, names


def _first_line(
    file: str, lines: _Lines, rows: Iterator[list[str]], encoding: str | None
) -> list[str] | None:
    """Return the names of the columns; None if the file is empty."""
    lines.begin_row()
    try:
        names = next(rows, None)
    except csv.Error as error:
        endless = "unexpected end" in str(error)
        reason = "a quote that opens here is never closed" if endless else str(error)
        raise _broken(file, 1, reason) from error
    if names is not None and isinstance(fault := cell(" ".join(names)), Fault):
        advice = remedy(file, [], "encoding", encoding)
        raise DataError(f"{file}:1: {fault.kind}: {fault.detail}; {advice}")
    return names


def _broken(file: str, number: int, reason: str) -> DataError:
    return DataError(f"{file}:{number}: broken CSV: {reason}; correct it, or {NO_QUOTES}")


def cell(text: str) -> str | Fault:
    """Return a cell of `csv_rows` as text, or the fault of its bytes."""
    return decoded(text.encode(errors="surrogateescape"))


def suffix(file: str) -> str:
    """Return the part of a file's name after its last point, in small letters and without the
    ending of a packing.
    """
    path = Path(file.lower())
    return (path.with_suffix("") if path.suffix in PACKINGS else path).suffix[1:]


def _check_names(file: str, names: list[str], needs: Sequence[str], delimiter: str) -> None:
    if len(names) == 1 and needs and needs[0] not in names:
        other = next((mark for mark in "\t;|," if mark in names[0] and mark != delimiter), None)
        guess = f"; perhaps {json.dumps(other)}" if other else ""
        raise DataError(
            f"{file}: no column {needs[0]!r}; there are {reprlib.repr(names)}; text_key names the"
            f" one that holds the text, and delimiter what parts the columns (now {delimiter!r}"
            f"{guess})"
        )
    for need in needs:
        require_column(file, need, names)
    for name in names if not needs else ():
        require_once(file, name, names)


class _Lines:
    """The lines of a file for csv.reader; those of the latest row can be read again."""

    def __init__(self, text: Iterator[str]):
        self._text = text
        self._again: list[str] = []
        self._number = 0
        self.of_row: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._text)
        self.of_row.append(line)
        return line

    def begin_row(self) -> int:
        """Forget the lines of the row before, and return the number of the next one."""
        self._number += len(self.of_row)
        self.of_row = []
        return self._number + 1

    def read_again(self) -> None:
        """Read the latest row's lines again, without its first."""
        self._again += reversed(self.of_row[1:])
        del self.of_row[1:]

    def look_like_rows(self, delimiter: str, columns: int) -> bool:
        """Return whether the latest row has several lines, each with all columns by itself."""
        fewest = 2 if delimiter == "\t" else FEWEST_LINES
        return (
            columns > 1
            and len(self.of_row) >= fewest
            and all(line.count(delimiter) == columns - 1 for line in self.of_row)
        )
