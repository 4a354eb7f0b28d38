"""What becomes of a piece of a source: token ids, and what else has to be known of each document.
In any process, from nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lm.documents.reader import Document, Piece, Reader, hash_of_text
from lm.documents.templates import LEARNED, Encoded
from lm.tokenizer.tokenizer import Tokenizer


class Tokens(NamedTuple):
    """What became of a piece: the ids of its documents one after another, and for each document
    some numbers.
    """

    ids: NDArray[Any]
    lengths: NDArray[np.int64]  # in ids
    hashes: NDArray[np.uint64]  # of the text
    characters: NDArray[np.int64]  # or ids, where the source brings ids: what `tail` measures
    # of conversations, those that are learnt and stand for text; else all
    text_tokens: NDArray[np.int64]
    text_bytes: NDArray[np.int64]  # in UTF-8
    flags: NDArray[np.uint8] | None  # of conversations: one for each id
    removed: Counter[str]

    def of(self, chosen: NDArray[np.bool_]) -> Tokens:
        """The same of some of the documents."""
        # where a run of chosen ones begins, and where it ends
        borders = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
        places = np.append(0, self.lengths.cumsum())[borders].reshape(-1, 2).tolist()

        def some(values: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([values[:0], *(values[first:end] for first, end in places)])

        return Tokens(
            ids=some(self.ids),
            lengths=self.lengths[chosen],
            hashes=self.hashes[chosen],
            characters=self.characters[chosen],
            text_tokens=self.text_tokens[chosen],
            text_bytes=self.text_bytes[chosen],
            flags=some(self.flags) if self.flags is not None else None,
            removed=self.removed,
        )


@dataclass(frozen=True)
class Tokenise:
    """Reads a piece and tokenises it; without a tokenizer it only measures: no ids.

    Raises:
        DataError: a row cannot be read.
    """

    reader: Reader
    tokenizer: Tokenizer | None

    def __call__(self, piece: Piece) -> Tokens:
        """What became of the piece."""
        removed: Counter[str] = Counter()
        documents = list(self.reader.read(piece, removed))
        brought = [document.encoded for document in documents if document.encoded is not None]
        return self.of([document.text for document in documents], removed, brought or None)

    def part(self, document: Document, part: slice) -> Tokens:
        """What becomes of a part of a document, given in characters, or in ids where the source
        brings ids; of nothing if that is empty.
        """
        if document.encoded is None:
            texts, brought = [document.text[part]], None
        else:
            assert self.tokenizer is not None
            ids = document.encoded.ids[part]
            texts, brought = [self.tokenizer.decode(ids.tolist())], [Encoded(ids)]
        made = self.of(texts, Counter(), brought)
        return made.of(made.characters > 0)

    def of(
        self, texts: list[str], removed: Counter[str], brought: list[Encoded] | None = None
    ) -> Tokens:
        """What became of these documents, all of which have brought their ids, or none."""
        ids, lengths, flags = np.empty(0, np.uint16), np.zeros(len(texts), np.int64), None
        text_bytes = np.array(
            [len(text) if text.isascii() else len(text.encode()) for text in texts], np.int64
        )
        if brought is not None:
            ids, lengths = (
                np.concatenate([document.ids for document in brought]),
                np.array([len(document.ids) for document in brought]),
            )
        elif self.tokenizer is not None:
            ids, lengths = self.tokenizer.encode_flat(texts)
        text_tokens = lengths
        if brought is not None and self.tokenizer is not None and brought[0].flags is not None:
            flags = np.concatenate(
                [document.flags for document in brought if document.flags is not None]
            )
            learned = (flags & LEARNED > 0) & ~np.isin(ids, list(self.tokenizer.reserved_ids))
            text_tokens = np.add.reduceat(learned, lengths.cumsum() - lengths, dtype=np.int64)
            text_bytes = np.array([document.text_bytes for document in brought], np.int64)
        return Tokens(
            ids=ids,
            lengths=lengths,
            hashes=np.array([hash_of_text(text) for text in texts], np.uint64),
            characters=(
                lengths
                if brought is not None
                else np.array([len(text) for text in texts], np.int64)
            ),
            text_tokens=text_tokens,
            text_bytes=text_bytes,
            flags=flags,
            removed=removed,
        )


class Engine(Protocol):
    """Applies a function to pieces, in any number of processes; the results come in the order of
    the pieces.
    """

    def __call__(self, function: Tokenise, pieces: Iterator[Piece]) -> Iterator[Tokens]:
        """`map(function, pieces)`."""
