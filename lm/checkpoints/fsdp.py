"""The files of a checkpoint that many processes wrote: one safetensors file of each kind from each.

Joined along the first dimension, in the order of their numbers, the files of a kind hold the whole
tensors (folder.py has the names). What is not sharded, such as the optimiser's counters, is in the
first file only. So any number of processes can read what any other number wrote. Nothing in these
files can run code, unlike the `.metadata` of torch.distributed.checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from lm.checkpoints.folder import Checkpoint, shard_count, shard_names
from lm.checkpoints.weights import read_weights, require_fitting, write_weights
from lm.checkpoints.write import Begun
from lm.surgery.fsdp import local_tensor, shard_like
from lm.system.disk import fingerprint, read_json, refusals, sync
from lm.system.errors import CheckpointError, first_line
from lm.system.mark import temporary

MOST_DIGITS = 10  # of the number of a weight


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state by name: "3.exp_avg" belongs to parameter number 3."""
    states = optimizer.state_dict()["state"]
    return {
        f"{number}.{key}": value
        for number, values in states.items()
        for key, value in values.items()
    }


def write_shards(path: Path, kinds: Mapping[str, Mapping[str, Tensor]]) -> Begun:
    """Begin the checkpoint `path`: each process writes and hashes its part of the tensors, in a
    temporary folder next to it.

    All processes must call this. The first one passes the result to `write_checkpoint`, which adds
    the other files.

    Raises:
        CheckpointError: on all processes, if the disk refused any of them. Nothing is left.
    """
    rank = torch.distributed.get_rank()
    count = torch.distributed.get_world_size()
    folder = temporary(path, "shards")
    files = {}
    problem = None
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    torch.distributed.barrier()
    try:
        with refusals(path):
            folder.mkdir(parents=True, exist_ok=True)
            for kind, tensors in kinds.items():
                file = folder / shard_names(kind, count)[rank]
                write_weights(file, dict(_local_tensors(tensors, rank)))
                sync(file)
                files[file.name] = fingerprint(file)
    except CheckpointError as error:
        problem = error
    # Exchanged before anyone goes on: the full disk of one process must not leave others waiting.
    outcomes: list[Any] = [None] * count
    torch.distributed.all_gather_object(outcomes, (files, problem))
    for _, refused in outcomes:
        if refused is not None:
            if rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            raise refused
    return Begun(
        folder, {name: entry for written, _ in outcomes for name, entry in written.items()}
    )


def _local_tensors(tensors: Mapping[str, Tensor], rank: int) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        rows = local_tensor(tensor)
        if rows is not None:
            yield name, rows
        elif rank == 0:
            yield name, tensor


def read_shards(checkpoint: Checkpoint, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the whole tensors of a sharded checkpoint, on the CPU. Every file is compared with the
    manifest first.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder, names = checkpoint.path, shard_names(kind, shard_count(checkpoint.files))
    checkpoint.verify(("meta.json", *names))
    try:
        files = [safe_open(folder / name, "pt") for name in names]
        keys = [set(file.keys()) for file in files]
        for key in sorted(set().union(*keys)):
            parts = [
                file.get_tensor(key) for file, own in zip(files, keys, strict=True) if key in own
            ]
            yield key, parts[0] if len(parts) == 1 else torch.cat(parts)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: its {kind} shards cannot be read: {first_line(error)}"
        ) from error


def read_any_weights(
    checkpoint: Checkpoint, expected: Mapping[str, Tensor], averaged: bool
) -> dict[str, Tensor]:
    """Read the weights as `lm.checkpoints.weights.read_weights` does, from a sharded checkpoint
    too.
    """
    if not has_shards(checkpoint, "model"):
        return read_weights(checkpoint, expected, averaged)
    kind = "ema" if averaged and has_shards(checkpoint, "ema") else "model"
    weights = dict(read_shards(checkpoint, kind))
    require_fitting(checkpoint.path, weights, expected)
    return weights


def has_shards(checkpoint: Checkpoint, kind: str) -> bool:
    """Return whether a checkpoint is sharded and has tensors of this kind."""
    names = checkpoint.files
    return any(name in names for name in shard_names(kind, shard_count(names)))


def write_train_state(path: Path, state: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Write what is not a tensor: `state`, and the settings of the optimiser's groups."""
    content = {**state, "param_groups": optimizer.state_dict()["param_groups"]}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def join_train_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read from a sharded checkpoint what an ordinary one has in train_state.pt: whole tensors, on
    the CPU.

    Raises:
        CheckpointError: a shard, or train_state.json, is missing or damaged.
    """
    content = read_json(checkpoint.path / "train_state.json")
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in read_shards(checkpoint, "optimizer"):
        number, _, key = name.partition(".")
        if not (number.isascii() and number.isdecimal() and len(number) < MOST_DIGITS):
            raise CheckpointError(
                f"{checkpoint.path}: its optimizer shards hold {name[:40]!r}, which is no state of"
                " a weight"
            )
        states.setdefault(int(number), {})[key] = tensor
    groups = content.pop("param_groups", None)
    return {**content, "optimizer": {"state": states, "param_groups": groups}}


def shard_optimizer_state(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Shard an optimiser's whole state as its parameters are. A value of another shape than its
    parameter, such as a counter, stays whole.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {
        number: {
            key: (
                shard_like(value, parameters[number])
                if value.shape == parameters[number].shape
                else value
            )
            for key, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": states}
