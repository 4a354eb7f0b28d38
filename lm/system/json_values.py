"""Values from JSON files that may have been edited or damaged.

A reader looks a value up under nested keys. It returns None if the value is missing or has another
type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LARGEST = 2**53  # No count is larger. Python may refuse to print much larger integers.


def lookup(values: Any, *keys: str) -> Any:
    """Return the value under nested keys, or None."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def number(values: Any, *keys: str) -> float | None:
    """Return the number under nested keys, or None if it is not finite or exceeds LARGEST."""
    value = lookup(values, *keys)
    # type() and not isinstance(): True is an int. A comparison with NaN is False.
    return value if type(value) in (int, float) and abs(value) <= LARGEST else None


def count(values: Any, *keys: str) -> int | None:
    """Return the count under nested keys, or None if it is not an integer from 0."""
    value = number(values, *keys)
    return int(value) if value is not None and value >= 0 and value == int(value) else None


def text(values: Any, *keys: str) -> str | None:
    """Return the text under nested keys, or None."""
    value = lookup(values, *keys)
    return value if isinstance(value, str) else None


def finite(values: Any) -> Any:
    """Return JSON values with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(values, dict):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
