"""The process that makes the windows of a stream, one ahead of the training; it ends with the
process that started it.

Of several processes on a machine the first starts it; where machines share a disk, one of theirs is
enough, and a lock says whose. All wait for the windows' files. What goes wrong is left in
`failed.json`, for all to raise.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import threading
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize

from tqdm import tqdm

from lm.system.disk import read_json, replace
from lm.system.errors import CheckpointError, ConfigError, DataError, UserError
from lm.system.locks import try_hold
from lm.tokens.engines import leave_stopping_to_parent
from lm.tokens.store import TokenStore
from lm.tokens.stream import Stream

KEPT = 1  # windows behind the one in use, and windows made before they are needed
POLL = 0.02  # seconds
# seconds that a run may wait for its producer to begin, and a producer for that of a killed run to
# end
STALE = 10.0
FAILED = "failed.json"
LOCK = "producer.lock"
READY = "ready"


class Producer:
    """Makes windows `first` to `last` of a stream, as `advance` lets it.

    Raises:
        ConfigError: another process makes windows of the stream, where that is not one of the run's
            own on another machine (`shared`).
    """

    def __init__(self, stream: Stream, first: int, last: int, shared: bool = False):
        # what failed before; the run's other processes wait for this one to be made
        (stream.folder / FAILED).unlink(missing_ok=True)
        context = multiprocessing.get_context("spawn")  # see lm/tokens/engines.py
        self._pipe, other = context.Pipe()
        process = context.Process(target=_produce, args=(stream, first, last, other))
        process.start()
        # Also at this process's end, before multiprocessing waits there for its children.
        self._end = Finalize(self, _end, (process,), exitpriority=1)
        other.close()
        # it failed, and what happened will be found in failed.json
        with contextlib.suppress(EOFError):
            if self._pipe.recv() != READY and not shared:
                self.close()  # that one's windows may be far away from those that are wanted here
                raise ConfigError(
                    f"checkpoint.directory: another process reads {stream.reader.key} for this run"
                    " at the moment; wait until it has ended"
                )
        self._stream = stream
        self._first = self._window = first

    def advance(self, window: int) -> None:
        """The training has come to a window."""
        if window > self._window:
            self._window = window
            with contextlib.suppress(OSError):  # see above
                self._pipe.send(window)

    def left_out(self) -> Counter[str]:
        """What the filters have removed from the windows that the training came to."""
        windows = [
            window
            for window in range(self._first, self._window + 1)
            if self._stream.is_whole(window) or window < self._window
        ]
        return sum((self._stream.left_out(window) for window in windows), start=Counter())

    def close(self) -> None:
        """End the process."""
        self._end()
        self._pipe.close()


def _end(process: SpawnProcess) -> None:
    process.kill()
    process.join()


def await_window(stream: Stream, number: int) -> TokenStore:
    """A window's tokens, once they are there.

    Raises:
        DataError: they will not come.
        CheckpointError: nor will they because the disk refused them.
        ChildProcessError: nor will they because of a mistake in this program; the message has the
            traceback.
    """
    kinds = {kind.exit_code: kind for kind in (DataError, CheckpointError)}
    alone_since = None
    while not stream.is_whole(number):
        # Shared: those who wait must not take each other for a producer.
        with try_hold(stream.folder / LOCK, shared=True) as alone:
            failed = stream.folder / FAILED
            if alone and failed.exists():
                told = read_json(failed)
                raise kinds.get(told["exit_code"], ChildProcessError)(told["message"])
            alone_since = (alone_since or time.monotonic()) if alone else None
        if alone_since is not None and time.monotonic() - alone_since > STALE:
            raise DataError(
                f"{stream.reader.key}: the process that reads the stream has ended (killed?); start"
                " again with --resume auto"
            )
        time.sleep(POLL)
    return stream.window(number)


def _produce(stream: Stream, first: int, last: int, pipe: Connection) -> None:
    leave_stopping_to_parent()
    # Its own is a semaphore that would outlive this process when that is killed.
    tqdm.set_lock(threading.RLock())
    deadline = time.monotonic() + STALE
    while True:
        with try_hold(stream.folder / LOCK) as ours:
            if ours:
                try:
                    # those of a run that was here before, at other places
                    stream.clear(before=first - KEPT, behind=first + KEPT)
                    pipe.send(READY)
                    _make(stream, first, last, pipe)
                except Exception as error:
                    message, code = (
                        (str(error), error.exit_code)
                        if isinstance(error, UserError)
                        else (_with_traceback(error), 1)
                    )
                    replace(
                        stream.folder / FAILED, json.dumps({"message": message, "exit_code": code})
                    )
                return None
        if time.monotonic() > deadline:
            return pipe.send("another makes them")
        time.sleep(POLL)


def _make(stream: Stream, first: int, last: int, pipe: Connection) -> None:
    window, used = first, first
    while True:
        while pipe.poll(None if window > min(last, used + KEPT) else 0):
            try:
                used = pipe.recv()
            except EOFError:  # nobody waits any more
                return
            stream.clear(before=used - KEPT)
        if not stream.is_whole(window):
            stream.make(window)
        window += 1


def _with_traceback(error: Exception) -> str:
    """First what a person reads, then what is for the run's file."""
    return (
        f"in the process that reads the stream: {type(error).__name__}:"
        f" {error}\n{traceback.format_exc()}"
    )
