"""How many rows a device computes at once.

`trainer.micro_batch_size` says it; `auto` is the largest number that fits the device's memory. A
step that runs out of memory goes on with fewer. The number always divides the rows that the device
is dealt, so that all pieces have one shape. Checkpoints record it, because another number changes
the last bits of the sums.

On one CUDA device per process, `auto` tries steps until one runs out of memory. Elsewhere it
calculates:

- A CPU has no such error. Its system lends memory that it does not have, and kills the process.
- MPS swaps before it refuses.
- With fsdp, a process that runs out of memory leaves the others waiting in the middle of a layer.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from lightning import LightningModule
from torch import Tensor

from lm.optim.objectives import Objective
from lm.surgery.fsdp import is_sharded
from lm.system.device import autocast, memory
from lm.system.errors import UserError, is_out_of_memory
from lm.training.forecast import Forecast
from lm.training.live_tensors import LiveTensors

# Shares of the memory that stay free. A trial lacks later fragmentation, validation and samples. A
# calculation also lacks the insides of operations and of the allocator: on a CPU, steps took 0.9 to
# 1.4 times the calculated memory.
MARGIN_OF_TRIAL, MARGIN_OF_CALCULATION = 0.05, 0.35
REMEDIES = (
    "model.gradient_checkpointing: true, or a smaller data.sequence_length (model.context_length in"
    " a new run)"
)


def divisors(rows: int) -> list[int]:
    """Return the divisors of a number, the smallest first."""
    return [number for number in range(1, rows + 1) if rows % number == 0]


def split(batch: Mapping[str, Tensor], rows: int) -> Iterator[dict[str, Tensor]]:
    """Yield a batch, tensors of (B, *), in pieces of `rows` rows; the last one may be shorter."""
    pieces = [value.split(rows) for value in batch.values()]
    yield from (dict(zip(batch, piece, strict=True)) for piece in zip(*pieces, strict=True))


@dataclass(frozen=True)
class Fitting:
    """The search for the largest number of rows whose step fits the device's memory.

    No weight, optimiser state or gradient is another afterwards. Random numbers need no care,
    because each micro-batch seeds its own.

    Args:
        forecast: of the run, with the decoder on its device.
        objective: the loss of the rows.
        to_come: bytes that the run will need for ever, but for the gradients, and does not have
            yet.
    """

    forecast: Forecast
    objective: Objective
    to_come: int

    def rows(self) -> int:
        """Return a divisor of the rows that the device is dealt; 0 if not even one row fits."""
        forecast = self.forecast
        by_trial = forecast.device == "cuda" and not is_sharded(forecast.decoder)
        fits = self._can_be_done if by_trial else self._should_fit
        choices = divisors(forecast.config.trainer.micro_batch)
        # If a number fits, so do those below.
        fitting = bisect.bisect_left(choices, True, key=lambda rows: not fits(rows))
        return [0, *choices][fitting]

    def _can_be_done(self, rows: int) -> bool:
        total, _ = memory("cuda")
        assert total is not None
        torch.cuda.empty_cache()  # a larger piece cannot use what smaller ones left
        held = self.to_come + int(MARGIN_OF_TRIAL * total)
        try:
            taken = torch.empty(held, dtype=torch.uint8, device=self._device)
            self._backward_twice(rows)
            del taken
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self.forecast.decoder.zero_grad()
        return True

    def _should_fit(self, rows: int) -> bool:
        forecast = self.forecast
        _, free = memory(forecast.device)
        if free is None:
            return True  # the system does not say
        one, two = self._of_one_and_two
        needed = self.to_come // forecast.shards + one + (rows - 1) * (two - one)
        return forecast.processes_a_device * needed <= (1 - MARGIN_OF_CALCULATION) * free

    @functools.cached_property
    def _of_one_and_two(self) -> tuple[int, int]:
        """The bytes that one row takes, gradients included, and those that two take."""
        peaks = []
        for rows in (1, 2):
            with LiveTensors() as tensors:
                self._backward_twice(rows)
            peaks.append(tensors.peak)
            self.forecast.decoder.zero_grad()
        return peaks[0], peaks[1]

    def _backward_twice(self, rows: int) -> None:
        for _ in range(2):  # the second time next to the gradients of the first
            self._loss(rows).backward()

    def _loss(self, rows: int) -> Tensor:
        forecast = self.forecast
        length = forecast.config.row_length
        ids = torch.zeros(rows, length, dtype=torch.int64, device=self._device)
        batch = {"input_ids": ids, "labels": ids.clone()}
        if forecast.config.data.document_mask:
            batch["document_ids"] = ids.clone()
        with autocast(forecast.device, forecast.precision):
            return self.objective.total(forecast.decoder.train(), batch)

    @property
    def _device(self) -> torch.device:
        return next(self.forecast.decoder.parameters()).device


def halve_rows(module: LightningModule, rows: int, problem: str) -> int:
    """Return how many rows to compute at once after `rows` were too many for the memory.

    Raises:
        UserError: one row is too many, or other processes have exchanged a part of the step.
    """
    fewer = fewer_rows(rows, module.trainer.world_size, module.global_rank, problem)
    module.incidents.note(
        module.step,
        "memory",
        f"out of memory, so it is done again with {fewer} of its rows at once ({problem})",
    )
    return fewer


def fewer_rows(rows: int, processes: int, rank: int, problem: str) -> int:
    """Return the next smaller number of rows to try after `rows` did not fit the memory.

    Raises:
        UserError: a single row does not fit. Or there are several devices: the others have already
            exchanged a part of the step, and that cannot be undone.
    """
    if rows <= 1:
        raise one_row_is_too_much(rank, problem)
    fewer = divisors(rows)[-2]
    if processes > 1:
        raise UserError(
            f"out of memory on device {rank} with {rows} rows at once; write"
            f" trainer.micro_batch_size: {fewer} (it is {rows} now; the step stays the same, only"
            f" cut finer), or {REMEDIES} ({problem})"
        )
    return fewer


def one_row_is_too_much(rank: int, problem: str) -> UserError:
    """Return the error of a device that has not enough memory for a step of one row."""
    return UserError(
        f"out of memory on device {rank} with 1 row at once; write {REMEDIES} ({problem})"
    )
