"""The sum of a linear head's losses, with the gradients made in the forward pass.

Logits are the largest tensors of a small model with a large vocabulary. Here a piece of rows is
computed, scored, turned into its part of the gradients, and freed. No logit waits for the backward
pass, and none is computed twice. The idea is Liger-Kernel's (Hsu et al. 2024, arXiv 2410.10989).

It works for a sum only: the gradients of all rows are added up before the backward pass, which can
then multiply them by one number. A caller that weighs each token itself needs `token_losses`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lm.optim import loss
from lm.optim.loss import IGNORE_INDEX, token_losses

# Measured on a CPU (benchmarks/loss_memory.py): beyond this number of logits, pieces near the size
# of its caches are faster than all at once. Other devices were not measured. They prefer few large
# kernels, so they keep the bound of `token_losses` and have larger pieces.
MOST_LOGITS = 2**22
PIECE = 2**20  # logits on a CPU
LARGE_PIECE = 2**24  # logits on another device
LEAST_ROWS = 128  # of a piece: with fewer, reading the head and its gradient takes longest
BLOCK = 4096  # rows of the head's gradient that a CPU adds to at a time, so that they stay cached


def summed_loss(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of `token_losses`, a float32 scalar, for the same arguments.

    A small number of logits, or a loss without gradients, is computed by `token_losses`.
    """
    most = MOST_LOGITS if hidden.device.type == "cpu" else loss.MAX_LOGITS
    # Asked here: inside a Function gradients are off, and needs_input_grad is true under no_grad.
    if labels.numel() * head.shape[0] <= most or not torch.is_grad_enabled():
        return token_losses(hidden, head, labels).sum()
    total: Tensor = _SummedLoss.apply(hidden.flatten(0, 1), head, labels.flatten())
    return total


class _SummedLoss(torch.autograd.Function):
    """hidden (N, D), head (V, D) and labels (N,) -> the sum of the losses, a float32 scalar."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss; keep its derivatives by hidden and head, if they are wanted."""
        device, dtype = hidden.device.type, hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        # Cast once: autocast would cast the head again for each piece.
        x, weight = hidden.to(dtype), head.to(dtype)
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # In float32: a sum of many bfloat16 numbers would lose the small ones.
        by_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), device=hidden.device)
        vocabulary = head.shape[0]
        piece, block = LARGE_PIECE, vocabulary
        if device == "cpu" and not torch.compiler.is_compiling():  # that would unroll the loops
            piece, block = PIECE, BLOCK
        rows = max(LEAST_ROWS, piece // vocabulary)
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            scored = labels[part, None] != IGNORE_INDEX  # (rows, 1)
            target = labels[part, None].clamp(min=0)
            log_p = F.log_softmax(F.linear(x[part], weight).float(), dim=-1)  # (rows, V)
            total -= log_p.gather(1, target).where(scored, 0).sum()
            # The derivative by the logits is p - onehot(target). It takes the place of log p.
            ones = torch.ones_like(target, dtype=log_p.dtype)
            slope = log_p.exp_().scatter_add_(1, target, -ones).to(dtype)
            # Ignored rows are masked in (rows, D) tensors, which are smaller than the slope.
            if by_hidden is not None:
                by_hidden[part] = (slope @ weight).where(scored, 0)
            if by_head is not None:
                inputs = x[part].where(scored, 0)
                blocks = zip(by_head.split(block), slope.split(block, dim=1), strict=True)
                for sums, slopes in blocks:
                    sums += slopes.T @ inputs
        ctx.save_for_backward(by_hidden, by_head)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Multiply by the derivative by the sum: 1 / targets, and in fp16 the scale of the loss."""
        by_hidden, by_head = ctx.saved_tensors
        # Not in place: a second backward pass needs the saved tensors as they are. Autograd casts
        # the results to the types of the inputs.
        return (
            by_hidden * by_total if by_hidden is not None else None,
            by_head * by_total if by_head is not None else None,
            None,
        )
