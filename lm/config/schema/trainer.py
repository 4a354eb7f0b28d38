"""`trainer`: budget, batch, device and intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StrictBool

from lm.config.schema.section import Section

LENGTHS = (
    "max_steps, max_tokens, max_epochs, or max_minutes with optimizer.schedule_by: time (the"
    " smallest ends it)"
)


class TrainerConfig(Section):
    """The run's length, batch and device. At step k, k updates are done."""

    max_steps: int | None = Field(
        None,
        ge=1,
        description=(
            "Optimiser steps. Give max_steps, max_tokens, max_epochs or several of them; the"
            " smallest ends the run."
        ),
    )
    max_tokens: int | None = Field(None, ge=1, description="Tokens to train on, with repetitions.")
    max_epochs: float | None = Field(
        None,
        gt=0,
        description=(
            "Passes over the training text, such as 3 or 0.5. In a mixture, a pass is as many rows"
            " as all sources have together. A streamed text has no passes."
        ),
    )
    max_minutes: float | None = Field(
        None,
        gt=0,
        description=(
            "Stop and save after this time. It changes the schedule only with"
            " optimizer.schedule_by: time."
        ),
    )
    seed: int = Field(
        1337,
        ge=0,
        lt=2**63,
        description="Determines initial weights, data order and dropout.",
    )
    batch_size: int = Field(
        32, ge=1, le=2**24, description="Rows of one optimiser step, over all devices."
    )
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description=(
            "Rows of one forward pass on a device; gradients accumulate. null: all of the device's."
            " auto: the most that fit its memory, and a resumed run keeps their number."
        ),
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: CUDA, else MPS, else the CPU."
    )
    devices: int = Field(
        1, ge=1, le=1024, description="Processes on each machine, one device each."
    )
    num_nodes: int = Field(
        1,
        ge=1,
        le=2**16,
        description="Machines; more than one needs torchrun or srun (docs/SCALING.md).",
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description=(
            "ddp: each process holds the full model. fsdp: each holds a part of the weights,"
            " gradients and optimiser state. auto: ddp if there are several processes."
        ),
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description=(
            "auto: bf16 if the device supports it natively, else fp16 on CUDA, else fp32. Weights"
            " stay fp32."
        ),
    )
    deterministic: StrictBool = Field(
        False,
        description=(
            "Use only deterministic kernels: slower, but bit-identical runs on CUDA. CPU runs"
            " always are."
        ),
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description=(
            "torch.compile. auto: for runs that gain more than compiling takes, on a CPU from about"
            " half an hour, on CUDA from 500 steps (and 5 minutes, if schedule_by is time). A"
            " resumed run stays as it was. A model that cannot be compiled runs uncompiled, with a"
            " warning."
        ),
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads. null: torch's choice, one for each core."
    )
    validate_every: int = Field(
        500,
        ge=1,
        description=(
            "Steps between validations, each after a save; also at step 0 and at the end."
        ),
    )
    validation_rows: int | None = Field(
        None,
        ge=1,
        description="Validate on this many rows, always the same. null: all of the split.",
    )
    early_stopping: int | None = Field(
        None,
        ge=1,
        description="Stop after this many validations without a better loss. null: never.",
    )

    on_nonfinite: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description=(
            "If a loss or gradient is NaN or infinite, no update follows. stop: the run ends. skip:"
            " the next step follows. rollback: the run continues from its newest checkpoint without"
            " that step."
        ),
    )
    nonfinite_limit: int = Field(
        10,
        ge=1,
        description="Stop after this many skipped updates in a row, fp16 overflows included.",
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the length."""
        limits = (self.max_steps, self.max_tokens, self.max_epochs, self.max_minutes)
        if all(limit is None for limit in limits):
            yield f"give the run a length: {LENGTHS}"

    def training_problems(self) -> Iterator[str]:
        """Yield what is wrong with the batch."""
        written = self.micro_batch_size if isinstance(self.micro_batch_size, int) else None
        rows = self.processes * (written or 1)  # of all processes at once
        if self.batch_size % rows:
            split = f"devices {self.devices}" + (
                f" x num_nodes {self.num_nodes}" if self.num_nodes > 1 else ""
            )
            split += f" x micro_batch_size {written}" if written else ""
            yield (
                f"batch_size {self.batch_size} is not divisible by {split}; write a multiple of"
                f" {rows} for batch_size"
            )

    @property
    def processes(self) -> int:
        """The number of processes on all machines."""
        return self.devices * self.num_nodes

    @property
    def micro_batch(self) -> int:
        """The rows of one forward pass on a device; with auto, the most that there may be."""
        if isinstance(self.micro_batch_size, int):
            return self.micro_batch_size
        return self.batch_size // self.processes

    @property
    def accumulation(self) -> int:
        """Micro-batches that each device runs for one optimiser step."""
        return self.batch_size // (self.micro_batch * self.processes)
