"""Validation: sums over every supervised token, divided once at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lm.optim.loss import IGNORE_INDEX
from lm.optim.modes import evaluating
from lm.optim.objectives import NEXT_TOKEN, Objective, on_device
from lm.surgery.fsdp import is_sharded
from lm.system.json_values import finite
from model import Decoder


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on a text.

    The loss counts the end of each document as a token. Bits per byte exclude it, because it is not
    text. Both are NaN if nothing was scored. Bits per byte are also NaN if the tokens lose a part
    of the text (lm/tokens/round_trip.py).

    Attributes:
        text_bytes: the bytes of text that was scored.
        sources: the scores of each source, if there are several. Their sums give the whole.
        per_token: whether the loss is that of a token; that of a preference has no perplexity.
    """

    loss: float  # nats per token
    bits_per_byte: float
    tokens: int
    sources: Mapping[str, Evaluation] = field(default_factory=dict)
    text_bytes: int = 0
    per_token: bool = True

    @property
    def perplexity(self) -> float | None:
        """Return exp(loss): infinite if that does not fit a float, NaN if the loss is NaN; None
        without a loss per token.
        """
        if not self.per_token:
            return None
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def figures_by_source(self) -> dict[str, dict[str, float | None]]:
        """Return `sources` for JSON. NaN and infinity become None, because JSON has neither."""
        return {
            name: {
                "loss": finite(source.loss),
                "bits_per_byte": finite(source.bits_per_byte),
                "tokens": source.tokens,
            }
            for name, source in self.sources.items()
        }


@torch.no_grad()
def evaluate(
    decoder: Decoder,
    batches: Iterable[dict[str, Any]],
    text_bytes: NDArray[np.float64],
    objective: Objective = NEXT_TOKEN,
    sources: Mapping[str, NDArray[np.float64]] = MappingProxyType({}),
) -> Evaluation:
    """Score a decoder on batches, in evaluation mode.

    Args:
        decoder: the model that the objective asks for losses.
        batches: dicts of `input_ids`, `labels` and perhaps `document_ids`, each (B, T), on any
            device. In a run of many processes each brings its own share, with equally many batches.
        text_bytes: the bytes of text that each id stands for, (V,); 0 for ids that are no text,
            such as EOS. Bits per byte are the nats and the bytes of exactly the labels scored.
        objective: without a loss per token there are no bits per byte, and `tokens` counts losses.
        sources: names with their `text_bytes`, the same on every process, to score the rows of
            each source separately too. Batches then hold `source`, (B,), each row's index in
            this order.

    Returns:
        The same numbers on every process.

    Raises:
        Exception: any error of this process; RuntimeError if another process failed. If the decoder
            is sharded, the other processes do not notice: they wait in one of its layers
            (`lm.surgery.fsdp.meet`).
    """
    device = next(decoder.parameters()).device
    # The sums of `_summed`, with a column for the processes that failed.
    totals = torch.zeros(1 + len(sources), 5, dtype=torch.float64)
    failure: Exception | None = None
    with evaluating(decoder):
        try:
            totals[:, :4] = _summed(decoder, batches, objective, [text_bytes, *sources.values()])
        except Exception as error:
            if is_sharded(decoder):
                raise
            failure = error  # the other processes wait for this one's share, which says so
            totals[0, 4] = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        totals = totals.to(device) if device.type == "cuda" else totals
        torch.distributed.all_reduce(totals)
    if totals[0, 4]:
        raise failure or RuntimeError("another process could not score its share")
    whole, *parts = totals.tolist()
    by_source = {name: _divided(sums) for name, sums in zip(sources, parts, strict=True)}
    return replace(_divided(whole), sources=by_source, per_token=objective.per_token)


def _summed(
    decoder: Decoder,
    batches: Iterable[dict[str, Any]],
    objective: Objective,
    text_bytes: Sequence[NDArray[np.float64]],
) -> Tensor:
    """Return nats, tokens, nats of text and bytes of text: (1 + number of sources, 4) float64.

    The first row, and the first of `text_bytes`, is for the whole, the others for the sources. The
    whole is not the sum of the
    sources' sums, so it has the same bits with and without sources.
    """
    device = next(decoder.parameters()).device
    totals = torch.zeros(len(text_bytes), 4, dtype=torch.float64)
    tables = [torch.from_numpy(table) for table in text_bytes]
    for batch in batches:
        rows = on_device(batch, device)
        losses = objective.losses(decoder, rows)
        totals[0] += _sums(losses, rows, tables[0], objective)
        for number in batch["source"].unique().tolist() if tables[1:] else ():
            own = rows["source"] == number
            own_rows = {name: value[own] for name, value in rows.items()}
            totals[1 + number] += _sums(losses[own], own_rows, tables[1 + number], objective)
    return totals


def _divided(sums: list[float]) -> Evaluation:
    nats, tokens, text_nats, text_bytes, _ = sums
    return Evaluation(
        loss=nats / tokens if tokens else math.nan,
        bits_per_byte=text_nats / math.log(2) / text_bytes if text_bytes else math.nan,
        tokens=int(tokens),
        text_bytes=round(text_bytes),
    )


def _sums(
    losses: Tensor, rows: Mapping[str, Tensor], text_bytes: Tensor, objective: Objective
) -> Tensor:
    # A batch is summed in float32, because MPS has no float64; batches are summed in float64.
    sums = torch.zeros(4, dtype=torch.float64)
    sums[0], sums[1] = losses.sum().cpu(), objective.count(rows).cpu()
    if objective.per_token:
        labels = rows["labels"].cpu()
        sizes = text_bytes[labels.clamp(min=0)].masked_fill(labels == IGNORE_INDEX, 0)
        sums[2] = losses[(sizes > 0).to(losses.device)].sum().cpu()
        sums[3] = sizes.sum()
    return sums
