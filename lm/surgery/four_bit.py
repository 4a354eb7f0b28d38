"""Frozen linear layers in 4 bits: QLoRA's base weights (Dettmers et al. 2023), packed by
bitsandbytes.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.system.errors import ConfigError

BLOCK = 64  # weights that share a scale, as in the paper


class FourBitLinear(nn.Module):
    """A frozen linear layer whose weights are NF4 numbers: 4 bits for each weight, and 32 bits for
    the largest of every 64.

    bitsandbytes' own `Linear4bit` packs when it moves to a GPU, and FSDP does not see its scales.
    Here everything is a parameter, which is moved, sharded and sent like any other. The weights are
    packed on the CPU, so the numbers are the same on every machine.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        # A row is a block. If rows are not whole blocks, the library's CPU kernel (0.50.2) reads
        # other numbers than it wrote: 24 % off instead of 9.
        flat = layer.weight.detach().flatten()
        blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        packed, state = _bitsandbytes().quantize_4bit(blocks, blocksize=BLOCK, quant_type="nf4")
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.largest = nn.Parameter(state.absmax, requires_grad=False)
        self.values = nn.Parameter(state.code, requires_grad=False)
        self.bias = layer.bias

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Unpack the weights, (out, in)."""
        functional = _bitsandbytes()
        shape = torch.Size((len(self.largest), BLOCK))
        state = functional.QuantState(
            self.largest, shape, self.values, blocksize=BLOCK, quant_type="nf4", dtype=dtype
        )
        unpacked: Tensor = functional.dequantize_4bit(self.packed, state)
        shape = torch.Size((self.out_features, self.in_features))
        return unpacked.flatten()[: shape.numel()].view(shape)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        y: Tensor = _TimesFrozen.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def unpacked(self) -> nn.Linear:
        """Return an ordinary layer with the unpacked weights."""
        layer = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=self.packed.device,
        )
        layer.weight = nn.Parameter(self.weight(torch.float32))
        layer.bias = self.bias
        return layer


class _TimesFrozen(torch.autograd.Function):
    """x W^T, with W unpacked in each pass. F.linear would keep the unpacked weights of all layers
    in memory until the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.weight(gradient.dtype), None


def _bitsandbytes() -> Any:
    # The library warns about a missing CPU kernel that nothing here calls.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise ConfigError(
            f"finetune.method: qlora needs a package: {sys.executable} -m pip install bitsandbytes"
        ) from error
    return functional
