"""A few of many items, chosen so that they stand for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` of the items, in their order and evenly spread."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]
