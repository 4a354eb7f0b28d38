"""What happens between two optimiser steps, in this order: log, save, validate, sample, stop.

A checkpoint is on the disk before anything else is done with its weights: an evaluation that fails
costs an evaluation, not a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from lm.checkpoints.folder import (
    Begun,
    point,
    read_manifest,
    retain,
    step_name,
    write_checkpoint,
    write_json,
)
from lm.config.schema.config import Config
from lm.evaluation.validation import Evaluation
from lm.runs.folder import RunFolder
from lm.runs.incidents import GoBack
from lm.runs.results import RecordedValidation, validations_without_progress
from lm.surgery.compilation import compile_if_wanted
from lm.surgery.fsdp import meet
from lm.system.disk import require_room
from lm.system.errors import Stopped, is_lost_process, write_traceback
from lm.system.progress import Progress
from lm.system.signals import StopSignals
from lm.training.logger import Logbook
from lm.training.module import LanguageModel
from lm.training.processes import first_does

Result = TypeVar("Result")


@dataclass(frozen=True)
class Record:
    """Where a run is written down; only its first process has one."""

    folder: RunFolder
    logbook: Logbook
    meta: dict[str, Any]  # the part of meta.json that stays the same
    tokenizer_definition: str
    checkpoint_bytes: int  # what one takes on the disk


class Milestones(Callback):
    """The one callback of a run: it logs, saves, validates and stops.

    Args:
        config: the run's configuration.
        score: scores a decoder on the validation text, or gives up when the second argument says
            so; called on every process at once.
        write: lets a decoder write a sample, or returns None; called on the first process, or on
            all if the model is shared out.
        signals: what has asked this process to stop.
        progress: the display.
        record: None on all processes but the first.

    Attributes:
        signal: the number of the signal that stopped the run, or 0.
        finished: the run reached its end: its budget, or early stopping's patience.
    """

    def __init__(
        self,
        config: Config,
        score: Callable[[nn.Module, Callable[[], bool]], Evaluation],
        write: Callable[[nn.Module], str | None],
        signals: StopSignals,
        progress: Progress,
        record: Record | None,
    ):
        self.config = config
        self.score = score
        self.write = write
        self.signals = signals
        self.progress = progress
        self.record = record
        self.signal = 0
        self.finished = False
        self._saved = -1  # the step of the newest checkpoint that this session wrote
        self._deadline = (
            signals.since + 60 * config.trainer.max_minutes if config.trainer.max_minutes else None
        )

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Compile, and validate where the run starts, unless a resumed one has that result already."""
        assert isinstance(pl_module, LanguageModel)
        pl_module.incidents.recall(pl_module.step, trainer.strategy.broadcast)
        compile_if_wanted(
            pl_module.decoder,
            self.config,
            pl_module.device,
            trainer.precision_plugin.forward_context,
            self.progress.say,
        )
        step = pl_module.step
        self._saved = step  # where it comes from is on the disk, or it is step 0
        due = step % self.config.trainer.validate_every == 0 or step == self.config.max_steps
        known = self.record is not None and any(
            line.step == step for line in self.record.folder.evaluations()
        )
        if due and not trainer.strategy.broadcast(known):
            self._validate(trainer, pl_module)
        # a run that was killed when this had just been found out
        trainer.should_stop = self._patience_is_over(trainer)

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Take the signals over again: Lightning has put its own handlers in place after
        on_fit_start.
        """
        self.signals.take()
        if trainer.world_size > 1:
            # several processes must agree to stop, which they do after a step
            self.signals.sheltered = True
        else:
            self.signals.leave_shelter()  # in which a run is that has gone back to a checkpoint
        if self.record is not None:
            self.record.logbook.stopwatch.go()

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """A step is done whole."""
        self.signals.sheltered = True

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Step k is done."""
        assert isinstance(pl_module, LanguageModel)
        step, intervals = pl_module.step, self.config.trainer
        last = step == self.config.max_steps
        # past the time limit, the last step still ends the run
        stopping = self._must_stop(trainer) and (bool(self.signal) or not last)
        validating = last or step % intervals.validate_every == 0
        due = last or step % self.config.logging.every == 0
        # waits for the device
        figures = (
            (pl_module.loss.item(), pl_module.used_learning_rate, pl_module.grad_norm.item())
            if due
            else None
        )
        if self.record is not None:
            self.record.logbook.stopwatch.pause()
        if figures is not None:
            self._on_first(lambda record: record.logbook.training(step, *figures))
        if last or stopping or validating or step % self.config.checkpoint.save_every == 0:
            self._save(pl_module)
        if validating and not stopping:  # what a stop leaves out, the resumed run does first
            self._validate(trainer, pl_module)
        trainer.should_stop = (
            stopping or bool(self.signal) or (validating and self._patience_is_over(trainer))
        )
        self.progress.advance(step)
        if self.record is not None:
            self.record.logbook.stopwatch.go()
        if trainer.world_size == 1 and not trainer.should_stop:
            self.signals.leave_shelter()

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        """Save a step that was done when a signal came while the run waited for data. Close what
        another session opens anew.
        """
        assert isinstance(pl_module, LanguageModel)
        if (
            isinstance(exception, Stopped)
            and trainer.world_size == 1
            and pl_module.step > self._saved >= 0
        ):
            self.signals.sheltered = True
            self._save(pl_module)
        elif isinstance(exception, GoBack):
            self._close_books()

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Find out whether this was the end, and close the books."""
        assert isinstance(pl_module, LanguageModel)
        # After a signal the last validation is still to be done: the resumed run does that, and
        # then it is finished.
        self.finished = not self.signal and (
            pl_module.step == self.config.max_steps or self._patience_is_over(trainer)
        )
        if self.record is not None:
            # best may have moved on; and a kill may have come before the last
            retain(self.record.folder.path, self.config.checkpoint.keep)
        self._close_books()

    def _close_books(self) -> None:
        if self.record is not None:
            self.record.logbook.close()
        self.progress.close()

    def _on_first(self, action: Callable[[Record], None]) -> None:
        """Let the first process write something. What it cannot write ends all before any waits for
        it: a full disk leaves none hanging.
        """
        record = self.record
        first_does(lambda: action(record) if record is not None else None)

    def _save(self, module: LanguageModel) -> None:
        begun = module.write_shards(Path(self.config.checkpoint.directory) / step_name(module.step))
        self._on_first(lambda record: self._write_checkpoint(record, module, begun))
        self._saved = module.step

    def _write_checkpoint(self, record: Record, module: LanguageModel, begun: Begun | None) -> None:
        step, loss = module.step, module.loss.item()
        meta = record.meta | {
            "step": step,
            "epoch": step * record.meta["epochs_per_step"],
            "tokens": step * self.config.tokens_per_step,
            "seconds": record.logbook.stopwatch.seconds,
            "train_loss": loss if math.isfinite(loss) else None,  # None: the step was left out
            "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        writers = module.writers() | {
            "tokenizer.json": lambda path: path.write_text(
                record.tokenizer_definition, encoding="utf-8"
            ),
            "meta.json": lambda path: write_json(path, meta),
        }
        folder = record.folder.path
        record.logbook.sync()  # a run that goes on from here does not write these rows again
        write_checkpoint(folder / step_name(step), writers, record.checkpoint_bytes, begun)
        point(folder, "last.ckpt", folder / step_name(step))
        retain(folder, self.config.checkpoint.keep)
        if step < self.config.max_steps:
            require_room(
                folder,
                record.checkpoint_bytes,
                f"saved at step {step:,}, and stopped before the disk is full",
            )

    def _validate(self, trainer: lightning.Trainer, module: LanguageModel) -> None:
        """Score the weights and let them write; what fails in that is said, and the run goes on
        without. A signal cuts it short.
        """
        # several processes score to the end, or some would wait for the others' share
        alone = trainer.world_size == 1
        started = time.perf_counter()
        with module.averaged() as decoder, trainer.precision_plugin.forward_context():
            result = self._attempt(
                "validation",
                module,
                lambda: self.score(decoder, lambda: alone and bool(self.signals.requested)),
            )
            if alone and self.signals.requested:
                self.signal = self.signals.requested
                return
            # shared out, it takes all processes to write
            writing = self.record is not None or module.sharded
            sample = (
                self._attempt("the sample", module, lambda: self.write(decoder))
                if writing
                else None
            )
        seconds = time.perf_counter() - started
        if result is None:
            return

        def record_result(record: Record) -> None:
            checkpoint = record.folder.path / step_name(module.step)
            manifest = read_manifest(checkpoint)["sha256"] if checkpoint.exists() else None
            loss, perplexity, sources = result.loss, result.perplexity, result.figures_by_source
            record.logbook.validation(module.step, result, sample)
            line = RecordedValidation(
                module.step,
                manifest,
                loss,
                perplexity,
                result.bits_per_byte,
                result.tokens,
                seconds,
                sample,
                sources,
            )
            # last: a validation without this line was none, and a resumed run does it again
            record.folder.record(line)

        self._on_first(record_result)

    def _attempt(
        self, what: str, module: LanguageModel, action: Callable[[], Result]
    ) -> Result | None:
        result, problem = None, None
        try:
            result = action()
        except Exception as error:  # an evaluation is not worth a run, whatever goes wrong in it
            if is_lost_process(error):
                raise
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            self.progress.say(
                f"{what} failed, and the run goes on without: {said} (the traceback is in"
                f" {write_traceback()})"
            )
            problem = error
        if module.sharded:
            meet(problem)
        return result

    def _patience_is_over(self, trainer: lightning.Trainer) -> bool:
        """Read from the recorded validations: there is no counter that a resumed run could have
        wrong.
        """
        patience = self.config.trainer.early_stopping
        if patience is None:
            return False
        over = (
            self.record is not None
            and validations_without_progress(self.record.folder.evaluations()) >= patience
        )
        return bool(trainer.strategy.broadcast(over))

    def _must_stop(self, trainer: lightning.Trainer) -> bool:
        """A signal or the time limit, on any process; all of them stop after the same step."""
        out_of_time = self._deadline is not None and time.monotonic() >= self._deadline
        self.signal = self.signals.requested
        if trainer.world_size > 1:
            wishes = torch.tensor(
                [self.signal, int(out_of_time)], device=trainer.strategy.root_device
            )
            torch.distributed.all_reduce(wishes, op=torch.distributed.ReduceOp.MAX)
            self.signal, out_of_time = int(wishes[0]), bool(wishes[1])
        return bool(self.signal) or out_of_time
