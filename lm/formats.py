"""The formats that text comes in: one generator each, from a file (or a dataset's id) to its rows.

A generator yields for each row its number, as a person would count it, and its text, or the `Fault` that keeps it from being one. It
holds few rows at a time. Some formats can also be read from the middle (`spans`); rows are then counted from the span's beginning. A new
format is a generator, a row in `FORMATS` and a section in `lm/schema/source.py`.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import reprlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lm import hub
from lm.errors import DataError
from lm.schema.source import CsvSource, HubSource, InstructionSource, JsonlSource, ParquetSource, SmsSource, TextSource
from lm.text_files import Span, byte_spans, is_gzip, lines, lines_before, opened, paragraphs

# What turns an instruction, its input and the answer into a text; the separator is text like the rest.
TRIPLET = "### Instruction: {instruction}\n### Input: {input}\n### Output: {output}\n<|sep|>\n"


class Fault(NamedTuple):
    """What keeps a row from being a document (skipped rows are counted by this), the particulars, and how many lines below its first."""

    kind: str
    detail: str
    lines_below: int = 0


Row = tuple[int, str | Fault]


def read_txt(file: str, source: TextSource, span: Span | None) -> Iterator[Row]:
    """Lines, paragraphs (up to a blank line) or the whole of a UTF-8 file. Windows line ends become plain ones."""
    for number, raw in UNITS[source.unit](file, span):
        text = _decode(raw)
        yield number, text if isinstance(text, Fault) else text.replace("\r\n", "\n")


UNITS: dict[str, Callable[[str, Span | None], Iterator[tuple[int, bytes]]]] = {
    "line": lambda file, span: ((number, line.rstrip(b"\r\n")) for number, line in lines(file, span)),
    "paragraph": paragraphs,
    "file": lambda file, span: iter([(1, b"".join(line for _, line in lines(file, span)))]),
}


def read_jsonl(file: str, source: JsonlSource, span: Span | None) -> Iterator[Row]:
    """The string under `text_key` of each line's JSON object. Blank lines are empty documents."""
    for number, raw in lines(file, span):
        yield number, _from_json_line(raw, lambda row: _field(row, source.text_key))


def read_csv(file: str, source: CsvSource, span: None) -> Iterator[Row]:
    """The column `text_key` below the first line, which names the columns. Fields in quotes may hold line ends."""
    csv.field_size_limit(sys.maxsize)
    with opened(file) as stream:
        # A byte that is no UTF-8 becomes half a surrogate pair, and so a fault of its own row.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n")
        rows = csv.reader(text, delimiter=source.delimiter, strict=True)
        try:
            if (names := next(rows, None)) is None:
                return
            _check_column(file, source.text_key, names)
            column, last = names.index(source.text_key), rows.line_num
            for row in rows:
                number, last = last + 1, rows.line_num
                if row and len(row) != len(names):
                    yield number, Fault("another number of columns", f"{len(row)} where the first line names {len(names)}")
                else:
                    yield number, as_text(row[column]) if row else ""
        except csv.Error as error:
            yield rows.line_num, Fault("broken CSV", f"{error}; the rest of the file cannot be read")


