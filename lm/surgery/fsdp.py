"""A model shared out over processes: FSDP2, and the files of its checkpoints.

Each process holds its rows of every weight, gradient and optimiser tensor (DTensors, split along
their first dimension), and puts a layer together from all processes just before it is used. A
checkpoint has one safetensors file of each kind from each process (the names are in
lm/checkpoints/folder.py): joined along the first dimension in the order of their numbers they are
the whole tensors. What is not shared out, such as the optimiser's counters, is in the first file
alone. So any number of processes can read what any other number wrote, and nothing in the files can
run code, which torch.distributed.checkpoint's `.metadata` could.
"""

from __future__ import annotations

import itertools
import json
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lm.checkpoints.folder import Begun, read_manifest, shard_count, shard_names, verify
from lm.checkpoints.weights import read_weights, require_fitting, write_weights
from lm.system.disk import fingerprint, read_json, refusals, sync
from lm.system.errors import CheckpointError

# much more than processes are ever apart that wait for each other in every layer
PATIENCE = timedelta(minutes=1)
_meetings = itertools.count()


def shard(model: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Share a model out, in place. Every process has the whole one before, with the same weights,
    and its own part afterwards.

    Args:
        model: the whole; its parameters keep their names.
        blocks: those of its modules that are put together one at a time. What is in none of them is
            put together as one.
        mesh: the processes, in one dimension.
    """
    # The loss is a view, which nothing changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in (*blocks, model):
        # The outermost too, which would else stay whole after a forward pass without a backward
        # one: then its parameters would be other tensors for whoever swaps weights or saves.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has shared it out."""
    return isinstance(model, FSDPModule)


class ForSampling:
    """A shared-out decoder for `lm.generation.sampling.generate`, which calls its `forward`; that
    alone would not put the layers together.
    """

    def __init__(self, model: nn.Module):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """As calling the decoder, with FSDP's hooks; never compiled code."""
        return self._model._call_impl(*arguments, **named)


def exchange_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass adds gradients up over processes; without, each process keeps
    its own whole ones until then.
    """
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(wanted)


def meet(problem: Exception | None) -> None:
    """Say that this process is through with what it did together with the others, or that it has a
    problem. All have to call this.

    A process that fails alone leaves the others in the middle of a layer, where they wait for its
    part and nothing can reach them: then it has to end, and so ends them. Where all of them come
    here, which a mistake that all of them make does not prevent, they can go on.

    Raises:
        Exception: `problem`, where the others did not come within a minute.
    """
    meeting, world = next(_meetings), torch.distributed.group.WORLD
    assert world is not None
    # Not by a collective operation: those that wait in another one would take it for that.
    store = world.get_group_store()
    store.set(f"meeting-{meeting}-{world.rank()}", "here")
    if problem is not None:
        try:
            store.wait([f"meeting-{meeting}-{rank}" for rank in range(world.size())], PATIENCE)
        except torch.distributed.DistError:
            raise problem from None


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be shared out, put together on every process. All of them have to call
    this.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, reference: Tensor) -> Tensor:
    """This process's part of a whole tensor, if `reference` is shared out; nothing is sent."""
    if not isinstance(reference, DTensor):
        return tensor
    tensor = tensor.to(device=reference.device_mesh.device_type)
    return distribute_tensor(
        tensor, reference.device_mesh, reference.placements, src_data_rank=None
    )


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Its state by name: "3.exp_avg" belongs to the parameter with the number 3."""
    states = optimizer.state_dict()["state"]
    return {
        f"{number}.{key}": value
        for number, values in states.items()
        for key, value in values.items()
    }


def write_shards(path: Path, kinds: Mapping[str, Mapping[str, Tensor]]) -> Begun:
    """Begin the checkpoint `path`: each process writes and hashes its part of the tensors, in a
    temporary folder beside it.

    All processes have to call this. What it returns is for the first one, which adds the other
    files (`write_checkpoint`).

    Raises:
        CheckpointError: on all processes, where the disk refused any of them. Nothing is left.
    """
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    folder, files, problem = path.with_name(f".{path.name}.tmp-shards"), {}, None
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    torch.distributed.barrier()
    try:
        with refusals(path):
            folder.mkdir(parents=True, exist_ok=True)
            for kind, tensors in kinds.items():
                file = folder / shard_names(kind, count)[rank]
                write_weights(file, dict(_mine(tensors, rank)))
                sync(file)
                files[file.name] = fingerprint(file)
    except CheckpointError as error:
        problem = error
    # Told to all before any of them goes on: a full disk of one must not leave the others waiting.
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


def _mine(tensors: Mapping[str, Tensor], rank: int) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            yield name, tensor.to_local()
        elif rank == 0:
            yield name, tensor


def read_shards(folder: Path, kind: str) -> Iterator[tuple[str, Tensor]]:
    """The whole tensors of a sharded checkpoint, one after another, on the CPU. Every file is held
    against the manifest first.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    names = shard_names(kind, shard_count(read_manifest(folder)["files"]))
    verify(folder, ("meta.json", *names))
    try:
        files = [safe_open(folder / name, "pt") for name in names]
        held = [set(file.keys()) for file in files]
        for name in sorted(set().union(*held)):
            parts = [
                file.get_tensor(name) for file, its in zip(files, held, strict=True) if name in its
            ]
            yield name, parts[0] if len(parts) == 1 else torch.cat(parts)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: its {kind} shards cannot be read: {str(error).partition(chr(10))[0]}"
        ) from error


def read_any_weights(
    folder: Path, expected: Mapping[str, Tensor], averaged: bool
) -> dict[str, Tensor]:
    """As `lm.checkpoints.weights.read_weights`, whose arguments these are; of a sharded checkpoint
    too.
    """
    if not has_shards(folder, "model"):
        return read_weights(folder, expected, averaged)
    weights = dict(
        read_shards(folder, "ema" if averaged and has_shards(folder, "ema") else "model")
    )
    require_fitting(folder, weights, expected)
    return weights


def has_shards(folder: Path, kind: str) -> bool:
    """Whether a checkpoint is a sharded one, with tensors of this kind."""
    names = read_manifest(folder)["files"]
    return any(name in names for name in shard_names(kind, shard_count(names)))


def write_train_state(path: Path, state: Mapping[str, Any], optimizer: Optimizer) -> None:
    """What is no tensor: `state`, and the settings of the optimiser's groups."""
    content = {**state, "param_groups": optimizer.state_dict()["param_groups"]}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_train_state(folder: Path) -> dict[str, Any]:
    """What an ordinary checkpoint has in its train_state.pt, of a sharded one: whole tensors, on
    the CPU.

    Raises:
        CheckpointError: a shard, or train_state.json, is missing or damaged.
    """
    content = read_json(folder / "train_state.json")
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in read_shards(folder, "optimizer"):
        number, _, key = name.partition(".")
        if not number.isdecimal():
            raise CheckpointError(
                f"{folder}: its optimizer shards hold {name!r}, which is no state of a weight"
            )
        states.setdefault(int(number), {})[key] = tensor
    groups = content.pop("param_groups", None)
    return {**content, "optimizer": {"state": states, "param_groups": groups}}


def placed(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimiser's whole state, shared out as its parameters are: only what has a parameter's
    shape, so not a counter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {
        number: {
            key: (
                like(value, parameters[number])
                if value.shape == parameters[number].shape
                else value
            )
            for key, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": states}
