"""Which rows a step trains on: a computed shuffle of each epoch, with no state but the step's number.

Shuffling a list of n row numbers needs the list. Here the shuffled order is a function instead: a small block cipher, keyed by seed and
epoch, turns position p of the epoch into a row, and as ciphers are one-to-one each row comes up once an epoch. Any position can be asked
for at any time in constant memory, so a resumed run needs to remember nothing, and any number of workers and processes agree.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]

# Four rounds make a pseudorandom permutation of a large range (Luby and Rackoff 1988). On less than ten rows a test can
# tell even eight from fair shuffling, but not ten.
ROUNDS = 10


def rows_of_step(step: int, batch_size: int, n_rows: int, seed: int) -> NDArray[np.int64]:
    """The `batch_size` rows of optimiser step `step` (the first is 0), each in 0..n_rows-1.

    Steps take consecutive positions of an endless sequence of epochs, each a shuffle of its own. A batch may straddle the border.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.uint64)
    epochs, positions = np.divmod(positions, np.uint64(n_rows))
    keys = _mix(np.full_like(epochs, seed)) + epochs
    return permute(positions, n_rows, keys).astype(np.int64)


def permute(index: UInt64s, n: int, key: UInt64s) -> UInt64s:
    """Where a shuffle of 0..n-1 puts `index`: a one-to-one map of that range for each `key`.

    A Feistel network permutes the pairs of an a x b rectangle, the squarest that holds n. A number that it puts outside the range is sent
    through again until it is inside: that walks along a cycle of the rectangle's permutation, which comes back into the range at the
    latest where it began. Less than a of the a * b numbers are outside, so hardly any walks. Both are from Black and Rogaway 2002, "Ciphers
    with arbitrary finite domains".

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
    """Permute 0..ab-1. A round adds a function of the one half to the other; subtracting it would undo the round: hence one-to-one."""
    left, right = np.divmod(x, np.uint64(b))
    for i in range(0, ROUNDS, 2):
        left = (left + _mix(key + np.uint64(i << 32) + right) % a) % a
        right = (right + _mix(key + np.uint64(i + 1 << 32) + left) % b) % b
    return left * np.uint64(b) + right


def _mix(x: UInt64s) -> UInt64s:
    """Scramble 64 bits so that each depends on all (SplitMix64: Steele, Lea and Flood 2014). For arrays only: they wrap silently."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