def read_parquet(file: str, source: ParquetSource, span: Span | None) -> Iterator[Row]:
    """The column `text_key`, in batches of rows. A span is a range of row groups."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            _check_column(file, source.text_key, table.schema_arrow.names)
            groups = None if span is None else list(range(*span))
            batches = table.iter_batches(batch_size=1000, columns=[source.text_key], row_groups=groups)
            values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
            for number, value in enumerate(values, 1):
                try:
                    yield number, as_text(value.as_py())
                except UnicodeDecodeError as error:
                    yield number, Fault("not UTF-8", f"byte {error.object[error.start]:#04x}")
    except pyarrow.ArrowException as error:
        raise _not_parquet(file, error) from error


def read_sms(file: str, source: SmsSource, span: None) -> Iterator[Row]:
    """Lines of `ham` or `spam`, a tab and the message, as instructions with their answers."""
    for number, raw in lines(file, span):
        line = _decode(raw.rstrip(b"\r\n"))
        yield number, line if isinstance(line, Fault) or not line.strip() else _from_sms(line)


def read_instruction(file: str, source: InstructionSource, span: None) -> Iterator[Row]:
    """Objects with `instruction`, `output` and maybe `input`: a JSON list, which is read as a whole, or one object a line."""
    with opened(file) as stream:
        is_list = stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    if not is_list:
        for number, raw in lines(file, span):
            yield number, _from_json_line(raw, _triplet)
        return
    content = _decode(b"".join(line for _, line in lines(file, span)))
    if isinstance(content, Fault):
        yield 1, content
        return
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: broken JSON ({error})") from error
    for number, entry in enumerate(entries, 1):
        yield number, _triplet(entry)


def read_hub(dataset: str, source: HubSource, span: None) -> Iterator[Row]:
    """The column `text_key` of a Hugging Face dataset, downloaded first or streamed."""
    if source.streaming:
        batches = (values for values, _ in hub.stream(source, hub.newest_revision(source), None))
        yield from enumerate(map(as_text, itertools.chain.from_iterable(batches)), 1)
        return
    table = hub.load_dataset(source)
    _check_column(dataset, source.text_key, table.column_names)
    columns = table.select_columns([source.text_key]).iter(batch_size=1000)
    values = itertools.chain.from_iterable(batch[source.text_key] for batch in columns)
    for number, value in enumerate(values, 1):
        yield number, as_text(value)


FORMATS: dict[str, Callable[[str, Any, Any], Iterator[Row]]] = {
    "txt": read_txt,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
    "sms": read_sms,
    "instruction": read_instruction,
    "hub": read_hub,
}


def spans(file: str, source: Any) -> list[Span] | None:
    """The spans of a file that several processes can share; None for what has to be read from its beginning."""
    if isinstance(source, ParquetSource):
        return [(group, group + 1) for group in range(_parquet_metadata(file).num_row_groups)]
    by_line = isinstance(source, JsonlSource) or (isinstance(source, TextSource) and source.unit != "file")
    return byte_spans(file) if by_line and not is_gzip(file) else None


def rows_before(file: str, source: Any, span: Span) -> int:
    """How many rows (lines, for text) come before those that a generator counts in a span."""
    if isinstance(source, ParquetSource):
        metadata = _parquet_metadata(file)
        return sum(metadata.row_group(group).num_rows for group in range(span[0]))
    return lines_before(file, span)


def _parquet_metadata(file: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(file)
    except pyarrow.ArrowException as error:
        raise _not_parquet(file, error) from error


def _not_parquet(file: str, error: Exception) -> DataError:
    return DataError(f"{file}: not a readable parquet file ({next(iter(str(error).splitlines()), '').rstrip('.')})")


def _decode(raw: bytes) -> str | Fault:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte {raw[error.start]:#04x}; a text in another encoding can be converted"
        return Fault("not UTF-8", detail, raw.count(b"\n", 0, error.start))


def _from_sms(line: str) -> str | Fault:
    label, tab, message = line.partition("\t")
    if not tab or label not in ("ham", "spam"):
        return Fault("not a labelled message", f"a line must be ham or spam, a tab and the message, this one is {reprlib.repr(line)}")
    return TRIPLET.format(instruction="classify if the SMS is spam or ham", input=message, output=label)


def _from_json_line(raw: bytes, to_text: Callable[[object], str | Fault]) -> str | Fault:
    line = _decode(raw)
    if isinstance(line, Fault) or not line.strip():
        return line
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return Fault("broken JSON", f"{error.msg} at column {error.colno}")
    except (ValueError, RecursionError):
        return Fault("broken JSON", "nested too deeply, or a number of too many digits")
    return to_text(row)


def _field(row: object, key: str) -> str | Fault:
    if not isinstance(row, dict):
        return Fault("not a JSON object", f'a line must look like {{"{key}": "..."}}, this one is {reprlib.repr(row)}')
    if key not in row:
        return Fault(f"no key {key!r}", f"there are {reprlib.repr(list(row))}; text_key names the one that holds the text")
    return as_text(row[key])


def _triplet(entry: object) -> str | Fault:
    if not isinstance(entry, dict):
        return Fault("not a JSON object", f'it must look like {{"instruction": "...", "output": "..."}}, this one is {reprlib.repr(entry)}')
    fields: dict[str, Any] = {"input": "", **entry}
    for key in ("instruction", "input", "output"):
        if key not in fields:
            return Fault(f"no key {key!r}", f"there are {reprlib.repr(list(entry))}")
        if isinstance(fault := as_text(fields[key]), Fault):
            return Fault(fault.kind, f"{key}: {fault.detail}")
    return TRIPLET.format_map(fields)


def as_text(value: object) -> str | Fault:
    """A value as text, which has to be a string without half characters."""
    if not isinstance(value, str):
        return Fault("text is not a string", f"it is {reprlib.repr(value)}")
    try:
        value.isascii() or value.encode("utf-8")  # asking first costs nothing
    except UnicodeEncodeError as error:
        kind = "not UTF-8" if 0xDC80 <= ord(value[error.start]) <= 0xDCFF else "half a surrogate pair"
        return Fault(kind, f"{value[error.start]!a} is no character, so UTF-8 cannot hold it")
    return value


def _check_column(file: str, key: str, names: list[str]) -> None:
    if key not in names:
        raise DataError(f"{file}: no column {key!r}; there are {reprlib.repr(names)}; text_key names the one that holds the text")
