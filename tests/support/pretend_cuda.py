"""Pretend to have a CUDA device: its tensors are CPU tensors that claim to be on `cuda:0`.

`with pretend_cuda():` lets factories, `to` and `cpu` accept the device. An operation whose tensors
are on different devices then fails as it does on a GPU, and all values are computed on the CPU.
`torch._subclasses.FakeTensorMode` has no values, and a torch without CUDA cannot copy between its
devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
ATEN = torch.ops.aten
ACROSS = {ATEN.copy_.default, ATEN._to_copy.default}  # from one device to another
INDEXING = {ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default}
FILLING = {ATEN.fill_.Tensor, ATEN.masked_fill.Tensor, ATEN.masked_fill_.Tensor}


class WrongDeviceError(RuntimeError):
    """An operation met tensors of two devices."""


class OnCuda(Tensor):
    """A tensor that claims to be on `cuda:0`; `held` is the CPU tensor with its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> OnCuda:
        tensor: OnCuda = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype,
            requires_grad=requires_grad,
        )  # fmt: skip
        tensor.held = held
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"OnCuda({self.held})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        check_devices(func, args, kwargs)
        outer = {id(x.held): x for x in tree_flatten((args, kwargs))[0] if isinstance(x, OnCuda)}
        result = func(*tree_map(to_held, args), **tree_map(to_held, kwargs))
        if isinstance(args[0], Tensor) and not isinstance(args[0], OnCuda) and func in ACROSS:
            return args[0]  # a copy into a tensor of the CPU
        # An operation in place returns its own argument.
        return tree_map(
            lambda x: outer.get(id(x), OnCuda(x)) if isinstance(x, Tensor) else x, result
        )


class PretendCuda(TorchFunctionMode):
    """Handles the functions that name a device, before torch looks for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.cpu:
            return Move.apply(args[0], CPU)
        if func is Tensor.tolist:
            return func(to_held(args[0].detach()))
        if func is Tensor.to:
            return moved(*args, **kwargs)
        check_generator(kwargs.get("generator"), args)
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = torch.device(kwargs.pop("device"))
        made = func(*args, **kwargs, device=CPU)
        wanted = kwargs.get("requires_grad", False)
        return made if device.type == "cpu" else OnCuda(made.detach(), wanted)


class CudaGenerator(torch.Generator):
    """A generator that claims to be on `cuda:0`; it draws the CPU's numbers."""

    device = CUDA


class Move(torch.autograd.Function):
    """Copies a tensor to a device, and its gradient back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device) -> Tensor:
        ctx.source = tensor.device
        held = to_held(tensor)
        if tensor.device.type == device.type:
            return tensor
        return OnCuda(held.clone()) if device.type == "cuda" else held.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return Move.apply(gradients[0], ctx.source), None


@contextmanager
def pretend_cuda() -> Iterator[torch.device]:
    """Accept the device `cuda:0` within the block, and yield it."""
    # Module.to then exchanges the contents of a parameter; otherwise tied weights would part.
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with PretendCuda():
            yield CUDA
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Do what `tensor.to(...)` does: change the device, the type, or both."""
    device, dtype = tensor.device, tensor.dtype
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, (str, torch.device)):
            device = torch.device(argument)
        elif isinstance(argument, torch.dtype):
            dtype = argument
        elif isinstance(argument, Tensor):
            device, dtype = argument.device, argument.dtype
    if device.type != tensor.device.type:
        tensor = Move.apply(tensor, device)
    return tensor.to(dtype) if dtype != tensor.dtype else tensor


def to_held(value: Any) -> Any:
    """Return the CPU tensor of an `OnCuda`, and all else as it is."""
    return value.held if isinstance(value, OnCuda) else value


def check_generator(generator: torch.Generator | None, arguments: tuple[Any, ...]) -> None:
    """Raise WrongDeviceError if a draw on the GPU uses another device's generator.

    Here and not with the devices: an operation is handed a generator that has forgotten its class.
    """
    on_cuda = any(getattr(argument, "is_cuda", False) for argument in arguments)
    if generator is not None and on_cuda and generator.device != CUDA:
        raise WrongDeviceError(f"a draw on cuda:0 with a generator on {generator.device}")


def check_devices(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Raise WrongDeviceError if an operation's tensors are on two devices.

    As on a GPU, indexing accepts indices on the CPU. It, filling and elementwise operations accept
    CPU tensors of no dimension.
    """
    if func in ACROSS:
        return
    takes_scalars = func in INDEXING | FILLING or torch.Tag.pointwise in func.tags
    takes_scalars = takes_scalars or func.__name__.startswith("_foreach")
    read = (args[0], args[2:]) if func in INDEXING else (args, kwargs)
    written = [
        value
        for value, argument in zip(args, func._schema.arguments, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    strangers = [
        *(x for x in on_cpu(read) if x.dim() > 0 or not takes_scalars),
        *on_cpu(written),  # a CPU tensor of no dimension is no place for a result
    ]
    if strangers:
        shapes = [tuple(x.shape) for x in strangers]
        raise WrongDeviceError(f"{func}: tensors on cuda:0, and on the CPU {shapes}")


def on_cpu(arguments: Any) -> list[Tensor]:
    """Return the tensors among nested arguments that are not on the device."""
    leaves = tree_flatten(arguments)[0]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.device != CUDA]
