"""One generator for each format of text, from a file (or a dataset's id) to its rows.

A generator yields the number of each row, counted from 1, and its text or `Fault`. It holds few
rows at a time. Some formats can be read from the middle (`spans`); rows are then counted from the
start of the span. A new format is a generator, an entry in `FORMATS` and a section in
`lm/config/schema/source.py`.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
from lm.documents.conversations import Conversation, are_messages, from_sms
from lm.documents.delimited import cell, csv_rows, suffix
from lm.documents.faults import Fault, Row, decoded, require_column, text_of
from lm.documents.files import (
    Span,
    byte_spans,
    is_read_from_start,
    lines,
    lines_before,
    opened,
    paragraphs,
    read_all,
)
from lm.documents.layouts import conversation_of
from lm.documents.parquet import (
    is_parquet,
    parquet_rows,
    read_parquet,
    row_group_spans,
    rows_before_group,
)
from lm.documents.row_keys import is_absent, note_unused, refused
from lm.system.errors import DataError

# The text of an instruction with its input and answer; the separator is ordinary text.
TRIPLET = "### Instruction: {instruction}\n### Input: {input}\n### Output: {output}\n<|sep|>\n"


def read_txt(file: str, source: TextSource, span: Span | None) -> Iterator[tuple[int, str | Fault]]:
    """Yield lines, paragraphs or all of a file. Windows line ends become plain ones."""
    for number, raw in UNITS[source.unit](file, span, source.encoding):
        text = decoded(raw)
        # Searching for one character is twenty times as fast as for two.
        yield number, text.replace("\r\n", "\n") if isinstance(text, str) and "\r" in text else text


UNITS: dict[str, Callable[[str, Span | None, str | None], Iterator[tuple[int, bytes]]]] = {
    "line": lambda file, span, encoding: (
        (number, line.rstrip(b"\r\n")) for number, line in lines(file, span, encoding)
    ),
    "paragraph": paragraphs,
    "file": lambda file, span, encoding: iter([(1, read_all(file, encoding))]),
}


def read_jsonl(file: str, source: JsonlSource, span: Span | None) -> Iterator[Row]:
    """Yield the string under `text_key` of each line. Blank lines are empty documents."""
    key = source.text_key
    for number, raw in lines(file, span, source.encoding):
        yield number, _from_json_line(raw, key)


def read_csv(file: str, source: CsvSource, span: None) -> Iterator[Row]:
    """Yield the column `text_key`. Fields in quotes may contain line ends."""
    column = None
    for number, row, names in csv_rows(file, source, [source.text_key]):
        if column is None:
            column = names.index(source.text_key)
        yield number, row if isinstance(row, Fault) else cell(row[column]) if row else ""


def read_sms(file: str, source: SmsSource, span: None) -> Iterator[Row]:
    """Yield lines of `ham` or `spam`, a tab and a message, as instructions with their answers."""
    yield from _sms_lines(file, source.encoding, _from_sms)


def read_instruction(file: str, source: InstructionSource, span: None) -> Iterator[Row]:
    """Yield the texts of objects with `instruction`, `output` and perhaps `input`.

    The file is a JSON list or has one object in each line.
    """
    for number, entry in _json_entries(file, source.encoding):
        if isinstance(entry, Entry):
            noted: Counter[str] = Counter()
            text = entry.named(_triplet(entry.value, noted))
            if noted:
                yield number, noted
            yield number, text
        else:
            yield number, entry


def read_chat(file: str, source: ChatSource, span: None) -> Iterator[Row]:
    """Yield conversations as JSON, each after a counter of what was left out of its row.

    They come from JSON, CSV, Parquet, a dataset of the hub, or the SMS Spam Collection.
    """
    if source.layout == "sms":
        yield from _sms_lines(file, source.encoding, lambda line: _written(from_sms(line)))
        return
    columns = source.columns.given if source.columns is not None else {}
    for number, entry in _chat_entries(file, source):
        if not isinstance(entry, Entry):
            yield number, entry
            continue
        noted: Counter[str] = Counter()
        text = entry.named(_written(conversation_of(entry.value, source.layout, columns, noted)))
        if noted:
            yield number, noted
        yield number, text


def _chat_entries(file: str, source: ChatSource) -> Iterator[tuple[int, Entry | str | Fault]]:
    """Yield the rows of conversations, in any of their formats."""
    is_json = suffix(file) in ("json", "jsonl", "ndjson")
    for_tables = source.delimiter != "," or source.quoting or source.escape or source.names
    if source.dataset is not None:
        for number, row in enumerate(hub.load_dataset(source), 1):
            yield number, Entry(row)
    elif is_parquet(file):
        for number, values in parquet_rows(file):
            yield number, values if isinstance(values, Fault) else Entry(values)
    elif for_tables and is_json:
        raise DataError(
            f"{file}: delimiter, quoting, escape and names are for CSV, and this file's name says"
            " JSON; remove these keys, or rename the file"
        )
    elif for_tables or suffix(file) in ("csv", "tsv", "tab"):
        for number, cells, names in csv_rows(file, source):
            yield number, cells if isinstance(cells, Fault) else _table_row(names, cells)
    else:
        yield from _json_entries(file, source.encoding)


def _table_row(names: list[str], cells: list[str]) -> Entry | str | Fault:
    row: dict[str, str] = {}
    for name, text in zip(names, map(cell, cells), strict=bool(cells)):
        if isinstance(text, Fault):
            return text
        row[name] = text
    return Entry(row) if row else ""  # a blank line is not a row


def _written(conversation: Conversation | Fault) -> str | Fault:
    return conversation if isinstance(conversation, Fault) else conversation.to_json()


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
    if not by_line or is_read_from_start(file, source.encoding):
        return None
    return byte_spans(file)


def rows_before(file: str, source: Any, span: Span) -> int:
    """Return how many rows come before those that a generator counts in a span."""
    if isinstance(source, ParquetSource):
        return rows_before_group(file, span[0])
    # A generator of ids counts from the start of the file.
    return 0 if isinstance(source, BinSource) else lines_before(file, span)


def _sms_lines(
    file: str, encoding: str | None, to_text: Callable[[str], str | Fault]
) -> Iterator[Row]:
    for number, raw in lines(file, None, encoding):
        line = decoded(raw.rstrip(b"\r\n"))
        yield number, line if isinstance(line, Fault) or not line.strip() else to_text(line)


def _from_sms(line: str) -> str | Fault:
    conversation = from_sms(line)
    if isinstance(conversation, Fault):
        return conversation
    question, answer = conversation.turns
    return TRIPLET.format(instruction=question.content, input=question.input, output=answer.content)


class Entry(NamedTuple):
    """A row's value; in a JSON list with its number, because several may be on one line."""

    value: object
    number: int = 0

    def named(self, text: str | Fault) -> str | Fault:
        """Return the text of this entry, or its fault with the entry's number."""
        if isinstance(text, Fault) and self.number:
            return text._replace(detail=f"entry {self.number} of the list: {text.detail}")
        return text


