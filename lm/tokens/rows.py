"""Rows: at most T tokens of a split as inputs, and for each input the label to predict.

    PackedRows          the stream of all documents, cut into rows of T tokens
    DocumentRows        a row begins with each document, and no document shares a row
    StreamedRows        the packed rows of a stream's windows, one window after another
    ConversationRows    complete conversations, as many in a row as fit; only answers have labels

`Rows` in data.py pads them and makes tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lm.config.schema.chat import ChatSource
from lm.config.schema.config import Config
from lm.documents.templates import BEGINS, LEARNED
from lm.optim.loss import IGNORE_INDEX
from lm.optim.randomness import fold
from lm.system.errors import DataError
from lm.tokens.corpus import Corpus
from lm.tokens.producer import await_window
from lm.tokens.store import TokenStore
from lm.tokens.stream import Stream


class Row(NamedTuple):
    """One row before padding.

    Attributes:
        inputs: up to T token ids.
        labels: the token to predict at each input, or IGNORE_INDEX.
        starts: at which inputs a document begins; the first input is not listed.
    """

    inputs: NDArray[Any]
    labels: NDArray[Any]
    starts: NDArray[np.int64]


class PackedRows:
    """The stream of a split, cut into rows; `Rows` in data.py draws them.

    Every token except the stream's first is a label exactly once, also at the end of a document and
    of the stream. A document's first token is predicted from its EOS. A document that began in an
    earlier row continues without its past. With a stride below T, rows overlap, and tokens are
    labels in several rows.

    With a seed, each epoch after the first begins to cut at another place and goes on to the
    stream's beginning at its end. The last EOS stands for the first, so the above still holds.
    """

    def __init__(self, store: TokenStore, length: int, stride: int, seed: int | None = None):
        self.store = store
        self.length = length
        self.stride = stride
        self.seed = seed

    def __len__(self) -> int:
        return 1 + max(0, -(-(self.store.tokens - 1 - self.length) // self.stride))

    def row(self, number: int, epoch: int = 0) -> Row:
        """Return a row of an epoch by its number."""
        labels = self.store.tokens - 1
        start = number * self.stride
        length = min(self.length, labels - start)
        if epoch and self.seed is not None:
            start = (start + fold(self.seed, epoch)) % labels
        starts = self.store.document_starts
        ids = self.store.read(start, length + 1)
        first, last = np.searchsorted(starts, [start + 1, start + length])
        begins = starts[first:last] - start
        if (missing := length + 1 - len(ids)) > 0:
            ids = np.append(ids, self.store.read(1, missing))
            begins = np.append(begins, starts[: np.searchsorted(starts, missing)] + labels - start)
        return Row(ids[:-1], ids[1:], begins)


class DocumentRows:
    """Rows that begin where documents begin, with the EOS before them.

    A document that is longer than a row takes several rows. Memory holds 8 bytes per document.
    """

    def __init__(self, store: TokenStore, length: int):
        self.store = store
        self.length = length
        starts = np.append(store.document_starts, store.tokens - 1)
        rows = -(-np.diff(starts) // length)
        self._rows_before = np.append(0, rows.cumsum())  # before each document, and in all

    def __len__(self) -> int:
        return int(self._rows_before[-1])

    def row(self, number: int, epoch: int = 0) -> Row:
        """Return a row by its number, the same in each epoch.

        Its last label may be the next document's EOS, but no other document begins in it.
        """
        document = int(np.searchsorted(self._rows_before, number, side="right")) - 1
        bounds = self.store.document_starts[document : document + 2].tolist()
        start = bounds[0] + (number - int(self._rows_before[document])) * self.length
        end = bounds[1] if len(bounds) == 2 else self.store.tokens - 1
        ids = self.store.read(start, min(self.length, end - start) + 1)
        return Row(ids[:-1], ids[1:], np.empty(0, np.int64))


class StreamedRows:
    """The packed rows of a stream's windows, a new one in each epoch.

    The length is that of one window. Rows are shuffled within their window.
    """

    def __init__(self, stream: Stream):
        self.stream = self.store = stream
        self.length = stream.length

    def __len__(self) -> int:
        return self.stream.rows

    def row(self, number: int, epoch: int = 0) -> Row:
        """Return a row of an epoch by its number, as soon as its window exists."""
        window = await_window(self.stream, epoch)
        return PackedRows(window, self.length, self.length).row(number)


class ConversationRows:
    """Complete conversations; each attends only to itself, and its positions begin at 0.

        stored      EOS p p a a END EOS p a END EOS       p: prompt, a: answer, T = 8

        row 0       inputs         labels         starts
                    EOS p p a a    - - a a END    0
                    EOS p a        - a END        5

    The last token of a conversation is a label only. The first token of an answer is the label at
    the prompt's last token.

    Attributes:
        skipped: how many conversations are in no row, or are cut at a row's end, by reason.
        shortest: the tokens that the shortest conversation takes of a row; 0 without any.
    """

    def __init__(
        self, store: TokenStore, length: int, packed: bool, too_long: Literal["drop", "cut"]
    ):
        self.store = store
        self.length = length
        self.skipped: Counter[str] = Counter()
        self._starts = store.document_starts
        lengths = np.diff(self._starts, append=store.tokens - 1) - 1
        self.shortest = int(lengths.min()) if len(lengths) else 0
        for number in np.flatnonzero(lengths > length).tolist():
            if too_long == "drop":
                self.skipped["conversation longer than a row"] += 1
                lengths[number] = 0
            elif (self._flags(number, length) & LEARNED).any():
                self.skipped["conversation cut at a row's end"] += 1
                lengths[number] = length
            else:
                self.skipped["conversation whose prompt fills a row"] += 1
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

    def row(self, number: int, epoch: int = 0) -> Row:
        """Return a row by its number, the same in each epoch."""
        inputs, labels, starts = [], [], []
        place = 0
        for document in self._order[self._borders[number] : self._borders[number + 1]].tolist():
            n = int(self._lengths[document])
            ids = self.store.read(int(self._starts[document]), n + 1).astype(np.int64)
            flags = self._flags(document, n)
            inputs.append(ids[:-1])
            labels.append(np.where(flags & LEARNED, ids[1:], IGNORE_INDEX))
            starts.append(place + np.append(0, 1 + np.flatnonzero(flags[:-1] & BEGINS)))
            place += n
        return Row(np.concatenate(inputs), np.concatenate(labels), np.concatenate(starts)[1:])

    def _flags(self, document: int, length: int) -> NDArray[np.uint8]:
        """Return the flags of the first `length` tokens after a conversation's EOS."""
        return self.store.read_flags(int(self._starts[document]) + 1, length)


