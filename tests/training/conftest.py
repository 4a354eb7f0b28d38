"""Provide the run that the tests of this folder compare others with."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def straight(smoke_run: Path) -> Path:
    """Return a run of 12 steps, over three epochs, never interrupted."""
    return smoke_run / "run"
