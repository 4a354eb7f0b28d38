"""`trainer`: budget, batch, device and intervals."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, StrictBool, model_validator

from lm.config.schema.section import Section


class TrainerConfig(Section):
    """Every interval counts optimiser steps; step k means that k updates are done."""

    max_steps: int | None = Field(
        None,
        ge=1,
        description=(
            "Optimiser steps. At least one of max_steps and max_tokens; the smaller budget ends the"
            " run."
        ),
    )
    max_tokens: int | None = Field(None, ge=1, description="Tokens to train on, repeats counted.")
    max_epochs: float | None = Field(
        None,
        gt=0,
        description="Refuse a budget that passes over the training text more often. null: any.",
    )
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="Stop, saved and resumable, after this time. It does not shape the schedule.",
    )
    seed: int = Field(
        1337,
        ge=0,
        lt=2**63,
        description="Initial weights, data order and dropout all follow from it.",
    )
    batch_size: int = Field(32, ge=1, description="Rows in one optimiser step, over all devices.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description=(
            "Rows that fit on a device at once; the rest is accumulated. null: all of them."
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
        description="Machines; more than one need torchrun or srun (docs/SCALING.md).",
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description=(
            "ddp: each process holds the whole model. fsdp: each holds a share of weights,"
            " gradients and optimiser state. auto: ddp where there are several processes."
        ),
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description=(
            "auto: bf16 where the device computes it natively, else fp16 on CUDA, else fp32."
            " Weights stay fp32."
        ),
    )
    deterministic: StrictBool = Field(
        False,
        description=(
            "Only deterministic kernels: bit-identical runs on CUDA, at some cost. CPU runs always"
            " are."
        ),
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description=(
            "torch.compile. auto: on CUDA only. What cannot compile runs uncompiled and says so."
        ),
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads. null: torch's choice, one for each core."
    )
    validate_every: int = Field(
        500,
        ge=1,
        description=(
            "Steps between validations; each is preceded by a save. Also at step 0 and at the end."
        ),
    )
    validation_rows: int | None = Field(
        None,
        ge=1,
        description="Validate on this many rows, always the same. null: the whole split.",
    )
    early_stopping: int | None = Field(
        None, ge=1, description="Stop after so many validations without a better loss. null: never."
    )

    on_nonfinite: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description=(
            "A loss or gradient that is NaN or infinite is never learnt from. stop: the run ends."
            " skip: it goes on with the next step. rollback: it goes on from its newest checkpoint,"
            " without that step."
        ),
    )
    nonfinite_limit: int = Field(
        10,
        ge=1,
        description="Stop when so many updates in a row were left out, fp16 overflows included.",
    )

    @model_validator(mode="after")
    def _budget_and_batch(self) -> Self:
        if self.max_steps is None and self.max_tokens is None:
            raise ValueError(
                "give the run a length: max_steps, or max_tokens, or both (the smaller ends it)"
            )
        if self.batch_size % (self.processes * (self.micro_batch_size or 1)):
            split = f"devices {self.devices}" + (
                f" x num_nodes {self.num_nodes}" if self.num_nodes > 1 else ""
            )
            split += f" x micro_batch_size {self.micro_batch_size}" if self.micro_batch_size else ""
            raise ValueError(f"batch_size {self.batch_size} is not divisible by {split}")
        return self

    @property
    def processes(self) -> int:
        """How many there are, over all machines."""
        return self.devices * self.num_nodes

    @property
    def micro_batch(self) -> int:
        """Rows that one device takes at once."""
        return self.micro_batch_size or self.batch_size // self.processes

    @property
    def accumulation(self) -> int:
        """Micro-batches that each device runs for one optimiser step."""
        return self.batch_size // (self.micro_batch * self.processes)
