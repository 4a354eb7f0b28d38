"""Tensors of a checkpoint, as safetensors: nothing in these files can run code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lm.checkpoints.folder import read_manifest, shard_count, verify
from lm.system.errors import CheckpointError


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
        # all that the library tells of the system's answer
        number = re.search(r"\(os error (\d+)\)", str(error))
        raise (
            OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))
        ) from error
    # The library's files are for their owner alone; a checkpoint is for whoever may read its
    # folder.
    path.chmod(path.parent.stat().st_mode & 0o666)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write what else training must remember, for `torch.load(path, weights_only=True)`.

    Raises:
        OSError: the disk refused.
    """
    try:
        # where torch opens the file itself, a full disk is "[enforce fail ...] unexpected pos 64 vs
        # 0"
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # what torch makes of it when it cannot finish the file either
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def read_weights(
    folder: Path, expected: Mapping[str, Tensor], averaged: bool = True
) -> dict[str, Tensor]:
    """The checkpoint's weights, on the CPU.

    The file and the meta.json that describes the model are held against the manifest first: a
    flipped bit would load without a word.

    Args:
        folder: the checkpoint.
        expected: the model's own parameters by name, which may be on the meta device; names, shapes
            and types are held against them.
        averaged: prefer the EMA weights where the checkpoint has them.

    Raises:
        CheckpointError: the file is missing or damaged, or a name, shape or type differs; or many
            processes wrote it.
    """
    if shard_count(read_manifest(folder)["files"]):
        raise CheckpointError(
            f"{folder}: a sharded checkpoint: run `python -m tools.consolidate {folder}` first"
        )
    name = (
        "ema.safetensors"
        if averaged and "ema.safetensors" in read_manifest(folder)["files"]
        else "model.safetensors"
    )
    path = folder / name
    verify(folder, ("meta.json", name))
    try:
        weights = load_file(path)
    except (OSError, SafetensorError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {str(error).partition(chr(10))[0]}"
        ) from error
    require_fitting(path, weights, expected)
    return weights


def require_fitting(
    path: Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Hold weights that were read at `path` against the model's own: names, shapes, types. Raises
    CheckpointError.
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
