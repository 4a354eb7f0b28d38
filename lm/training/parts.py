"""The parts of a training session, as train.py and finetune.py assemble them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lm.config.schema.config import Config
from lm.optim.objectives import NEXT_TOKEN, Objective
from lm.system.device import Device, Precision, choose_device, choose_precision
from lm.tokenizer.tokenizer import Tokenizer
from model import Decoder


class Data(Protocol):
    """The part of data.py's LightningDataModule that a session uses."""

    start_step: int
    epochs_per_step: float
    moving_rows: bool
    sha256: str
    revisions: dict[str, str]
    text_bytes: NDArray[np.float64]
    validation_sources: dict[str, NDArray[np.float64]]

    def train_dataloader(self) -> Iterable[dict[str, Any]]:
        """Return one item for each step from `start_step` on."""

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the batches of the validation split, the same every time."""

    def teardown(self, stage: str) -> None:
        """End the processes that read the data."""


@dataclass(frozen=True)
class Parts:
    """The parts of one session. Pretraining and fine-tuning differ in these alone.

    Args:
        config: the configuration of the run.
        tokenizer: travels in every checkpoint.
        data: the LightningDataModule.
        make_decoder: builds the decoder on the CPU, with its first weights; torch's global
            random state decides the random ones.
        objective: the loss of a row.
    """

    config: Config
    tokenizer: Tokenizer
    data: Data
    make_decoder: Callable[[], Decoder]
    objective: Objective = NEXT_TOKEN

    @functools.cached_property
    def device(self) -> Device:
        """The configured device, or the best one of this machine."""
        return choose_device(self.config.trainer.device)

    @functools.cached_property
    def precision(self) -> Precision:
        """The configured precision, or the best one of the device."""
        return choose_precision(self.config.trainer.precision, self.device)
