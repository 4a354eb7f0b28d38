"""What happens between two optimiser steps, in this order: log, save, validate, sample, stop.

A checkpoint is on the disk before anything else is done with its weights: an evaluation that fails costs an evaluation, not a run.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from lm.checkpoint import point, read_manifest, retain, step_name, write_checkpoint, write_json
from lm.checkpoint_files import Begun
from lm.errors import UserError
from lm.evaluation import Evaluation
from lm.logbook import Logbook
from lm.progress import Progress
from lm.run import Evaluated, RunFolder, validations_without_progress
from lm.schema import Config
from lm.training import LanguageModel

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Record:
    """Where a run is written down; only its first process has one."""

    folder: RunFolder
    logbook: Logbook
    meta: dict[str, Any]  # the part of meta.json that stays the same
    tokenizer_definition: str


class Milestones(Callback):
    """The one callback of a run: it logs, saves, validates and stops.

    Args:
        config: the run's configuration.
        score: scores a decoder on the validation text; called on every process at once.
        write: lets a decoder write a sample, or returns None; called on the first process, or on all if the model is shared out.
        progress: the display.
        record: None on all processes but the first.

    Attributes:
        signal: the number of the signal that stopped the run, or 0.
        finished: the run reached its end: its budget, or early stopping's patience.
    """

    def __init__(
        self,
        config: Config,
        score: Callable[[nn.Module], Evaluation],
        write: Callable[[nn.Module], str | None],
        progress: Progress,
        record: Record | None,
    ):
        self.config = config
        self.score = score
        self.write = write
        self.progress = progress
        self.record = record
        self.signal = 0
        self.finished = False
        self._requested = 0  # by a signal that this process got; `signal` is what all processes have agreed on
        self._deadline = time.monotonic() + 60 * config.trainer.max_minutes if config.trainer.max_minutes else None
        self._first_handlers: dict[int, Any] = {}
        self._handlers: dict[int, Any] = {}

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take over the signals, compile, and validate where the run starts, unless a resumed one has that result already."""
        assert isinstance(pl_module, LanguageModel)
        self._first_handlers = self._take_signals()
        pl_module.compile_decoder()
        step = pl_module.step
        due = step % self.config.trainer.validate_every == 0 or step == self.config.max_steps
        known = self.record is not None and any(line.step == step for line in self.record.folder.evaluations())
        if due and not trainer.strategy.broadcast(known):
            self._validate(trainer, pl_module)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the signals over again, because Lightning puts its own handlers in place after on_fit_start."""
        self._handlers = self._take_signals()
        if self.record is not None:
            self.record.logbook.stopwatch.go()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Step k is done."""
        assert isinstance(pl_module, LanguageModel)
        step, intervals = pl_module.step, self.config.trainer
        last = step == self.config.max_steps
        stopping = self._must_stop(trainer) and (bool(self.signal) or not last)  # past the time limit, the last step still ends the run
        validating = last or step % intervals.validate_every == 0
        due = last or step % self.config.logging.every == 0
        figures = (pl_module.loss.item(), pl_module.used_learning_rate, pl_module.grad_norm.item()) if due else None  # waits for the device
        if self.record is not None:
            self.record.logbook.stopwatch.pause()
        if figures is not None:
            self._on_first(trainer, lambda record: record.logbook.training(step, *figures))
        if last or stopping or validating or step % self.config.checkpoint.save_every == 0:
            begun = pl_module.write_shards(Path(self.config.checkpoint.directory) / step_name(step))
            self._on_first(trainer, lambda record: self._write_checkpoint(record, pl_module, begun))
        if validating and not stopping:  # what a stop leaves out, the resumed run does first
            self._validate(trainer, pl_module)
        trainer.should_stop = stopping or (validating and self._patience_is_over(trainer))
        self.progress.advance(step)
        if self.record is not None:
            self.record.logbook.stopwatch.go()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Give the signals back to Lightning, which gives them back to us."""
        _restore(self._handlers)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Give the end its name."""
        assert isinstance(pl_module, LanguageModel)
        _restore(self._first_handlers)
        # After a signal the last validation is still to be done: the resumed run does that, and then it is finished.
        self.finished = not self.signal and (pl_module.step == self.config.max_steps or self._patience_is_over(trainer))
        if self.record is not None:
            if self.finished:
                point(self.record.folder.path, "final.ckpt", self.record.folder.path / step_name(pl_module.step))
            self.record.logbook.close()
        self.progress.close()

    def _on_first(self, trainer: lightning.Trainer, action: Callable[[Record], None]) -> None:
        """Let the first process write something. What it cannot write is told to all before any of them waits: a full disk must not
        leave the others hanging.
        """
        problem = None
        if self.record is not None:
            try:
                action(self.record)
            except UserError as error:
                problem = error
        if problem := trainer.strategy.broadcast(problem):
            raise problem

    def _write_checkpoint(self, record: Record, module: LanguageModel, begun: Begun | None) -> None:
        step = module.step
        meta = record.meta | {
            "step": step,
            "epoch": step * record.meta["epochs_per_step"],
            "tokens": step * self.config.tokens_per_step,
            "seconds": record.logbook.stopwatch.seconds,
            "train_loss": module.loss.item(),
            "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        writers = module.writers() | {
            "tokenizer.json": lambda path: path.write_text(record.tokenizer_definition, encoding="utf-8"),
            "meta.json": lambda path: write_json(path, meta),
        }
        folder = record.folder.path
        write_checkpoint(folder / step_name(step), writers, begun)
        point(folder, "last.ckpt", folder / step_name(step))
        retain(folder, self.config.checkpoint.keep)

    def _validate(self, trainer: lightning.Trainer, module: LanguageModel) -> None:
        started = time.perf_counter()
        with module.averaged() as decoder, trainer.precision_plugin.forward_context():
            result = self.score(decoder)
            sample = self._sample(decoder) if self.record is not None or module.sharded else None  # shared out, it takes all to write
        seconds = time.perf_counter() - started

        def record_result(record: Record) -> None:
            checkpoint = record.folder.path / step_name(module.step)
            manifest = read_manifest(checkpoint)["sha256"] if checkpoint.exists() else None
            perplexity, tokens = result.perplexity, result.tokens
            record.folder.record(Evaluated(module.step, manifest, result.loss, perplexity, result.bits_per_byte, tokens, seconds, sample))
            record.logbook.validation(module.step, result, sample)

        self._on_first(trainer, record_result)

    def _sample(self, decoder: nn.Module) -> str | None:
        try:
            return self.write(decoder)
        except UserError as error:
            self.progress.say(f"no sample: {error}")
            return None

    def _patience_is_over(self, trainer: lightning.Trainer) -> bool:
        """Read from the recorded validations: there is no counter that a resumed run could have wrong."""
        patience = self.config.trainer.early_stopping
        if patience is None:
            return False
        over = self.record is not None and validations_without_progress(self.record.folder.evaluations()) >= patience
        return bool(trainer.strategy.broadcast(over))

    def _must_stop(self, trainer: lightning.Trainer) -> bool:
        """A signal or the time limit, on any process; all of them stop after the same step."""
        out_of_time = self._deadline is not None and time.monotonic() >= self._deadline
        self.signal = self._requested
        if trainer.world_size > 1:
            wishes = torch.tensor([self._requested, int(out_of_time)], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(wishes, op=torch.distributed.ReduceOp.MAX)
            self.signal, out_of_time = int(wishes[0]), bool(wishes[1])
        return bool(self.signal) or out_of_time

    def _take_signals(self) -> dict[int, Any]:
        return {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number == signal.SIGINT:
            os._exit(128 + number)  # a second Ctrl-C means now; the checkpoints on the disk are whole at every moment
        self._requested = number
        if self.record is not None:
            # Through os.write: what is interrupted here may be a print, which must not be entered again.
            os.write(2, f"\n{signal.Signals(number).name}: finishing this step and saving (Ctrl-C again stops at once)\n".encode())


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
