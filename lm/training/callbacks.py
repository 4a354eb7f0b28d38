"""The callbacks of a run, one job each. `ChooseRows` and `Compile` act once, before the first step.
The others act after each step, in this order:

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
import functools
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
from lm.runs.origin import Origin
from lm.surgery.compilation import try_to_compile
from lm.surgery.fsdp import ForSampling, meet
from lm.system.errors import Stopped, first_line, is_lost_process, write_traceback
from lm.training.compiling import pays_off
from lm.training.forecast import Forecast, inside_warmup
from lm.training.launch import Run
from lm.training.module import LanguageModel
from lm.training.parts import Parts
from lm.training.processes import on_first_process
from lm.training.rows_at_once import Fitting, divisors, one_row_is_too_much, split
from model import Decoder

Result = TypeVar("Result")
MEASURED_STEPS = 5  # that foresee where a time limit ends


class RunCallback(Callback):
    """A callback that shares the state of `run` with the others."""

    def __init__(self, run: Run):
        self.run = run


class ChooseRows(RunCallback):
    """Sets how many rows are computed at once, as `trainer.micro_batch_size` says.

    A run that goes on keeps the number of its checkpoint, so that its sums have the same bits on
    another device. A new value of the key replaces it.
    """

    def __init__(self, run: Run, parts: Parts, start: Origin):
        super().__init__(run)
        self.parts = parts
        self.start = start

    def on_fit_start(self, trainer: Trainer, module: LanguageModel) -> None:
        """Set it, the same on all processes."""
        settings, say = self.run.config.trainer, self.run.progress.say
        dealt = settings.micro_batch
        if recorded := self._recorded():
            # Other processes may be dealt fewer rows.
            module.rows_at_once = max(n for n in divisors(dealt) if n <= recorded)
            if module.rows_at_once < dealt:
                say(f"kept from the checkpoint: {module.rows_at_once} of {dealt} rows at once")
        elif settings.micro_batch_size == "auto":
            module.rows_at_once = self._fitting(module, trainer)
            say(f"trainer.micro_batch_size: auto: {module.rows_at_once} of {dealt} rows at once")

    def _recorded(self) -> int | None:
        session, meta = self.start.session, self.start.meta
        if session is None or meta is None:
            return None
        before = meta.config.trainer.micro_batch_size
        return session.rows_at_once if before == self.run.config.trainer.micro_batch_size else None

    def _fitting(self, module: LanguageModel, trainer: Trainer) -> int:
        config, parts = self.run.config, self.parts
        forecast = Forecast(config, module.decoder, parts.device, parts.precision, 0)
        begun = bool(module.optimizers(use_pl_optimizer=False).state)
        fitting = Fitting(forecast, parts.objective, 0 if begun else forecast.footprint.optimizer)
        rows = torch.tensor(fitting.rows(), device=module.device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(rows, op=torch.distributed.ReduceOp.MIN)
        if not rows:
            raise one_row_is_too_much(module.global_rank, "as tried before the first step")
        return int(rows)


class Compile(RunCallback):
    """Compiles the decoder, as `trainer.compile` says.

    With `auto`, a run that goes on stays as it was: dropout draws other numbers in compiled code,
    and sums have other last bits.
    """

    def __init__(self, run: Run, parts: Parts, start: Origin):
        super().__init__(run)
        self.parts = parts
        self.session = start.session

    def on_fit_start(self, trainer: Trainer, module: LanguageModel) -> None:
        """Compile, and try the result."""
        setting, say = self.run.config.trainer.compile, self.run.progress.say
        if setting == "off" or (setting == "auto" and not self._by_rule(module)):
            return
        if setting == "auto":
            say("trainer.compile: auto: compiling, since the run is long enough to gain from it")
        try_to_compile(
            module.decoder,
            self.run.config,
            module.rows_at_once,
            module.device,
            trainer.precision_plugin.forward_context,
            module.objective.per_token,
            say,
        )

    def _by_rule(self, module: LanguageModel) -> bool:
        if self.session is None:
            return pays_off(self.run.config, module.decoder, self.parts.device)
        # None: an older checkpoint, whose auto compiled on CUDA only
        compiled = self.session.compiled
        return self.parts.device == "cuda" if compiled is None else compiled


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
            if self.run.is_over(module.step):  # a kill came before the last validation or picture
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
            score = functools.partial(self._score, decoder, module.rows_at_once, alone)
            result = self._attempt("validation", module, score)
            if alone and run.signals.requested:
                run.signal = run.signals.requested
                return
            sample = None
            if run.record is not None or module.sharded:  # a sharded one takes all processes
                sample = self._attempt("the sample", module, lambda: self._sample(decoder, module))
        seconds = time.perf_counter() - started
        if result is not None:
            run.on_first(lambda record: record.validation(module.step, result, sample, seconds))

    def _score(self, decoder: Decoder, rows_at_once: int, alone: bool) -> Evaluation:
        parts, signals = self.parts, self.run.signals
        pieces = (
            piece for batch in parts.data.val_dataloader() for piece in split(batch, rows_at_once)
        )
        return evaluate(
            decoder,
            itertools.takewhile(lambda _: not (alone and signals.requested), pieces),
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
