"""Producers: each is a process that makes the windows of a stream, one ahead of the training.

The first process of a machine starts the producers. If machines share a disk, one producer is
enough for all, and a lock decides which. All processes wait for the files of the windows. If a
producer fails, it writes `failed.json`, and all who wait raise its error. A producer ends with the
process that started it. Nothing in this file imports torch, so a producer starts fast.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize

from tqdm import tqdm

from lm.system.disk import read_json, replace
from lm.system.errors import CheckpointError, ConfigError, DataError, UserError
from lm.system.json_values import count, text
from lm.system.locks import try_hold
from lm.tokens.engines import leave_stopping_to_parent
from lm.tokens.plan import Plan
from lm.tokens.store import TokenStore
from lm.tokens.stream import Stream

KEPT = 1  # windows that stay after their use, and windows that are made before it
POLL = 0.02  # seconds
# How long a run waits for its producer to begin, and a producer for that of a killed run to end.
STALE = 10.0  # seconds
FAILED = "failed.json"
LOCK = "producer.lock"
READY = "ready"


class Producers:
    """The producers of all streams that a run trains on.

    A run has many processes; one on each machine calls `start`.

    Args:
        plan: which rows each step trains on.
        batch_size: rows in a step.
        say: logs a line.
    """

    def __init__(self, plan: Plan, batch_size: int, say: Callable[[str], None]):
        self._plan = plan
        self._batch_size = batch_size
        self._say = say
        self._producers: dict[int, Producer] = {}

    def start(self, streams: Mapping[int, Stream], steps: range, shared: bool) -> None:
        """Start a producer for each stream, for the windows that the steps need.

        Args:
            streams: the streams, by their part of the plan.
            steps: all steps that will be loaded.
            shared: another machine of this run may have a producer of the same stream.

        Raises:
            ConfigError: another run has one.
        """
        if not steps:
            return
        for part, stream in streams.items():
            first = self._window(part, steps[0])
            last = self._window(part, steps[-1])
            self._producers[part] = Producer(stream, first, last + 1, shared)

    def advance(self, step: int) -> None:
        """Let the producers go on: no row of an earlier step is needed any more."""
        for part, producer in self._producers.items():
            producer.advance(self._window(part, step))

    def close(self) -> None:
        """End the producers, and log what the filters removed from their windows."""
        for producer in self._producers.values():
            if removed := producer.removed():
                counts = ", ".join(f"{count:,} x {kind}" for kind, count in removed.items())
                self._say(
                    f"data: {producer.stream.reader.key}: left out of the windows of this session:"
                    f" {counts}"
                )
            producer.close()
        self._producers.clear()

    def _window(self, part: int, step: int) -> int:
        """Return the first window that a step needs: each epoch of a stream is its next window."""
        return self._plan.first_epoch_of_step(part, step, self._batch_size)


class AnnouncedSteps:
    """The steps of a run for a loader; the producers hear of each before its rows are loaded.

    Args:
        steps: the steps.
        producers: the producers in this process, if it has any.
        ahead: how many steps loaders may be ahead of the training.
    """

    def __init__(self, steps: range, producers: Producers, ahead: int):
        self.steps = steps
        self.producers = producers
        self.ahead = ahead

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[int]:
        for step in self.steps:
            self.producers.advance(max(step - self.ahead, self.steps[0]))
            yield step


class Producer:
    """The process that makes windows `first` to `last` of a stream, as `advance` lets it.

    Raises:
        ConfigError: another process makes windows of the stream, and it is not one of the run's own
            on another machine (`shared`).
    """

    def __init__(self, stream: Stream, first: int, last: int, shared: bool = False):
        self.stream = stream
        self._first = self._window = first
        # An old failure. The run's other processes wait until this one has started.
        (stream.folder / FAILED).unlink(missing_ok=True)
        context = multiprocessing.get_context("spawn")  # see lm/tokens/engines.py
        self._pipe, other = context.Pipe()
        process = context.Process(target=_produce, args=(stream, first, last, other))
        process.start()
        # Also at this process's end, before multiprocessing waits there for its children.
        self._end = Finalize(self, _end, (process,), exitpriority=1)
        other.close()
        with contextlib.suppress(EOFError):  # it failed; await_window raises what failed.json says
            if self._pipe.recv() != READY and not shared:
                self.close()  # its windows may be far from those that this run needs
                raise ConfigError(
                    f"checkpoint.directory: another process reads {stream.reader.key} for this run"
                    " at the moment; wait until it has ended"
                )

    def advance(self, window: int) -> None:
        """Let the process go on: the training has come to `window`."""
        if window > self._window:
            self._window = window
            with contextlib.suppress(OSError):  # it failed, as above
                self._pipe.send(window)

    def removed(self) -> Counter[str]:
        """Count what the filters removed from the windows that the training came to."""
        windows = [
            window
            for window in range(self._first, self._window + 1)
            if self.stream.is_whole(window) or window < self._window
        ]
        return sum((self.stream.removed(window) for window in windows), start=Counter())

    def close(self) -> None:
        """End the process."""
        self._end()
        self._pipe.close()


def _end(process: SpawnProcess) -> None:
    process.kill()
    process.join()


def await_window(stream: Stream, number: int) -> TokenStore:
    """Wait until a window exists, and return its tokens.

    Raises:
        DataError: the producer could not read the dataset, or was killed.
        CheckpointError: the disk refused the window.
        ChildProcessError: the producer has a bug; the message holds the traceback.
    """
    kinds = {kind.exit_code: kind for kind in (DataError, CheckpointError)}
    alone_since = None
    while not stream.is_whole(number):
        # A shared lock: those who wait must not take each other for a producer.
        with try_hold(stream.folder / LOCK, shared=True) as alone:
            failed = stream.folder / FAILED
            if alone and failed.exists():
                failure = read_json(failed)
                kind = kinds.get(count(failure, "exit_code") or 0, ChildProcessError)
                raise kind(text(failure, "message") or f"{failed} does not say what went wrong")
            alone_since = (alone_since or time.monotonic()) if alone else None
        if alone_since is not None and time.monotonic() - alone_since > STALE:
            raise DataError(
                f"{stream.reader.key}: the process that reads the stream has ended (killed?); start"
                " again with --resume auto"
            )
        time.sleep(POLL)
    return stream.window(number)


def _produce(stream: Stream, first: int, last: int, pipe: Connection) -> None:
    """Make windows in a process of its own, once no other process makes them."""
    leave_stopping_to_parent()
    # The default lock is a semaphore that would outlive this process if it is killed.
    tqdm.set_lock(threading.RLock())
    deadline = time.monotonic() + STALE
    while True:
        with try_hold(stream.folder / LOCK) as ours:
            if ours:
                try:
                    # An earlier run may have left windows at other places.
                    stream.clear(before=first - KEPT, after=first + KEPT)
                    stream.clear_damaged(range(max(0, first - KEPT), first + KEPT + 1))
                    pipe.send(READY)
                    _make(stream, first, last, pipe)
                except Exception as error:
                    failure = {"message": _with_traceback(error), "exit_code": 1}
                    if isinstance(error, UserError):
                        failure = {"message": str(error), "exit_code": error.exit_code}
                    replace(stream.folder / FAILED, json.dumps(failure))
                return
        if time.monotonic() > deadline:
            pipe.send("another process makes them")
            return
        time.sleep(POLL)


def _make(stream: Stream, first: int, last: int, pipe: Connection) -> None:
    """Make windows up to `KEPT` ahead of the one in use, until the pipe is closed."""
    window, used = first, first
    while True:
        # Wait for the training if the next window is too far ahead of it, or was the last.
        while pipe.poll(None if window > min(last, used + KEPT) else 0):
            try:
                used = pipe.recv()
            except EOFError:  # the run has ended
                return
            stream.clear(before=used - KEPT)
        if not stream.is_whole(window):
            stream.make(window)
        window += 1


def _with_traceback(error: Exception) -> str:
    """Return the message, and after it the traceback for the run's file."""
    return (
        f"in the process that reads the stream: {type(error).__name__}:"
        f" {error}\n{traceback.format_exc()}"
    )
