"""Measures of a decoder's answers; None if there is nothing to count."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

from lm.documents.conversations import Conversation
from lm.evaluation.answers import Measured

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
Figures = dict[str, float | None]


def figures(conversations: Sequence[Conversation], measured: Measured) -> Figures:
    """Return each measure of one decoder, in the units of the JSON; None if it has no data."""
    references = [conversation.answer for conversation in conversations]
    answered = [
        (answer, text) for answer, text in zip(measured.answers, references, strict=True) if answer
    ]
    losses = [loss for loss in measured.losses if loss]
    counts = confusion(conversations, measured)
    right = [row.get(reference, 0) for reference, row in counts.items()]
    asked = [sum(row.values()) for row in counts.values()]
    pairs = [
        (ours.nats, theirs.nats)
        for ours, theirs in zip(measured.losses, measured.rejected, strict=True)
        if ours and theirs
    ]
    return {
        "answered": len(answered),
        "ended": _mean([answer.ended for answer, _ in answered]),
        "exact_match": _mean([exact_match(answer.text, text) for answer, text in answered]),
        "token_f1": _mean([token_f1(answer.text, text) for answer, text in answered]),
        "answer_tokens": _mean([answer.tokens for answer, _ in answered]),
        # Each token weighs the same; a mean over conversations would overweight short ones.
        "answer_loss": _ratio(
            sum(loss.nats for loss in losses), sum(loss.tokens for loss in losses)
        ),
        "scored_tokens": sum(loss.tokens for loss in losses),
        "accuracy": _ratio(sum(right), sum(asked)),
        "balanced_accuracy": _mean(
            [hits / count for hits, count in zip(right, asked, strict=True)]
        ),
        "preferred_likelier": _mean([chosen < rejected for chosen, rejected in pairs]),
    }


def confusion(
    conversations: Sequence[Conversation], measured: Measured
) -> dict[str, dict[str, int]]:
    """Count the choices for each reference: {"spam": {"spam": 70, "ham": 4}, ...}."""
    counts: dict[str, dict[str, int]] = {}
    for conversation, choice in zip(conversations, measured.choices, strict=True):
        if choice is not None:
            row = counts.setdefault(conversation.answer.strip(), {})
            row[choice] = row.get(choice, 0) + 1
    return {reference: dict(sorted(row.items())) for reference, row in sorted(counts.items())}


def reward_accuracy(before: Measured, after: Measured) -> float | None:
    """Return the share of pairs whose preferred answer gained more likelihood than the other one.

    This is the accuracy of the implicit reward (Rafailov et al. 2023).
    """
    pairs = zip(before.losses, before.rejected, after.losses, after.rejected, strict=True)
    return _mean([a.nats - c.nats > b.nats - d.nats for a, b, c, d in pairs if a and b and c and d])


def exact_match(text: str, reference: str) -> bool:
    """Return whether two texts have the same words in the same order."""
    return words(text) == words(reference)


def token_f1(text: str, reference: str) -> float:
    """Return SQuAD's F1 of the words in any order: 2 * shared / (words of both texts)."""
    ours, theirs = words(text), words(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def words(text: str) -> list[str]:
    """Return the words that SQuAD (Rajpurkar et al. 2016) compares.

    They are lower case, without ASCII punctuation and articles, split at white space.
    """
    return ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split()


def _mean(values: Sequence[float]) -> float | None:
    return _ratio(math.fsum(values), len(values))


def _ratio(total: float, count: float) -> float | None:
    return total / count if count else None
