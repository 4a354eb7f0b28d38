"""The loss, token by token.

Whoever needs one number sums the tokens and divides by how many were scored, over the whole
optimiser step or the whole validation split. Means of batches cannot be averaged: a batch with one
target would weigh as much as a batch with a thousand.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

IGNORE_INDEX = -100  # a label that is not scored

# Logits are the largest tensor of a small model with a large vocabulary. Above this many of them
# (256 MB in float32) they are made, scored and dropped in pieces, and made again in the backward
# pass.
MAX_LOGITS = 2**26


def count_targets(labels: Tensor) -> Tensor:
    """How many labels are scored, as an int64 scalar."""
    return (labels != IGNORE_INDEX).sum()


def token_losses(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats of a linear head at each position; 0, with zero gradients and never
    NaN, where a label is not scored.

    Args:
        hidden: (B, T, D) the decoder's last hidden states.
        head: (V, D) the output head's weight.
        labels: (B, T) int64, IGNORE_INDEX where nothing is to be predicted.

    Returns:
        (B, T) float32, whatever type the logits have.
    """
    hidden, flat = hidden.flatten(0, 1), labels.flatten()
    rows = max(1, MAX_LOGITS // head.shape[0])
    if len(flat) <= rows:
        return _losses(hidden, head, flat).view(labels.shape)
    pieces = zip(hidden.split(rows), flat.split(rows), strict=True)
    # Nothing in a piece is random, so there is no random state to keep; on a GPU fetching it would
    # wait for the device each time.
    losses = [
        recompute(_losses, some, head, targets, use_reentrant=False, preserve_rng_state=False)
        for some, targets in pieces
    ]
    return torch.cat(losses).view(labels.shape)


def _losses(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(
        F.linear(hidden, head).float(), labels, ignore_index=IGNORE_INDEX, reduction="none"
    )
