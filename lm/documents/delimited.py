"""Rows of CSV and TSV files, by the names of their columns."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import re
import reprlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm.config.schema.chat import ChatSource
from lm.config.schema.source import CsvSource
from lm.documents.encodings import remedy
from lm.documents.faults import Fault, decoded, require_column, require_once
from lm.documents.files import opened, require_line_feeds
from lm.system.errors import DataError

NO_QUOTES = "if quotes are ordinary characters here, write quoting: none"
PACKINGS = (".gz", ".bz2", ".xz", ".zst")
_SEPARATOR = re.compile(r'"?sep=([^"\w])"?\r?\n?', re.IGNORECASE)  # Excel's first line
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
    with opened(file, source.encoding) as stream:
        # A byte outside UTF-8 becomes half a surrogate pair, until its row is known.
        text = io.TextIOWrapper(
            stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n"
        )
        lines = _Lines(text)
        delimiter = _delimiter(file, lines, source)
        parse = functools.partial(
            csv.reader,
            delimiter=delimiter,
            strict=True,
            escapechar=source.escape,
            quoting=csv.QUOTE_NONE if source.quoting == "none" else csv.QUOTE_MINIMAL,
            skipinitialspace=source.names is None and _are_spaced(lines.peek(), delimiter),
        )
        rows = parse(lines)
        names = source.names or _first_line(file, lines, rows, parse, source.encoding)
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
                rows = parse(lines)
                continue
            if source.quoting is None and _hides_quotes(lines.of_row, row, len(names), parse):
                detail = (
                    "the quote of a field follows a space, so it is an ordinary character; remove"
                    " the spaces between delimiters and quotes, or write quoting: minimal if they"
                    " belong to the text"
                )
                yield number, Fault("quote after a space", detail), names
            elif row and len(row) != len(names):
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


def _delimiter(file: str, lines: _Lines, source: CsvSource | ChatSource) -> str:
    """Return what parts the columns; a first line `sep=;`, as Excel writes it, is read here."""
    require_line_feeds(file, lines.peek().encode(errors="surrogateescape"))
    if said := _SEPARATOR.fullmatch(lines.peek()):
        next(lines)
        return said[1]
    is_tsv = source.delimiter == "," and suffix(file) in ("tsv", "tab")
    return "\t" if is_tsv else source.delimiter


def _are_spaced(names: str, delimiter: str) -> bool:
    """Return whether a space follows each delimiter in the line of names, so it is no text."""
    spaced = names.count(f"{delimiter} ")
    return delimiter != " " and spaced > 0 and spaced == names.count(delimiter)


def _hides_quotes(lines: list[str], row: list[str], columns: int, parse: Any) -> bool:
    """Return whether a row has all columns, and others, if spaces before quotes are no text."""
    if not any(' "' in line for line in lines):
        return False
    try:
        spaced = list(parse(lines, skipinitialspace=True))
    except csv.Error:
        return False
    without = [[field.lstrip(" ") for field in fields] for fields in (*spaced, row)]
    return len(without) == 2 and len(without[0]) == columns and without[0] != without[1]


def _is_comment(names: list[str], below: str, parse: Any) -> bool:
    """Return whether the first line is a comment, and no names such as "#" and "#id"."""
    try:
        fields = next(parse([below]), names)
    except csv.Error:  # a quoted field with line ends
        fields = names
    alone = len(names) == 1 and below.startswith("#")
    return names[0].startswith("#") and (alone or len(fields) != len(names))


def _first_line(
    file: str, lines: _Lines, rows: Iterator[list[str]], parse: Any, encoding: str | None
) -> list[str] | None:
    """Return the names of the columns without spaces around them; None if the file is empty."""
    number = lines.begin_row()
    try:
        names = next(rows, None)
    except csv.Error as error:
        endless = "unexpected end" in str(error)
        reason = "a quote that opens here is never closed" if endless else str(error)
        raise _broken(file, number, reason) from error
    if names and _is_comment(names, lines.peek(), parse):
        raise DataError(
            f"{file}:{number}: a comment above the columns' names; remove such lines, or write the"
            " names without #"
        )
    if names is not None and isinstance(fault := cell(" ".join(names)), Fault):
        advice = remedy(file, [], "encoding", encoding)
        raise DataError(f"{file}:{number}: {fault.kind}: {fault.detail}; {advice}")
    return names and [name.strip(" ") for name in names]


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

    def peek(self) -> str:
        """Return the next line, which stays the next; an empty text at the end."""
        if not self._again:
            self._again += itertools.islice(self._text, 1)
        return self._again[-1] if self._again else ""

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
