"""Curves of two runs at the same numbers of tokens trained on, and when each reached what the other
came to.

Where both runs were validated at three numbers of tokens or more that are the same, those are taken
and nothing else. Else each validation of either stands beside a value of the other on the straight
line between its neighbours, and is marked as such. Nothing is ever carried on beyond a run's last
validation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

FEW = 3  # common places


class Value(NamedTuple):
    """A validation: after how many tokens and seconds of training, and what it came to."""

    tokens: int
    seconds: float | None
    value: float


class Place(NamedTuple):
    """Both runs after the same number of tokens; `between` names the run ("a", "b") whose value is
    on a straight line, if one is.
    """

    tokens: int
    a: float
    b: float
    between: str


class Reached(NamedTuple):
    """When a run first was as good as a value; `exact`: at a validation, not on the straight line
    between two.
    """

    tokens: float
    seconds: float | None
    exact: bool


def aligned(a: Sequence[Value], b: Sequence[Value]) -> list[Place]:
    """Values of two runs, each in the order of tokens, at the same numbers of tokens; see the top
    of this file.
    """
    first, second = ({each.tokens: each.value for each in values} for values in (a, b))
    common = [tokens for tokens in first if tokens in second]
    if len(common) >= FEW:
        return [Place(tokens, first[tokens], second[tokens], "") for tokens in common]
    places = []
    for tokens in sorted({**first, **second}):
        left, right = at(a, tokens), at(b, tokens)
        if left is not None and right is not None:
            places.append(
                Place(
                    tokens,
                    left,
                    right,
                    "a" if tokens not in first else "b" if tokens not in second else "",
                )
            )
    return places


def at(values: Sequence[Value], tokens: float) -> float | None:
    """The value on the straight line between the neighbours; None outside of them."""
    i = bisect_left(values, tokens, key=lambda each: each.tokens)
    if i == len(values) or (i == 0 and values[0].tokens != tokens):
        return None
    (x1, _, y1), (x0, _, y0) = values[i], values[max(i - 1, 0)]
    return y1 if x1 == tokens else y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)


def first_reached(values: Sequence[Value], goal: float) -> Reached | None:
    """When a run's value first was `goal` or lower, on the straight line between the validations
    before and after.
    """
    i = next((i for i, (_, _, value) in enumerate(values) if value <= goal), None)
    if i is None:
        return None
    tokens, seconds, value = values[i]
    if i == 0 or value == goal:
        return Reached(tokens, seconds, True)
    before_tokens, before_seconds, before = values[i - 1]
    share = (before - goal) / (before - value)
    between = (
        None
        if seconds is None or before_seconds is None
        else before_seconds + share * (seconds - before_seconds)
    )
    return Reached(before_tokens + share * (tokens - before_tokens), between, False)
