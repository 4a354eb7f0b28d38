"""Lightning's part in a run: devices, processes, precision, and the loop over batches."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Sequence

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler

from lm.system.device import check_devices
from lm.system.errors import ConfigError
from lm.training.parts import Parts
from lm.training.processes import cluster_environment, lightning_strategy

LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def prepare_torch(parts: Parts) -> None:
    """Set the number of threads and CUDA's determinism, before torch computes anything.

    Raises:
        ConfigError: the machine lacks the devices, or the strategy the precision.
    """
    config = parts.config.trainer
    check_devices(config.devices, parts.device)
    if config.strategy == "fsdp" and parts.precision == "fp16":
        raise ConfigError(
            "trainer.strategy: fsdp does not train in fp16; write --trainer.precision bf16 or fp32,"
            " or strategy ddp"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
        # The processes that Lightning starts read this, and Lightning then leaves ours alone.
        os.environ["OMP_NUM_THREADS"] = str(config.threads)
    if config.deterministic:
        # cuBLAS reads this once, at its first matrix product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def make_trainer(
    parts: Parts, callbacks: Sequence[Callback], logger: Logger | None
) -> lightning.Trainer:
    """Return a Trainer that does what the configuration and `callbacks` say, and nothing else.

    Args:
        parts: of the session; the configuration, the device and the precision count.
        callbacks: act in this order. None may be a `Checkpoint`: Lightning moves those to the end.
        logger: of the first process; None on the others.
    """
    _quieten_lightning()
    config = parts.config.trainer
    return lightning.Trainer(
        accelerator="gpu" if parts.device == "cuda" else parts.device,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=lightning_strategy(config),
        plugins=cluster_environment(),
        precision=LIGHTNING_PRECISION[parts.precision],
        max_epochs=1,  # the loader's one epoch is the run: it ends at the last step
        deterministic=config.deterministic,
        benchmark=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        logger=logger if logger is not None else False,
        profiler=NoProfiler(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class NoProfiler(PassThroughProfiler):
    """Lightning's default profiler, which does nothing, without making a new context each time.

    Lightning enters one for each hook of each callback: about a hundred times a step.
    """

    _nothing = contextlib.nullcontext("")

    def profile(self, action_name: str) -> contextlib.AbstractContextManager[str]:
        """Return a context that does nothing."""
        return self._nothing


def _quieten_lightning() -> None:
    """Silence Lightning's notes on devices, loaders and the missing validation_step."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
