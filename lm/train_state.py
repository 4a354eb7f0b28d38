"""What a checkpoint holds of a model in training, beyond what says what it is: weights, averages, optimiser state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lm.ema import WeightAverage
from lm.errors import CheckpointError
from lm.weights import read_weights, write_state, write_weights


def tensor_writers(
    decoder: nn.Module, optimizer: Optimizer, average: WeightAverage | None, state: dict[str, Any]
) -> dict[str, Callable[[Path], None]]:
    """The checkpoint's tensor files: name -> function that writes it. `state`, of plain values, goes along with the optimiser's."""
    files: dict[str, Callable[[Path], None]] = {
        "model.safetensors": lambda path: write_weights(path, dict(decoder.named_parameters())),
        "train_state.pt": lambda path: write_state(path, state | {"optimizer": optimizer.state_dict()}),
    }
    if average is not None:
        files["ema.safetensors"] = lambda path: write_weights(path, average.weights)
    return files


def load_into(decoder: nn.Module, folder: Path, averaged: bool) -> None:
    """Give a decoder the weights of a checkpoint: the averaged ones if wanted and there. Raises CheckpointError."""
    weights = read_weights(folder, dict(decoder.named_parameters()), averaged)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(weights[name])


def restore(optimizer: Optimizer, average: WeightAverage | None, folder: Path) -> dict[str, Any]:
    """Put the optimiser and the averages where a checkpoint left them; returns the state that went along.

    Learning rate, betas and the like stay what the configuration says now.

    Raises:
        CheckpointError: it cannot be read, or is of another model.
    """
    file = folder / "train_state.pt"
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        for saved, group in zip(state["optimizer"]["param_groups"], optimizer.param_groups, strict=True):
            saved.update({key: value for key, value in group.items() if key != "params"})
        optimizer.load_state_dict(state["optimizer"])
        if not isinstance(state["step"], int) or not isinstance(state["recent_losses"], list):
            raise TypeError("step or recent_losses is not what it should be")
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    if average is not None and (folder / "ema.safetensors").exists():
        average.load(read_weights(folder, average.weights, averaged=True))
    return state
