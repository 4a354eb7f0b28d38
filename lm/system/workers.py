"""The processes with which a DataLoader reads ahead."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lm.system.errors import ConfigError
from lm.system.signals import ignore_stop_signals

if TYPE_CHECKING:
    from torch import Tensor

LOCKS = 4  # of a queue; there is one for each worker, and two more


def start_worker(number: int) -> None:
    """Begin a worker: leave stopping to the run, and send batches through the pipe.

    Torch would send them through shared memory. If that is full (docker's has 64 MB), the thread
    that sends only prints an error, and the run waits for ever.
    """
    from multiprocessing.reduction import ForkingPickler

    import torch

    def by_value(tensor: Tensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return torch.from_numpy, (tensor.numpy(),)

    ForkingPickler.register(torch.Tensor, by_value)
    ignore_stop_signals()


def workers_with_room(count: int) -> int:
    """Return the number of workers, `data.workers`, if shared memory has room for their locks.

    Raises:
        ConfigError: it has none.
    """
    try:
        for _ in range(LOCKS * (count + 2) if count else 0):
            multiprocessing.Lock()
    except OSError as error:
        raise ConfigError(
            f"data.workers: {count} workers need shared memory, and /dev/shm gives none"
            f" ({error.strerror}); write data.workers: 0, or give more (docker run --shm-size 1g)"
        ) from None
    return count
