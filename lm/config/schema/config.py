"""`Config`: all sections of a run, and the checks between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from lm.config.schema.checkpoint import CheckpointConfig
from lm.config.schema.data import DataConfig
from lm.config.schema.finetune import FinetuneConfig
from lm.config.schema.logging import LoggingConfig
from lm.config.schema.model import ModelConfig
from lm.config.schema.optimizer import OptimizerConfig
from lm.config.schema.section import Section
from lm.config.schema.source import MixtureSource, is_streamed
from lm.config.schema.tokenizer import TokenizerConfig
from lm.config.schema.trainer import LENGTHS, TrainerConfig
from lm.system.errors import ConfigError

UNLIMITED = 2**40  # steps; the clock ends the run long before


class Config(Section):
    """The configuration of one training run."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="The decoder's shape.")
    tokenizer: TokenizerConfig = Field(
        default_factory=TokenizerConfig, description="How text becomes token ids."
    )
    data: DataConfig = Field(description="Where the text comes from and how it becomes rows.")
    optimizer: OptimizerConfig = Field(
        default_factory=OptimizerConfig, description="The optimiser and its learning-rate schedule."
    )
    trainer: TrainerConfig = Field(
        description="Budget, batch, device and intervals. Intervals count optimiser steps."
    )
    checkpoint: CheckpointConfig = Field(
        default_factory=CheckpointConfig,
        description="Where and how often the run is saved, and what is kept.",
    )
    logging: LoggingConfig = Field(
        default_factory=LoggingConfig, description="Logging during the run."
    )
    finetune: FinetuneConfig | None = Field(
        None, description="How finetune.py trains a base checkpoint. null: a run of train.py."
    )
    # The text alone knows it: `with_epochs` sets it, and it is never stored.
    _epochs_per_step: float | None = None

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between sections. Each line begins with its key."""
        yield from self._finetune_problems()
        if self.finetune is not None and self.model.vocab_size is None:
            return  # the rest is checked after the base has set the model's shape
        row = self.data.sequence_length
        if row is not None and row > self.model.context_length:
            yield (
                f"data.sequence_length {row} is longer than model.context_length"
                f" {self.model.context_length}; make the rows shorter or the context longer"
            )
        if (
            self.trainer.validation_rows is None
            and self.data.validation is None
            and self.data.streams
        ):
            yield (
                "trainer.validation_rows null means the whole validation split, but a streamed text"
                " has no end; write how many rows"
            )
        head_lr = self.optimizer.head_lr
        if head_lr is not None and self.model.tie_embeddings:
            yield (
                f"optimizer.head_lr {head_lr:g}: with model.tie_embeddings the head is the"
                " embedding's matrix; write optimizer.embedding_lr instead"
            )
        if self.trainer.max_epochs is not None and self.data.streams:
            yield (
                f"trainer.max_epochs {self.trainer.max_epochs:g} counts passes over the text, and a"
                " streamed text has no end; write trainer.max_steps or max_tokens instead"
            )
        for key, part in self.data.parts:
            if is_streamed(part.source):
                yield from self._window_problems(key, part.source.window_tokens, part.weight)
        stride = self.data.stride
        if stride is not None and stride > self.row_length:
            yield (
                f"data.stride {stride} is longer than a row, {self.row_length} tokens, so that text"
                " between rows would never be read; make it smaller"
            )

    def training_problems(self) -> Iterator[str]:
        """Yield what is wrong between the schedule, the run's length and the text."""
        if self.finetune is not None and self.model.vocab_size is None:
            return  # as above
        if problem := self.warmup_problem():
            yield f"optimizer.warmup_steps {problem}"
        trainer, source = self.trainer, self.data.source
        limits = (trainer.max_steps, trainer.max_tokens, trainer.max_epochs)
        in_steps = any(limit is not None for limit in limits)
        if self.optimizer.schedule_by == "steps":
            if not in_steps:
                minutes = f"trainer.max_minutes {trainer.max_minutes:g}"
                yield f"{minutes} alone gives the run no length; write {LENGTHS}"
        elif trainer.max_minutes is None:
            yield "optimizer.schedule_by time needs a deadline; write trainer.max_minutes"
        elif not in_steps and isinstance(source, MixtureSource) and source.when_one_ends == "stop":
            yield (
                "data.source.when_one_ends stop needs a run whose steps are known; write repeat or"
                " go_on, or trainer.max_steps"
            )

    def _finetune_problems(self) -> Iterator[str]:
        """Yield what is wrong between the text and how a base is trained further."""
        chats, finetune = self.data.conversations, self.finetune
        dpo = finetune is not None and finetune.objective == "dpo"
        for key, chat in chats:
            if finetune is None and chat.template == "base":
                yield (
                    f"{key}.template base is that of finetune.base, and this run has none; name"
                    " one, such as alpaca"
                )
            if dpo != (chat.layout == "preferences"):
                wanted = "layout preferences" if dpo else "finetune.objective: dpo"
                objective = finetune.objective if finetune is not None else "sft"
                yield (
                    f"{key}.layout {chat.layout} does not go with finetune.objective {objective};"
                    f" write {wanted}"
                )
        if dpo and len(chats) < len(self.data.parts) + (self.data.validation is not None):
            yield (
                "finetune.objective dpo learns from preferences alone, and data has other text too;"
                " remove that"
            )
        if finetune is not None and finetune.method != "full" and self.optimizer.name == "muon":
            yield (
                f"optimizer.name muon does not train the low-rank matrices of {finetune.method}: it"
                " would move all their directions equally; write adamw"
            )
        for key in ("embedding_lr", "head_lr"):
            if finetune is not None and finetune.method != "full" and getattr(self.optimizer, key):
                yield (
                    f"optimizer.{key} has no effect with finetune.method {finetune.method}, which"
                    " trains adapters alone; remove it"
                )
        if finetune is None or not finetune.replay:
            return
        if dpo:
            yield (
                "finetune.replay is for objective sft: dpo stays near its base by dpo_beta;"
                " remove it"
            )
        if (
            isinstance(self.data.source, MixtureSource)
            and self.data.source.when_one_ends != "repeat"
        ):
            ends = self.data.source.when_one_ends
            yield (
                f"finetune.replay is a share of all rows, and data.source.when_one_ends: {ends}"
                " ends it; write repeat"
            )

    def _window_problems(self, key: str, window_tokens: int, weight: int) -> Iterator[str]:
        """Yield a problem unless a window of a stream holds the rows that are loaded ahead.

        Two windows exist at a time, and the rows may begin anywhere in the first.
        """
        # In rows: those of the steps that are loaded ahead, and of the step that is trained on.
        ahead = (self.data.steps_ahead + 1) * self.trainer.batch_size
        blocks = ahead // sum(part.weight for _, part in self.data.parts) + 2
        least = min(ahead, blocks * weight) * self.row_length
        if window_tokens < least:
            yield (
                f"{key}.window_tokens {window_tokens} is less than what may be loaded at once;"
                f" write {least} or more, or make batches smaller"
            )

    def warmup_problem(self) -> str | None:
        """Return what is wrong with `optimizer.warmup_steps` for a run of `most_steps` steps."""
        steps, warmup = self.most_steps, self.optimizer.warmup_steps
        if steps is None or warmup < steps:
            return None
        others = f", or another number below {steps}" if steps > 1 else ""
        return (
            f"{warmup} leaves nothing of the run's {steps} steps; write optimizer.warmup_steps:"
            f" {steps // 10}{others}"
        )

    def with_vocabulary(self, size: int) -> Config:
        """Return the configuration with model.vocab_size set for a tokenizer of `size` ids."""
        given = self.model.vocab_size
        if given is not None and given < size:
            raise ConfigError(
                f"model.vocab_size: {given} is smaller than the tokenizer's {size}; write null, or"
                f" {size} or more"
            )
        round_number = -(-size // 128) * 128
        # A size up to this one was rounded for the hardware and is not a mistake.
        if given is not None and given > round_number:
            raise ConfigError(
                f"model.vocab_size: {given} is larger than the tokenizer's {size}; write null, or"
                f" {round_number} for a multiple of 128"
            )
        return self.model_copy(
            update={"model": self.model.model_copy(update={"vocab_size": given or size})}
        )

    def with_tokenizer(self, section: dict[str, Any]) -> Config:
        """Return the configuration with another section `tokenizer`."""
        return self.model_copy(update={"tokenizer": TokenizerConfig.model_validate(section)})

    def with_validation_rows(self, rows: int | None) -> Config:
        """Return the configuration with other `trainer.validation_rows`; null is the whole split.

        What is held out of a stream keeps its rows: it has no end, so they are its whole split.
        """
        if self.data.streams and self.data.validation is None:
            return self
        trainer = self.trainer.model_copy(update={"validation_rows": rows})
        return self.model_copy(update={"trainer": trainer})

    @property
    def row_length(self) -> int:
        """T: the tokens of a row."""
        return self.data.sequence_length or self.model.context_length

    @property
    def tokens_per_step(self) -> int:
        """The positions of one optimiser step, over all devices and micro-batches."""
        return self.trainer.batch_size * self.row_length

    def with_epochs(self, epochs_per_step: float) -> Config:
        """Return the configuration with the length that `trainer.max_epochs` gives the run.

        Args:
            epochs_per_step: passes over the training text in one step; 0 if that is not known.
        """
        if self.trainer.max_epochs is None:
            return self
        config = self.model_copy()
        config._epochs_per_step = epochs_per_step or None
        return config

    @property
    def max_steps(self) -> int:
        """The run's length in optimiser steps: the smallest of its limits.

        With `trainer.max_epochs` it is known from `with_epochs` on. UNLIMITED: time alone ends it.
        """
        assert self.trainer.max_epochs is None or self._epochs_per_step is not None
        most = self.most_steps
        assert most is not None or self.optimizer.schedule_by == "time"
        return UNLIMITED if most is None else most

    @property
    def most_steps(self) -> int | None:
        """The smallest limit that is known: `max_steps`, or more. None: none is known yet."""
        trainer, limits = self.trainer, []
        if trainer.max_steps is not None:
            limits.append(trainer.max_steps)
        if trainer.max_tokens is not None:
            limits.append(max(1, trainer.max_tokens // self.tokens_per_step))
        if trainer.max_epochs is not None and self._epochs_per_step is not None:
            # Rounding must not add a step to a whole number: a step is more than 1e-12 of a run.
            exact = trainer.max_epochs / self._epochs_per_step
            limits.append(max(1, math.ceil(exact * (1 - 1e-12))))
        return min(limits, default=None)
