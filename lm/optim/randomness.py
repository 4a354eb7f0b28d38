"""Randomness is computed from where it is used, not carried along.

Before each micro-batch all generators are seeded from (seed, step, micro-batch). So nothing needs
to be saved, and neither validation nor sampling nor the number of workers can shift what dropout
does next: a resumed run repeats a straight one.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def fold(seed: int, *coordinates: int) -> int:
    """A 63-bit number that depends on the values and places of its arguments and on nothing else,
    the same on every machine.
    """
    # Not repr: since NumPy 2 that of a NumPy integer is another text than that of the same int.
    text = ",".join(f"{part:d}" for part in (seed, *coordinates))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_all(value: int) -> None:
    """Seed Python, NumPy and torch (every device). `value` is not negative and below 2**64."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
