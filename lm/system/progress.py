"""What a person sees while a run goes: a bar on a terminal, plain lines in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tqdm import tqdm

from lm.system.units import duration, in_bytes

LINE_SECONDS = 10.0  # where there is no terminal a line is due this often


class Progress:
    """Shows how far the run is, its loss, its speed and the time it has left. On all processes but
    the first it is silent.

    Args:
        max_steps: where the run ends.
        step: where it starts; more than 0 when it is resumed.
        enabled: False for silence.
    """

    def __init__(self, max_steps: int, step: int, enabled: bool = True):
        self._max_steps = max_steps
        self._enabled = enabled
        self._figures = ""
        self._last_line = time.monotonic()
        self._first: tuple[int, float] | None = None  # the first step that was done here, and when
        self._bar = None
        if enabled and sys.stderr.isatty():
            layout = "{l_bar}{bar}| {n}/{total}{postfix}"
            self._bar = tqdm(total=max_steps, initial=step, dynamic_ncols=True, bar_format=layout)

    def advance(self, step: int) -> None:
        """Step `step` is done."""
        if not self._enabled:
            return
        now = time.monotonic()
        news = [part for part in (self._figures, self._left(step, now)) if part]
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(news), refresh=False)
            self._bar.update(step - self._bar.n)
        elif now - self._last_line >= LINE_SECONDS or step == self._max_steps:
            self._last_line = now
            self.say("  ".join([f"step {step:,}/{self._max_steps:,}", *news]))

    def show(self, loss: float, learning_rate: float, tokens_per_second: float | None) -> None:
        """The newest figures; they appear with the next step that is done."""
        speed = f"  {tokens_per_second:,.0f} tok/s" if tokens_per_second is not None else ""
        self._figures = f"loss {loss:.4f}  lr {learning_rate:.2e}{speed}"

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _left(self, step: int, now: float) -> str:
        """Validations and saves count, since more of them are to come; what came before the first
        step (set-up, compiling) does not.
        """
        if self._first is None:
            self._first = step, now
        first_step, since = self._first
        if not first_step < step < self._max_steps:
            return ""
        seconds = (now - since) / (step - first_step) * (self._max_steps - step)
        return f"{duration(round(seconds))} left"


class ReadingProgress:
    """Shows how much text has been read, in a `with` block.

    Args:
        what: what is done to it, as a verb with -ing.
        files: what is read; the size of a dataset of the hub is not known.
        done: bytes of text that an earlier process has read.
    """

    def __init__(self, what: str, files: Sequence[str], done: int, quiet: bool):
        sizes = [Path(file).stat().st_size for file in files if Path(file).exists()]
        self._what, self._total, self._done, self._quiet = what, sum(sizes), done, quiet
        self._start = self._last_line = time.monotonic()
        self._done_before = done
        self._bar = None
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(
                desc=what,
                total=sum(sizes) or None,
                initial=done,
                unit="B",
                unit_scale=True,
                dynamic_ncols=True,
                leave=False,
            )

    def __enter__(self) -> Self:
        return self

    def advance(self, size: int) -> None:
        """So many bytes more."""
        self._done += size
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(size)
        elif not self._quiet and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            speed = (self._done - self._done_before) / (now - self._start)
            total = f" of {in_bytes(self._total)}" if self._total else ""
            print(f"{self._what}: {in_bytes(self._done)}{total}, {in_bytes(speed)}/s", flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
