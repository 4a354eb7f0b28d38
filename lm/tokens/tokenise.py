"""A piece of a source becomes token ids, and a few numbers about each document.

This depends on nothing but the piece, so any process can do it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lm.documents.conversations import Conversation
from lm.documents.reader import Document, Piece, Reader, hashes_of
from lm.documents.templates import LEARNED, Encoded
from lm.tokenizer.tokenizer import Tokenizer, lengths_of, starts_of, with_eos
from lm.tokens.round_trip import compare


class Tokens(NamedTuple):
    """A piece's documents as a stream, `EOS d1 EOS d2 ... EOS dn`, and some numbers about each."""

    ids: NDArray[Any]
    lengths: NDArray[np.int64]  # in ids, without EOS
    hashes: NDArray[np.uint64]  # of the text
    characters: NDArray[np.int64]  # for `tail`; if the source has ids, their number
    text_tokens: NDArray[np.int64]  # in conversations only ids of text that is learnt
    text_bytes: NDArray[np.int64]  # in UTF-8
    compared_bytes: NDArray[np.int64]  # of the text, with what its tokens decode to
    lost_bytes: NDArray[np.int64]  # how many of these do not come back
    flags: NDArray[np.uint8] | None  # only in conversations: one for each id, 0 for EOS
    removed: Counter[str]  # how many documents were skipped, by reason

    def count_unknown(self, unknown_id: int | None) -> int:
        """Return how many ids are that of unknown text. In conversations only ids that are learnt
        count, as in `text_tokens`.
        """
        if unknown_id is None:
            return 0
        unknown = self.ids == unknown_id
        unknown[starts_of(self.lengths)] = False  # some tokenizers have one id for both
        return int((unknown if self.flags is None else unknown & (self.flags & LEARNED > 0)).sum())

    def select(self, chosen: NDArray[np.bool_]) -> Tokens:
        """Return the same for some of the documents."""
        if chosen.all():
            return self
        # where each run of chosen documents begins, and where it ends
        borders = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
        places = np.append(0, (self.lengths + 1).cumsum())[borders].reshape(-1, 2).tolist()

        def selected(values: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([values[:0], *(values[first:end] for first, end in places)])

        return Tokens(
            ids=selected(self.ids),
            lengths=self.lengths[chosen],
            hashes=self.hashes[chosen],
            characters=self.characters[chosen],
            text_tokens=self.text_tokens[chosen],
            text_bytes=self.text_bytes[chosen],
            compared_bytes=self.compared_bytes[chosen],
            lost_bytes=self.lost_bytes[chosen],
            flags=selected(self.flags) if self.flags is not None else None,
            removed=self.removed,
        )


@dataclass(frozen=True)
class Tokenise:
    """A function that reads a piece and tokenises it; without a tokenizer it measures only.

    Raises:
        DataError: a row cannot be read.
    """

    reader: Reader
    tokenizer: Tokenizer | None

    def __call__(self, piece: Piece) -> Tokens:
        """Read a piece and tokenise its documents."""
        removed: Counter[str] = Counter()
        texts: list[str] = []
        encoded: list[Encoded] = []
        for _, text, ids in self.reader.contents(piece, removed):
            texts.append(text)
            if ids is not None:
                encoded.append(ids)
        return self.encode(texts, removed, encoded or None)

    def part(self, document: Document, part: slice) -> Tokens:
        """Tokenise a part of a document; without a document if the part is empty.

        The part counts characters, or ids if the source has ids.
        """
        if document.encoded is None:
            texts, encoded = [document.text[part]], None
        else:
            assert self.tokenizer is not None
            ids = document.encoded.ids[part]
            texts, encoded = [self.tokenizer.decode(ids.tolist())], [Encoded(ids)]
        tokens = self.encode(texts, Counter(), encoded)
        return tokens.select(tokens.characters > 0)

    def encode(
        self, texts: list[str], removed: Counter[str], encoded: list[Encoded] | None = None
    ) -> Tokens:
        """Tokenise texts.

        Args:
            texts: the documents.
            removed: how many documents were skipped, by reason.
            encoded: the ids of all documents, if the source has them.
        """
        ids = np.empty(0, np.uint16)
        lengths = np.zeros(len(texts), np.int64)
        flags = None
        utf8 = [text.encode() for text in texts]
        text_bytes = lengths_of(utf8)
        if encoded is not None:
            parts = [document.ids for document in encoded]
            lengths = lengths_of(parts)
            if self.tokenizer is not None:
                ids = with_eos(np.concatenate(parts), lengths, self.tokenizer.eos_id)
        elif self.tokenizer is not None:
            ids, lengths = self.tokenizer.encode_stream(texts, utf8)
        text_tokens = lengths
        compared = lost = np.zeros(len(texts), np.int64)
        if self.tokenizer is not None:
            compared, lost = compare(self.tokenizer, self._plain(texts, encoded))
        if encoded is not None and self.tokenizer is not None and encoded[0].flags is not None:
            flags = np.concatenate(
                [document.flags for document in encoded if document.flags is not None]
            )
            flags = with_eos(flags, lengths, 0)
            learned = (flags & LEARNED > 0) & ~np.isin(ids, list(self.tokenizer.reserved_ids))
            text_tokens = np.add.reduceat(learned, starts_of(lengths), dtype=np.int64)
            text_bytes = np.array([document.text_bytes for document in encoded], np.int64)
        return Tokens(
            ids=ids,
            lengths=lengths,
            hashes=hashes_of(utf8),
            characters=lengths if encoded is not None else lengths_of(texts),
            text_tokens=text_tokens,
            text_bytes=text_bytes,
            compared_bytes=compared,
            lost_bytes=lost,
            flags=flags,
            removed=removed,
        )

    def _plain(self, texts: list[str], encoded: list[Encoded] | None) -> list[str]:
        """Return the documents as the text that became tokens; of stored ids there is none."""
        if self.reader.chat is not None:
            return [Conversation.from_json(text).plain_text for text in texts]
        return texts if encoded is None else [""] * len(texts)


class Engine(Protocol):
    """Applies a function to pieces in any number of processes; results come in their order."""

    def __call__(self, function: Tokenise, pieces: Iterator[Piece]) -> Iterator[Tokens]:
        """Return `map(function, pieces)`."""
