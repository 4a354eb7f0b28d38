"""A run from the lock on its folder to its end: signals, starts, stops, and rollbacks."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lm.checkpoints.folder import pointed, step_directories
from lm.checkpoints.write import point
from lm.config.reader import Loaded
from lm.config.schema.config import Config
from lm.runs.folder import RunFolder
from lm.runs.incidents import GoBack, Incidents
from lm.runs.origin import Origin, find_origin, is_finished
from lm.runs.recorded import keep_recorded
from lm.system.environment import ignored, is_first
from lm.system.errors import NonFiniteError, keep_tracebacks_in
from lm.system.progress import Progress
from lm.system.signals import StopSignals, stopped
from lm.system.streams import outlive_stdout
from lm.system.units import duration
from lm.training.deadline import Deadline, process_started
from lm.training.processes import (
    check_launcher,
    continuing_command,
    decide_on_first,
    disconnect,
    on_first_process,
)

if TYPE_CHECKING:
    from lm.tokenizer.tokenizer import Tokenizer
    from lm.training.logger import RunLogger
    from lm.training.parts import Parts
    from lm.training.record import Record
    from model import Decoder


class Run:
    """A run, as one of its processes sees it. Inside the `with` block it holds the run's folder and
    handles the signals; its sessions' callbacks share its attributes.

    Args:
        loaded: the run's configuration.
        resume: None, "auto" or a checkpoint's path.
        init_from: None or a checkpoint's path.

    Attributes:
        loaded: the run's configuration; `next_start` completes it from the checkpoint of a run that
            goes on, and `begin` from the text.
        path: the run's folder.
        folder: the same, locked; None on all processes but the first.
        go_on: says how to go on after a stop.
        signals: the signals that asked this process to stop.
        started: the time (time.monotonic) at which the time limit begins; a run that goes back to a
            checkpoint keeps it.
        deadline: the end of a run whose schedule follows the clock.

        Of the session at hand:
        progress: the display.
        record: writes the run's files; None on all processes but the first.
        stopping: this step is the last one of the session: a signal came, or the time is over.
        signal: the number of the signal that stops the session, or 0.
        out_of_patience: early stopping ends the run.
        saved: the step of the newest checkpoint; -1 before the session knows it.
    """

    def __init__(self, loaded: Loaded, resume: str | None, init_from: str | None):
        self.loaded = loaded
        self.path = Path(loaded.config.checkpoint.directory)
        self.folder: RunFolder | None = None
        self.go_on = f"go on with: {continuing_command()}"
        self.signals = StopSignals(speaks=is_first(), advice=self.go_on)
        self.started = time.monotonic()
        self.deadline: Deadline | None = None
        self._began = process_started()
        self.progress: Progress  # `begin` sets it
        self.record: Record | None = None
        self.stopping = False
        self.signal = 0
        self.out_of_patience = False
        self.saved = -1
        self._resume = resume
        self._init_from = init_from

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.loaded.config

    def __enter__(self) -> Self:
        check_launcher(self.config.trainer)
        outlive_stdout()  # what is printed is in the run's files, too
        if ignored:
            self.say(f"environment variables of other programs, not used: {', '.join(ignored)}")
        self.signals.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.signals.__exit__(kind, error, trace)
        # After a step with non-finite numbers the same command would come to the same step.
        if (
            self.saved >= 0
            and isinstance(error, Exception)
            and not isinstance(error, NonFiniteError)
        ):
            error.add_note(f"then {self.go_on}")
        if self.folder is not None:
            self.folder.close()
        if error is None:
            disconnect()  # together: a process that ends while others talk to it may abort them

    def next_start(self) -> Origin | None:
        """Return where the weights of the next session come from, the same on all processes; None
        for a run that has reached its end.

        Raises:
            UserError: the run cannot start.
        """
        # Before torch: its C++ code imports numpy too, and swallows a signal that is raised in
        # there. Half of numpy would be left.
        import numpy  # noqa: F401

        start = decide_on_first(self._find_start, self.config.trainer)
        keep_tracebacks_in(self.path)  # not before it is known to be a run's folder
        if start is not None:
            self._complete(start)
            self.record = None
            self.stopping = False
            self.signal = 0
            self.out_of_patience = False
            self.saved = -1
        return start

    def _find_start(self) -> Origin | None:
        self.folder = self.folder or RunFolder(self.path)
        start = find_origin(self.loaded, self.path, self._resume, self._init_from, print)
        self._complete(start)
        ended = self._ended_by_time(start)
        if start.resume is None or not is_finished(self.config, self.path, start.step, ended):
            return start
        if pointed(self.path, "final.ckpt") != start.resume:  # the budget was lowered
            point(self.path, "final.ckpt", start.resume)
        print(
            f"{self.path} has finished its {start.step:,} steps; a larger budget"
            " (trainer.max_steps, max_tokens, max_epochs, or max_minutes with schedule_by: time) or"
            " patience (early_stopping) lets it go on"
        )
        return None

    def _complete(self, start: Origin) -> None:
        """Take what nobody has written from the checkpoint of a run that goes on."""
        if start.session is not None and start.meta is not None:
            loaded, _ = keep_recorded(self.loaded, start.meta)
            config = loaded.config.with_epochs(start.session.epochs_per_step)
            self.loaded = dataclasses.replace(loaded, config=config)

    def _ended_by_time(self, start: Origin) -> bool:
        """Return whether the deadline ended the run, and is not a later one now."""
        if start.session is None or start.meta is None or not start.session.over:
            return False
        if self.config.optimizer.schedule_by != "time":  # max_minutes limits the session only
            return False
        before, minutes = start.meta.config.trainer.max_minutes, self.config.trainer.max_minutes
        return before is not None and minutes is not None and minutes <= before

    def begin(self, parts: Parts, start: Origin) -> None:
        """Take over the configuration of a session, which knows its steps, and show progress."""
        self.loaded = dataclasses.replace(self.loaded, config=parts.config)
        # A run that goes back to a checkpoint keeps its deadline.
        if self.config.optimizer.schedule_by == "time" and self.deadline is None:
            self.deadline = self._make_deadline(start)
        self.progress = Progress(
            self.config.max_steps,
            start.step,
            enabled=self.folder is not None,
            seconds_left=self.deadline.seconds_left if self.deadline is not None else None,
        )

    def _make_deadline(self, start: Origin) -> Deadline:
        session = start.session
        before = session.time_spent if session is not None else 0.0
        deadline = Deadline(
            self.config,
            self._began,
            lambda line: self.progress.say(line),
            before,
            session.costs if session is not None else None,
        )
        deadline.over = self._ended_by_time(start)
        if session is not None:
            self.say(
                f"optimizer.schedule_by: time: {duration(round(before))} of"
                f" {duration(round(deadline.seconds))} are spent; the learning rate follows the"
                " clock, so the weights are not bit for bit those of an unbroken run"
            )
        return deadline

    def is_over(self, step: int) -> bool:
        """Return whether the run ends after so many updates."""
        over = self.deadline is not None and self.deadline.over
        return over or step == self.config.max_steps

    def measured(self, kind: str) -> AbstractContextManager[None]:
        """Measure what the end of the run will need too: a "save" or a "validation"."""
        return self.deadline.measured(kind) if self.deadline else contextlib.nullcontext()

    def go_back(self, back: GoBack) -> None:
        """Let the next session start from the newest checkpoint.

        Raises:
            NonFiniteError: there is none yet.
        """
        if not step_directories(self.path):
            save_every = self.config.checkpoint.save_every
            raise NonFiniteError(
                f"{back}; but it has none yet: checkpoint.save_every is {save_every}, write a"
                " smaller one"
            ) from None
        self.say(str(back))
        self._resume = "auto"
        self._init_from = None

    def say(self, line: str) -> None:
        """Print a line, on the first process only."""
        if is_first():
            print(line, flush=True)

    def incidents(self, tokenizer: Tokenizer) -> Incidents:
        """Return the run's book of incidents."""
        trainer = self.config.trainer
        return Incidents(
            self.path if self.folder is not None else None,
            tokenizer.decode,
            trainer.on_nonfinite,
            trainer.nonfinite_limit,
            self.progress.say,
        )

    def open_record(self, parts: Parts, start: Origin, decoder: Decoder) -> None:
        """Make the folder ready and open the files of the session, on the first process.

        Raises:
            UserError: the run could not end well. Nothing of an earlier run has been moved.
        """
        from lm.training.record import open_record

        def open_on_first() -> Record:
            assert self.folder is not None
            return open_record(self.folder, parts, start, decoder, self.progress)

        self.record = on_first_process(open_on_first)

    @property
    def logger(self) -> RunLogger | None:
        """The Lightning logger of the session, on the first process."""
        return self.record.logger if self.record is not None else None

    def on_first(self, action: Callable[[Record], Any]) -> None:
        """Let the first process write something. All processes call this, and an error ends them
        all, so that none waits for one that is gone.
        """
        record = self.record
        on_first_process(lambda: action(record) if record is not None else None)

    def finish(self, step: int) -> None:
        """End the session that came to `step`: draw the curves and set final.ckpt if the run is
        complete, else say how to continue it.

        Raises:
            Stopped: a signal ended the session; everything is saved.
        """
        if self.signal:
            raise stopped(self.signal, self.go_on, f" after step {step:,}, saved")
        if self.is_over(step) or self.out_of_patience:
            if self.record is not None:
                self.record.complete(step, self.progress)
            return
        minutes = self.config.trainer.max_minutes
        best = pointed(self.path, "best.ckpt")
        self.progress.say(
            f"the time limit of {minutes:g} minutes is reached: saved at step {step:,} as"
            f" {self.path / 'last.ckpt'}{'' if best else ' (no validation yet, so no best.ckpt)'};"
            f" {self.go_on}"
        )
