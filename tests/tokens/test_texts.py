"""Hashes of texts are kept, whatever the files are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lm.tokens import texts
from lm.tokens.texts import Texts


def test_a_name_outside_utf8_is_kept_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.txt")
    Path(file).write_text("one")
    monkeypatch.setattr(texts, "SETTLED", -1.0)
    first = Texts(tmp_path).hashes([file])
    monkeypatch.setattr(texts, "hash_files", lambda *_: pytest.fail("hashed again"))
    assert Texts(tmp_path).hashes([file]) == first
