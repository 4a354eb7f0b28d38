"""Provide the run that the tests of this folder compare others with."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm.optim import early_gradients as early


@pytest.fixture(scope="session")
def straight(smoke_run: Path) -> Path:
    """Return a run of 12 steps, over three epochs, never interrupted."""
    return smoke_run / "run"


@pytest.fixture
def early_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `kernels: auto` make its gradients in the forward pass, although there are few logits."""
    for name, value in {"MOST_LOGITS": 0, "PIECE": 1, "LEAST_ROWS": 5, "BLOCK": 7}.items():
        monkeypatch.setattr(early, name, value)
