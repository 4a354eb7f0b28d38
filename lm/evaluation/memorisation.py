"""How much of what a model wrote stands in the text that it was trained on.

Two figures, after RAVEN (McCoy et al. 2021, "How much do language models copy from their training
data?"): the longest run of tokens that was copied, and the share of n-grams that are novel. The
training text is read once, in pieces, and nothing rests on hashes: they only tell where it pays to
compare tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm.evaluation.training_text import TrainingText

# n-grams are of so many bytes, in tokens of the training text, so that tokenizers can be compared.
# It is what five words of English take: whoever writes repeats most of the pairs and triples of
# words in a large text, and makes most runs of five or more anew.
NGRAM_BYTES = 28
PIECE = 2**17  # tokens at a time: what is made of them stays in a processor's cache
MULTIPLIER = 0x9E3779B1  # odd, so that no token is multiplied away

Ids = NDArray[np.uint32]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Memorised:
    """Of some continuations.

    Attributes:
        longest_run: the most consecutive tokens of a continuation that stand so in the training
            text; 0: none of them occurs there.
        longest_text: their text.
        n: how many tokens an n-gram has.
        ngrams: how many there are in the continuations, equal ones counted each time.
        novel_share: the share of them that the training text does not have; None where there are
            none.
        tokens_read: of the training text.
        seconds: that took, for all groups together.
        missing: what of the training text is not here, a line for each part: then the longest run
            is at least, and the novel share at most what is said.
    """

    longest_run: int
    longest_text: str
    n: int
    ngrams: int
    novel_share: float | None
    tokens_read: int
    seconds: float
    missing: tuple[str, ...] = ()


def memorised(
    text: TrainingText, groups: Sequence[Sequence[Sequence[int]]], piece: int = PIECE
) -> list[Memorised]:
    """Look for groups of continuations, given as ids, in a training text, which is read once for
    all of them.

    Memory: some megabytes for a piece, and for the continuations about 8 n bytes a token.

    Raises:
        OSError: the tokens were removed since the text was opened.
    """
    started = time.perf_counter()
    written = [Written(continuations) for continuations in groups]
    n = max(1, round(NGRAM_BYTES / text.bytes_per_token)) if text.bytes_per_token else NGRAM_BYTES
    searches = [(Ngrams(each, n), LongestRun(each)) for each in written]
    for ids in pieces(text, piece, max([n, *(each.longest for each in written)])):
        for ngrams, run in searches:
            ngrams.look_in(ids)
            run.look_in(ids)
    seconds = time.perf_counter() - started
    return [
        Memorised(
            longest_run=run.length,
            longest_text=text.tokenizer.decode(
                each.ids[run.place : run.place + run.length].tolist()
            ),
            n=n,
            ngrams=ngrams.count,
            novel_share=ngrams.novel / ngrams.count if ngrams.count else None,
            tokens_read=text.tokens,
            seconds=seconds,
            missing=text.missing,
        )
        for each, (ngrams, run) in zip(written, searches, strict=True)
    ]


def pieces(text: TrainingText, size: int, longest: int) -> Iterator[Ids]:
    """The training text, `size` tokens at a time, and so many more that a run of `longest` that
    begins in a piece is whole in it.
    """
    for store in text.stores:
        for start in range(0, store.tokens, size):
            yield store.read(start, size + longest - 1).astype(np.uint32)


class Written:
    """Continuations in a row.

    Attributes:
        ids: all their tokens.
        left: for each, how many tokens its continuation has from there on.
        longest: tokens of the longest.
    """

    def __init__(self, continuations: Sequence[Sequence[int]]):
        lengths = [len(ids) for ids in continuations]
        self.ids: Ids = np.array([token for ids in continuations for token in ids], np.uint32)
        self.left = np.repeat(np.cumsum(lengths, dtype=np.int64), lengths) - np.arange(
            len(self.ids)
        )
        self.longest = max(lengths, default=0)


class Ngrams:
    """Which n-grams of continuations a text has.

    Attributes:
        count: how many there are, equal ones counted each time.
    """

    def __init__(self, written: Written, n: int):
        self._windows = Windows(written, n)
        self.count = int(self._windows.counts.sum())

    @property
    def novel(self) -> int:
        """How many were not found yet, equal ones counted each time."""
        return int(self._windows.counts.sum())

    def look_in(self, ids: Ids) -> None:
        """What is found is not looked for again: what is frequent is gone after the first pieces."""
        _, found = self._windows.find(ids)
        if len(found):
            self._windows.remove(np.unique(found))


class LongestRun:
    """The longest run of a continuation that a text has. It looks only for what is longer than what
    it has found, so that it finds little.

    Attributes:
        length: tokens of it.
        place: where in the continuations.
    """

    def __init__(self, written: Written):
        self.length = self.place = 0
        self._written = written
        self._longer = Windows(written, 1)

    def look_in(self, ids: Ids) -> None:
        """Several times: where a run was found, another one of its kind may go on for longer."""
        while len(self._longer.places):
            at, found = self._longer.find(ids)
            if not len(at):
                return
            self._extend(ids, at, self._longer.places[found])
            self._longer = Windows(self._written, self.length + 1)

    def _extend(self, ids: Ids, at: Places, places: Places) -> None:
        """Follow the runs of `length` + 1 that begin at these places of a text and of the
        continuations to where the last of them ends.
        """
        written, length = self._written, self.length + 1
        while len(at):
            self.length, self.place = length, int(places[0])
            going_on = (at + length < len(ids)) & (written.left[places] > length)
            at, places = at[going_on], places[going_on]
            equal = ids[at + length] == written.ids[places + length]
            at, places, length = at[equal], places[equal], length + 1


class Windows:
    """The different runs of n tokens in continuations, to be found in a text.

    A table says which hashes they have. Where the text has one of these, its tokens are compared.

    Attributes:
        places: where each begins, the first time.
        counts: how often each occurs.
    """

    def __init__(self, written: Written, n: int):
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
        """Look no longer for these."""
        kept = np.ones(len(self.places), bool)
        kept[numbers] = False
        self._keep(self.places[kept], self.counts[kept], self._hashes[kept])

    def find(self, ids: Ids) -> tuple[Places, Places]:
        """Where in a text there is one of them, and for each such place its number."""
        if not len(self.places) or len(ids) < self._n:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        hashes = window_hashes(ids, self._n)
        at = np.flatnonzero(self._table.take(self._slots(hashes)))
        hashes = hashes[at]
        number = np.searchsorted(self._hashes, hashes)
        found = []
        while len(at):  # once, but for different runs of one hash
            there = number < len(self.places)
            there[there] = self._hashes[number[there]] == hashes[there]
            at, number, hashes = at[there], number[there], hashes[there]
            equal = self._equal(ids, at, self.places[number])
            found.append((at[equal], number[equal]))
            at, number, hashes = at[~equal], number[~equal] + 1, hashes[~equal]
        if not found:
            return at, at
        starts, numbers = zip(*found, strict=True)
        return np.concatenate(starts), np.concatenate(numbers)

    def _keep(self, places: Places, counts: Places, hashes: Ids) -> None:
        self.places, self.counts, self._hashes = places, counts, hashes
        # few of the text's hashes are there by chance
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
    """Of each run of n tokens, from as many steps as n has binary digits: the hashes of long runs
    are made of those of shorter ones.
    """
    hashes, done, width, factor, power = None, 0, 1, MULTIPLIER, ids
    while True:
        if n & width:
            hashes = (
                power
                if hashes is None
                else hashes[: len(power) - done] * np.uint32(factor) + power[done:]
            )
            done += width
        if done == n:
            return hashes[: len(ids) - n + 1]  # type: ignore[index]
        power = power[:-width] * np.uint32(factor) + power[width:]
        width, factor = 2 * width, factor * factor % 2**32
