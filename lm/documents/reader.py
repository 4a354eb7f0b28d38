"""Read the documents of a source in a fixed order, filter them, and cut the source into pieces for
several processes.

`Reader.contents` applies the filters that see one document: bad rows, ASCII, length. `Selection`
applies those that depend on earlier documents: repeats and the number of documents. Everything
skipped is counted by its kind.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lm.config.schema.chat import ChatSource
from lm.config.schema.source import (
    BinSource,
    CsvSource,
    HubSource,
    SingleSource,
    added_keys,
    dataset_of,
    files_of,
    is_streamed,
)
from lm.documents import encodings, files, parquet
from lm.documents.conversations import Conversation
from lm.documents.delimited import suffix
from lm.documents.faults import NOT_UTF8, Fault, Row
from lm.documents.files import Span, find_files, reading
from lm.documents.flat import read_flat
from lm.documents.formats import FORMATS, rows_before, spans
from lm.documents.hub import load_dataset
from lm.documents.parquet import is_parquet
from lm.documents.templates import ChatFormat, Encoded
from lm.system.errors import ConfigError, DataError
from lm.tokenizer.tokenizer import Tokenizer

PIECE_CHARACTERS = 2**22
EMPTY, REPEATED = "empty document", "repeated document"
_BEYOND_ASCII = re.compile(r"[^\x00-\x7F]+")


def states(files: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """Return each file's size, the times of its last changes, and its inode.

    A program can set the first time back (`mtime`), but not the second (`ctime`).
    """
    found = [Path(file).stat() for file in files]
    return [(file.st_size, file.st_mtime_ns, file.st_ctime_ns, file.st_ino) for file in found]


class Document(NamedTuple):
    """One document of a source."""

    text: str  # for a conversation its JSON
    place: str  # file:line of its first line, or file:row
    encoded: Encoded | None = None  # its ids, if the source brings them


class Piece(NamedTuple):
    """The part of a source that one process reads at a time.

    It is the span of a file or, for formats that cannot be read from the middle, its rows.
    """

    file: str
    span: Span | None = None
    rows: Sequence[Row] | None = None


class Reader:
    """All documents of a source, in the same order in each iteration.

    Documents of white space are always skipped, as are documents of ids without any id. Rows that
    cannot be read are skipped if `on_bad_row` is "skip". The source's section decides the rest;
    `max_tokens` is applied elsewhere, because the reader counts no tokens.

    Attributes:
        files: the source's files, sorted, each once; for a hub dataset its id.
        skipped: how much the latest iteration skipped, by kind.

    Args:
        source: the source's section.
        key: its key in the configuration, for messages.
        on_bad_row: "stop" or "skip".
        tokenizer: needed for ids, and for the ids of conversations.
        files: the source's files; None finds those that the section names.

    Raises (when made, and when iterated):
        DataError: a file cannot be read; or, if `on_bad_row` is "stop", a row.
        ConfigError: the source needs a tokenizer, and there is none.
    """

    def __init__(
        self,
        source: SingleSource,
        key: str = "data.source",
        on_bad_row: str = "stop",
        tokenizer: Tokenizer | None = None,
        files: Sequence[str] | None = None,
    ):
        if isinstance(source, BinSource) and tokenizer is None:
            raise ConfigError(
                f"{key}.format: bin files hold token ids, and this command needs text;"
                " name the text they come from"
            )
        self.source = source
        self.chat: ChatFormat | None = None
        if isinstance(source, ChatSource) and tokenizer is not None:
            try:
                self.chat = ChatFormat(
                    source.template, tokenizer, source.system, source.mask_prompt
                )
            except ConfigError as error:
                raise ConfigError(f"{key}: {error}") from None
        self.tokenizer = tokenizer
        self.key = key
        self.on_bad_row = on_bad_row
        named = (
            files
            if files is not None
            else [dataset]
            if (dataset := dataset_of(source))
            else find_files(files_of(source), f"{key}.files")
        )
        # realpath, because Path.resolve raises at a loop of links
        self.files = sorted({os.path.realpath(file): file for file in reversed(named)}.values())
        self.named_twice = Counter(
            {"file named twice": len(named) - len(self.files)}
            if len(named) > len(self.files)
            else {}
        )
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Document]:
        self.skipped = self.named_twice.copy()
        selection = Selection(self.source)
        for file in self.files:
            removed: Counter[str] = Counter()
            no_text = True
            for document in self.read(Piece(file), removed):
                no_text = False
                if selection.keep([hash_of_text(document.text)])[0]:
                    yield document
                if selection.full:
                    break
            if no_text and set(removed) <= {EMPTY}:
                self.empty_file(file, removed)
            self.skipped += removed
            if selection.full:
                break
        self.skipped += selection.removed

    @property
    def cut(self) -> list[int]:
        """The constants that decide where a piece ends."""
        return [files.SPAN_BYTES, parquet.MOST_ROW_GROUP_BYTES, PIECE_CHARACTERS]

    def pieces(self) -> Iterator[Piece]:
        """Yield the source in pieces of a few megabytes, always the same and in order."""
        for file in self.files:
            with reading(file, self.key):
                shared = None if dataset_of(self.source) else spans(file, self.source)
                if shared is not None:
                    yield from (Piece(file, span) for span in shared or [(0, 0)])
                else:
                    yield from self._pieces_of_rows(file)

    def _pieces_of_rows(self, file: str) -> Iterator[Piece]:
        rows: list[Row] = []
        size = 0
        for row in FORMATS[self.source.format](file, self.source, None):
            rows.append(row)
            size += 1 + len(row[1])
            if size >= PIECE_CHARACTERS:
                yield Piece(file, None, rows)
                rows, size = [], 0
        yield Piece(file, None, rows)

    def read(self, piece: Piece, removed: Counter[str]) -> Iterator[Document]:
        """Yield a piece's documents, cleaned, and count in `removed` what is skipped.

        Places are right in pieces that are a file or rows; in a span, numbers count from its start.
        """
        for number, text, encoded in self.contents(piece, removed):
            yield Document(text, f"{piece.file}:{number}", encoded)

    def contents(
        self, piece: Piece, removed: Counter[str]
    ) -> Iterator[tuple[int, str, Encoded | None]]:
        """Yield what `read` does as plain tuples, which takes less time: number, text and ids."""
        # Looked up once, not for each document.
        ascii_only, min_length = self.source.filter.ascii_only, self.source.filter.min_length
        with reading(piece.file, self.key):
            for number, text, encoded in self._rows(piece):
                if not isinstance(text, str):
                    self._skip(piece, number, text, removed)
                    continue
                if ascii_only and not text.isascii():
                    cleaned = _BEYOND_ASCII.sub("", text)
                    removed["character beyond ASCII"] += len(text) - len(cleaned)
                    text = cleaned
                if (not text or text.isspace()) if encoded is None else len(encoded.ids) == 0:
                    removed[EMPTY] += 1
                elif len(text) < min_length:
                    removed[f"document under {min_length} characters"] += 1
                else:
                    yield number, text, encoded

    def _skip(
        self, piece: Piece, number: int, fault: Fault | Counter[str], removed: Counter[str]
    ) -> None:
        """Count what is no document, or refuse it."""
        if isinstance(fault, Counter):
            removed += fault
            return
        in_span = piece.span if self.on_bad_row == "stop" else None
        before = rows_before(piece.file, self.source, in_span) if in_span else 0
        self._refuse(piece.file, fault, removed, f":{before + number + fault.lines_below}")

    def _rows(
        self, piece: Piece
    ) -> Iterator[tuple[int, str | Fault | Counter[str], Encoded | None]]:
        """Yield a piece's rows, with ids for flat files and conversations."""
        if isinstance(self.source, BinSource):
            assert self.tokenizer is not None
            for place, ids in read_flat(piece.file, self.source, piece.span, self.tokenizer):
                yield (
                    (place, ids, None)
                    if isinstance(ids, Fault)
                    else (place, self.tokenizer.decode(ids.tolist()), Encoded(ids))
                )
            return
        rows = (
            piece.rows
            if piece.rows is not None
            else FORMATS[self.source.format](piece.file, self.source, piece.span)
        )
        for number, text in rows:
            # a blank line is not a conversation
            if self.chat is None or not isinstance(text, str) or not text.strip():
                yield number, text, None
            else:
                yield number, text, self.chat.encode(Conversation.from_json(text))

    @property
    def section(self) -> dict[str, Any]:
        """The source's section as JSON, without its files and without what changes no document."""
        section = self.source.model_dump(exclude={"files", "too_long"} | added_keys(self.source))
        if self.chat is not None:
            section["template"] = dataclasses.asdict(self.chat.template)
        return section

    def identity(
        self, describe: Callable[[Sequence[str]], Sequence[Any]] = states
    ) -> dict[str, Any]:
        """Return JSON that changes when the documents do.

        It has the section and the dataset's version, or what `describe` says about the files; and
        what the files' names say about their format, where that decides how they are read.
        """
        if is_streamed(self.source):
            return self.section
        if isinstance(self.source, HubSource | ChatSource) and self.source.dataset is not None:
            return {**self.section, "version": load_dataset(self.source)._fingerprint}
        with reading("a file", self.key):
            return {**self.section, **self._named, "files": describe(self.files)}

    @property
    def _named(self) -> dict[str, Any]:
        """The endings of the files' names that make them tables, or tables parted by tabs."""
        decide = (
            {"csv", "tsv", "tab"}
            if isinstance(self.source, ChatSource)
            else {"tsv", "tab"}
            if isinstance(self.source, CsvSource)
            else set()
        )
        named = [sorted({suffix(file)} & decide) for file in self.files]
        return {"named": named} if any(named) else {}

    def empty_file(self, file: str, removed: Counter[str]) -> None:
        """Refuse a file without text, or count it in `removed`; it is hardly intended."""
        self._refuse(file, Fault("empty file", "there is no text in it"), removed)

    def _refuse(self, file: str, fault: Fault, removed: Counter[str], place: str = "") -> None:
        if self.on_bad_row == "skip":
            removed[fault.kind] += 1
            return
        remedy = "correct it"
        if fault.kind == NOT_UTF8 and not is_parquet(file):
            encoding = getattr(self.source, "encoding", None)
            remedy = encodings.remedy(file, self.files, f"{self.key}.encoding", encoding)
        raise DataError(
            f"{file}{place}: {fault.kind}: {fault.detail}; {remedy}, or skip such rows with"
            " data.on_bad_row: skip"
        )


