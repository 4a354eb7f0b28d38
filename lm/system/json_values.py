"""Values of JSON files that anyone may have written: found in nested mappings, and None unless they
are of the wanted type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WITHIN = 2**53  # a larger number is no count, and some could not even be shown


def found(values: Any, *keys: str) -> Any:
    """What stands under keys, one inside the other; None where it does not."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def number(values: Any, *keys: str) -> float | None:
    """A finite number of a size that can be shown."""
    value = found(values, *keys)
    # Not isinstance: True is an int. NaN is not within anything.
    return value if type(value) in (int, float) and abs(value) <= WITHIN else None


def whole(values: Any, *keys: str) -> int | None:
    """A count: a whole number from 0."""
    value = number(values, *keys)
    return int(value) if value is not None and value >= 0 and value == int(value) else None


def text(values: Any, *keys: str) -> str | None:
    """A text."""
    value = found(values, *keys)
    return value if isinstance(value, str) else None
