"""Signals that ask a run to stop: Ctrl-C, SIGTERM, and SIGUSR1, which SLURM sends before the time
is up.

Between steps (while a run starts, compiles or waits for data) a signal raises `Stopped` on the
spot. Inside a step and what follows it (saving, validating) it is only noted, and the run stops
where nothing is half done. On the way out the next ones are only noted too: a step that was done
may still have to be saved. A second Ctrl-C stops at once wherever it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from lm.system.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
RESUME = "go on with --resume auto"


class StopSignals:
    """Handles the signals inside a `with` block.

    Args:
        speaks: whether this process tells the user; one of a run's processes does.
        advice: how to go on after a stop.

    Attributes:
        requested: the number of the first signal that came, or 0.
        sheltered: a signal is only noted.
        since: when this was made (time.monotonic), for the time limit, which a run that goes back
            to a checkpoint does not start anew.
    """

    def __init__(self, speaks: bool, advice: str = RESUME):
        self.requested = 0
        self.sheltered = False
        self.since = time.monotonic()
        self._speaks = speaks
        self._advice = advice
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self) -> None:
        """Put the handlers in place, once more after Lightning has put its own there."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def leave_shelter(self) -> None:
        """From here on a signal raises; one that came in the meantime raises now. Raises Stopped."""
        self.sheltered = False  # first: one that comes between these lines raises by itself
        if self.requested:
            self.sheltered = True
            raise stopped(self.requested, advice=self._advice)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # a worker, forked with these handlers: the run tells it when to end
        if os.getpid() != self._process:
            return
        if self.requested and number == signal.SIGINT:
            os._exit(128 + number)  # the checkpoints on the disk are whole at every moment
        first, self.requested = not self.requested, self.requested or number
        if not self.sheltered:
            self.sheltered = True
            raise stopped(number, advice=self._advice)
        if first and self._speaks:
            # Through os.write: what is interrupted here may be a print, which must not be entered
            # again.
            with contextlib.suppress(OSError):
                os.write(
                    2,
                    f"\n{signal.Signals(number).name}: finishing this step and saving (Ctrl-C again"
                    " stops at once)\n".encode(),
                )


@contextlib.contextmanager
def child(
    command: Sequence[str], stdout: Any, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Another command of ours, which does not outlive the block: a signal to this process alone
    would leave it running, in folders that are then gone. Its stderr is a pipe.
    """
    process = subprocess.Popen(  # noqa: S603 (our own command)
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate()


def stopped(number: int, after: str = "", advice: str = RESUME) -> Stopped:
    """What to raise for a signal."""
    return Stopped(f"stopped by {signal.Signals(number).name}{after}; {advice}", number)
