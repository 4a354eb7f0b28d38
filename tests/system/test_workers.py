"""Test that workers need no shared memory for batches, and say so where there is none for locks."""

from __future__ import annotations

import multiprocessing
from multiprocessing.reduction import ForkingPickler
from typing import NoReturn

import pytest
import torch

from lm.system import workers
from lm.system.errors import ConfigError


def test_a_batch_travels_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch in shared memory would be a file descriptor, and a full /dev/shm would lose it."""
    monkeypatch.setattr(ForkingPickler, "_extra_reducers", dict(ForkingPickler._extra_reducers))
    monkeypatch.setattr(workers, "ignore_stop_signals", lambda: None)
    workers.start_worker(0)
    batch = torch.arange(6).reshape(2, 3)
    content = bytes(ForkingPickler.dumps(batch))
    assert batch.numpy().tobytes() in content
    assert torch.equal(ForkingPickler.loads(content), batch)


def test_no_room_for_locks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(multiprocessing, "Lock", refuse)
    assert workers.workers_with_room(0) == 0
    with pytest.raises(
        ConfigError, match=r"^data\.workers: 2 workers need shared memory, and /dev/"
    ):
        workers.workers_with_room(2)
