"""How surprised a decoder is by each token of a validation text: over places in the context, over
sources, and token by token.

The numbers are the validation's own: the same rows, the same losses, only not summed at once
(`lm.evaluation.validation.evaluate`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm.optim.loss import IGNORE_INDEX

# rows as tensors (B, T), and the name of each row's source
Batch = tuple[dict[str, Any], Sequence[str]]


@dataclass(frozen=True)
class Guessed:
    """One row, token by token; arrays of T.

    Attributes:
        rows: the row alone, as tensors (1, T).
        nats: how unlikely each label was, NaN where there is none.
        likeliest: the token that was expected most in its place.
        probability: what that one had.
    """

    source: str
    rows: dict[str, Any]
    nats: NDArray[np.float64]
    likeliest: NDArray[np.int64]
    probability: NDArray[np.float64]


@dataclass
class Surprisal:
    """Sums over a text.

    Attributes:
        nats, tokens: by how many tokens the model could see, from 1: arrays of T + 1.
        sources: name -> (nats, tokens).
        examples: a few rows.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    sources: dict[str, tuple[float, int]] = field(default_factory=dict)
    examples: list[Guessed] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.nats.sum() / self.tokens.sum()) if self.tokens.sum() else float("nan")

    def by_position(self) -> list[tuple[int, int, float, int]]:
        """(first, last, nats per token, tokens): places in the context, 1, 2, 3-4, 5-8, 9-16 and so
        on, as far as there are tokens.
        """
        bins, first = [], 1
        while first < len(self.tokens):
            last = min(first if first < 2 else 2 * (first - 1), len(self.tokens) - 1)
            nats, tokens = (
                self.nats[first : last + 1].sum(),
                int(self.tokens[first : last + 1].sum()),
            )
            if tokens:
                bins.append((first, last, float(nats / tokens), tokens))
            first = last + 1
        return bins


def measure(
    decoder: Any, batches: Iterable[Batch], length: int, examples: int = 5, least: int = 8
) -> Surprisal:
    """Score a decoder on batches, and look closely at some rows.

    Args:
        decoder: it is left in the mode it came in.
        batches: see `Batch`, in the order of a validation.
        length: T.
        examples: how many rows to look at; the first ones, of each source in turn.
        least: labels that such a row has.
    """
    import torch

    from lm.optim.objectives import NEXT_TOKEN

    device, training = next(decoder.parameters()).device, decoder.training
    found = Surprisal(np.zeros(length + 1), np.zeros(length + 1, np.int64))
    chosen: dict[str, list[dict[str, Any]]] = {}
    decoder.eval()
    try:
        with torch.no_grad():
            for batch, sources in batches:
                rows = {
                    name: value.to(device)
                    for name, value in batch.items()
                    if isinstance(value, torch.Tensor)
                }
                losses = NEXT_TOKEN.losses(decoder, rows).cpu().double().numpy()
                asked = (rows["labels"] != IGNORE_INDEX).cpu().numpy()
                seen = _seen(rows)
                np.add.at(found.nats, seen[asked], losses[asked])
                np.add.at(found.tokens, seen[asked], 1)
                for i, source in enumerate(sources):
                    nats, tokens = found.sources.get(source, (0.0, 0))
                    if asked[i].any():
                        found.sources[source] = (
                            nats + float(losses[i][asked[i]].sum()),
                            tokens + int(asked[i].sum()),
                        )
                    if asked[i].sum() >= least and len(chosen.setdefault(source, [])) < examples:
                        chosen[source].append(
                            {name: value[i : i + 1] for name, value in rows.items()}
                        )
            ranked = sorted(
                (place, source) for source, kept in chosen.items() for place in range(len(kept))
            )[:examples]
            found.examples = [
                _guess(decoder, source, chosen[source][place]) for place, source in ranked
            ]
    finally:
        decoder.train(training)
    return found


def _seen(rows: dict[str, Any]) -> NDArray[np.int64]:
    """(B, T): how many tokens each place can see, itself among them; documents that are kept apart
    begin anew.
    """
    shape = tuple(rows["labels"].shape)
    places = np.broadcast_to(np.arange(1, shape[1] + 1), shape)
    if "document_ids" not in rows:
        return places
    documents = rows["document_ids"].cpu().numpy()
    begins = np.diff(documents, axis=1, prepend=documents[:, :1] - 1) != 0
    return places - np.maximum.accumulate(np.where(begins, places - 1, 0), axis=1)


def _guess(decoder: Any, source: str, rows: dict[str, Any]) -> Guessed:
    labels = rows["labels"]
    # (T, V)
    spread = (
        decoder(rows["input_ids"], None, rows.get("document_ids"))[0].float().log_softmax(dim=-1)
    )
    asked = labels[0] != IGNORE_INDEX
    nats = -spread.gather(-1, labels[0].clamp(min=0)[:, None])[:, 0]
    best = spread.max(dim=-1)
    unasked = np.where(asked.cpu().numpy(), nats.cpu().double().numpy(), np.nan)
    return Guessed(
        source, rows, unasked, best.indices.cpu().numpy(), best.values.exp().cpu().double().numpy()
    )
