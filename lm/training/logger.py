"""The Logger of a run: metrics.csv, TensorBoard, and the progress line."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.loggers import Logger

from lm.display.tables import cut
from lm.evaluation.validation import Evaluation
from lm.runs.metrics import MetricsLog
from lm.system.device import Device, peak_memory_mb
from lm.system.disk import refusals, sync
from lm.system.errors import CheckpointError, printable
from lm.system.progress import Progress
from lm.system.refusal import why

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


MOST_SAMPLE = 160  # cells of a sample on the screen: an untrained model writes words without end


class Stopwatch:
    """Measures training time, without validation and saving.

    Attributes:
        seconds: up to the last pause.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._since: float | None = None
        # step and time at the last call of steps_per_second
        self._lap: tuple[int, float] | None = None

    def go(self) -> None:
        """Start to count."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop to count: the work that follows is not training."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def steps_per_second(self, step: int) -> float | None:
        """Return the speed since the last call; None at the first, whose steps include warm-up."""
        lap, self._lap = self._lap, (step, self.seconds)
        return (
            (step - lap[0]) / (self.seconds - lap[1])
            if lap is not None and self.seconds > lap[1]
            else None
        )


@dataclass(frozen=True)
class StepWork:
    """The size of one optimiser step, on all devices together."""

    tokens: int
    epochs: float
    flops: float


class RunLogger(Logger):
    """Lightning's Logger of a run: metrics.csv, TensorBoard and the progress line. The first
    process alone has one.

    Args:
        folder: the run's folder.
        step: updates done so far. 0 starts the files; else the rows after it are dropped, because
            the run writes them again.
        seconds: training time so far.
        work: the size of one step.
        peak_flops: floating-point operations a second of all devices together, as measured; 0 if
            unknown.
        device: its peak memory is logged.
        progress: shows the newest figures.
        tensorboard: write event files too.
        validated: the validation of `step` is recorded; else its row is dropped too.

    Raises:
        CheckpointError: metrics.csv or TensorBoard's files cannot be written, here or later.
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
        validated: bool,
    ):
        super().__init__()
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

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self._folder.name

    @property
    def version(self) -> str:
        """Empty: a run has one record."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing: config.yaml has the run's configuration."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the step that was just done: `loss`, `lr` (the rate that it used), `grad_norm`."""
        assert step is not None
        pace = self.stopwatch.steps_per_second(step)
        speed = pace * self._work.tokens if pace is not None else None
        flops = pace * self._work.flops if pace is not None else None
        self._write(
            step,
            "train",
            **metrics,
            tokens_per_second=speed,
            mfu=flops / self._peak_flops if flops is not None and self._peak_flops else None,
            peak_memory_mb=peak_memory_mb(self._device),
        )
        self._progress.show(metrics["loss"], metrics["lr"], speed)

    def log_validation(self, step: int, result: Evaluation, sample: str | None) -> None:
        """Log the score of the weights after `step` updates, and the text that they wrote."""
        self._write(
            step,
            "val",
            loss=result.loss,
            perplexity=result.perplexity,
            bits_per_byte=result.bits_per_byte,
        )
        if result.perplexity is None or math.isnan(result.bits_per_byte):  # preferences, or no text
            more = f" ({result.tokens:,} scored)"
        else:
            more = (
                f", perplexity {result.perplexity:.2f}, {result.bits_per_byte:.4f} bits per byte"
                f" ({result.tokens:,} tokens)"
            )
        self._progress.say(f"step {step:,}: validation loss {result.loss:.4f}{more}")
        if sample is not None:
            if self._events is not None:
                with _event_errors(self._folder):
                    self._events.add_text("sample", sample, step)
                    self._events.flush()
            self._progress.say(
                f'  it writes: "{cut(printable(" ".join(sample.split())), MOST_SAMPLE)}"'
            )

    def sync(self) -> None:
        """Wait until metrics.csv is on the disk. Raises CheckpointError."""
        with refusals(self._csv.path):
            sync(self._csv.path)

    def finalize(self, status: str) -> None:
        """Close TensorBoard's file. Lightning calls this at the end of `fit`, also after an error.

        Raises:
            CheckpointError: the file cannot be written, and `status` names no other error.
        """
        events, self._events = self._events, None
        if events is None:
            return
        try:
            with _event_errors(self._folder):
                events.close()
        except CheckpointError:
            if status == "success":
                raise

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
                # Nothing is in memory when a run is killed, and a full disk is met here.
                self._events.flush()


def _event_writer(folder: Path, step: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    with _event_errors(folder):
        # Without the purge, steps that a resumed run writes again would appear twice.
        return SummaryWriter(str(folder), purge_step=step + 1 if step else 0)


@contextlib.contextmanager
def _event_errors(folder: Path) -> Iterator[None]:
    """Raise CheckpointError for a full disk: the writing thread raises OSError at the next call."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder}: TensorBoard's files cannot be written: {why(error, folder)}; or set"
            " logging.tensorboard to false"
        ) from error
