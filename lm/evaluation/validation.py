"""Validation: sums over every supervised token, divided once at the end."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lm.optim.loss import IGNORE_INDEX
from lm.optim.objectives import NEXT_TOKEN, Objective
from lm.surgery.fsdp import is_sharded


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on a text.

    The loss counts the end of each document as a token; bits per byte leaves it out, since it is
    not text. Both are NaN where nothing was scored.

    Attributes:
        sources: the same of each source, where there are several: their sums are those of the
            whole.
    """

    loss: float  # nats per token
    bits_per_byte: float
    tokens: int
    sources: Mapping[str, Evaluation] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """exp(loss): infinite where that does not fit a float, NaN where the loss is."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def figures_by_source(self) -> dict[str, dict[str, float | None]]:
        """`sources` for JSON, which has no NaN and no infinity: they are None."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            name: {
                "loss": finite(each.loss),
                "bits_per_byte": finite(each.bits_per_byte),
                "tokens": each.tokens,
            }
            for name, each in self.sources.items()
        }


@torch.no_grad()
def evaluate(
    decoder: nn.Module,
    batches: Iterable[dict[str, Any]],
    not_text: Collection[int],
    bytes_per_token: float,
    objective: Objective = NEXT_TOKEN,
    sources: Mapping[str, float] = MappingProxyType({}),
) -> Evaluation:
    """Score a decoder on batches.

    Args:
        decoder: what the objective asks for losses.
        batches: dicts of `input_ids`, `labels` and perhaps `document_ids`, each (B, T), on any
            device. In a run of many processes each brings its own share, with equally many batches.
        not_text: labels that are not text, such as EOS.
        bytes_per_token: UTF-8 bytes of the text for each of its tokens, EOS not counted. Nats
            become bits per byte of the source through it: exact over a whole split, a close
            estimate over a part.
        objective: where it is not per token, there are no bits per byte, and `tokens` counts its
            losses.
        sources: names, and `bytes_per_token` of each, to score each source's rows by themselves
            too: then batches hold `source`, (B,), each row's number in this order. The same on
            every process.

    Returns:
        The same numbers on every process. The decoder is left in the mode it came in.

    Raises:
        Exception: whatever went wrong on this process; RuntimeError where it did so on another. Of
            a decoder that is shared out the others are not told: they wait in one of its layers
            (`lm.surgery.fsdp.meet`).
    """
    device = next(decoder.parameters()).device
    # Of the whole and of each source: nats, tokens, nats of text, tokens of text; and of the whole:
    # processes that failed. Sums of sources are not added up to those of the whole, which so are
    # the same bits as without them.
    totals = torch.zeros(1 + len(sources), 5, dtype=torch.float64)
    failure: Exception | None = None
    training = decoder.training
    decoder.eval()
    try:
        for batch in batches:
            rows = {
                name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)
            }
            losses, ends = (
                objective.losses(decoder, rows),
                torch.tensor(list(not_text), device=device),
            )
            totals[0, :4] += _sums(losses, rows, ends, objective)
            for number in batch["source"].unique().tolist() if sources else ():
                own = rows["source"] == number
                mine = {name: value[own] for name, value in rows.items()}
                totals[1 + number, :4] += _sums(losses[own], mine, ends, objective)
    except Exception as error:
        if is_sharded(decoder):
            raise
        failure = error  # the other processes wait for this one's share, and are told
        totals[0, 4] = 1
    finally:
        decoder.train(training)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        totals = totals.to(device) if device.type == "cuda" else totals
        torch.distributed.all_reduce(totals)
    if totals[0, 4]:
        raise failure or RuntimeError("another process could not score its share")
    whole, *parts = totals.tolist()
    of_sources = {
        name: _divided(sums, sources[name]) for name, sums in zip(sources, parts, strict=True)
    }
    return replace(_divided(whole, bytes_per_token), sources=of_sources)


def _divided(sums: list[float], bytes_per_token: float) -> Evaluation:
    nats, tokens, text_nats, text_tokens, _ = sums
    return Evaluation(
        loss=nats / tokens if tokens else math.nan,
        bits_per_byte=(
            text_nats / math.log(2) / (text_tokens * bytes_per_token) if text_tokens else math.nan
        ),
        tokens=int(tokens),
    )


def _sums(
    losses: Tensor, rows: Mapping[str, Tensor], not_text: Tensor, objective: Objective
) -> Tensor:
    labels = rows["labels"]
    # Each batch is summed in float32 (MPS has no float64), the batches in float64.
    parts = [losses.sum(), objective.count(rows)]
    if objective.per_token:
        text = (labels != IGNORE_INDEX) & ~torch.isin(labels, not_text)
        parts += [losses[text].sum(), text.sum()]
    else:
        parts += [torch.zeros(()), torch.zeros(())]
    return torch.stack([part.float().cpu() for part in parts])
