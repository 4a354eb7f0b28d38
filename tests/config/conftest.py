"""The fixture of all tests of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write c.yaml in an empty current directory, so that messages name it as c.yaml."""
    monkeypatch.chdir(tmp_path)

    def writer(text: str | bytes) -> str:
        Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "c.yaml"

    return writer
