"""`train.py --plan`: the cost of a run, after one micro-batch on the device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from lm.config.schema.config import Config
from lm.optim.objectives import Objective, on_device
from lm.optim.optimizers import make_optimizer
from lm.system.device import autocast
from lm.training.forecast import Forecast, try_out
from lm.training.parts import Parts
from lm.training.rows_at_once import Fitting, one_row_is_too_much
from lm.training.trainer import prepare_torch


def plan(parts: Parts, say: Callable[[str], None]) -> None:
    """Say what a run would take, after one micro-batch on the device. Nothing is written but the
    token cache.

    Raises:
        UserError: the run could not end well.
    """
    config, device, precision = parts.config, parts.device, parts.precision
    prepare_torch(parts)
    decoder = parts.make_decoder().to(device)
    folder = Path(config.checkpoint.directory).absolute()
    folder = next(place for place in (folder, *folder.parents) if place.exists())
    forecast = Forecast(config, decoder, device, precision, parts.data.epochs_per_step)
    say("\n".join(forecast.lines(folder)))
    forecast.check(folder)
    if config.trainer.micro_batch_size == "auto":
        config = _with_fitting_rows(forecast, parts.objective)
        forecast = dataclasses.replace(forecast, config=config)
        say(f"trainer.micro_batch_size: auto: {config.trainer.micro_batch} rows at once")
    batch = next(iter(parts.data.train_dataloader()))
    rows = {
        name: value[0, : config.trainer.micro_batch]
        for name, value in on_device(batch, device).items()
    }
    trial = try_out(
        decoder,
        make_optimizer(decoder, config.optimizer, precision),
        lambda: parts.objective.total(decoder, rows) / rows["labels"].numel(),
        functools.partial(autocast, device, precision),
    )
    batches = len(parts.data.val_dataloader())
    validated = batches * parts.config.trainer.micro_batch * config.row_length
    say("\n".join(forecast.measured(trial, validated)))


def _with_fitting_rows(forecast: Forecast, objective: Objective) -> Config:
    """Return the configuration with the number that `micro_batch_size: auto` stands for."""
    footprint = forecast.footprint
    rows = Fitting(forecast, objective, footprint.optimizer + footprint.averages).rows()
    if rows == 0:
        raise one_row_is_too_much(0, "as tried before the first step")
    trainer = forecast.config.trainer.model_copy(update={"micro_batch_size": rows})
    return forecast.config.model_copy(update={"trainer": trainer})
