"""How much of a model's text is copied from its training text.

There are two figures, after RAVEN (McCoy et al. 2021, "How much do language models copy from their
training data?"): the longest copied run of tokens, and the share of novel n-grams. The training
text is read once, in pieces. The result does not depend on hashes: they only select the places
where tokens are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm.evaluation.training_text import TrainingText

# The length of an n-gram in bytes, so that tokenizers can be compared: about five English words.
# Writers repeat most pairs and triples of words of a large text, but few runs of five or more.
NGRAM_BYTES = 28
PIECE = 2**17  # tokens at a time, so that the arrays stay in a processor's cache
MULTIPLIER = 0x9E3779B1  # odd, so that multiplication keeps tokens apart

Ids = NDArray[np.uint32]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Memorised:
    """The figures of a group of continuations.

    Attributes:
        longest_run: the most consecutive tokens of a continuation that are in the training text.
        longest_text: their text.
        n: the number of tokens of an n-gram.
        novel_share: the share of n-grams that the training text does not have, equal ones counted
            each time; None without n-grams.
        missing: parts of the training text that are not on this machine, a line for each. Then
            `longest_run` is a lower bound, and `novel_share` an upper bound.
    """

    longest_run: int
    longest_text: str
    n: int
    novel_share: float | None
    missing: tuple[str, ...] = ()


def memorised(
    text: TrainingText, groups: Sequence[Sequence[Sequence[int]]], piece: int = PIECE
) -> list[Memorised]:
    """Search a training text for groups of continuations, given as ids. It is read once for all.

    Memory: some megabytes for a piece, and about 8 n bytes for each token of the continuations.

    Raises:
        OSError: the tokens were removed after the text was opened.
    """
    written = [Continuations(ids) for ids in groups]
    n = max(1, round(NGRAM_BYTES / text.bytes_per_token)) if text.bytes_per_token else NGRAM_BYTES
    searches = [(Ngrams(group, n), LongestRun(group)) for group in written]
    for ids in pieces(text, piece, max([n, *(group.longest for group in written)])):
        for ngrams, run in searches:
            ngrams.look_in(ids)
            run.look_in(ids)
    return [
        Memorised(
            longest_run=run.length,
            longest_text=text.tokenizer.decode(
                group.ids[run.place : run.place + run.length].tolist()
            ),
            n=n,
            novel_share=ngrams.novel / ngrams.count if ngrams.count else None,
            missing=text.missing,
        )
        for group, (ngrams, run) in zip(written, searches, strict=True)
    ]


def pieces(text: TrainingText, size: int, longest: int) -> Iterator[Ids]:
    """Yield the training text, `size` tokens at a time. Pieces overlap, so that a run of `longest`
    tokens is complete in the piece in which it begins.
    """
    for store in text.stores:
        for start in range(0, store.tokens, size):
            yield store.read(start, size + longest - 1).astype(np.uint32)


class Continuations:
    """Continuations, concatenated.

    Attributes:
        ids: all tokens.
        left: for each token, how many tokens its continuation has from there on.
        longest: the number of tokens of the longest continuation.
    """

    def __init__(self, continuations: Sequence[Sequence[int]]):
        lengths = [len(ids) for ids in continuations]
        self.ids: Ids = np.array([token for ids in continuations for token in ids], np.uint32)
        self.left = np.repeat(np.cumsum(lengths, dtype=np.int64), lengths) - np.arange(
            len(self.ids)
        )
        self.longest = max(lengths, default=0)


class Ngrams:
    """The n-grams of continuations that were not yet found in a text.

    Attributes:
        count: the number of all n-grams, equal ones counted each time.
    """

    def __init__(self, written: Continuations, n: int):
        self._windows = Windows(written, n)
        self.count = int(self._windows.counts.sum())

    @property
    def novel(self) -> int:
        """Return how many were not found yet, equal ones counted each time."""
        return int(self._windows.counts.sum())

    def look_in(self, ids: Ids) -> None:
        """Search a piece, and remove the n-grams in it. The first pieces remove frequent ones."""
        _, found = self._windows.find(ids)
        if len(found):
            self._windows.remove(np.unique(found))


class LongestRun:
    """The longest run of a continuation that a text has. The search is only for longer runs than
    the longest so far, so there are few matches.

    Attributes:
        length: its number of tokens.
        place: its place in the continuations.
    """

    def __init__(self, written: Continuations):
        self.length = self.place = 0
        self._written = written
        self._longer = Windows(written, 1)

    def look_in(self, ids: Ids) -> None:
        """Search a piece, again after each match: another run of that length may be longer."""
        while len(self._longer.places):
            at, found = self._longer.find(ids)
            if not len(at):
                return
            self._extend(ids, at, self._longer.places[found])
            self._longer = Windows(self._written, self.length + 1)

    def _extend(self, ids: Ids, at: Places, places: Places) -> None:
        """Extend runs of `length` + 1 tokens, which begin at these places of a text and of the
        continuations, until the last one ends.
        """
        written = self._written
        length = self.length + 1
        while len(at):
            self.length, self.place = length, int(places[0])
            inside = (at + length < len(ids)) & (written.left[places] > length)
            at, places = at[inside], places[inside]
            equal = ids[at + length] == written.ids[places + length]
            at, places, length = at[equal], places[equal], length + 1


class Windows:
    """The distinct runs of n tokens in continuations, to be searched in a text.

    A table holds their hashes. Where the text has one of these hashes, the tokens are compared.

    Attributes:
        places: where each run begins for the first time.
        counts: how often each run occurs.
    """

    def __init__(self, written: Continuations, n: int):
        self._ids, self._n = written.ids, n
        begins = np.flatnonzero(written.left >= n)
        tokens = self._ids[begins[:, None] + np.arange(n)]
        _, first, counts = np.unique(
            tokens.view(np.dtype((np.void, tokens.itemsize * n))).ravel(),
            return_index=True,
            return_counts=True,
        )
        places = begins[first]
        hashes = window_hashes(self._ids, n)[places] if len(places) else np.empty(0, np.uint32)
        order = np.argsort(hashes, kind="stable")
        self._keep(places[order], counts[order], hashes[order])

    def remove(self, numbers: Places) -> None:
        """Remove the runs with these indices from the search."""
        kept = np.ones(len(self.places), bool)
        kept[numbers] = False
        self._keep(self.places[kept], self.counts[kept], self._hashes[kept])

    def find(self, ids: Ids) -> tuple[Places, Places]:
        """Return the places of a text where one of the runs begins, and the index of that run."""
        if not len(self.places) or len(ids) < self._n:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        hashes = window_hashes(ids, self._n)
        at = np.flatnonzero(self._table.take(self._slots(hashes)))
        hashes = hashes[at]
        number = np.searchsorted(self._hashes, hashes)
        matches = []
        while len(at):  # once, unless different runs have the same hash
            same = number < len(self.places)
            same[same] = self._hashes[number[same]] == hashes[same]
            at, number, hashes = at[same], number[same], hashes[same]
            equal = self._equal(ids, at, self.places[number])
            matches.append((at[equal], number[equal]))
            at, number, hashes = at[~equal], number[~equal] + 1, hashes[~equal]
        if not matches:
            return at, at
        starts, numbers = zip(*matches, strict=True)
        return np.concatenate(starts), np.concatenate(numbers)

    def _keep(self, places: Places, counts: Places, hashes: Ids) -> None:
        self.places, self.counts, self._hashes = places, counts, hashes
        # large enough that few of the text's hashes match by chance
        self._shift = np.uint32(32 - max(16, min(24, (64 * len(places)).bit_length())))
        self._table = np.zeros(2 ** (32 - int(self._shift)), bool)
        self._table[self._slots(hashes)] = True

    def _slots(self, hashes: Ids) -> NDArray[np.intp]:
        return ((hashes * np.uint32(MULTIPLIER)) >> self._shift).astype(np.intp)

    def _equal(self, ids: Ids, at: Places, places: Places) -> NDArray[np.bool_]:
        result = np.zeros(len(at), bool)
        alive = np.arange(len(at))
        for i in range(self._n if len(at) else 0):
            alive = alive[ids[at[alive] + i] == self._ids[places[alive] + i]]
        result[alive] = True
        return result


def window_hashes(ids: Ids, n: int) -> Any:
    """Return the hash of each run of n tokens. It takes as many steps as n has binary digits,
    because hashes of long runs are combined from hashes of shorter ones.
    """
    hashes = None
    done = 0
    width = 1
    power = ids  # the hashes of runs of `width` tokens
    factor = MULTIPLIER
    while True:
        if n & width:
            if hashes is None:
                hashes = power
            else:
                hashes = hashes[: len(power) - done] * np.uint32(factor) + power[done:]
            done += width
        if done == n:
            return hashes[: len(ids) - n + 1]  # type: ignore[index]
        power = power[:-width] * np.uint32(factor) + power[width:]
        width, factor = 2 * width, factor * factor % 2**32
