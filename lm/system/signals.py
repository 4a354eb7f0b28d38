"""Signals that ask a run to stop: Ctrl-C, SIGTERM, SIGHUP, which says that the terminal has gone,
and SIGUSR1, which SLURM sends before the time is up. A run that was started with SIGHUP ignored, as
`nohup` does, goes on ignoring it.

Between steps (while a run starts, compiles or waits for data) a signal raises `Stopped` at once.
During a step, and while the run saves or validates after it, the handler only records the signal.
The run then stops after that work is complete. While the run ends, later signals are only recorded
too, because a finished step may still have to be saved. A second Ctrl-C always stops at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

from lm.system.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopSignals:
    """Handler of the signals inside a `with` block.

    Args:
        speaks: whether this process prints messages; only one of a run's processes does.
        advice: the end of the message: how to continue after a stop.

    Attributes:
        requested: the number of the first signal that arrived, or 0.
        deferred: whether a signal is only recorded, and does not raise.
    """

    def __init__(self, speaks: bool, advice: str):
        self.requested = 0
        self.deferred = False
        self._speaks = speaks
        self._advice = advice
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        if self._before[signal.SIGHUP] is signal.SIG_IGN:
            del self._before[signal.SIGHUP]
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Install the handlers. Call it again after Lightning has installed its own."""
        for number in self._before:
            signal.signal(number, self._note)

    def raise_deferred(self) -> None:
        """Let signals raise again. If one arrived in the meantime, raise Stopped now."""
        # Clear the flag first: a signal between these lines then raises by itself.
        self.deferred = False
        if self.requested:
            self.deferred = True
            raise stopped(self.requested, self._advice)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A forked worker inherits these handlers. The run itself ends its workers.
        if os.getpid() != self._process:
            return
        if self.requested and number == signal.SIGINT:
            if self._speaks:
                _write(f"\nstopped by SIGINT; {self._advice}\n")
            os._exit(128 + number)  # Checkpoints on the disk are complete at every moment.
        first = not self.requested
        self.requested = self.requested or number
        if not self.deferred:
            self.deferred = True
            raise stopped(number, self._advice)
        if first and self._speaks:
            _write(
                f"\n{signal.Signals(number).name}: finishing this step and saving (Ctrl-C again"
                " stops at once)\n"
            )


def _write(message: str) -> None:
    """Write to stderr in a handler, which may interrupt a print: that is not reentrant."""
    with contextlib.suppress(OSError):
        os.write(2, message.encode(errors="backslashreplace"))


def ignore_stop_signals() -> None:
    """Ignore Ctrl-C, SIGHUP and SIGUSR1 in a helper process; the run that started it decides when
    it ends.

    These signals reach all processes of a terminal or job, but a run needs its helpers to finish
    its step.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def stopped(number: int, advice: str, after: str = "") -> Stopped:
    """Return the exception for a signal."""
    return Stopped(f"stopped by {signal.Signals(number).name}{after}; {advice}", number)
