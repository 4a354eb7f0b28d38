"""Who reads and tokenises the pieces of a source: this process, several on this machine, or Ray's
on many.

Each engine gives the results in the order of the pieces, and keeps only a few of them waiting.
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
from lm.system.signals import ignore_stop_signals
from lm.tokens.tokenise import Tokenise, Tokens

FEW = 6  # Pieces that one process has done before others are started.
WAITING = 3  # Pieces that wait for each process, or for the writer.
LAST_SECONDS = 10.0  # that a process lives on after a SIGTERM


def here(function: Tokenise, pieces: Iterator[Piece]) -> Iterator[Tokens]:
    """In this process."""
    return map(function, pieces)


def on_this_machine(
    function: Tokenise, pieces: Iterator[Piece], processes: int | None = None
) -> Iterator[Tokens]:
    """In so many processes; by default one for each core that this one may use, or this one alone
    where there is little to do.

    Raises:
        UserError: a process was killed. What the writer has so far is good.
    """
    if processes is None and function.tokenizer is not None and function.tokenizer.instant:
        processes = 1
    if processes is None:
        processes = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    first = list(itertools.islice(pieces, FEW + 1))
    pieces = itertools.chain(first, pieces)
    return (
        here(function, pieces)
        if processes == 1 or len(first) <= FEW
        else _in_processes(function, pieces, processes)
    )


def _in_processes(function: Tokenise, pieces: Iterator[Piece], processes: int) -> Iterator[Tokens]:
    # Not forked: a copy of a process with threads (torch, tokenizers) may hang for ever.
    context = multiprocessing.get_context("spawn")
    # without a lock, which a process that is killed would never give back
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
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # There is a process for each core already.
    leave_stopping_to_parent()


def _apply(piece: Piece) -> Tokens:
    assert _function is not None
    if _stopped.value:
        raise RuntimeError("nobody waits any more for what is still in the queue")
    return _function(piece)


def leave_stopping_to_parent() -> None:
    """In a process that another one started: ignore signals, which reach all processes of a
    terminal, and end when the parent does.

    A parent that is killed cannot tell its processes to end, and they would wait for its words for
    ever.
    """
    ignore_stop_signals()
    # The parent stops at a SIGTERM to all of them, too. But a broken pool ends its processes by the
    # same signal, and waits for them.
    signal.signal(signal.SIGTERM, _end_soon)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_soon(*_: object) -> None:
    last_seconds = threading.Timer(LAST_SECONDS, os._exit, [128 + signal.SIGTERM])
    last_seconds.daemon = True  # it does not keep alive what would end by itself
    last_seconds.start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
