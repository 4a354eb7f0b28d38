"""The plan: which rows each step trains on, as a function of the step's number and nothing else.

Shuffling n rows usually needs a list of n numbers. Here the shuffled order is a function instead. A
small block cipher, keyed by seed and epoch, turns position p of the epoch into a row. Ciphers are
one-to-one, so each row comes up once per epoch. Any position can be computed at any time in
constant memory. So a resumed run needs to remember nothing, and any number of workers and processes
agree.

Several sources are mixed in blocks. With weights 4 : 4 : 2, which is 2 : 2 : 1, each block of 5
rows has the next 2, 2 and 1 rows of the sources, in a shuffled order. Packed rows have equal
lengths, so these are shares of the tokens too.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]

# Four rounds make a pseudorandom permutation of a large range (Luby and Rackoff 1988). With less
# than ten rows, a test can tell eight rounds from fair shuffling, but not ten.
ROUNDS = 10


class Phase(NamedTuple):
    """A stretch of an epoch in which the weights stay the same."""

    start: int  # its first position
    weights: NDArray[np.int64]
    used: NDArray[np.int64]  # how many rows of each part came before it


@dataclass(frozen=True)
class Plan:
    """The endless sequence of rows that a run trains on.

    Attributes:
        sizes: how many rows each part has; for a stream, how many rows a window has.
        weights: the share of each part.
        when_one_ends: what happens after the last row of a part. `repeat` and `stop` begin it anew;
            a run with `stop` is refused if it needs more than `n_rows`. `go_on` continues with the
            other parts until all have ended, and then all begin anew.
        seed: another seed gives another order.
    """

    sizes: tuple[int, ...]
    weights: tuple[int, ...] = (1,)
    when_one_ends: Literal["stop", "repeat", "go_on"] = "repeat"
    seed: int = 0

    def of_step(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """Return the rows of optimiser step `step`, counted from 0, as an array of (batch_size, 3).

        A batch may contain rows of two epochs.
        """
        return self.rows(np.arange(step * batch_size, (step + 1) * batch_size))

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the (part, epoch, row) of n positions as an array of (n, 3).

        The epoch is that of the part, and the row is in 0..sizes[part]-1.
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
        """Return the first epoch of a part from which a step, or a later step, takes rows."""
        width = sum(self._reduced)
        rows = self.rows(
            np.arange(step * batch_size, step * batch_size + max(batch_size, 2 * width))
        )
        return int(rows[rows[:, 0] == part, 1].min())

    def share(self, part: int) -> float:
        """Return the part's share of the rows, while no part has ended."""
        return self.weights[part] / sum(self.weights)

    def passes(self, n_rows: int) -> list[float]:
        """Return how often each part is read, on average, in the first `n_rows` rows."""
        in_turn = self.when_one_ends == "go_on"
        epochs, rest = divmod(n_rows, sum(self.sizes)) if in_turn else (0, n_rows)
        phase = next(phase for phase in reversed(self._phases) if phase.start <= rest)
        used = phase.used + (rest - phase.start) * phase.weights / phase.weights.sum()
        return [float(passes) for passes in epochs + used / np.array(self.sizes)]

    @property
    def n_rows(self) -> int:
        """How many rows there are before a part begins anew."""
        if self.when_one_ends == "go_on":
            return sum(self.sizes)
        return sum(self._reduced) * min(
            size // weight for size, weight in zip(self.sizes, self._reduced, strict=True)
        )

    def _deal(
        self, phase: Phase, places: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the part of each place, and how many rows of that part came before it."""
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
        """The stretches of an epoch: with `go_on` a new one begins whenever a part ends."""
        weights = np.array(self._reduced, np.int64)
        sizes = np.array(self.sizes, np.int64)
        used = np.zeros_like(sizes)
        phases: list[Phase] = []
        start = 0
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
    """Shuffle 0..n-1 and return where each `index` goes: a one-to-one map for each `key`.

    A Feistel network permutes the pairs of an a x b rectangle, the squarest one that holds n. A
    number that lands outside the range goes through the network again until it is inside. This
    walks along a cycle of the rectangle's permutation, which returns to the range at the latest
    where it began. Less than a of the a * b numbers are outside, so few numbers walk. Both ideas
    are from Black and Rogaway 2002, "Ciphers with arbitrary finite domains".

    Args:
        index: numbers in 0..n-1, any shape.
        n: the size of the range, 1 to 2^62.
        key: 64-bit numbers, in the same shape.
    """
    key = _mix(key)  # neighbouring keys must not share rounds
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    result = _feistel(index, a, b, key)
    while (outside := result >= n).any():
        result[outside] = _feistel(result[outside], a, b, key[outside])
    return result


def _feistel(x: UInt64s, a: int, b: int, key: UInt64s) -> UInt64s:
    """Permute 0..ab-1: each round adds a function of one half to the other half.

    Subtracting the function would undo the round, so the map is one-to-one.
    """
    left, right = np.divmod(x, np.uint64(b))
    for i in range(0, ROUNDS, 2):
        left = (left + _mix(key + np.uint64(i << 32) + right) % a) % a
        right = (right + _mix(key + np.uint64(i + 1 << 32) + left) % b) % b
    return left * np.uint64(b) + right


def _mix(x: UInt64s) -> UInt64s:
    """Scramble 64 bits so that each depends on all (SplitMix64: Steele, Lea and Flood 2014).

    Use arrays, not scalars: their sums and products wrap without a warning.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
