"""Which rows a step trains on: a computed shuffle of each epoch, with no state but the step's
number.

Shuffling a list of n row numbers needs the list. Here the shuffled order is a function instead: a
small block cipher, keyed by seed and epoch, turns position p of the epoch into a row, and as
ciphers are one-to-one each row comes up once an epoch. Any position can be asked for at any time in
constant memory, so a resumed run needs to remember nothing, and any number of workers and processes
agree.

Several sources are mixed in blocks: with weights 4 : 4 : 2, or 2 : 2 : 1, each block of 5 rows has
the next 2, 2 and 1 of theirs, in a shuffled order. Packed rows have equal lengths, so these are
shares of the tokens too.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]

# Four rounds make a pseudorandom permutation of a large range (Luby and Rackoff 1988). On less than
# ten rows a test can tell even eight from fair shuffling, but not ten.
ROUNDS = 10


class Phase(NamedTuple):
    """A stretch of an epoch in which the weights stay the same."""

    start: int  # the first of its positions
    weights: NDArray[np.int64]
    used: NDArray[np.int64]  # rows of each part that came before


@dataclass(frozen=True)
class Plan:
    """The endless sequence of rows that a run trains on.

    Attributes:
        sizes: how many rows each part has; of a streamed part, each window.
        weights: the share of each part.
        when_one_ends: what happens when a part has given all its rows: `repeat` and `stop` begin it
            anew (for `stop`, see `n_rows`), `go_on` takes the others until all are done, and then
            all begin anew.
        seed: another seed, another order.
    """

    sizes: tuple[int, ...]
    weights: tuple[int, ...] = (1,)
    when_one_ends: Literal["stop", "repeat", "go_on"] = "repeat"
    seed: int = 0

    def of_step(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """The rows of optimiser step `step` (the first is 0), see `rows`. A batch may straddle the
        border of an epoch.
        """
        return self.rows(np.arange(step * batch_size, (step + 1) * batch_size))

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each of n positions: part, epoch of that part, row in 0..sizes[part]-1. An array of
        (n, 3).
        """
        result = np.empty((len(positions), 3), np.int64)
        epochs, places = (
            np.divmod(positions, sum(self.sizes))
            if self.when_one_ends == "go_on"
            else (np.zeros_like(positions), positions)
        )
        phases = np.searchsorted([phase.start for phase in self._phases], places, side="right") - 1
        for number in np.unique(phases):
            chosen = phases == number
            part, count = self._deal(self._phases[number], places[chosen], positions[chosen])
            result[chosen] = np.stack([part, epochs[chosen], count], axis=1)
        for i, size in enumerate(self.sizes):
            mine = result[:, 0] == i
            more, count = np.divmod(result[mine, 2], size)
            result[mine, 1] += more
            keys = _mix(np.full(len(count), self.seed + i * 2**32, np.uint64)) + result[
                mine, 1
            ].astype(np.uint64)
            result[mine, 2] = permute(count.astype(np.uint64), size, keys).astype(np.int64)
        return result

    def first_epoch_of_step(self, part: int, step: int, batch_size: int) -> int:
        """The first epoch of a part that a step, or the next that has rows of it, takes rows from."""
        width = sum(self._reduced)
        rows = self.rows(
            np.arange(step * batch_size, step * batch_size + max(batch_size, 2 * width))
        )
        return int(rows[rows[:, 0] == part, 1].min())

    def share(self, part: int) -> float:
        """How much of the rows a part gives, while all do."""
        return self.weights[part] / sum(self.weights)

    @property
    def n_rows(self) -> int:
        """How many rows there are before a part would have to begin anew."""
        if self.when_one_ends == "go_on":
            return sum(self.sizes)
        return sum(self._reduced) * min(
            size // weight for size, weight in zip(self.sizes, self._reduced, strict=True)
        )

    def _deal(
        self, phase: Phase, places: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which part each place belongs to, and how many rows of that part came before it."""
        width = int(phase.weights.sum())
        blocks, slots = (places - phase.start) // width, (places - phase.start) % width
        if np.count_nonzero(phase.weights) > 1:
            keys = _mix(np.full(len(slots), self.seed + 2**63, np.uint64)) + (
                positions - slots
            ).astype(np.uint64)
            slots = permute(slots.astype(np.uint64), width, keys).astype(np.int64)
        ends: NDArray[np.int64] = phase.weights.cumsum()
        part = np.searchsorted(ends, slots, side="right")
        return (
            part,
            phase.used[part] + blocks * phase.weights[part] + slots - (ends - phase.weights)[part],
        )

    @functools.cached_property
    def _reduced(self) -> tuple[int, ...]:
        """The weights in lowest terms, for the smallest blocks."""
        return tuple(weight // math.gcd(*self.weights) for weight in self.weights)

    @functools.cached_property
    def _phases(self) -> list[Phase]:
        weights, sizes = np.array(self._reduced, np.int64), np.array(self.sizes, np.int64)
        used, phases, start = np.zeros_like(sizes), list[Phase](), 0
        if self.when_one_ends != "go_on":
            return [Phase(0, weights, used)]
        while weights.any():
            blocks = int(min((sizes - used)[weights > 0] // weights[weights > 0]))
            if blocks:
                phases.append(Phase(start, weights, used))
                start, used = start + blocks * int(weights.sum()), used + blocks * weights
            weights = np.where(sizes - used < weights, 0, weights)
        if (rest := sizes - used).any():  # less than a block of each
            phases.append(Phase(start, rest, used))
        return phases


def permute(index: UInt64s, n: int, key: UInt64s) -> UInt64s:
    """Where a shuffle of 0..n-1 puts `index`: a one-to-one map of that range for each `key`.

    A Feistel network permutes the pairs of an a x b rectangle, the squarest that holds n. A number
    that it puts outside the range is sent through again until it is inside: that walks along a
    cycle of the rectangle's permutation, which comes back into the range at the latest where it
    began. Less than a of the a * b numbers are outside, so hardly any walks. Both are from Black
    and Rogaway 2002, "Ciphers with arbitrary finite domains".

    Args:
        index: numbers in 0..n-1, any shape.
        n: the size of the range, 1 to 2^62.
        key: numbers of 64 bits, of the same shape.
    """
    key = _mix(key)  # neighbouring keys must not share rounds
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    result = _feistel(index, a, b, key)
    while (outside := result >= n).any():
        result[outside] = _feistel(result[outside], a, b, key[outside])
    return result


def _feistel(x: UInt64s, a: int, b: int, key: UInt64s) -> UInt64s:
    """Permute 0..ab-1. A round adds a function of the one half to the other; subtracting it would
    undo the round: hence one-to-one.
    """
    left, right = np.divmod(x, np.uint64(b))
    for i in range(0, ROUNDS, 2):
        left = (left + _mix(key + np.uint64(i << 32) + right) % a) % a
        right = (right + _mix(key + np.uint64(i + 1 << 32) + left) % b) % b
    return left * np.uint64(b) + right


def _mix(x: UInt64s) -> UInt64s:
    """Scramble 64 bits so that each depends on all (SplitMix64: Steele, Lea and Flood 2014). For
    arrays only: they wrap silently.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
