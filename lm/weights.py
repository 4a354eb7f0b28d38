"""Tensors of a checkpoint, as safetensors: nothing in these files can run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lm.errors import CheckpointError


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write named tensors. `dict(model.named_parameters())` is what belongs here: it has a tied head once."""
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}, path, metadata={"format": "pt"})


def read_weights(folder: Path, expected: Mapping[str, Tensor], averaged: bool = True) -> dict[str, Tensor]:
    """The checkpoint's weights, on the CPU.

    Args:
        folder: the checkpoint.
        expected: the model's own parameters by name, which may be on the meta device; names, shapes and types are held against them.
        averaged: prefer the EMA weights where the checkpoint has them.

    Raises:
        CheckpointError: the file is missing or damaged, or a name, shape or type differs.
    """
    path = folder / "ema.safetensors"
    if not averaged or not path.exists():
        path = folder / "model.safetensors"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for name in sorted(expected.keys() ^ weights.keys()):
        where = "is missing" if name in expected else "is not a weight of the model"
        raise CheckpointError(f"{path}: {name} {where}; the weights are of another model than the configuration describes")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            wanted, given = expected[name], tensor
            raise CheckpointError(
                f"{path}: {name} is {given.dtype} {tuple(given.shape)}, where the configured model has {wanted.dtype} {tuple(wanted.shape)}"
            )
    return weights
