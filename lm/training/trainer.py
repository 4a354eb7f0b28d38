"""Lightning's part in a run: devices, processes, precision, and the loop over batches. Logging,
saving and validating are ours.
"""

from __future__ import annotations

import logging
import warnings

import lightning
from lightning.pytorch.callbacks import Callback

from lm.config.schema.trainer import TrainerConfig
from lm.system.device import Device, Precision
from lm.training.processes import cluster_environment, lightning_strategy

LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_trainer(
    config: TrainerConfig, device: Device, precision: Precision, callback: Callback
) -> lightning.Trainer:
    """A Trainer with which nothing happens but what the configuration says and `callback` does."""
    _quieten_lightning()
    return lightning.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=lightning_strategy(config),
        plugins=cluster_environment(),
        precision=LIGHTNING_PRECISION[precision],
        max_epochs=1,  # the loader's one epoch is the run: it ends at the last step
        deterministic=config.deterministic,
        benchmark=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _quieten_lightning() -> None:
    """What Lightning notes about devices, loaders and a missing validation_step is answered here;
    the rest concerns its insides.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
