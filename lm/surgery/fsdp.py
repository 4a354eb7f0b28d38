"""FSDP2: each process holds its rows of every weight, gradient and optimiser tensor.

The tensors are DTensors, split along their first dimension. A layer is gathered from all processes
just before it is used. lm/checkpoints/fsdp.py writes and reads their checkpoints.

torch's FSDP and DTensor take long to import, so each function imports them itself: sampling and
validation use this file and do without them.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from model import Decoder

PATIENCE = timedelta(minutes=1)  # far longer than one process ever waits for another in a layer
_meetings = itertools.count()


def shard(model: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Shard a model in place. Every process brings the whole model, with the same weights, and
    keeps its own part.

    Args:
        model: the whole model; its parameters keep their names.
        blocks: modules in it that are gathered one at a time. The rest is gathered together.
        mesh: the processes, in one dimension.
    """
    from torch.distributed.fsdp import fully_shard

    # The loss is a view, but nothing changes it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in (*blocks, model):
        # The outermost module is resharded too. It would otherwise stay gathered after a forward
        # pass without a backward pass, and saving or swapping weights would see other tensors.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard` has sharded the model."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported: nothing is sharded
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


class ForSampling:
    """A sharded decoder for `lm.generation.sampling.generate`, which calls its `forward` directly
    and so without FSDP's hooks.
    """

    def __init__(self, decoder: Decoder):
        self._decoder = decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the decoder with FSDP's hooks, and never compiled code."""
        return self._decoder._call_impl(*arguments, **keywords)


def sync_gradients(model: nn.Module, wanted: bool) -> None:
    """Set whether the next backward pass adds gradients up over processes. Without, each process
    accumulates its own whole gradients.
    """
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(wanted)


def meet(problem: Exception | None) -> None:
    """Wait for the other processes if this one failed in what all of them did together. All
    processes must call this.

    A process that fails alone leaves the others inside a layer, waiting for its part, where no
    message reaches them. It then has to end, which ends them too. If all processes arrive here,
    because all of them made the same mistake, they can go on.

    Raises:
        Exception: `problem`, if the other processes did not arrive within a minute.
    """
    meeting, world = next(_meetings), torch.distributed.group.WORLD
    assert world is not None
    # Through the store: processes that wait in a collective operation would take another one for
    # the one they wait for.
    store = world.get_group_store()
    store.set(f"meeting-{meeting}-{world.rank()}", "here")
    if problem is not None:
        try:
            store.wait([f"meeting-{meeting}-{rank}" for rank in range(world.size())], PATIENCE)
        except torch.distributed.DistError:
            raise problem from None


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded on every process. All processes must call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor | None:
    """Return this process's rows of a sharded tensor; None if the tensor is not sharded."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else None


def shard_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, if `reference` is sharded. Nothing is sent."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(reference, DTensor):
        return tensor
    mesh, placements = reference.device_mesh, reference.placements
    tensor = tensor.to(device=mesh.device_type)
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)
