"""The cross-entropy of each token.

A caller that needs one number sums over the tokens and divides by the number of targets, over a
whole optimiser step or validation split. A mean of batch means would be wrong: a batch with one
target would weigh as much as a batch with a thousand.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

IGNORE_INDEX = -100  # a label that is not scored
# Logits are the largest tensor of a small model with a large vocabulary. More than this many
# (256 MB in float32) are computed, scored and freed in pieces, and recomputed in the backward pass.
MAX_LOGITS = 2**26


def count_targets(labels: Tensor) -> Tensor:
    """Return how many labels are scored, as an int64 scalar."""
    return (labels != IGNORE_INDEX).sum()


def token_losses(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Return a linear head's cross-entropy in nats at each position, (B, T) float32.

    Where a label is not scored, the loss is 0 and the gradients are zero, never NaN.

    Args:
        hidden: (B, T, D) the decoder's last hidden states.
        head: (V, D) the output head's weight.
        labels: (B, T) int64, IGNORE_INDEX where nothing is predicted.
    """
    hidden, flat = hidden.flatten(0, 1), labels.flatten()
    rows = max(1, MAX_LOGITS // head.shape[0])
    if len(flat) <= rows:
        return _losses(hidden, head, flat).view(labels.shape)
    losses = [  # no dropout inside, so no random state to keep: reading it would stall a GPU
        recompute(_losses, piece, head, targets, use_reentrant=False, preserve_rng_state=False)
        for piece, targets in zip(hidden.split(rows), flat.split(rows), strict=True)
    ]
    return torch.cat(losses).view(labels.shape)


def _losses(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    logits = F.linear(hidden, head).float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
