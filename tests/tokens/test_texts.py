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


def test_what_another_process_hashed_meanwhile_is_not_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one")
    monkeypatch.setattr(texts, "SETTLED", -1.0)
    late = Texts(tmp_path)
    first = Texts(tmp_path).hashes([str(tmp_path / "a.txt")])
    monkeypatch.setattr(texts, "hash_files", lambda *_: pytest.fail("hashed again"))
    assert late.hashes([str(tmp_path / "a.txt")]) == first