class Selection:
    """The filters that depend on earlier documents: `deduplicate` and `max_documents`.

    Documents must come in order. `deduplicate` keeps a hash of 8 bytes for each, which takes about
    70 bytes of memory.

    Attributes:
        removed: how many documents were dropped, by kind.
    """

    def __init__(self, source: SingleSource):
        self._seen: set[int] | None = set() if source.filter.deduplicate else None
        self._left = source.filter.max_documents
        self.removed: Counter[str] = Counter()

    @property
    def remembers(self) -> bool:
        """Whether the result depends on earlier documents."""
        return self._seen is not None or self._left is not None

    @property
    def full(self) -> bool:
        """Whether no further document is needed."""
        return self._left == 0

    def keep(self, hashes: Sequence[int]) -> NDArray[np.bool_]:
        """Return for each document, given by its `hash_of_text`, whether it stays."""
        result = np.ones(len(hashes), bool)
        if self._seen is not None:
            for i, number in enumerate(hashes):
                result[i] = number not in self._seen
                self._seen.add(number)
            if not result.all():
                self.removed[REPEATED] += int((~result).sum())
        if self._left is not None:
            result &= result.cumsum() <= self._left
            self._left -= int(result.sum())
        return result


def hash_of_text(text: str) -> int:
    """Return 64 bits of a text's BLAKE2b, which is the same on every machine, unlike `hash`."""
    return int(hashes_of([text.encode()])[0])


def hashes_of(texts: Sequence[bytes]) -> NDArray[np.uint64]:
    """Return the `hash_of_text` of each text, which is given in UTF-8."""
    blake2b = hashlib.blake2b
    digests = b"".join([blake2b(text, digest_size=8).digest() for text in texts])
    return np.frombuffer(digests, "<u8").astype(np.uint64, copy=False)
