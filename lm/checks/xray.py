"""The data of a run in numbers: the layout of the rows of a step, and the content of the splits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm.checks.overlap import Overlap
from lm.documents.reader import Document
from lm.documents.templates import BEGINS, LEARNED
from lm.optim.loss import IGNORE_INDEX
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.corpus import Corpus, named
from lm.tokens.prepare import SPLITS
from lm.tokens.store import TokenStore

Integers = NDArray[np.int64]
Stores = dict[str, list[tuple[str, TokenStore]]]  # split -> its sources' names and tokens


@dataclass(frozen=True)
class Row:
    """One row of a step; the arrays are (T,).

    Attributes:
        documents: the number of each token's document in the row, from 0.
        positions: the position that the model uses: from 0 in each document if `document_ids`
            separate documents, otherwise from 0 in the row.
        used: the number of tokens before the padding at the end; in the padding, documents and
            positions mean nothing.
        starts_inside: the first document began before the row.
        ends_inside: the last document continues after the row.
    """

    name: str
    ids: Integers
    labels: Integers
    documents: Integers
    positions: Integers
    used: int
    starts_inside: bool
    ends_inside: bool

    @property
    def supervised(self) -> int:
        """The number of positions with a label."""
        return int((self.labels != IGNORE_INDEX).sum())


def read_rows(batch: dict[str, Any], tokenizer: Tokenizer, sources: Sequence[str]) -> list[Row]:
    """Return the rows of a step's item, whose tensors are (A, B, T).

    Their order does not depend on A, B and the number of processes. `sources` names each row's
    source; a row's name includes it if there are several.
    """
    names = [name for name in ("input_ids", "labels", "document_ids") if name in batch]
    tables = [batch[name].numpy().reshape(-1, batch[name].shape[-1]) for name in names]
    rows = []
    for number, (source, (ids, labels, *given)) in enumerate(
        zip(sources, zip(*tables, strict=True), strict=True), 1
    ):
        padding = (ids == tokenizer.pad_id) & (labels == IGNORE_INDEX)
        used = len(ids) - int(padding[::-1].cumprod().sum())
        begins = np.diff(given[0], prepend=given[0][0]) != 0 if given else ids == tokenizer.eos_id
        begins[0] = False
        places = np.arange(len(ids))
        last_begin = np.maximum.accumulate(np.where(begins, places, 0))
        rows.append(
            Row(
                name=f"step {batch['step']}, row {number} of {len(tables[0])}"
                + (f", {source}" if len(set(sources)) > 1 else ""),
                ids=ids,
                labels=labels,
                documents=begins.cumsum(),
                positions=places - last_begin if given else places,
                used=used,
                starts_inside=used > 0 and int(ids[0]) != tokenizer.eos_id,
                ends_inside=_ends_inside(labels, used, tokenizer.reserved_ids),
            )
        )
    return rows


def conversation_row(document: Document, eos_id: int) -> Row:
    """Return a conversation as it is stored, from its EOS to its end.

    The labels are the tokens themselves, at those positions that are learnt.
    """
    assert document.encoded is not None and document.encoded.flags is not None
    ids = np.append(eos_id, document.encoded.ids).astype(np.int64)
    flags = np.append(np.uint8(0), document.encoded.flags)
    documents, places = (flags & BEGINS > 0).cumsum(), np.arange(len(ids))
    begins = np.maximum.accumulate(np.where(flags & BEGINS, places, 0))
    labels = np.where(flags & LEARNED, ids, IGNORE_INDEX)
    return Row(
        document.place,
        ids,
        labels,
        documents,
        places - begins,
        len(ids),
        starts_inside=False,
        ends_inside=False,
    )


def _ends_inside(labels: Integers, used: int, ends: Collection[int]) -> bool:
    """Return whether the row's last label is neither EOS nor the end of a turn.

    If the loss ignores that label, padding after it shows that the document was complete.
    """
    if used == 0:
        return False
    return (
        used == len(labels)
        if labels[used - 1] == IGNORE_INDEX
        else int(labels[used - 1]) not in ends
    )


@dataclass(frozen=True)
class RowStatistics:
    """Counts over rows."""

    rows: int
    positions: int
    supervised: int
    padding: int
    documents: int
    starts_inside: int
    ends_inside: int

    @classmethod
    def of(cls, rows: Sequence[Row]) -> RowStatistics:
        """Sum over all rows; a document in two rows counts twice."""
        return cls(
            rows=len(rows),
            positions=sum(len(row.ids) for row in rows),
            supervised=sum(row.supervised for row in rows),
            padding=sum(len(row.ids) - row.used for row in rows),
            documents=sum(int(row.documents[row.used - 1]) + 1 for row in rows if row.used),
            starts_inside=sum(row.starts_inside for row in rows),
            ends_inside=sum(row.ends_inside for row in rows),
        )


def stores_of(corpora: Sequence[Corpus]) -> Stores:
    """Return each split's stores, without empty ones; streamed training text has no store."""
    stores = [
        (name, store)
        for name, corpus in named(corpora)
        for store in corpus.stores
        if store.documents
    ]
    return {
        split: [(name, store) for name, store in stores if store.split == split] for split in SPLITS
    }


