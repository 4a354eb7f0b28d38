"""The callbacks of a run act in the order in which train.py lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest

from tests.support.runs import config_file, train

pytestmark = pytest.mark.usefixtures("trains")


def test_lightning_keeps_the_order_of_the_callbacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning reorders some kinds of callbacks, so the order is read back from the Trainer."""
    seen: list[list[str]] = []
    fit = lightning.Trainer.fit

    def reading(trainer: lightning.Trainer, *arguments: Any, **named: Any) -> None:
        seen.append([type(callback).__name__ for callback in trainer.callbacks])
        fit(trainer, *arguments, **named)

    monkeypatch.setattr(lightning.Trainer, "fit", reading)
    train(config_file(tmp_path), "--trainer.max_steps=3", "--trainer.validate_every=3")
    assert seen == [
        [
            "ChooseRows",
            "Compile",
            "DecideStop",
            "LogMetrics",
            "SaveCheckpoint",
            "Validate",
            "EarlyStopping",
            "EndStep",
        ]
    ]
