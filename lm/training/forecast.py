"""The cost of a run: memory, disk and time. Every start calculates it, and `train.py --plan`
(plan.py) measures it on one micro-batch.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lm.config.schema.config import UNLIMITED, Config
from lm.config.schema.optimizer import OptimizerConfig
from lm.optim.optimizers import make_optimizer, state_names, trained
from lm.system.device import Device, Precision, memory
from lm.system.errors import CheckpointError, ConfigError
from lm.system.units import duration, in_bytes
from model import Decoder


@dataclass(frozen=True)
class Footprint:
    """The memory of a model in training that no batch changes, in bytes."""

    weights: int
    gradients: int
    optimizer: int  # what it keeps for each weight, such as AdamW's two averages
    averages: int

    @property
    def memory(self) -> int:
        """The sum, for a complete model."""
        return self.weights + self.gradients + self.optimizer + self.averages

    @property
    def checkpoint(self) -> int:
        """The size of one checkpoint on the disk, without names and JSON."""
        # Only trained weights are saved, and they are as large as their gradients.
        return self.gradients + self.optimizer + self.averages


def footprint(decoder: Decoder, config: OptimizerConfig) -> Footprint:
    """Return the footprint of a decoder that the configured optimiser trains.

    A frozen weight needs no gradient, no optimiser state and no average.
    """
    weights = sum(
        parameter.numel() * parameter.element_size() for parameter in decoder.parameters()
    )
    learned = sum(
        parameter.numel() * parameter.element_size() for parameter in trained(decoder).values()
    )
    state = sum(
        (name != "step") * weight.numel() * weight.element_size()
        for group in make_optimizer(decoder, config, "fp32").param_groups
        for name in state_names(group)
        for weight in group["params"]
    )
    return Footprint(weights, learned, state, averages=learned if config.ema_decay else 0)


@dataclass(frozen=True)
class Trial:
    """The measured cost of one micro-batch."""

    activations: int  # bytes that the forward pass keeps for the backward pass
    seconds: float  # forward and backward
    update_seconds: float


def try_out(
    decoder: Decoder,
    optimizer: Optimizer,
    make_loss: Callable[[], Tensor],
    forward_context: Callable[[], AbstractContextManager[Any]],
) -> Trial:
    """Train on one micro-batch three times, and time the third. The decoder is spent afterwards.

    Args:
        decoder: the model, on its device.
        optimizer: over its parameters.
        make_loss: the loss of the micro-batch, a scalar.
        forward_context: for the precision.
    """
    synchronize = torch.get_device_module(next(decoder.parameters()).device).synchronize
    own = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()  # views of one storage count once
        return tensor

    decoder.train()
    for _ in range(3):  # the first two load kernels and make the optimiser's state
        synchronize()
        started = time.perf_counter()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            forward_context(),
        ):
            loss = make_loss()
        activations = sum(kept.values())
        loss.backward()
        synchronize()
        seconds = time.perf_counter() - started
        optimizer.step()
        optimizer.zero_grad()
        synchronize()
        update_seconds = time.perf_counter() - started - seconds
        kept.clear()
    return Trial(activations, seconds, update_seconds)


@dataclass(frozen=True)
class Forecast:
    """The cost of a run.

    Args:
        config: its configuration.
        decoder: its model.
        device: where it computes.
        precision: the precision of its matrix products.
        epochs_per_step: passes over the training text in one step; 0 if unknown, for a stream.
        start: updates that are done already.
    """

    config: Config
    decoder: Decoder
    device: Device
    precision: Precision
    epochs_per_step: float
    start: int = 0

    @property
    def footprint(self) -> Footprint:
        """The memory of the model in training."""
        return footprint(self.decoder, self.config.optimizer)

    @property
    def processes_a_device(self) -> int:
        """The processes that compute on one device: a machine's processes share its CPU."""
        return self.config.trainer.devices if self.device == "cpu" else 1

    @property
    def memory_needed(self) -> int:
        """The bytes of `footprint` that the memory of one device must hold.

        With fsdp each process has a share only.
        """
        return self.processes_a_device * self.footprint.memory // self.shards

    @property
    def shards(self) -> int:
        """The number of parts that the model is in."""
        trainer = self.config.trainer
        return trainer.processes if trainer.strategy == "fsdp" else 1

    def check(self, folder: Path) -> None:
        """Refuse a run that cannot end well, before it costs an hour.

        Raises:
            ConfigError: the model alone does not fit into the device's memory.
            CheckpointError: the disk has no room for the next checkpoint. A new run needs room
                for two, because one must be whole while the next is written.
        """
        footprint = self.footprint
        total, _ = memory(self.device)
        needed = self.memory_needed
        if total is not None and needed > total:
            raise ConfigError(
                f"model: its weights, gradients and optimiser state take {in_bytes(needed)} on each"
                f" device, and {self.device} has {in_bytes(total)} of memory; make it smaller, or"
                " share it out (trainer.strategy: fsdp, docs/SCALING.md)"
            )
        free = shutil.disk_usage(folder).free
        # The checkpoint that a resumed run starts from is on the disk already. A run that has done
        # all its steps writes none.
        checkpoints = min(1 if self.start else 2, self.config.max_steps - self.start)
        if free < checkpoints * footprint.checkpoint:
            twice = ", twice while the next one is written" if checkpoints == 2 else ""
            raise CheckpointError(
                f"checkpoint.directory: {folder} has {in_bytes(free)} free, and a checkpoint of"
                f" this run takes {in_bytes(footprint.checkpoint)}{twice}; make room or name"
                " another folder"
            )

    def lines(self, folder: Path) -> list[str]:
        """Return the lines that need no measurement: model, run, disk."""
        config, trainer, footprint = self.config, self.config.trainer, self.footprint
        n_parameters = self.decoder.n_parameters
        n_trained = sum(parameter.numel() for parameter in trained(self.decoder).values())
        trained_part = f" ({n_trained:,} trained)" if n_trained != n_parameters else ""
        accumulated = f"{trainer.accumulation} x " if trainer.accumulation > 1 else ""
        devices = f" on each of {trainer.processes} devices" if trainer.processes > 1 else ""
        micro_batches = (
            f", as {accumulated}{trainer.micro_batch} rows{devices}"
            if accumulated or devices
            else ""
        )
        if trainer.micro_batch_size == "auto":
            micro_batches += ", as many at once as fit the memory"
        # the newest ones, and the best one
        saved = (
            min(config.checkpoint.keep, config.max_steps // config.checkpoint.save_every + 1) + 1
        )
        sizes = [
            f"weights {in_bytes(footprint.weights)}",
            f"gradients {in_bytes(footprint.gradients)}",
            f"optimiser {in_bytes(footprint.optimizer)}",
            *([f"averages {in_bytes(footprint.averages)}"] if footprint.averages else []),
        ]
        return [
            (
                f"model: {n_parameters:,} parameters{trained_part}, {self.precision} on"
                f" {self.device}; {', '.join(sizes)}"
            ),
            (
                f"run: {self._length()} of {trainer.batch_size} rows of"
                f" {config.row_length} tokens{micro_batches}{self._amount(n_parameters)}"
            ),
            (
                f"disk: {in_bytes(footprint.checkpoint)} a checkpoint, up to"
                f" {in_bytes(saved * footprint.checkpoint)} in all;"
                f" {in_bytes(shutil.disk_usage(folder).free)} free"
            ),
        ]

    def _length(self) -> str:
        if self.config.max_steps == UNLIMITED:
            return f"{self.config.trainer.max_minutes:g} minutes, in steps"
        return f"{self.config.max_steps:,} steps"

    def _amount(self, n_parameters: int) -> str:
        """Return how much text the run reads, where that is known before."""
        steps, epochs = self.config.max_steps, self.epochs_per_step
        one = f"one is {math.ceil(1 / epochs):,} steps" if epochs else ""
        if steps == UNLIMITED:
            return f"; of the passes over the data {one}" if one else ""
        tokens = steps * self.config.tokens_per_step
        passes = f"{steps * epochs:.2f} passes over the data ({one}), " if one else ""
        return f": {tokens:,} tokens, {passes}{tokens / n_parameters:.1f} tokens a parameter"

    def measured(self, trial: Trial, validation_tokens: int) -> list[str]:
        """Return the lines that a trial adds: memory, and the time of all steps from the first."""
        config, trainer = self.config, self.config.trainer
        needed = self.memory_needed + self.processes_a_device * trial.activations
        total, free = memory(self.device)
        room = (
            f"; {self.device} has {in_bytes(total)}, {in_bytes(free)} of it free"
            if total is not None and free is not None
            else ""
        )
        # Processes on a CPU share its cores; the trial had them for itself.
        alone = trainer.accumulation * trial.seconds + trial.update_seconds
        step = self.processes_a_device * alone
        speed = config.tokens_per_step / step
        steps, about = config.max_steps, ""
        if steps == UNLIMITED:
            steps, about = max(1, int(60 * (trainer.max_minutes or 0) / step)), "at most "
        # at the start and at the end too
        validations = 1 + (steps - 1) // trainer.validate_every + 1
        # A validation has no backward pass, which is two thirds of the work.
        validating = validations * validation_tokens / speed / 3
        limit = 60 * (trainer.max_minutes or 0) - validating / validations
        warning = inside_warmup(config, int(limit / step))
        return [
            (
                f"memory: activations {in_bytes(trial.activations)} for {trainer.micro_batch} rows"
                f" at once, {in_bytes(needed)} in all{room}"
            ),
            (
                f"time: {speed:,.0f} tokens/s; {about}{steps:,} steps in {duration(steps * step)},"
                f" {validations} validations in {duration(validating)}"
            ),
            *([warning] if warning else []),
        ]


def inside_warmup(config: Config, last_step: int) -> str | None:
    """Return a warning if the time limit ends at a step at which the rate still rises."""
    warmup, last_step = config.optimizer.warmup_steps, max(1, last_step)
    if config.trainer.max_minutes is None or last_step > min(warmup, config.max_steps - 1):
        return None
    by_time = config.optimizer.schedule_by == "time"
    length = "" if by_time else f"trainer.max_steps: {last_step} and "
    return (
        f"trainer.max_minutes: {config.trainer.max_minutes:g} minutes end near step {last_step:,},"
        f" inside the warm-up of {warmup:,} steps; write {length}optimizer.warmup_steps:"
        f" {last_step // 10}, or a longer trainer.max_minutes"
    )
