"""Progress of a run: a bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lm.system.units import duration, in_bytes

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_SECONDS = 10.0  # between two plain lines


class Progress:
    """Display of a run's step, loss, speed and remaining time.

    Args:
        max_steps: the last step of the run.
        step: the step at which this process starts, more than 0 after a resume.
        enabled: False prints nothing; only the first process of a run prints.
        seconds_left: the time that is left of a run that ends by the clock, not after `max_steps`.
    """

    def __init__(
        self,
        max_steps: int,
        step: int,
        enabled: bool = True,
        seconds_left: Callable[[], float] | None = None,
    ):
        self._max_steps = max_steps
        self._seconds_left = seconds_left
        self._enabled = enabled
        self._figures = ""
        self._last_line = time.monotonic()
        self._first: tuple[int, float] | None = None  # this process's first step, and its time
        self._bar: tqdm | None = None
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm  # Only a terminal needs it.

            layout = "{l_bar}{bar}| {n}/{total}{postfix}"
            total = max_steps if seconds_left is None else None
            layout = layout if seconds_left is None else "step {n}{postfix}"
            self._bar = tqdm(total=total, initial=step, dynamic_ncols=True, bar_format=layout)

    def advance(self, step: int, last: bool = False) -> None:
        """Show that a step is done, perhaps the last one."""
        if not self._enabled:
            return
        now = time.monotonic()
        parts = [part for part in (self._figures, self._time_left(step, now)) if part]
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(parts), refresh=False)
            self._bar.update(step - self._bar.n)
        elif now - self._last_line >= LINE_SECONDS or last or step == self._max_steps:
            self._last_line = now
            total = f"/{self._max_steps:,}" if self._seconds_left is None else ""
            self.say("  ".join([f"step {step:,}{total}", *parts]))

    def show(self, loss: float, learning_rate: float, tokens_per_second: float | None) -> None:
        """Set the figures that appear with the next `advance`."""
        speed = f"  {tokens_per_second:,.0f} tok/s" if tokens_per_second is not None else ""
        self._figures = f"loss {loss:.4f}  lr {learning_rate:.2e}{speed}"

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Stop updating the bar and leave it on the screen."""
        if self._bar is not None:
            self._bar.close()

    def _time_left(self, step: int, now: float) -> str:
        """Return the estimated remaining time, or nothing before the second step.

        The estimate includes validations and saves, because more of them follow. It excludes the
        time before the first step (set-up, compiling).
        """
        if self._seconds_left is not None:
            return f"{duration(round(self._seconds_left()))} left"
        if self._first is None:
            self._first = step, now
        first_step, since = self._first
        if not first_step < step < self._max_steps:
            return ""
        seconds = (now - since) / (step - first_step) * (self._max_steps - step)
        return f"{duration(round(seconds))} left"


class ReadingProgress:
    """Display of how much text has been read, as a context manager.

    Args:
        what: the activity, such as "tokenising".
        files: the sources. The size of a dataset on the hub is unknown.
        done: the bytes of text that an earlier process has read.
    """

    def __init__(self, what: str, files: Sequence[str], done: int):
        sizes = [Path(file).stat().st_size for file in files if Path(file).exists()]
        self._what = what
        self._total = sum(sizes)
        self._done = self._done_before = done
        self._start = self._last_line = time.monotonic()
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # Only a terminal needs it.

            self._bar = tqdm(
                desc=what,
                total=self._total or None,
                initial=done,
                unit="B",
                unit_scale=True,
                dynamic_ncols=True,
                leave=False,
            )

    def __enter__(self) -> Self:
        return self

    def advance(self, size: int) -> None:
        """Show that `size` more bytes have been read."""
        self._done += size
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(size)
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            speed = (self._done - self._done_before) / (now - self._start)
            total = f" of {in_bytes(self._total)}" if self._total else ""
            print(f"{self._what}: {in_bytes(self._done)}{total}, {in_bytes(speed)}/s", flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
