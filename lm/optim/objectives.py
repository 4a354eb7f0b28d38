"""What a row of tokens is learnt for: each next token, or which of two answers is the better one.

An objective gives sums, and what to divide them by. The division comes last, over all micro-batches
and processes of a step or all batches of a validation, so it does not matter how the rows were cut
into them.
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


class Objective(Protocol):
    """Attributes: per_token: a loss is that of a token, and the sum of a text's is in nats."""

    per_token: bool

    def count(self, rows: Rows) -> Tensor:
        """How many losses there are, as an int64 scalar; known without the decoder."""

    def losses(self, decoder: nn.Module, rows: Rows) -> Tensor:
        """The losses of rows (B, T), float32, 0 where there is none."""


class NextToken:
    """The cross-entropy of each label."""

    per_token = True

    def count(self, rows: Rows) -> Tensor:
        """Labels."""
        return count_targets(rows["labels"])

    def losses(self, decoder: nn.Module, rows: Rows) -> Tensor:
        """(B, T) in nats."""
        losses: Tensor = decoder(rows["input_ids"], rows["labels"], rows.get("document_ids"))
        return losses


NEXT_TOKEN = NextToken()


class Preference:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7): -log sigmoid(beta
    (r(chosen) - r(rejected))), where r is the logarithm of how much likelier an answer is than the
    reference makes it.

    A row holds pairs: its documents 0 and 1 are a prompt with the chosen and with the rejected
    answer, so are 2 and 3, and so on.

    Args:
        beta: how much staying near the reference weighs.
        reference: gives, for a while, the decoder that the run started from.
    """

    per_token = False

    def __init__(
        self, beta: float, reference: Callable[[nn.Module], AbstractContextManager[nn.Module]]
    ):
        self.beta = beta
        self.reference = reference

    def count(self, rows: Rows) -> Tensor:
        """Pairs."""
        answered = _by_document((rows["labels"] != IGNORE_INDEX).float(), rows["document_ids"]) > 0
        return answered[..., 0].sum()

    def losses(self, decoder: nn.Module, rows: Rows) -> Tensor:
        """(B, pairs)."""
        inputs = rows["input_ids"], rows["labels"], rows["document_ids"]
        with torch.no_grad(), self.reference(decoder) as reference:
            before = reference(*inputs)
        # losses are negative logarithms
        ratios = _by_document(before - decoder(*inputs), inputs[2])
        answered = _by_document((inputs[1] != IGNORE_INDEX).float(), inputs[2]) > 0
        losses = -F.logsigmoid(self.beta * (ratios[..., 0] - ratios[..., 1]))
        return losses.where(answered[..., 0], torch.zeros_like(losses))


def kept(reference: nn.Module) -> Callable[[nn.Module], AbstractContextManager[nn.Module]]:
    """A reference that is a decoder of its own."""
    reference.eval().requires_grad_(False)

    @contextlib.contextmanager
    def lend(decoder: nn.Module) -> Iterator[nn.Module]:
        yield reference.to(next(decoder.parameters()).device)

    return lend


def _by_document(values: Tensor, document_ids: Tensor) -> Tensor:
    """Sums of (*, T) over each document, in pairs: (*, n, 2)."""
    n = int(document_ids.max()) // 2 + 1
    sums = torch.zeros(*values.shape[:-1], 2 * n, dtype=torch.float32, device=values.device)
    return sums.scatter_add(-1, document_ids, values.float()).unflatten(-1, (n, 2))
