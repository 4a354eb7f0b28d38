"""The run that the tests of this folder compare others with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs import config_file, train


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory, trains: None) -> Path:
    """A run of 12 steps, over three epochs, never interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    train(config_file(folder))
    return folder / "run"
