"""Evaluate a model that is being trained, and go back to training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode within the block. Afterwards it has its earlier mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
