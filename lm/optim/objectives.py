"""Training objectives: predict each next token, or prefer one of two answers (DPO).

An objective returns losses and their number. The caller divides last, over all micro-batches and
processes of a step or all batches of a validation, so the cut into batches does not matter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.optim.loss import IGNORE_INDEX, count_targets

Rows = Mapping[str, Any]  # `input_ids`, `labels` and perhaps `document_ids`, each (*, T)


def on_device(batch: Rows, device: torch.device | str) -> dict[str, Tensor]:
    """Return the tensors of a batch on a device, without all else that it holds."""
    return {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}


class Objective(Protocol):
    """The interface of objectives.

    Attributes:
        per_token: whether each loss belongs to one token, in nats.
    """

    per_token: bool

    def count(self, rows: Rows) -> Tensor:
        """Return how many losses the rows have, as an int64 scalar, without a decoder."""

    def losses(self, decoder: nn.Module, rows: Rows) -> Tensor:
        """Return the losses of rows (B, T), float32, 0 where there is none."""

    def total(self, decoder: nn.Module, rows: Rows) -> Tensor:
        """Return the sum of the losses, to train with: it may need less memory than each loss."""


class NextToken:
    """The cross-entropy of each label."""

    per_token = True

    def count(self, rows: Rows) -> Tensor:
        """Return the number of labels."""
        return count_targets(rows["labels"])

    def losses(self, decoder: nn.Module, rows: Rows) -> Tensor:
        """Return the losses, (B, T), in nats."""
        losses: Tensor = decoder(rows["input_ids"], rows["labels"], rows.get("document_ids"))
        return losses

    def total(self, decoder: nn.Module, rows: Rows) -> Tensor:
        """Return the sum of the losses, in nats."""
        inputs = rows["input_ids"], rows["labels"], rows.get("document_ids")
        total: Tensor = decoder(*inputs, total=True)
        return total


NEXT_TOKEN = NextToken()


class Preference:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7).

        -log sigmoid(beta (r(chosen) - r(rejected)))    r(y) = log p(y) - log p_reference(y)

    A row holds pairs: documents 0 and 1 are a prompt with the chosen and with the rejected answer,
    documents 2 and 3 the next pair, and so on.

    Args:
        beta: the weight of staying near the reference.
        reference: a context that yields the decoder from which the run started.
    """

    per_token = False

    def __init__(
        self, beta: float, reference: Callable[[nn.Module], AbstractContextManager[nn.Module]]
    ):
        self.beta = beta
        self.reference = reference

    def count(self, rows: Rows) -> Tensor:
        """Return the number of pairs."""
        answered = _by_document((rows["labels"] != IGNORE_INDEX).float(), rows["document_ids"]) > 0
        return answered[..., 0].sum()

    def losses(self, decoder: nn.Module, rows: Rows) -> Tensor:
        """Return the losses, (B, pairs)."""
        inputs = rows["input_ids"], rows["labels"], rows["document_ids"]
        with torch.no_grad(), self.reference(decoder) as reference:
            before = reference(*inputs)
        # A token's loss is its negative log-probability.
        ratios = _by_document(before - decoder(*inputs), inputs[2])
        answered = _by_document((inputs[1] != IGNORE_INDEX).float(), inputs[2]) > 0
        losses = -F.logsigmoid(self.beta * (ratios[..., 0] - ratios[..., 1]))
        return losses.where(answered[..., 0], torch.zeros_like(losses))

    def total(self, decoder: nn.Module, rows: Rows) -> Tensor:
        """Return the sum of the losses."""
        return self.losses(decoder, rows).sum()  # each token's own weight: no early gradients


def frozen_reference(
    reference: nn.Module,
) -> Callable[[nn.Module], AbstractContextManager[nn.Module]]:
    """Return a reference that is a separate decoder."""
    reference.eval().requires_grad_(False)

    @contextlib.contextmanager
    def lend(decoder: nn.Module) -> Iterator[nn.Module]:
        yield reference.to(next(decoder.parameters()).device)

    return lend


def _by_document(values: Tensor, document_ids: Tensor) -> Tensor:
    """Sum (*, T) over each document, in pairs: (*, n, 2)."""
    n = int(document_ids.max()) // 2 + 1
    sums = torch.zeros(*values.shape[:-1], 2 * n, dtype=torch.float32, device=values.device)
    return sums.scatter_add(-1, document_ids, values.float()).unflatten(-1, (n, 2))