SourceRows = PackedRows | DocumentRows | StreamedRows | ConversationRows


def cut_splits(
    config: Config, trained: Sequence[Corpus], corpora: Sequence[Corpus], moving_rows: bool
) -> tuple[list[SourceRows], list[SourceRows]]:
    """Cut the sources to train on, and the validation text of a run, into rows.

    Args:
        config: the run's configuration.
        trained: the sources to train on.
        corpora: the sources to validate on, if they have validation text.
        moving_rows: whether each epoch cuts packed rows elsewhere.

    Raises:
        DataError: a source to train on is shorter than a row.
    """
    seed = config.trainer.seed if moving_rows else None
    train = [_cut(config, corpus, "train", seed) for corpus in trained]
    return train, [_cut(config, corpus, "val") for corpus in corpora if corpus.val.documents]


def _cut(
    config: Config, corpus: Corpus, split: Literal["train", "val"], seed: int | None = None
) -> SourceRows:
    """Cut a split of a source into rows of `config.row_length` tokens, as `data.rows` says."""
    packed, length = config.data.rows == "packed", config.row_length
    source = corpus.reader.source
    store = corpus.train if split == "train" else corpus.val
    if isinstance(store, Stream):
        return StreamedRows(store)
    # Only packed rows of text must be full; documents and conversations may be short.
    least = length + 1 if packed and not isinstance(source, ChatSource) else 2
    if split == "train" and store.tokens < least:
        raise DataError(
            f"{corpus.key}: there are {store.tokens:,} tokens to train on, and one row takes"
            f" {length + 1:,}: {length:,} (data.sequence_length, or model.context_length) and the"
            " one to predict last; give more text or make the rows shorter"
        )
    if isinstance(source, ChatSource):
        return ConversationRows(store, length, packed, source.too_long)
    if not packed:
        return DocumentRows(store, length)
    stride = config.data.stride if split == "train" else None  # validation scores each token once
    return PackedRows(store, length, stride or length, seed)


def require_rows(
    config: Config,
    corpora: Sequence[Corpus],
    train: Sequence[SourceRows],
    val: Sequence[SourceRows],
) -> None:
    """Raise DataError if a source has no row to train on, or no source has one to validate on.

    Text always has a row; conversations may all be too long.
    """
    for corpus, part in zip(corpora, train, strict=True):
        if not len(part):
            raise DataError(f"{corpus.key}: {_no_room(config, corpus, [part], 'train')}")
    if not any(len(part) for part in val):
        chat = next(corpus for corpus in corpora if corpus.reader.chat is not None)
        raise DataError(f"data.source: {_no_room(config, chat, val, 'val')}")


def _no_room(
    config: Config, corpus: Corpus, parts: Sequence[SourceRows], split: Literal["train", "val"]
) -> str:
    """Return why no conversation of a split fits a row, and what lets one fit."""
    length, context, chat = config.row_length, config.model.context_length, corpus.reader.chat
    assert chat is not None
    of_pairs = config.finetune is not None and config.finetune.objective == "dpo"
    shortest = min(part.shortest for part in parts if isinstance(part, ConversationRows))
    alone = chat.overhead(of_pairs)
    if shortest <= context:
        advice = f"write data.sequence_length: {shortest} or more"
    elif config.finetune is not None:
        advice = f"the base's context is {context:,} tokens: take a base with a longer one"
    else:
        advice = f"write model.context_length: {shortest} or more"
    if alone >= length:  # even an empty conversation has no room
        shorter = min(chat.others, key=lambda other: other.overhead(of_pairs), default=chat)
        if (takes := shorter.overhead(of_pairs)) < length:
            advice += f", or {corpus.key}.template: {shorter.template.name}, which takes {takes:,}"
    return (
        f"no conversation of the {split} split fits a row of {length:,} tokens: the shortest takes"
        f" {shortest:,}, of which template {chat.template.name} takes {alone:,}; {advice}"
    )


def pack(lengths: NDArray[np.int64], capacity: int) -> list[NDArray[np.int64]]:
    """Choose the sequences of each row: best fit, longest first.

    A sequence goes into the fullest row that has room for it (Ding et al. 2024, "Fewer truncations
    improve language modeling"). The same lengths give the same rows.

    Args:
        lengths: the lengths of n sequences, each 1 to `capacity`.
        capacity: the length of a row.

    Returns:
        The numbers of each row's sequences, ascending. Each of 0..n-1 is in one row.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows, by the room left in them
    # Bit r is set if with_room[r] has a row. So the fullest row with room for n is one shift and
    # one mask away.
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
