"""The loss of a validation text by position in the context, by source, and token by token.

The numbers are those of the validation: the same rows and the same losses, summed in other groups
(`lm.evaluation.validation.evaluate`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lm.optim.loss import IGNORE_INDEX
from lm.optim.modes import evaluating
from lm.optim.objectives import NEXT_TOKEN, on_device

if TYPE_CHECKING:
    from model import Decoder

# rows as tensors (B, T), and the name of each row's source
Batch = tuple[dict[str, Any], Sequence[str]]


@dataclass(frozen=True)
class Guessed:
    """One row, token by token; the arrays have T elements.

    Attributes:
        rows: the row as tensors (1, T).
        nats: the loss of each label, NaN where there is none.
        likeliest: the token with the highest probability at each place.
        probability: the probability of that token.
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
        nats: summed by the number of tokens that the model could see, which begins at 1: T + 1.
        tokens: counted in the same way.
        sources: name -> (nats, tokens).
        examples: a few rows.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    sources: dict[str, tuple[float, int]] = field(default_factory=dict)
    examples: list[Guessed] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Return the nats per token."""
        return float(self.nats.sum() / self.tokens.sum()) if self.tokens.sum() else float("nan")

    def by_position(self) -> list[tuple[int, int, float, int]]:
        """Return (first, last, nats per token, tokens) for the positions 1, 2, 3-4, 5-8, 9-16 and
        so on that have tokens.
        """
        bins, first = [], 1
        while first < len(self.tokens):
            last = min(first if first < 2 else 2 * (first - 1), len(self.tokens) - 1)
            nats = self.nats[first : last + 1].sum()
            tokens = int(self.tokens[first : last + 1].sum())
            if tokens:
                bins.append((first, last, float(nats / tokens), tokens))
            first = last + 1
        return bins


def measure_surprisal(
    decoder: Decoder, batches: Iterable[Batch], length: int, examples: int = 5, least: int = 8
) -> Surprisal:
    """Score a decoder on batches, and some rows token by token. The decoder's mode is restored.

    Args:
        decoder: the model.
        batches: see `Batch`, in the order of a validation.
        length: T.
        examples: the number of rows to look at: the first ones, from each source in turn.
        least: the number of labels that such a row must have.
    """
    device = next(decoder.parameters()).device
    result = Surprisal(np.zeros(length + 1), np.zeros(length + 1, np.int64))
    chosen: dict[str, list[dict[str, Any]]] = {}
    with evaluating(decoder), torch.no_grad():
        for batch, sources in batches:
            rows = on_device(batch, device)
            losses = NEXT_TOKEN.losses(decoder, rows).cpu().double().numpy()
            labelled = (rows["labels"] != IGNORE_INDEX).cpu().numpy()
            seen = _seen(rows)
            np.add.at(result.nats, seen[labelled], losses[labelled])
            np.add.at(result.tokens, seen[labelled], 1)
            for i, source in enumerate(sources):
                nats, tokens = result.sources.get(source, (0.0, 0))
                if labelled[i].any():
                    result.sources[source] = (
                        nats + float(losses[i][labelled[i]].sum()),
                        tokens + int(labelled[i].sum()),
                    )
                if labelled[i].sum() >= least and len(chosen.setdefault(source, [])) < examples:
                    chosen[source].append({name: value[i : i + 1] for name, value in rows.items()})
        in_turn = sorted(
            (place, source) for source, rows in chosen.items() for place in range(len(rows))
        )
        result.examples = [
            _guess(decoder, source, chosen[source][place]) for place, source in in_turn[:examples]
        ]
    return result


def _seen(rows: dict[str, Any]) -> NDArray[np.int64]:
    """Return how many tokens each place can see, including itself, (B, T). Documents that are
    masked from each other begin at 1.
    """
    shape = tuple(rows["labels"].shape)
    places = np.broadcast_to(np.arange(1, shape[1] + 1), shape)
    if "document_ids" not in rows:
        return places
    documents = rows["document_ids"].cpu().numpy()
    begins = np.diff(documents, axis=1, prepend=documents[:, :1] - 1) != 0
    return places - np.maximum.accumulate(np.where(begins, places - 1, 0), axis=1)


def _guess(decoder: Decoder, source: str, rows: dict[str, Any]) -> Guessed:
    labels = rows["labels"][0]
    logits = decoder(rows["input_ids"], None, rows.get("document_ids"))[0]
    spread = logits.float().log_softmax(dim=-1)  # (T, V)
    nats = -spread.gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    nats = nats.where(labels != IGNORE_INDEX, float("nan"))
    best = spread.max(dim=-1)
    return Guessed(
        source,
        rows,
        nats.cpu().double().numpy(),
        best.indices.cpu().numpy(),
        best.values.exp().cpu().double().numpy(),
    )
