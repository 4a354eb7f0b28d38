"""Two models on the same text: their difference, and whether it is beyond the noise of the text.

With the same tokenizer both models score the same rows, in nats per token. Otherwise they score the
same passages, in bits per byte; each passage is read alone after an EOS, in the model's own tokens.
Rows or passages are then resampled (lm/evaluation/intervals.py), because another text of the same
kind would have other ones. They are treated as independent, which neighbours in one document are
not quite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lm.evaluation.examples import evenly
from lm.evaluation.intervals import interval, resample

if TYPE_CHECKING:
    from lm.tokenizer.tokenizer import Tokenizer
    from lm.tokens.store import TokenStore
    from model import Decoder

SEED = 0
SEEDS = "the interval does not cover other seeds (python -m tools.ablate)"


class Sums(NamedTuple):
    """The loss of each row or passage, in nats or bits, and its size, in tokens or bytes; both (n,)
    float64.
    """

    amounts: NDArray[np.float64]
    sizes: NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """The losses of models A and B on a text; lower is better.

    Attributes:
        text: the name of the text.
        unit: the unit of all numbers except `cases`.
        kind: the resampled cases, "rows" or "passages".
        cases: the number of cases.
        a: model A's loss over the whole text.
        b: model B's.
        difference: b - a.
        low: the lower limit of its 95 % interval.
        high: the upper limit.
        notes: limits of the verdict, for the reader.
    """

    text: str
    unit: str
    kind: str
    cases: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    notes: list[str] = field(default_factory=list)

    @property
    def beyond_noise(self) -> bool:
        """Return whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def words(self, names: tuple[str, str]) -> str:
        """Return the verdict as a sentence, with its limits."""
        where = f"on {self.text} ({self.cases:,} {self.kind})"
        if self.difference == self.low == self.high == 0:
            return f"{names[0]} and {names[1]} score exactly the same {where}"
        if not math.isfinite(self.high - self.low):
            return (
                f"{where[:1].upper()}{where[1:]} they differ by {abs(self.difference):.4f}"
                f" {self.unit}; so few give no interval"
            )
        if not self.beyond_noise:
            return (
                f"{names[0]} and {names[1]} cannot be told apart {where}: {names[1]} - {names[0]}"
                f" is {self.difference:+.4f} {self.unit}, 95 % interval [{self.low:+.4f},"
                f" {self.high:+.4f}]: within the noise of the text"
            )
        better, other = names if self.difference > 0 else names[::-1]
        low, high = sorted((abs(self.low), abs(self.high)))
        return (
            f"{better} is better than {other} by {abs(self.difference):.4f} {self.unit}, 95 %"
            f" interval [{low:.4f}, {high:.4f}], {where}: beyond the noise of the text; {SEEDS}"
        )


def judge(text: str, unit: str, kind: str, a: Sums, b: Sums, notes: Sequence[str]) -> Verdict:
    """Compare two models' sums over the same cases, of which there is at least one."""
    amounts, sizes = np.stack([a.amounts, b.amounts], axis=1), np.stack([a.sizes, b.sizes], axis=1)
    drawn = resample(amounts, sizes, np.ones(len(amounts)), SEED)
    first, second = drawn.values.tolist()
    difference = interval(drawn.difference(1, 0))
    return Verdict(
        text=text,
        unit=unit,
        kind=kind,
        cases=len(amounts),
        a=first,
        b=second,
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        notes=list(notes),
    )


def documents_known(held_out: Sequence[TokenStore], trained: Sequence[TokenStore]) -> int:
    """Return how many held-out documents a model was trained on, whatever its tokenizer."""
    known = np.concatenate([np.empty(0, np.uint64), *(store.document_hashes for store in trained)])
    return sum(int(np.isin(store.document_hashes, known).sum()) for store in held_out)


def sums_of_rows(decoder: Decoder, batches: Iterable[dict[str, Any]]) -> Sums:
    """Score each row that has a label, in nats and tokens. `batches` are those of
    `lm.evaluation.validation.evaluate`.
    """
    import torch

    from lm.optim.loss import IGNORE_INDEX
    from lm.optim.modes import evaluating
    from lm.optim.objectives import NEXT_TOKEN, on_device

    device = next(decoder.parameters()).device
    nats = []
    tokens = []
    with evaluating(decoder), torch.no_grad():
        for batch in batches:
            rows = on_device(batch, device)
            nats.append(NEXT_TOKEN.losses(decoder, rows).double().sum(dim=1).cpu().numpy())
            tokens.append((batch["labels"] != IGNORE_INDEX).sum(dim=1).double().numpy())
    all_nats, all_tokens = np.concatenate(nats), np.concatenate(tokens)
    return Sums(all_nats[all_tokens > 0], all_tokens[all_tokens > 0])


def sums_of_passages(decoder: Decoder, tokenizer: Tokenizer, passages: Sequence[str]) -> Sums:
    """Score each passage, in bits and UTF-8 bytes. A long one is read in overlapping windows."""
    from lm.evaluation.scoring import score, windows

    context, rows, owners = decoder.config.context_length, [], []
    for number, passage in enumerate(passages):
        passage_rows = windows(tokenizer.eos_id, tokenizer.encode(passage), context)
        rows += passage_rows
        owners += [number] * len(passage_rows)
    nats = np.array([scores.nats.sum() for scores in score(decoder, rows)])
    sizes = np.array([len(passage.encode()) for passage in passages], float)
    return Sums(np.bincount(owners, nats, len(passages)) / math.log(2), sizes)


def passages_of(texts: Iterable[str], characters: int, most: int) -> list[str]:
    """Return at most `most` passages of about `characters` characters, evenly spread over the
    texts. None is white space only.
    """
    passages = [passage for text in texts for passage in _cut(text, characters) if passage.strip()]
    return evenly(passages, most)


def _cut(text: str, characters: int) -> Iterator[str]:
    """Yield a text in pieces of nearly equal length, cut before white space if there is any."""
    begin, pieces = 0, max(1, round(len(text) / characters))
    for piece in range(1, pieces + 1):
        end = len(text) * piece // pieces
        if piece < pieces:
            space = max(text.rfind(" ", begin + 1, end), text.rfind("\n", begin + 1, end))
            end = space if space > begin + characters // 2 else end
        yield text[begin:end]
        begin = end
