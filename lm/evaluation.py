"""Validation: sums over every supervised token, divided once at the end."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lm.loss import IGNORE_INDEX
from lm.objectives import NEXT_TOKEN, Objective
from lm.sharding import is_sharded


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on a text.

    The loss counts the end of each document as a token; bits per byte leaves it out, since it is not text. Both are NaN where nothing was
    scored.
    """

    loss: float  # nats per token
    bits_per_byte: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss): infinite where that does not fit a float, NaN where the loss is."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


@torch.no_grad()
def evaluate(
    decoder: nn.Module,
    batches: Iterable[dict[str, Any]],
    not_text: Collection[int],
    bytes_per_token: float,
    objective: Objective = NEXT_TOKEN,
) -> Evaluation:
    """Score a decoder on batches.

    Args:
        decoder: what the objective asks for losses.
        batches: dicts of `input_ids`, `labels` and perhaps `document_ids`, each (B, T), on any device. In a run of many processes each
            brings its own share, with equally many batches.
        not_text: labels that are not text, such as EOS.
        bytes_per_token: UTF-8 bytes of the text for each of its tokens, EOS not counted. Nats become bits per byte of the source through
            it: exact over a whole split, a close estimate over a part.
        objective: where it is not per token, there are no bits per byte, and `tokens` counts its losses.

    Returns:
        The same numbers on every process. The decoder is left in the mode it came in.

    Raises:
        Exception: whatever went wrong on this process; RuntimeError where it did so on another. Of a decoder that is shared out the others
            are not told: they wait in one of its layers (`lm.sharding.meet`).
    """
    device = next(decoder.parameters()).device
    totals = torch.zeros(5, dtype=torch.float64)  # nats, tokens, nats of text, tokens of text, processes that failed
    failure: Exception | None = None
    training = decoder.training
    decoder.eval()
    try:
        for batch in batches:
            rows = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
            totals[:4] += _sums(decoder, rows, torch.tensor(list(not_text), device=device), objective)
    except Exception as error:
        if is_sharded(decoder):
            raise
        failure = error  # the other processes wait for this one's share, and are told
        totals[4] = 1
    finally:
        decoder.train(training)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        totals = totals.to(device) if device.type == "cuda" else totals
        torch.distributed.all_reduce(totals)
    nats, tokens, text_nats, text_tokens, failed = totals.tolist()
    if failed:
        raise failure or RuntimeError("another process could not score its share")
    return Evaluation(
        loss=nats / tokens if tokens else math.nan,
        bits_per_byte=text_nats / math.log(2) / (text_tokens * bytes_per_token) if text_tokens else math.nan,
        tokens=int(tokens),
    )


def _sums(decoder: nn.Module, rows: dict[str, Tensor], not_text: Tensor, objective: Objective) -> Tensor:
    labels = rows["labels"]
    losses = objective.losses(decoder, rows)
    # Each batch is summed in float32 (MPS has no float64), the batches in float64.
    parts = [losses.sum(), objective.count(rows)]
    if objective.per_token:
        text = (labels != IGNORE_INDEX) & ~torch.isin(labels, not_text)
        parts += [losses[text].sum(), text.sum()]
    else:
        parts += [torch.zeros(()), torch.zeros(())]
    return torch.stack([part.float().cpu() for part in parts])
