"""One generator for each format of text, from a file (or a dataset's id) to its rows.

A generator yields the number of each row, counted from 1, and its text or `Fault`. It holds few
rows at a time. Some formats can be read from the middle (`spans`); rows are then counted from the
start of the span. A new format is a generator, an entry in `FORMATS` and a section in
`lm/config/schema/source.py`.
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
from typing import Any

from pydantic_core import from_json

from lm.config.schema.chat import ChatSource
from lm.config.schema.source import (
    BinSource,
    CsvSource,
    HubSource,
    InstructionSource,
    JsonlSource,
    ParquetSource,
    SmsSource,
    TextSource,
)
from lm.documents import hub
from lm.documents.conversations import Conversation, conversation_of, from_sms
from lm.documents.faults import Fault, Row, decoded, require_column, text_of
from lm.documents.files import (
    Span,
    byte_spans,
    is_gzip,
    lines,
    lines_before,
    opened,
    paragraphs,
    read_all,
)
from lm.documents.parquet import read_parquet, row_group_spans, rows_before_group
from lm.system.errors import DataError

# The text of an instruction with its input and answer; the separator is ordinary text.
TRIPLET = "### Instruction: {instruction}\n### Input: {input}\n### Output: {output}\n<|sep|>\n"


def read_txt(file: str, source: TextSource, span: Span | None) -> Iterator[Row]:
    """Yield lines, paragraphs or all of a UTF-8 file. Windows line ends become plain ones."""
    for number, raw in UNITS[source.unit](file, span):
        text = decoded(raw)
        # Searching for one character is twenty times as fast as for two.
        yield number, text.replace("\r\n", "\n") if isinstance(text, str) and "\r" in text else text


UNITS: dict[str, Callable[[str, Span | None], Iterator[tuple[int, bytes]]]] = {
    "line": lambda file, span: (
        (number, line.rstrip(b"\r\n")) for number, line in lines(file, span)
    ),
    "paragraph": paragraphs,
    "file": lambda file, span: iter([(1, read_all(file))]),
}


def read_jsonl(file: str, source: JsonlSource, span: Span | None) -> Iterator[Row]:
    """Yield the string under `text_key` of each line. Blank lines are empty documents."""
    for number, raw in lines(file, span):
        yield number, _from_json_line(raw, lambda row: _field(row, source.text_key))


def read_csv(file: str, source: CsvSource, span: None) -> Iterator[Row]:
    """Yield the column `text_key`; the first line names the columns.

    Fields in quotes may contain line ends.
    """
    csv.field_size_limit(sys.maxsize)
    with opened(file) as stream:
        # A byte outside UTF-8 becomes half a surrogate pair, until its row is known.
        text = io.TextIOWrapper(
            stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n"
        )
        rows = csv.reader(text, delimiter=source.delimiter, strict=True)
        names: list[str] | None = None
        while True:
            number = rows.line_num + 1
            try:
                if (row := next(rows, None)) is None:
                    return
            except csv.Error as error:
                # A row without an end would contain the rest of the file. Without column names no
                # row can be read.
                if (endless := "unexpected end" in str(error)) or names is None:
                    reason = "a quote that opens here is never closed" if endless else str(error)
                    raise DataError(f"{file}:{number}: broken CSV: {reason}; correct it") from error
                yield number, Fault("broken CSV", str(error))
                continue
            if names is None:
                names = row
                if isinstance(
                    fault := decoded(" ".join(names).encode(errors="surrogateescape")), Fault
                ):
                    raise DataError(f"{file}:{number}: {fault.kind}: {fault.detail}")
                if len(names) == 1 and source.text_key not in names:
                    raise DataError(
                        f"{file}: no column {source.text_key!r}; there are {reprlib.repr(names)};"
                        " text_key names the one that holds the text, and delimiter what parts the"
                        f" columns (now {source.delimiter!r})"
                    )
                require_column(file, source.text_key, names)
            elif row and len(row) != len(names):
                yield (
                    number,
                    Fault(
                        "another number of columns",
                        f"{len(row)} where the first line names {len(names)}",
                    ),
                )
            else:
                yield (
                    number,
                    (
                        decoded(row[names.index(source.text_key)].encode(errors="surrogateescape"))
                        if row
                        else ""
                    ),
                )


def read_sms(file: str, source: SmsSource, span: None) -> Iterator[Row]:
    """Yield lines of `ham` or `spam`, a tab and a message, as instructions with their answers."""
    yield from _sms_lines(file, span, _from_sms)


def read_instruction(file: str, source: InstructionSource, span: None) -> Iterator[Row]:
    """Yield the texts of objects with `instruction`, `output` and perhaps `input`.

    The file is a JSON list or has one object in each line.
    """
    yield from _json_entries(file, _triplet)


def read_chat(file: str, source: ChatSource, span: None) -> Iterator[Row]:
    """Yield conversations as JSON.

    They come from a JSON list, one JSON object in each line, a dataset of the hub, or the SMS Spam
    Collection.
    """

    def written(conversation: Conversation | Fault) -> str | Fault:
        return conversation if isinstance(conversation, Fault) else conversation.to_json()

    if source.dataset is not None:
        for number, row in enumerate(hub.load_dataset(source), 1):
            yield number, written(conversation_of(row, source.layout))
    elif source.layout == "sms":
        yield from _sms_lines(file, span, lambda line: written(from_sms(line)))
    else:
        yield from _json_entries(file, lambda row: written(conversation_of(row, source.layout)))


def read_hub(dataset: str, source: HubSource, span: None) -> Iterator[Row]:
    """Yield the column `text_key` of a Hugging Face dataset, downloaded first or streamed."""
    if source.streaming:
        batches = (values for values, _ in hub.stream(source, hub.newest_revision(source), None))
        yield from enumerate(map(text_of, itertools.chain.from_iterable(batches)), 1)
        return
    table = hub.load_dataset(source)
    require_column(dataset, source.text_key, table.column_names)
    columns = table.select_columns([source.text_key]).iter(batch_size=1000)
    values = itertools.chain.from_iterable(batch[source.text_key] for batch in columns)
    for number, value in enumerate(values, 1):
        yield number, text_of(value)


FORMATS: dict[str, Callable[[str, Any, Any], Iterator[Row]]] = {
    "txt": read_txt,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
    "sms": read_sms,
    "instruction": read_instruction,
    "hub": read_hub,
    "chat": read_chat,
}


def spans(file: str, source: Any) -> list[Span] | None:
    """Return the spans of a file that several processes can share.

    None: the file must be read from its beginning.
    """
    if isinstance(source, ParquetSource):
        return row_group_spans(file)
    if isinstance(source, BinSource):
        return byte_spans(file)
    by_line = isinstance(source, JsonlSource) or (
        isinstance(source, TextSource) and source.unit != "file"
    )
    return byte_spans(file) if by_line and not is_gzip(file) else None


def rows_before(file: str, source: Any, span: Span) -> int:
    """Return how many rows come before those that a generator counts in a span."""
    if isinstance(source, ParquetSource):
        return rows_before_group(file, span[0])
    # A generator of ids counts from the start of the file.
    return 0 if isinstance(source, BinSource) else lines_before(file, span)


def _sms_lines(file: str, span: None, to_text: Callable[[str], str | Fault]) -> Iterator[Row]:
    for number, raw in lines(file, span):
        line = decoded(raw.rstrip(b"\r\n"))
        yield number, line if isinstance(line, Fault) or not line.strip() else to_text(line)


def _from_sms(line: str) -> str | Fault:
    conversation = from_sms(line)
    if isinstance(conversation, Fault):
        return conversation
    question, answer = conversation.turns
    return TRIPLET.format(instruction=question.content, input=question.input, output=answer.content)


def _json_entries(file: str, to_text: Callable[[object], str | Fault]) -> Iterator[Row]:
    """Yield the entries of a JSON list, which is read at once, or of one JSON object a line."""
    with opened(file) as stream:
        is_list = stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    if not is_list:
        for number, raw in lines(file, None):
            yield number, _from_json_line(raw, to_text)
        return
    content = decoded(read_all(file))
    if isinstance(content, Fault):
        yield 1, content
        return
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: broken JSON ({error})") from error
    for number, entry in enumerate(entries, 1):
        yield number, to_text(entry)


def _from_json_line(raw: bytes, to_text: Callable[[object], str | Fault]) -> str | Fault:
    try:
        row = from_json(raw, cache_strings="keys")  # less than half the time of json.loads
    except ValueError:
        # json.loads also takes half a surrogate pair and deep nesting, perhaps in an unused key.
        line = decoded(raw)
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
        return Fault(
            "not a JSON object",
            f'a line must look like {{"{key}": "..."}}, this one is {reprlib.repr(row)}',
        )
    if key not in row:
        return Fault(
            f"no key {key!r}",
            f"there are {reprlib.repr(list(row))}; text_key names the one that holds the text",
        )
    return text_of(row[key])


def _triplet(entry: object) -> str | Fault:
    if not isinstance(entry, dict):
        return Fault(
            "not a JSON object",
            'it must look like {"instruction": "...", "output": "..."}, this one is'
            f" {reprlib.repr(entry)}",
        )
    fields: dict[str, Any] = {"input": "", **entry}
    for key in ("instruction", "input", "output"):
        if key not in fields:
            return Fault(f"no key {key!r}", f"there are {reprlib.repr(list(entry))}")
        if isinstance(fault := text_of(fields[key]), Fault):
            return Fault(fault.kind, f"{key}: {fault.detail}")
    return TRIPLET.format_map(fields)
