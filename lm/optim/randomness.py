"""Seeds are computed from the place where they are used, not carried along.

Before each micro-batch torch's generators are seeded from (seed, step, micro-batch). So no random
state is saved, and validation, sampling and the number of workers cannot change the next dropout: a
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
    """Seed Python, NumPy and torch on every device, at the start. `value` is from 0 to 2**64 - 1.

    No step draws from Python's or NumPy's generator, so these are seeded once: a callback that
    draws from them gets the same numbers in each new run, but not after a resume.
    """
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def seed_step(value: int, device: torch.device) -> None:
    """Seed the generators from which a step draws: torch's, of the CPU and of `device`."""
    # Not torch.manual_seed: for each kind of device that is not in use it stores a stack trace,
    # which takes 0.6 ms or more under Lightning's loops. The generators' states are the same.
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)
