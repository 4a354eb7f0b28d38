"""Rows of whole conversations: which of them each row holds, and what of their tokens is an input
and what a label.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lm.documents.templates import BEGINS, LEARNED
from lm.optim.loss import IGNORE_INDEX
from lm.tokens.store import TokenStore


class ConversationRows:
    """Conversations, as many in a row as fit; each attends to itself alone, and its positions begin
    at 0.

        stored      EOS p p a a END EOS p a END EOS       p of a prompt, a of an answer, T = 8

        row 0       input_ids      labels         begins
                    EOS p p a a    - - a a END    0
                    EOS p a        - a END        5

    The last token of a conversation is a label only. What answers the prompt is the label at the
    prompt's last token.

    Attributes:
        left_out: how many conversations are in no row, or only their beginning, by what is wrong
            with them.
    """

    def __init__(
        self, store: TokenStore, length: int, packed: bool, too_long: Literal["drop", "cut"]
    ):
        self.store = store
        self.length = length
        self.left_out: Counter[str] = Counter()
        self._starts = store.document_starts
        lengths = np.diff(self._starts, append=store.tokens - 1) - 1
        for number in np.flatnonzero(lengths > length).tolist():
            if too_long == "cut" and (self._flags(number, length) & LEARNED).any():
                self.left_out["conversation cut at a row's end"] += 1
                lengths[number] = length
            else:
                kind = (
                    "conversation whose prompt fills a row"
                    if too_long == "cut"
                    else "conversation longer than a row"
                )
                self.left_out[kind] += 1
                lengths[number] = 0
        self._lengths = lengths
        chosen = np.flatnonzero(lengths)
        groups = pack(lengths[chosen], length) if packed else list(np.arange(len(chosen))[:, None])
        self._order = chosen[np.concatenate(groups)] if groups else chosen
        self._borders = np.append(0, np.cumsum([len(group) for group in groups], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._borders) - 1

    @property
    def n_inputs(self) -> int:
        """Positions that are not padding, over all rows."""
        return int(self._lengths.sum())

    def row(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """A row's inputs, their labels, and which of the inputs, but the first, begin a sequence."""
        inputs, labels, begins = [], [], []
        place = 0
        for document in self._order[self._borders[number] : self._borders[number + 1]].tolist():
            n = int(self._lengths[document])
            ids = self.store.read(int(self._starts[document]), n + 1).astype(np.int64)
            flags = self._flags(document, n)
            inputs.append(ids[:-1])
            labels.append(np.where(flags & LEARNED, ids[1:], IGNORE_INDEX))
            begins.append(place + np.append(0, 1 + np.flatnonzero(flags[:-1] & BEGINS)))
            place += n
        return np.concatenate(inputs), np.concatenate(labels), np.concatenate(begins)[1:]

    def _flags(self, document: int, length: int) -> NDArray[np.uint8]:
        """Of a conversation's first `length` tokens behind its EOS."""
        return self.store.read_flags(int(self._starts[document]) + 1, length)


def pack(lengths: NDArray[np.int64], capacity: int) -> list[NDArray[np.int64]]:
    """Which sequences each row holds: best fit, longest first (as Ding et al. 2024, "Fewer
    truncations improve language modeling").

    A sequence goes into the fullest row that has room for it. The same lengths give the same rows.

    Args:
        lengths: of n sequences, each 1 to `capacity`.
        capacity: of a row.

    Returns:
        The numbers of each row's sequences, ascending; each of 0..n-1 is in one row.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by how much room is left
    # bit r is set where with_room[r] has some: the fullest with room for n is one shift and one
    # mask away
    rooms = 0
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(number)
        if room > length:
            with_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return [np.sort(np.array(row, np.int64)) for row in rows]
