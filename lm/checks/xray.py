"""What the model will see, in numbers: how the rows of a step are laid out, and what the splits
consist of.
"""

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
Stores = dict[str, list[tuple[str, TokenStore]]]  # for each split, the sources' names and tokens


@dataclass(frozen=True)
class Row:
    """One row of a step; arrays of T.

    Attributes:
        documents: which of the row's documents each token belongs to, from 0.
        positions: as the model counts them: from 0 in each document where `document_ids` keep
            documents apart, else in the row.
        used: positions before the padding at the end, in which documents and positions mean
            nothing.
        starts_inside, ends_inside: the first (last) document began before the row (goes on after
            it).
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
        """Positions with a label."""
        return int((self.labels != IGNORE_INDEX).sum())


def read_rows(batch: dict[str, Any], tokenizer: Tokenizer, sources: Sequence[str]) -> list[Row]:
    """The rows of a step's item, whose tensors are (A, B, T), in the order that does not depend on
    A, B and processes.

    `sources` names where each comes from; it is said where there are several.
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
    """A conversation as it is stored: its EOS first, its end included. Labels are the tokens
    themselves, where they are learnt.
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
    """The last label is the next token of the same document, and not its end: EOS, or what ends a
    turn. Where the loss leaves it out, padding says that the document was over.
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
        """Sums over all of them; a document in two rows counts twice."""
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
    """Each split's tokens, of the sources that have some for it. What is streamed to train on is
    not stored.
    """
    found = [
        (name, store)
        for name, corpus in named(corpora)
        for store in corpus.stores
        if store.documents
    ]
    return {
        split: [(name, store) for name, store in found if store.split == split] for split in SPLITS
    }


@dataclass(frozen=True)
class SourceStatistics:
    """What one source gives to one split. Lengths are in tokens, EOS not counted."""

    split: str
    source: str
    documents: int
    tokens: int
    share: float  # of the split's tokens
    bytes_per_token: float
    median_length: float
    longest: int
    longer_than_row: int  # documents that no row of T holds: their EOS takes a place in it

    @classmethod
    def of(
        cls, split: str, stores: Sequence[tuple[str, TokenStore]], row_length: int
    ) -> list[SourceStatistics]:
        """One for each named store of a split; 8 bytes of memory for each document."""
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
    """For people: headings, then a line for each."""
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
    """For people: headings, then a line for each count and its share."""
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
        [name, f"{number:,}", f"{number / whole:.1%}" if whole else ""]
        for name, number, whole in lines
    ]


def overlap_table(overlaps: Sequence[Overlap], n: int) -> list[list[str]]:
    """For people: headings, then a line for each text that was compared."""
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
        judged, found = overlap.documents - overlap.too_short, len(overlap.matches)
        lines.append(
            [
                overlap.name,
                f"{overlap.documents:,}",
                f"{judged:,}",
                f"{found:,}",
                f"{found / judged:.1%}" if judged else "",
            ]
        )
    return lines


def match_lines(overlap: Overlap, n: int) -> list[str]:
    """A line for each document in common, worst first."""
    worst = sorted(overlap.matches, key=lambda match: -match.shared / match.ngrams)
    return [
        f'{m.document}: {m.shared:,} of {m.ngrams:,} runs of {n} words, first "{m.words}", as in'
        f" {m.training}"
        for m in worst
    ]
