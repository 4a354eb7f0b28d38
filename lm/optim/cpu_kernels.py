"""Parts of the decoder for CPUs, which do the same with fewer passes over memory than torch.

A GPU has fused kernels for them. torch.compile fuses norms and rotations itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def by_hand(x: Tensor) -> bool:
    """Return whether `RMSNormalise` and `Rotate` are the faster ones for `x`."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return what `model.attend` does, by two matrix products.

    For bfloat16: the backward pass of torch's kernel is two to three times as slow.
    """
    (batch, heads, length, width), (kv_heads, seen) = q.shape, k.shape[1:3]
    group = heads // kv_heads  # these query heads share a key head, and so one product
    if mask is None:
        mask = torch.ones(length, seen, dtype=torch.bool, device=q.device).tril()
    with torch.autocast(q.device.type, enabled=False):  # it would make the softmax float32
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
        if mask.dim() == 2:
            bias = bias.repeat(group, 1)  # (H/K * T, S)
        else:
            bias = bias.expand(batch, heads, length, seen).reshape(-1, group * length, seen)
        q = (q * width**-0.5).reshape(-1, group * length, width)  # (B * K, H/K * T, E)
        k, v = (x.to(q.dtype).reshape(-1, seen, width) for x in (k, v))  # a cache is float32
        scores = torch.baddbmm(bias, q, k.mT)
        return (scores.softmax(dim=-1) @ v).view(batch, heads, length, width)


class RMSNormalise(Function):
    """x / rms(x) * weight, computed in float32: `RMSNormalise.apply(x, weight, eps)`.

    Under autocast the result has autocast's type: the layers that read it need not cast it each.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """(..., D) -> (..., D)."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        ctx.type = x.dtype
        autocast = torch.is_autocast_enabled("cpu")
        return (normed * weight).to(torch.get_autocast_dtype("cpu") if autocast else x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """With n = x / rms(x) and h = gradient * weight: dx = (h - n mean(h n)) / rms(x)."""
        normed, scale, weight = ctx.saved_tensors
        along = gradient * normed
        with torch.autocast("cpu", enabled=False):  # of the training step around it
            mean = (along @ weight.float() / along.shape[-1])[..., None]
        d_x = (gradient * weight).addcmul_(normed, mean, value=-1).mul_(scale)
        d_weight = None
        if ctx.needs_input_grad[1]:  # not with adapters
            d_weight = along.reshape(-1, along.shape[-1]).sum(0).to(weight.dtype)
        return d_x.to(ctx.type), d_weight, None


class Rotate(Function):
    """Turn (B, heads, T, E) by angles with `cos` and `sin`: `Rotate.apply(x, cos, sin)`.

    The gradient is turned back by the same angles, so nothing of x is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The pairs are (i, i + E/2), as in `model.rotate`."""
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Turn the gradient by the opposite angles."""
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    result = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    cos, sin = (half.chunk(2, dim=-1)[0] for half in (cos, sin))  # both halves have equal angles
    (first, second), (left, right) = x.float().chunk(2, dim=-1), result.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=right).addcmul_(first, sin)
    return result.to(x.dtype)
