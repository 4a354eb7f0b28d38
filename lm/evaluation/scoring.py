"""The likelihood of given tokens, each read in its true place. Rankings, reports and benchmarks are
computed from it.

Rows of similar lengths share a batch. That changes the time and none of the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lm.optim.modes import evaluating

if TYPE_CHECKING:
    from lm.tokenizer.tokenizer import Tokenizer
    from model import Decoder

ROWS = 32  # in a batch


class Row(NamedTuple):
    """A sequence as the decoder reads it.

    Attributes:
        ids: (T,) int64.
        labels: (T,) int64, the next token at each place; IGNORE_INDEX where it is not scored.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]


class Scores(NamedTuple):
    """The scores of a row's labels, in their order.

    Attributes:
        nats: (n,) float64, the negative log-probability of each label.
        likeliest: (n,) bool, whether no other token was more likely.
    """

    nats: NDArray[np.float64]
    likeliest: NDArray[np.bool_]


def score(decoder: Decoder, rows: Sequence[Row], most: int = ROWS) -> list[Scores]:
    """Score each row's labels in float32, at most `most` rows at a time, and fewer if their logits
    would be large.

    No row is longer than the decoder's context. The decoder's mode is restored.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from lm.optim.loss import IGNORE_INDEX, MAX_LOGITS

    device = next(decoder.parameters()).device
    scores: dict[int, Scores] = {}
    longest = max((len(row.ids) for row in rows), default=1)
    most = max(1, min(most, MAX_LOGITS // (longest * (decoder.config.vocab_size or 1))))
    with evaluating(decoder):
        for batch in batches([row.ids for row in rows], most):
            shape = len(batch), max(len(rows[i].ids) for i in batch)
            # Padding is at the end, where no token sees it, and has no label: any id will do.
            ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORE_INDEX)
            for place, i in enumerate(batch):
                ids[place, : len(rows[i].ids)], labels[place, : len(rows[i].ids)] = rows[i]
            targets = torch.from_numpy(labels).to(device)
            with torch.no_grad():
                # .forward is never compiled: each length would be a new graph
                logits = decoder.forward(torch.from_numpy(ids).to(device)).float()  # (B, T, V)
                nats = cross_entropy(
                    logits.flatten(0, 1),
                    targets.flatten(),
                    ignore_index=IGNORE_INDEX,
                    reduction="none",
                ).view(shape)
                own = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
                likeliest = logits.amax(dim=-1) == own
            for place, i in enumerate(batch):
                labelled = labels[place] != IGNORE_INDEX
                scores[i] = Scores(
                    nats[place].cpu().double().numpy()[labelled],
                    likeliest[place].cpu().numpy()[labelled],
                )
    return [scores[i] for i in range(len(rows))]


def batches(sequences: Sequence[Sized], most: int) -> Iterator[list[int]]:
    """Yield the indices of the sequences, `most` at a time, similar lengths together."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    yield from (order[i : i + most] for i in range(0, len(order), most))


def split(tokenizer: Tokenizer, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and of its continuation, as they are in a text with both.

    Encoded separately, the two may have ids that never stood side by side in training. A token that
    reaches over the border belongs to the continuation. This holds for every continuation of the
    prompt, so they can be compared.
    """
    alone, joined = tokenizer.encode(prompt), tokenizer.encode(prompt + continuation)
    differing = (i for i, (a, b) in enumerate(zip(alone, joined, strict=False)) if a != b)
    shared = min(next(differing, len(alone)), len(joined) - 1)
    return joined[:shared], joined[shared:]


def continued(
    eos_id: int, context: Sequence[int], continuation: Sequence[int], context_length: int
) -> Row:
    """Return a row that scores a continuation after its context.

    One EOS opens it, as every document in training. A row that is too long loses its oldest tokens,
    the EOS first, and never a label. The continuation has from 1 to `context_length` tokens.
    """
    from lm.optim.loss import IGNORE_INDEX

    assert 0 < len(continuation) <= context_length
    read = np.array([eos_id, *context, *continuation[:-1]], np.int64)[-context_length:]
    labels = np.full(len(read), IGNORE_INDEX)
    labels[len(read) - len(continuation) :] = continuation
    return Row(read, labels)


def windows(eos_id: int, ids: Sequence[int], context_length: int) -> list[Row]:
    """Return rows that together score every token of a text once, the first one after an EOS.

    The first row scores all that it reads. Each later row scores its second half, so each of those
    tokens is read after at least half of a context.
    """
    rows, done = [], 0
    while done < len(ids):
        end = min(len(ids), context_length if not done else done + (context_length + 1) // 2)
        rows.append(continued(eos_id, ids[:done], ids[done:end], context_length))
        done = end
    return rows
