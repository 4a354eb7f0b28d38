"""How likely a decoder finds given tokens, each read in its true place: what ranking, reports and
the tests of others are made of.

Rows of like lengths are read together, which changes the time and none of the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lm.tokenizer.tokenizer import Tokenizer

ROWS = 32  # in a batch


class Row(NamedTuple):
    """A sequence as the decoder reads it.

    Attributes:
        ids: (T,) int64.
        labels: (T,) int64, what comes next at each place; IGNORE_INDEX where it is not asked.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]


class Scores(NamedTuple):
    """Of the labels that were asked for, in their order.

    Attributes:
        nats: (n,) float64, the negative log-probability of each.
        likeliest: (n,) bool, no other token was more likely.
    """

    nats: NDArray[np.float64]
    likeliest: NDArray[np.bool_]


def score(decoder: Any, rows: Sequence[Row], most: int = ROWS) -> list[Scores]:
    """Score each row's labels in float32, as many rows at a time as `most` and the size of their
    logits allow.

    Rows are no longer than the decoder's context. It is left in the mode it came in.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from lm.optim.loss import IGNORE_INDEX, MAX_LOGITS

    decoder = getattr(decoder, "_orig_mod", decoder)  # compiled, each length would be a new graph
    device, training = next(decoder.parameters()).device, decoder.training
    found: list[Scores | None] = [None] * len(rows)
    longest = max((len(row.ids) for row in rows), default=1)
    decoder.eval()
    try:
        for batch in batches(
            [row.ids for row in rows],
            max(1, min(most, MAX_LOGITS // (longest * decoder.config.vocab_size))),
        ):
            shape = len(batch), max(len(rows[i].ids) for i in batch)
            # Padding stands at the end, where no token sees it, and has no label, so any id will
            # do.
            ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORE_INDEX)
            for place, i in enumerate(batch):
                ids[place, : len(rows[i].ids)], labels[place, : len(rows[i].ids)] = rows[i]
            targets = torch.from_numpy(labels).to(device)
            with torch.no_grad():
                logits = decoder.forward(torch.from_numpy(ids).to(device)).float()  # (B, T, V)
                nats = cross_entropy(
                    logits.flatten(0, 1),
                    targets.flatten(),
                    ignore_index=IGNORE_INDEX,
                    reduction="none",
                ).view(shape)
                best = (
                    logits.amax(dim=-1)
                    == logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
                )
            asked = labels != IGNORE_INDEX
            for place, i in enumerate(batch):
                here = asked[place]
                found[i] = Scores(
                    nats[place].cpu().double().numpy()[here], best[place].cpu().numpy()[here]
                )
    finally:
        decoder.train(training)
    return [each for each in found if each is not None]


def batches(sequences: Sequence[Sized], most: int) -> Iterator[list[int]]:
    """The sequences' numbers, so many at a time, those of like lengths together."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    yield from (order[i : i + most] for i in range(0, len(order), most))


def split(tokenizer: Tokenizer, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of a prompt and of what follows it, as they stand in a text that holds both.

    Tokenised apart, the two may have ids that training never showed side by side. Where one token
    reaches over the border, it belongs to what follows: for every continuation of the prompt, so
    that they can be compared.
    """
    apart, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + continuation)
    differing = (i for i, (a, b) in enumerate(zip(apart, whole, strict=False)) if a != b)
    shared = min(next(differing, len(apart)), len(whole) - 1)
    return whole[:shared], whole[shared:]


def continued(
    eos_id: int, context: Sequence[int], continuation: Sequence[int], context_length: int
) -> Row:
    """A row that asks for a continuation behind its context.

    One EOS opens it, as every document in training. What is too long loses its oldest tokens, the
    EOS first, and never a label: the continuation has at least one token and at most
    `context_length`.
    """
    from lm.optim.loss import IGNORE_INDEX

    assert 0 < len(continuation) <= context_length
    read = np.array([eos_id, *context, *continuation[:-1]], np.int64)[-context_length:]
    labels = np.full(len(read), IGNORE_INDEX)
    labels[len(read) - len(continuation) :] = continuation
    return Row(read, labels)


def windows(eos_id: int, ids: Sequence[int], context_length: int) -> list[Row]:
    """Rows that together ask for every token of a text once, the first behind an EOS.

    The first asks for all that it reads, each later one for the second half, so that what does not
    fit one row is never read without half of a context before it.
    """
    rows, done = [], 0
    while done < len(ids):
        end = min(len(ids), context_length if not done else done + (context_length + 1) // 2)
        rows.append(continued(eos_id, ids[:done], ids[done:end], context_length))
        done = end
    return rows
