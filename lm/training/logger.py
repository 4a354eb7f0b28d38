"""Everything a run writes down about itself while it goes: metrics.csv, TensorBoard, and the
progress line.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lm.evaluation.validation import Evaluation
from lm.runs.metrics import MetricsLog
from lm.system.device import Device, peak_memory_mb
from lm.system.disk import refusals, sync
from lm.system.errors import CheckpointError
from lm.system.progress import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Stopwatch:
    """Training time, without validation and saving.

    Attributes:
        seconds: up to the last pause.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._since: float | None = None
        # step and time at the last call of steps_per_second
        self._lap: tuple[int, float] | None = None

    def go(self) -> None:
        """Training goes on from here."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """What follows is not training."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def steps_per_second(self, step: int) -> float | None:
        """Since the last call, both in a pause. None at the first, whose steps include warming up."""
        lap, self._lap = self._lap, (step, self.seconds)
        return (
            (step - lap[0]) / (self.seconds - lap[1])
            if lap is not None and self.seconds > lap[1]
            else None
        )


@dataclass(frozen=True)
class StepWork:
    """What one optimiser step amounts to, on all devices together."""

    tokens: int
    epochs: float
    flops: float


class Logbook:
    """The record of a run, kept by its first process.

    Args:
        folder: the run's folder.
        step: updates done so far. 0 starts the record; else rows after it are taken out, since the
            run is going to write them again.
        seconds: training time so far.
        work: what one step amounts to.
        peak_flops: floating-point operations a second that all devices can do at most, as measured;
            0 if unknown.
        device: what the run computes on; its peak memory is written down.
        progress: where the newest figures are shown.
        tensorboard: write event files too.
        validated: the validation of `step` is on record; else its row is taken out too, since it is
            going to be done again.

    Raises:
        CheckpointError: here or later, where metrics.csv or TensorBoard's files cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        seconds: float,
        work: StepWork,
        peak_flops: float,
        device: Device,
        progress: Progress,
        tensorboard: bool,
        validated: bool = True,
    ):
        self.stopwatch = Stopwatch(seconds)
        self._work = work
        self._peak_flops = peak_flops
        self._device = device
        self._progress = progress
        self._folder = folder
        self._csv = MetricsLog(
            folder / "metrics.csv", resume_step=step or None, validated=validated
        )
        if self._csv.dropped:
            progress.say(
                f"metrics.csv: lines taken out that come after step {step:,} or are damaged:"
                f" {self._csv.dropped:,}"
            )
        self._events = _event_writer(folder, step) if tensorboard else None

    def training(self, step: int, loss: float, learning_rate: float, grad_norm: float) -> None:
        """The step that was just done. The rate is the one that it used."""
        pace = self.stopwatch.steps_per_second(step)
        speed = pace * self._work.tokens if pace is not None else None
        mfu = (
            pace * self._work.flops / self._peak_flops
            if pace is not None and self._peak_flops
            else None
        )
        memory = peak_memory_mb(self._device)
        self._write(
            step,
            "train",
            loss=loss,
            lr=learning_rate,
            grad_norm=grad_norm,
            tokens_per_second=speed,
            mfu=mfu,
            peak_memory_mb=memory,
        )
        self._progress.show(loss, learning_rate, speed)

    def validation(self, step: int, result: Evaluation, sample: str | None) -> None:
        """What the weights score, and what they write, after `step` updates."""
        self._write(
            step,
            "val",
            loss=result.loss,
            perplexity=result.perplexity,
            bits_per_byte=result.bits_per_byte,
        )
        more = (
            f", perplexity {result.perplexity:.2f}, {result.bits_per_byte:.4f} bits per byte"
            f" ({result.tokens:,} tokens)"
        )
        if math.isnan(result.bits_per_byte):  # of preferences, say: no token has a loss
            more = f" ({result.tokens:,} scored)"
        self._progress.say(f"step {step:,}: validation loss {result.loss:.4f}{more}")
        if sample is not None:
            if self._events is not None:
                with _event_errors(self._folder):
                    self._events.add_text("sample", sample, step)
                    self._events.flush()
            self._progress.say(f'  it writes: "{_one_line(sample)}"')

    def sync(self) -> None:
        """Wait until the disk has metrics.csv. Raises CheckpointError."""
        with refusals(self._csv.path):
            sync(self._csv.path)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._events is not None:
            with _event_errors(self._folder):
                self._events.close()

    def _write(self, step: int, split: Literal["train", "val"], **values: float | None) -> None:
        place = {
            "epoch": step * self._work.epochs,
            "tokens": step * self._work.tokens,
            "seconds": self.stopwatch.seconds,
        }
        self._csv.append(step, split, **place, **values)
        if self._events is not None:
            with _event_errors(self._folder):
                for name, value in values.items():
                    if value is not None:
                        self._events.add_scalar(f"{name}/{split}", value, step)
                # nothing is in memory when a run is killed, and a full disk is met here
                self._events.flush()


def _event_writer(folder: Path, step: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    with _event_errors(folder):
        # What a run that goes on, or begins again, is going to write once more would otherwise
        # stand there twice.
        return SummaryWriter(str(folder), purge_step=step + 1 if step else 0)


@contextlib.contextmanager
def _event_errors(folder: Path) -> Iterator[None]:
    """A disk that refuses: the writing thread meets it and hands it on with the next call."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder}: TensorBoard's files cannot be written: {error.strerror}"
        ) from error


def _one_line(text: str, width: int = 160) -> str:
    """Fit for a terminal: what a model writes early on has control characters in it, and words
    without end.
    """
    line = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for character in " ".join(text.split())
    )
    return line if len(line) <= width else line[: width - 4] + " ..."
