"""Engines: they read and tokenise the pieces of a source in this process, or in several of them.

Each engine yields the results in the order of the pieces, and only a few results wait in memory.
ray_engine.py uses the machines of a cluster.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from lm.documents.reader import Piece
from lm.system.errors import UserError
from lm.system.machine import usable_cores
from lm.system.signals import ignore_stop_signals
from lm.tokens.tokenise import Tokenise, Tokens

FEW = 6  # with at most so many pieces, starting processes costs more than it gains
WAITING = 3  # pieces for each process that wait for it, or for the writer
LAST_SECONDS = 10.0  # how long a process lives on after a SIGTERM


def in_this_process(function: Tokenise, pieces: Iterator[Piece]) -> Iterator[Tokens]:
    """Tokenise in this process."""
    return map(function, pieces)


def on_this_machine(
    function: Tokenise, pieces: Iterator[Piece], processes: int | None = None
) -> Iterator[Tokens]:
    """Tokenise in several processes on this machine.

    The default is one process for each core that this process may use. If there is little to do,
    it is this process alone.

    Raises:
        UserError: a process was killed; the results before that are good.
    """
    if processes is None and function.tokenizer is not None and function.tokenizer.instant:
        processes = 1
    if processes is None:
        processes = usable_cores() or 1
    first = list(itertools.islice(pieces, FEW + 1))
    pieces = itertools.chain(first, pieces)
    return (
        in_this_process(function, pieces)
        if processes == 1 or len(first) <= FEW
        else _in_processes(function, pieces, processes)
    )


def _in_processes(function: Tokenise, pieces: Iterator[Piece], processes: int) -> Iterator[Tokens]:
    # Not "fork": a copy of a process with threads (torch, tokenizers) may hang for ever.
    context = multiprocessing.get_context("spawn")
    # A raw value has no lock, which a killed process would never release.
    stopped = context.RawValue("b", 0)
    with ProcessPoolExecutor(
        processes, context, initializer=_start, initargs=(function, stopped)
    ) as pool:
        waiting: deque[Future[Tokens]] = deque()
        try:
            for piece in pieces:
                waiting.append(pool.submit(_apply, piece))
                if len(waiting) >= processes * WAITING:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that tokenises was killed from outside, most often because memory did"
                " not suffice; start again with fewer: python -m tools.prepare --processes 1"
            ) from error
        finally:
            stopped.value = 1
            pool.shutdown(wait=False, cancel_futures=True)


_function: Tokenise | None = None
_stopped: Any = None


def _start(function: Tokenise, stopped: Any) -> None:
    global _function, _stopped
    _function, _stopped = function, stopped
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is one process per core already
    leave_stopping_to_parent()


def _apply(piece: Piece) -> Tokens:
    assert _function is not None
    if _stopped.value:
        raise RuntimeError("nobody waits any more for what is still in the queue")
    return _function(piece)


def leave_stopping_to_parent() -> None:
    """Ignore signals that reach all processes of a terminal, and end when the parent process ends.

    A parent that is killed cannot end its child processes, and they would wait for it for ever.
    """
    ignore_stop_signals()
    # A SIGTERM may reach all processes, and the parent then ends this one. But a broken pool also
    # ends its processes by SIGTERM, and waits for them; so end soon in any case.
    signal.signal(signal.SIGTERM, _end_soon)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_soon(*_: object) -> None:
    last_seconds = threading.Timer(LAST_SECONDS, os._exit, [128 + signal.SIGTERM])
    last_seconds.daemon = True  # the timer must not keep the process alive
    last_seconds.start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
