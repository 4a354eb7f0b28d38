"""The subject of the self-checks: models and rows of a run that never starts.

It also forecasts how long the checks take.
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import Any

import torch
from torch import Tensor

from lm.checks import selfchecks
from lm.checks.selfchecks import Result
from lm.config.schema.config import Config
from lm.optim.loss import IGNORE_INDEX
from lm.optim.optimizers import make_optimizer
from lm.optim.randomness import fold, seed_all
from lm.system.units import duration
from lm.training.forecast import try_out
from lm.training.parts import Parts

ROWS = 4  # of the first step
RESUME_STEPS = 4  # of each compared run


class Subject:
    """A run's models, each in its first state, and rows of its first step."""

    def __init__(self, parts: Parts):
        self.parts = parts
        self.config = parts.config
        if self.config.trainer.threads:
            torch.set_num_threads(self.config.trainer.threads)

    @functools.cached_property
    def rows(self) -> dict[str, Tensor]:
        """The rows, (n, T), those with the most labels first."""
        data = self.parts.data
        try:
            batch = next(iter(data.train_dataloader()))
        finally:
            data.teardown("fit")
        rows = {
            name: batch[name].flatten(0, 1)
            for name in ("input_ids", "labels", "document_ids")
            if name in batch
        }
        order = (rows["labels"] != IGNORE_INDEX).sum(dim=1).argsort(descending=True, stable=True)
        return {name: tensor[order].to(self.parts.device) for name, tensor in rows.items()}

    def decoder(self) -> Any:
        """Return a new decoder, the same every time."""
        seed_all(fold(self.config.trainer.seed))
        return self.parts.make_decoder().to(self.parts.device)

    def check(self, name: str) -> Result:
        """Run one of `lm.checks.selfchecks` with its arguments."""
        decoder, objective = self.decoder(), self.parts.objective
        first, several = ({key: value[:n] for key, value in self.rows.items()} for n in (1, ROWS))
        if name == "future":
            return selfchecks.future(selfchecks.randomise(decoder), first)
        if name == "cache":
            return selfchecks.cache(selfchecks.randomise(decoder), first)
        if name == "documents":
            if "document_ids" not in self.rows:
                return Result(None, "they do, by choice: data.document_mask is false")
            fullest = int(self.rows["document_ids"].amax(dim=1).argmax())
            return selfchecks.documents(
                selfchecks.randomise(decoder),
                {key: value[fullest][None] for key, value in self.rows.items()},
            )
        if name == "loss":
            # In small batches, chance is larger than the deviations that matter.
            many = {
                key: value[: max(ROWS, self.config.trainer.micro_batch)]
                for key, value in self.rows.items()
            }
            return selfchecks.initial_loss(
                decoder, many, objective, fresh=self.config.finetune is None
            )
        optimizer = make_optimizer(decoder, self.config.optimizer, "fp32")
        adapters = self.config.finetune is not None and self.config.finetune.method != "full"
        if name == "gradients":
            return selfchecks.gradients(decoder, optimizer, several, objective, adapters)
        # Learning only the tokens' frequencies saves less than half of the loss. Adapters on frozen
        # weights, and preferences, do not go much further.
        return selfchecks.overfit_one_batch(
            decoder,
            optimizer,
            first,
            objective,
            share=0.5 if adapters or not objective.per_token else 0.2,
        )

    def forecast(self, names: list[str], since: float) -> str:
        """Return how long these checks take, forecast from one row.

        `since` is the time (time.perf_counter) at which the command started.
        """
        reading = time.perf_counter()
        first = {key: value[:1] for key, value in self.rows.items()}
        # The text may be tokenised here; the later runs find the tokens in the cache.
        since += time.perf_counter() - reading
        decoder, config = self.decoder(), self.config
        start = time.perf_counter() - since
        optimizer = make_optimizer(decoder, config.optimizer, "fp32")
        trial = try_out(
            decoder,
            optimizer,
            lambda: self.parts.objective.total(decoder, first) / first["labels"].numel(),
            contextlib.nullcontext,
        )
        row, update = trial.seconds, trial.update_seconds
        overfitting = (
            (row * min(1, selfchecks.OVERFIT_TOKENS / config.row_length) + update)
            * selfchecks.OVERFIT_STEPS
            / 4
        )
        resume = 3 * start + 3 * RESUME_STEPS * (
            shortened(config).trainer.batch_size * row + update
        )
        seconds = dict.fromkeys(names, 15 * row) | {
            "heart": min(selfchecks.OVERFIT_SECONDS, overfitting),
            "resume": resume,
        }
        total = sum(seconds[name] for name in names)
        return (
            f"{decoder.n_parameters:,} parameters, float32 on {self.parts.device}: this will"
            f" take about {duration(total)}"
        )


def shortened(config: Config) -> Config:
    """Return the configuration with small batches, validations and samples.

    Accumulation stays on if it was on.
    """
    trainer, logging = config.trainer, config.logging
    rows = trainer.micro_batch * trainer.processes
    smaller = {
        "batch_size": min(trainer.batch_size, 2 * rows),
        "micro_batch_size": trainer.micro_batch,
        "validation_rows": min(trainer.validation_rows or rows, rows),
    }
    quiet = {"sample_tokens": min(logging.sample_tokens, 8), "tensorboard": False}
    return config.model_copy(
        update={
            "trainer": trainer.model_copy(update=smaller),
            "logging": logging.model_copy(update=quiet),
        }
    )
