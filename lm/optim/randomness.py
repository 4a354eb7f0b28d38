"""Seeds are computed from the place where they are used, not carried along.

Before each micro-batch all generators are seeded from (seed, step, micro-batch). So no random state
is saved, and validation, sampling and the number of workers cannot change the next dropout: a
resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def fold(seed: int, *coordinates: int) -> int:
    """Return a 63-bit number that depends only on the values and order of the arguments. It is the
    same on every machine.
    """
    # Not repr: since NumPy 2 a NumPy integer has another repr than the same int.
    text = ",".join(f"{part:d}" for part in (seed, *coordinates))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_all(value: int) -> None:
    """Seed Python, NumPy and torch on every device. `value` is from 0 to 2**64 - 1."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