def _json_entries(file: str, encoding: str | None) -> Iterator[tuple[int, Entry | str | Fault]]:
    """Yield the entries of a JSON list, which is read at once, or of one JSON value a line."""
    with opened(file, encoding) as stream:
        first = stream.readline().removeprefix(codecs.BOM_UTF8)
        is_list = first.lstrip().startswith(b"[") or (
            not first.strip() and stream.read(64).lstrip().startswith(b"[")
        )
        # A list that ends on its line is a conversation if more of them follow, or if it holds
        # messages and not rows.
        if is_list and isinstance(value := _value(first), list):
            is_list = not are_messages(value) and not any(line.strip() for line in stream)
    if not is_list:
        for number, raw in lines(file, None, encoding):
            row = _json_line(raw)
            yield number, row if isinstance(row, str | Fault) else Entry(*row)
        return
    content = decoded(read_all(file, encoding))
    if isinstance(content, Fault):
        yield 1, content
        return
    try:
        yield from _list_entries(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: broken JSON ({error})") from error


def _value(line: bytes) -> object:
    try:
        return from_json(line)
    except ValueError:
        return None


def _list_entries(content: str) -> Iterator[tuple[int, Entry]]:
    """Yield the entries of a JSON list with the lines on which they begin.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deeply.
    """
    decoder = json.JSONDecoder()
    place = _SPACE.match(content).end() + 1  # type: ignore[union-attr]  # after "["
    number, line, counted = 0, 1, 0
    while True:
        place = _SPACE.match(content, place).end()  # type: ignore[union-attr]
        if number == 0 and content[place : place + 1] == "]":
            break
        value, end = decoder.raw_decode(content, place)
        number += 1
        line += content.count("\n", counted, place)
        counted = place
        yield line, Entry(value, number)
        place = _SPACE.match(content, end).end()  # type: ignore[union-attr]
        if content[place : place + 1] == "]":
            break
        if content[place : place + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", content, place)
        place += 1
    if (end := _SPACE.match(content, place + 1).end()) != len(content):  # type: ignore[union-attr]
        raise json.JSONDecodeError("Extra data", content, end)


# What may stand around a line's value: a mark of byte order, where files were joined; the separator
# of RFC 7464; and the comma of a list whose brackets are in other lines, or nowhere.
_AROUND = re.compile(r"^[\ufeff\x1e]+|,\s*$")
_SPACE = re.compile(r"[ \t\n\r]*")


def _from_json_line(raw: bytes, key: str) -> str | Fault:
    row = _json_line(raw)
    # `str | Fault` would make an object for each line.
    return row if isinstance(row, (str, Fault)) else _field(row[0], key)


def _json_line(raw: bytes) -> tuple[object] | str | Fault:
    """Return the value of a line in a tuple of its own; else the blank line, or its fault."""
    try:
        return (from_json(raw, cache_strings="keys"),)  # less than half the time of json.loads
    except ValueError:
        # json.loads also takes half a surrogate pair and deep nesting, perhaps in an unused key.
        line = decoded(raw)
        if isinstance(line, Fault) or not (line := _AROUND.sub(" ", line)).strip():
            return line
        try:
            return (json.loads(line),)
        except json.JSONDecodeError as error:
            return Fault("broken JSON", _reason(error, line))
        except (ValueError, RecursionError):
            return Fault("broken JSON", "nested too deeply, or a number of too many digits")


def _reason(error: json.JSONDecodeError, line: str) -> str:
    """Return why a line is no JSON, and what to write if a value goes on in the next line."""
    reason = f"{error.msg} at column {error.colno}"
    begun = line.strip()
    if begun[:1] in ("{", "[") and (len(begun) == 1 or error.pos >= len(line.rstrip())):
        kind = {"{": "an object", "[": "a list"}[begun[0]]
        command = {"{": "jq -c .", "[": "jq -c '.[]'"}[begun[0]]
        reason += f"; {kind} over several lines must be written on one, as {command} does"
    elif error.msg == "Extra data":
        reason += "; each line must hold one value, as jq -c . writes them"
    elif begun.startswith("{'"):
        reason += "; Python's print is no JSON, json.dumps writes it"
    return reason


def _field(row: object, key: str) -> str | Fault:
    if not isinstance(row, dict):
        advice = (
            "; jq -c '.[]' writes each row of a list on a line" if isinstance(row, list) else ""
        )
        return Fault(
            "not a JSON object",
            f'a line must look like {{"{key}": "..."}}, this one is {reprlib.repr(row)}{advice}',
        )
    if key not in row:
        return Fault(
            f"no key {key!r}",
            f"there are {reprlib.repr(list(row))}; text_key names the one that holds the text",
        )
    return text_of(row[key])


def _triplet(entry: object, noted: Counter[str]) -> str | Fault:
    if not isinstance(entry, dict):
        return Fault(
            "not a JSON object",
            'it must look like {"instruction": "...", "output": "..."}, this one is'
            f" {reprlib.repr(entry)}",
        )
    left = {key: value for key, value in entry.items() if not is_absent(value)}
    fields: dict[str, Any] = {"input": ""}
    for key in ("instruction", "input", "output"):
        if key not in left and key != "input":
            return Fault(f"no key {key!r}", f"there are {reprlib.repr(list(entry))}")
        fields[key] = left.pop(key, "")
        if isinstance(fault := text_of(fields[key]), Fault):
            return Fault(fault.kind, f"{key}: {fault.detail}")
    if (reason := refused(left, "")) is not None:
        return reason
    note_unused(left, "", noted)
    return TRIPLET.format_map(fields)
