"""Test the formatters of sizes, times and numbers."""

from __future__ import annotations

import pytest

from lm.system.units import duration, in_bytes, short


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_536_000_000, "1.54 GB"),
        (2.5e15, "2.5e+03 TB"),
    ],
)
def test_in_bytes(size: float, text: str) -> None:
    assert in_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0.4 s"),
        (59.96, "1 min"),
        (89, "1 min 29 s"),
        (91, "1 min 31 s"),
        (3600, "1 h"),
        (5_000, "1 h 23 min"),
        (200_000, "2 d 8 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (999.4, "999"),
        (999.6, "1k"),
        (1_234_567, "1.23M"),
        (-20_000, "-20k"),
        (0.00012, "1.2e-4"),
        (3e20, "3e20"),
    ],
)
def test_short(value: float, text: str) -> None:
    assert short(value) == text
