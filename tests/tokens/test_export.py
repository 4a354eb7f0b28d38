"""Test a split that is written as a flat file of ids: python -m pytest tests/tokens/test_export.py.

tests/documents/test_flat.py reads such files back, and runs the command.
"""

import errno
import os

import numpy as np
import pytest

from lm.system.errors import CheckpointError
from lm.tokens import export
from lm.tokens.export import write_flat
from lm.tokens.manifest import Manifest
from lm.tokens.store import SplitWriter, TokenStore


def store(folder):
    """Return a split of one document, "text"."""
    folder.mkdir()
    writer = SplitWriter(folder, "train", 256, np.uint16)
    writer.add(
        np.array([256, *b"text"], np.uint16),
        np.array([4]),
        np.array([1], np.uint64),
        4,
    )
    manifest = Manifest(dtype="uint16", splits={"train": writer.close()})
    return TokenStore(folder, "train", manifest)


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path, monkeypatch):
    tokens = store(tmp_path / "cache")
    (tmp_path / "train.bin").write_bytes(b"mine")

    def refuse(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(
        CheckpointError,
        match=r"train\.bin could not be written: No space left on device; .* \(\d+ B needed, ",
    ):
        write_flat(tokens, tmp_path / "train.bin")
    assert (tmp_path / "train.bin").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "train.bin"]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_split_is_written_without_its_first_eos(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(export, "CHUNK", chunk)
    written = write_flat(store(tmp_path / "cache"), tmp_path / "train.bin")
    assert np.fromfile(tmp_path / "train.bin", "<u2").tolist() == [*b"text", 256]
    assert written["bytes"] == 10
