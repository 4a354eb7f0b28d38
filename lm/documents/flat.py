"""Flat files of token ids, such as nanoGPT's train.bin and val.bin.

    d1 EOS d2 EOS ... dn EOS        ids of one type, lowest byte first, without a header

This is the stream of a split (`lm/tokens/store.py`) without its first EOS. Both forms convert into
each other without loss; `lm/tokens/export.py` writes such files. Files of other programs may lack
the last EOS, or begin with one and a header (`flat_headers.py`). Without any EOS, the file is one
document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm.config.schema.source import BinSource
from lm.documents.faults import Fault
from lm.documents.files import Span, byte_spans
from lm.documents.flat_headers import header_of, require_flat, require_plain_neighbours
from lm.system.disk import read_text
from lm.system.errors import DataError
from lm.tokenizer.tokenizer import Tokenizer

CHUNK = 2**20  # ids that one read asks for when the count is not known
SPECIAL = "special id"


def read_flat(
    file: str, source: BinSource, span: Span | None, tokenizer: Tokenizer
) -> Iterator[tuple[int, NDArray[Any] | Fault]]:
    """Yield the documents that begin in a span of bytes: their position in ids, and their ids.

    The ids have the tokenizer's dtype. A document with a special id other than EOS is a `Fault`.
    Memory holds the documents of one span.

    Raises:
        DataError: the ids are another tokenizer's.
        OSError: the file cannot be read.
    """
    header = header_of(file)
    dtype = np.dtype(source.dtype or header.dtype or tokenizer.dtype).newbyteorder("<")
    skipped = header.size // dtype.itemsize
    others = sorted(tokenizer.reserved_ids - {tokenizer.eos_id})
    for part in byte_spans(file) if span is None else [span]:
        if part[0] == 0:
            require_flat(file, dtype, source.dtype is not None)
            require_plain_neighbours(file, tokenizer.name, tokenizer.vocab_size)
            _require_tokenizer(file, tokenizer)
        first, ids = _documents_from(file, dtype, part, tokenizer.eos_id, skipped)
        first -= skipped
        if len(beyond := np.flatnonzero(ids >= tokenizer.vocab_size)):
            place = int(beyond[0])
            raise DataError(
                f"{file}:{first + place}: id {ids[place]:,} is beyond the {tokenizer.vocab_size:,}"
                f" of the tokenizer {tokenizer.name}; name the one that made the file in"
                " tokenizer.name, and the type of its ids in dtype"
            )
        ids = ids.astype(tokenizer.dtype)
        ends = np.flatnonzero(ids == tokenizer.eos_id)
        if len(ids) and ids[-1] != tokenizer.eos_id:
            ends = np.append(ends, len(ids))
        special = np.flatnonzero(np.isin(ids, others))
        # Reversed, because the last value of a key stays: the first special id of each document.
        faulty = dict(
            zip(
                reversed(np.searchsorted(ends, special).tolist()),
                reversed(ids[special].tolist()),
                strict=True,
            )
        )
        start = 0
        for number, end in enumerate(ends.tolist()):
            fault = (
                Fault(
                    SPECIAL,
                    f"{faulty[number]} in the document that begins here; text has no such id",
                )
                if number in faulty
                else None
            )
            yield first + start, fault or ids[start:end]
            start = end + 1


def _require_tokenizer(file: str, tokenizer: Tokenizer) -> None:
    """Raise DataError if the meta.json next to a file names another tokenizer.

    tools.export_tokens writes it. Without this check, ids that are valid for both tokenizers would
    decode to other text, or to a single document.
    """
    try:
        meta = json.loads(read_text(Path(file).with_name("meta.json")))
        name, sha256 = meta["tokenizer"]["name"], meta["tokenizer"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # there is no meta.json, or another program wrote it
    if sha256 != tokenizer.sha256:
        raise DataError(
            f"{file}: its ids are of the tokenizer {name}, says meta.json next to it, and"
            f" tokenizer.name is {tokenizer.name}; write that one"
        )


def _documents_from(
    file: str, dtype: np.dtype[Any], span: Span, eos_id: int, header: int
) -> tuple[int, NDArray[Any]]:
    """Return the position of the first document that begins in a span, and the ids from there on.

    The ids reach to the end of the last document that begins in the span. The `header` takes the
    place of so many ids.
    """
    first, last = (max(header, -(-edge // dtype.itemsize)) for edge in span)
    if first == last:
        return first, np.empty(0, dtype)
    before = min(first - header, 1)  # a document begins after an EOS, or with the file
    ids = _read(file, dtype, first - before, last - first + before)
    if before:
        ends = np.flatnonzero(ids == eos_id)
        skipped = int(ends[0]) + 1 if len(ends) else len(ids)
        first, ids = first - 1 + skipped, ids[skipped:]
    if len(ids) == 0 or ids[-1] == eos_id:
        return first, ids
    parts, position = [ids], last
    while len(more := _read(file, dtype, position, CHUNK)):
        ends = np.flatnonzero(more == eos_id)
        parts.append(more[: ends[0]] if len(ends) else more)
        if len(ends):
            break
        position += len(more)
    return first, np.concatenate(parts)


def _read(file: str, dtype: np.dtype[Any], start: int, count: int) -> NDArray[Any]:
    """Read `count` ids from `start`, or fewer at the end of the file."""
    return np.fromfile(file, dtype, count, offset=start * dtype.itemsize)
