"""What a person sees while a run goes: a bar on a terminal, plain lines in a file."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

LINE_SECONDS = 10.0  # where there is no terminal a line is due this often


class Progress:
    """Shows how far the run is, its loss and its speed. On all processes but the first it is silent."""

    def __init__(self, max_steps: int, step: int, enabled: bool = True):
        self.max_steps = max_steps
        self.first_step = step
        self.enabled = enabled
        self.started = self.last_line = time.monotonic()
        self.facts = ""
        on_terminal = enabled and sys.stderr.isatty()
        self.bar = (
            tqdm(
                total=max_steps,
                initial=step,
                unit="step",
                dynamic_ncols=True,
                bar_format="{l_bar}{bar}| {n}/{total} [{remaining} left{postfix}]",
            )
            if on_terminal
            else None
        )

    def advance(self, step: int) -> None:
        """Step `step` is done."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
        elif self.enabled and (time.monotonic() - self.last_line >= LINE_SECONDS or step == self.max_steps) and self.facts:
            self.last_line = time.monotonic()
            self.say(f"step {step:,}/{self.max_steps:,}  {self.facts}  {self._left(step)}")

    def show(self, loss: float, learning_rate: float, tokens_per_second: float | None) -> None:
        """The newest figures."""
        speed = f"  {tokens_per_second:,.0f} tok/s" if tokens_per_second is not None else ""
        self.facts = f"loss {loss:.4f}  lr {learning_rate:.2e}{speed}"
        if self.bar is not None:
            self.bar.set_postfix_str(self.facts, refresh=False)

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()

    def _left(self, step: int) -> str:
        done = step - self.first_step
        seconds = (time.monotonic() - self.started) / done * (self.max_steps - step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d} left" if hours else f"{minutes}:{seconds:02d} left"
