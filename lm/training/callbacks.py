"""The callbacks of a run, one job each. `Compile` acts once, before the first step. The others act
after each step, in this order:

    DecideStop       a signal or the time limit, on any process?
    LogMetrics       loss, learning rate and speed
    SaveCheckpoint   before anything else is done with the weights: an evaluation that fails must
                     not cost the run
    Validate         score the weights, and let them write a sample
    EarlyStopping    was that the last validation worth waiting for?
    EndStep          the next step may begin

train.py lists all of them in their order. None derives from Lightning's `Checkpoint`: Lightning
moves those behind all others. They share the attributes of `Run`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import Callback, Trainer

from lm.checkpoints.folder import step_name
from lm.checkpoints.train_state import begin_shards
from lm.evaluation.validation import Evaluation, evaluate
from lm.generation.continuation import write
from lm.generation.prompt import open_prompt
from lm.generation.sampling import Sampling
from lm.runs.incidents import GoBack
from lm.surgery.compilation import compile_if_wanted
from lm.surgery.fsdp import ForSampling, meet
from lm.system.errors import Stopped, first_line, is_lost_process, write_traceback
from lm.training.forecast import inside_warmup
from lm.training.launch import Run
from lm.training.module import LanguageModel
from lm.training.parts import Parts
from lm.training.processes import on_first_process
from model import Decoder

Result = TypeVar("Result")
MEASURED_STEPS = 5  # that foresee where a time limit ends


class RunCallback(Callback):
    """A callback that shares the state of `run` with the others."""

    def __init__(self, run: Run):
        self.run = run


class Compile(RunCallback):
    """Compiles the decoder, as `trainer.compile` says."""

    def on_fit_start(self, trainer: Trainer, module: LanguageModel) -> None:
        """Compile, and try the result."""
        compile_if_wanted(
            module.decoder,
            self.run.config,
            module.device,
            trainer.precision_plugin.forward_context,
            module.objective.per_token,
            self.run.progress.say,
        )


class DecideStop(RunCallback):
    """Decides after each step whether the session ends here. All processes decide the same.

    It also foresees a time limit inside the warm-up, from the first steps of the session.
    """

    def __init__(self, run: Run):
        super().__init__(run)
        self._first: tuple[int, float] | None = None  # the first step that was done, and its time

    def on_train_start(self, trainer: Trainer, module: LanguageModel) -> None:
        """Take the signals back: Lightning has put its own handlers in place."""
        signals = self.run.signals
        signals.install()
        if (deadline := self.run.deadline) is not None:
            if deadline.over:  # a kill came before the last validation or picture
                trainer.should_stop = True
            else:
                on_first_process(deadline.require_time)
        if trainer.world_size > 1:
            signals.deferred = True  # several processes agree to stop, after a step
        else:
            signals.raise_deferred()  # a run that has gone back to a checkpoint is still in it

    def on_train_batch_start(self, trainer: Trainer, module: LanguageModel, *_: Any) -> None:
        """Note signals from here on, instead of raising: no step is left half done."""
        self.run.signals.deferred = True

    def on_train_batch_end(self, trainer: Trainer, module: LanguageModel, *_: Any) -> None:
        """Stop after a signal or at the time limit; the last step of a run needs no limit."""
        run, minutes = self.run, self.run.config.trainer.max_minutes
        if run.deadline is not None:
            run.deadline.end_step()
        now = time.monotonic()
        # A deadline is the end of the run, not only of this session.
        over = minutes is not None and run.deadline is None and now >= run.started + 60 * minutes
        if minutes is not None:
            self._foresee(module.step, now, run.started + 60 * minutes)
        run.signal = run.signals.requested
        if trainer.world_size > 1:
            wishes = torch.tensor([run.signal, int(over)], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(wishes, op=torch.distributed.ReduceOp.MAX)
            run.signal, over = int(wishes[0]), bool(wishes[1])
        run.stopping = bool(run.signal) or (over and not run.is_over(module.step))
        trainer.should_stop = run.stopping or run.is_over(module.step)

    def _foresee(self, step: int, now: float, end: float) -> None:
        if self._first is None:
            self._first = step, now  # the first step includes loading and compiling
        first, since = self._first
        if step == first + MEASURED_STEPS:
            last_step = step + int((end - now) / (now - since) * MEASURED_STEPS)
            if warning := inside_warmup(self.run.config, last_step):
                self.run.progress.say(warning)


class LogMetrics(RunCallback):
    """Logs a training step every `logging.every` steps, and the last one."""

    def on_train_batch_end(self, trainer: Trainer, module: LanguageModel, *_: Any) -> None:
        """Log, outside of the training time."""
        config = self.run.config
        step = module.step
        figures = None
        if step % config.logging.every == 0 or self.run.is_over(step):
            figures = {  # .item() waits for the device, which is training time
                "loss": module.loss.item(),
                "lr": module.used_learning_rate,
                "grad_norm": module.grad_norm.item(),
            }
        if self.run.record is not None:
            self.run.record.logger.stopwatch.pause()
        if figures is not None:
            self.run.on_first(lambda record: record.logger.log_metrics(figures, step))


class SaveCheckpoint(RunCallback):
    """Writes a checkpoint every `checkpoint.save_every` steps, at each validation, and at the end
    of the session.
    """

    def on_fit_start(self, trainer: Trainer, module: LanguageModel) -> None:
        """Nothing is to be saved yet: the start is a checkpoint, or it is step 0."""
        self.run.saved = module.step

    def on_train_batch_end(self, trainer: Trainer, module: LanguageModel, *_: Any) -> None:
        """Save if it is time to."""
        config, step, stopping = self.run.config, module.step, self.run.stopping
        if (
            stopping
            or validation_is_due(self.run, step)
            or step % config.checkpoint.save_every == 0
        ):
            self._save(module)

    def on_exception(
        self, trainer: Trainer, module: LanguageModel, exception: BaseException
    ) -> None:
        """Save a step that was done when a signal came while the run waited for data."""
        unsaved = module.step > self.run.saved >= 0
        if isinstance(exception, Stopped) and trainer.world_size == 1 and unsaved:
            self.run.signals.deferred = True
            self._save(module)

    def on_fit_end(self, trainer: Trainer, module: LanguageModel) -> None:
        """Delete checkpoints once more: best.ckpt may have moved on since the last one, and a kill
        may have come between a save and the deletion.
        """
        if self.run.record is not None:
            self.run.record.retain()

    def _save(self, module: LanguageModel) -> None:
        begun = None
        with self.run.measured("save"):
            if module.sharded:  # each process writes its own part
                optimizer = module.optimizers(use_pl_optimizer=False)
                path = self.run.path / step_name(module.step)
                begun = begin_shards(path, module.decoder, optimizer, module.average)
            self.run.on_first(lambda record: record.save(module, begun))
        self.run.saved = module.step


class Validate(RunCallback):
    """Scores the weights on the validation split, and lets them write a sample.

    The averaged weights are judged where the run keeps them. A failure is logged, and the run goes
    on. A signal ends the validation, and the resumed run begins with it.
    """

    def __init__(self, run: Run, parts: Parts):
        super().__init__(run)
        self.parts = parts

    def on_fit_start(self, trainer: Trainer, module: LanguageModel) -> None:
        """Validate where the run starts, unless the result is recorded already."""
        record, step = self.run.record, module.step
        if validation_is_due(self.run, step):
            known = record is not None and record.folder.is_validated(step)
            if not trainer.strategy.broadcast(known):
                with self.run.measured("validation"):
                    self._validate(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: LanguageModel, *_: Any) -> None:
        """Validate every `trainer.validate_every` steps. A stop leaves it to the resumed run."""
        if validation_is_due(self.run, module.step) and not self.run.stopping:
            with self.run.measured("validation"):
                self._validate(trainer, module)
            if self.run.signal:
                trainer.should_stop = True

    def _validate(self, trainer: Trainer, module: LanguageModel) -> None:
        run, started = self.run, time.perf_counter()
        alone = trainer.world_size == 1  # several score to the end, or some would wait for others
        decoder, average = module.decoder, module.average
        judged = average.swapped_in(decoder) if average else contextlib.nullcontext()
        with judged, trainer.precision_plugin.forward_context():
            result = self._attempt("validation", module, lambda: self._score(decoder, alone))
            if alone and run.signals.requested:
                run.signal = run.signals.requested
                return
            sample = None
            if run.record is not None or module.sharded:  # a sharded one takes all processes
                sample = self._attempt("the sample", module, lambda: self._sample(decoder, module))
        seconds = time.perf_counter() - started
        if result is not None:
            run.on_first(lambda record: record.validation(module.step, result, sample, seconds))

    def _score(self, decoder: Decoder, alone: bool) -> Evaluation:
        parts, signals = self.parts, self.run.signals
        batches = itertools.takewhile(
            lambda _: not (alone and signals.requested), parts.data.val_dataloader()
        )
        return evaluate(
            decoder,
            batches,
            parts.data.text_bytes,
            parts.objective,
            parts.data.validation_sources,
        )

    def _sample(self, decoder: Decoder, module: LanguageModel) -> str | None:
        """Return a text from the same random numbers each time: only the weights differ."""
        settings, tokenizer = self.run.config.logging, self.parts.tokenizer
        if settings.sample_tokens == 0:
            return None
        device = next(decoder.parameters()).device
        generator = torch.Generator(device).manual_seed(self.run.config.trainer.seed)
        *_, [sample] = write(
            cast("Decoder", ForSampling(decoder)) if module.sharded else decoder,
            tokenizer,
            open_prompt(tokenizer, settings.sample_prompt),
            Sampling(temperature=settings.sample_temperature),
            settings.sample_tokens,
            generator,
        )
        return settings.sample_prompt + sample.text

    def _attempt(
        self, name: str, module: LanguageModel, action: Callable[[], Result]
    ) -> Result | None:
        """Return the result of `action`, or None after an error, which is logged."""
        result, problem = None, None
        try:
            result = action()
        except Exception as error:  # no evaluation is worth a run, whatever goes wrong in it
            if is_lost_process(error):
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            self.run.progress.say(
                f"{name} failed, and the run goes on without: {reason} (the traceback is in"
                f" {write_traceback()})"
            )
            problem = error
        if module.sharded:
            meet(problem)
        return result


class EarlyStopping(RunCallback):
    """Ends the run when `trainer.early_stopping` validations in a row brought no lower loss.

    It reads the recorded validations: a counter would have to be resumed exactly.
    """

    def on_fit_start(self, trainer: Trainer, module: LanguageModel) -> None:
        """End a run that was killed when its patience had just ended."""
        self._decide(trainer)

    def on_train_batch_end(self, trainer: Trainer, module: LanguageModel, *_: Any) -> None:
        """Decide after each validation."""
        if validation_is_due(self.run, module.step) and not trainer.should_stop:
            self._decide(trainer)

    def _decide(self, trainer: Trainer) -> None:
        run, patience = self.run, self.run.config.trainer.early_stopping
        if patience is not None:
            over = (
                run.record is not None
                and run.record.folder.validations_without_progress() >= patience
            )
            run.out_of_patience = bool(trainer.strategy.broadcast(over))
            trainer.should_stop = run.out_of_patience


class EndStep(RunCallback):
    """Lets the next step begin: shows the progress, and lets training time and signals go on."""

    def on_train_start(self, trainer: Trainer, module: LanguageModel) -> None:
        """Begin to count training time."""
        self._count_time()

    def on_train_batch_end(self, trainer: Trainer, module: LanguageModel, *_: Any) -> None:
        """Nothing is half done any more."""
        self.run.progress.advance(module.step, last=self.run.is_over(module.step))
        self._count_time()
        if trainer.world_size == 1 and not trainer.should_stop:
            self.run.signals.raise_deferred()

    def on_exception(
        self, trainer: Trainer, module: LanguageModel, exception: BaseException
    ) -> None:
        """Close the display: the next session opens its own."""
        if isinstance(exception, GoBack):
            self.run.progress.close()

    def on_fit_end(self, trainer: Trainer, module: LanguageModel) -> None:
        """Leave the display as it is."""
        self.run.progress.close()

    def _count_time(self) -> None:
        if self.run.record is not None:
            self.run.record.logger.stopwatch.go()


def validation_is_due(run: Run, step: int) -> bool:
    """Return whether the weights after `step` updates are validated."""
    return step % run.config.trainer.validate_every == 0 or run.is_over(step)