@dataclass(frozen=True)
class SourceStatistics:
    """One source's part of one split; lengths are in tokens, without EOS."""

    split: str
    source: str
    documents: int
    tokens: int
    share: float  # of the split's tokens
    bytes_per_token: float
    median_length: float
    longest: int
    longer_than_row: int  # documents that, with their EOS, do not fit a row of T tokens

    @classmethod
    def of(
        cls, split: str, stores: Sequence[tuple[str, TokenStore]], row_length: int
    ) -> list[SourceStatistics]:
        """Return the statistics of each named store of a split, in 8 bytes of memory a document."""
        total, result = sum(store.tokens for _, store in stores), []
        for name, store in stores:
            lengths = np.diff(store.document_starts, append=store.tokens - 1) - 1
            result.append(
                cls(
                    split=split,
                    source=name,
                    documents=store.documents,
                    tokens=store.tokens,
                    share=store.tokens / total,
                    bytes_per_token=store.text_bytes / store.text_tokens,
                    median_length=float(np.median(lengths)),
                    longest=int(lengths.max()),
                    longer_than_row=int((lengths + 1 > row_length).sum()),
                )
            )
        return result


def source_table(sources: Sequence[SourceStatistics]) -> list[list[str]]:
    """Return the headings and a line for each source, for a reader."""
    headings = [
        "split: source",
        "documents",
        "tokens",
        "share",
        "bytes/token",
        "median",
        "longest",
        "longer than a row",
    ]
    return [headings] + [
        [
            f"{line.split}: {line.source}",
            f"{line.documents:,}",
            f"{line.tokens:,}",
            f"{line.share:.1%}",
            f"{line.bytes_per_token:.2f}",
            f"{line.median_length:,.0f}",
            f"{line.longest:,}",
            f"{line.longer_than_row:,} ({line.longer_than_row / line.documents:.1%})",
        ]
        for line in sources
    ]


def row_table(counts: RowStatistics) -> list[list[str]]:
    """Return the headings and a line for each count and its share, for a reader."""
    lines = [
        ("positions", counts.positions, counts.positions),
        ("with a label", counts.supervised, counts.positions),
        ("padding", counts.padding, counts.positions),
        ("rows", counts.rows, 0),
        ("rows that begin inside a document", counts.starts_inside, counts.rows),
        ("rows that end inside a document", counts.ends_inside, counts.rows),
        ("documents and parts of documents", counts.documents, 0),
    ]
    return [["in these steps", "number", "share"]] + [
        [name, f"{number:,}", f"{number / total:.1%}" if total else ""]
        for name, number, total in lines
    ]


def overlap_table(overlaps: Sequence[Overlap], n: int) -> list[list[str]]:
    """Return the headings and a line for each compared text, for a reader."""
    lines = [
        [
            f"{n} words in a row that are trained on too",
            "documents",
            f"of {n} words or more",
            "with such",
            "share",
        ]
    ]
    for overlap in overlaps:
        judged, shared = overlap.documents - overlap.too_short, len(overlap.matches)
        lines.append(
            [
                overlap.name,
                f"{overlap.documents:,}",
                f"{judged:,}",
                f"{shared:,}",
                f"{shared / judged:.1%}" if judged else "",
            ]
        )
    return lines


def match_lines(overlap: Overlap, n: int) -> list[str]:
    """Return a line for each document with shared text, the worst first."""
    worst = sorted(overlap.matches, key=lambda match: -match.shared / match.ngrams)
    return [
        f'{m.document}: {m.shared:,} of {m.ngrams:,} runs of {n} words, first "{m.words}", as in'
        f" {m.training}"
        for m in worst
    ]
