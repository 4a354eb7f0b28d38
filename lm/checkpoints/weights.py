"""The tensors of a checkpoint, as safetensors: nothing in these files can run code."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lm.checkpoints.folder import Checkpoint, shard_count
from lm.system.errors import CheckpointError, first_line


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write named tensors; for a model, its `trained` parameters (lm/optim/optimizers.py).

    Raises:
        OSError: the disk refused.
    """
    try:
        save_file(
            {name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()},
            path,
            metadata={"format": "pt"},
        )
    except SafetensorError as error:
        # the message is the only place where the library keeps the system's error number
        number = re.search(r"\(os error (\d+)\)", str(error))
        raise (
            OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))
        ) from error
    # the library makes files that only their owner can read; a checkpoint is as open as its folder
    path.chmod(path.parent.stat().st_mode & 0o666)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write the rest of the training state, for `torch.load(path, weights_only=True)`.

    Raises:
        OSError: the disk refused.
    """
    try:
        # if torch opened the file, a full disk would be "[enforce fail ...] unexpected pos 64 vs 0"
        with path.open("wb") as file:
            try:
                torch.save(state, file)
            except BaseException as error:
                # An interrupted writer finishes its file when it is freed. It must be freed while
                # the file is open: a writer that fails then aborts the process.
                traceback.clear_frames(error.__traceback__)
                raise
    except RuntimeError as error:  # torch raises it when it cannot finish the file either
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def read_weights(
    checkpoint: Checkpoint, expected: Mapping[str, Tensor], averaged: bool = True
) -> dict[str, Tensor]:
    """Return the weights of an ordinary checkpoint, on the CPU.

    The file and meta.json, which describes the model, are compared with the manifest first: a
    flipped bit would load without a message.

    Args:
        checkpoint: an ordinary or merged one.
        expected: the model's parameters by name, which may be on the meta device. Names, shapes and
            types must agree with them.
        averaged: prefer the EMA weights if the checkpoint has them.

    Raises:
        CheckpointError: the file is missing or damaged; a name, shape or type differs; or the
            checkpoint is sharded.
    """
    folder, files = checkpoint.path, checkpoint.files
    if shard_count(files):
        raise CheckpointError(
            f"{folder}: a sharded checkpoint: run `python -m tools.consolidate {folder}` first"
        )
    name = "ema.safetensors" if averaged and "ema.safetensors" in files else "model.safetensors"
    path = folder / name
    checkpoint.verify(("meta.json", name))
    try:
        weights = load_file(path)
    except (OSError, SafetensorError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    require_fitting(path, weights, expected)
    return weights


def require_fitting(
    path: Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Compare weights that were read from `path` with the model's: names, shapes and types.

    Raises:
        CheckpointError: they do not fit, or a number is not finite.
    """
    for name in sorted(expected.keys() ^ weights.keys()):
        where = "is missing" if name in expected else "is not a weight of the model"
        raise CheckpointError(
            f"{path}: {name} {where}; the weights are of another model than the configuration"
            " describes"
        )
    for name, given in weights.items():
        wanted = expected[name]
        if (given.shape, given.dtype) != (wanted.shape, wanted.dtype):
            raise CheckpointError(
                f"{path}: {name} is {given.dtype} {tuple(given.shape)}, where the configured model"
                f" has {wanted.dtype} {tuple(wanted.shape)}"
            )
        # no run saves such a weight: it stops before the update that would make it
        if not given.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds a number that is not finite")
