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


@pytest.mark.parametrize("damage", ["{", "[]", '{"a": 1}', "[" * 10**5, "\xff"])
def test_a_damaged_list_is_made_anew(tmp_path: Path, damage: str) -> None:
    (tmp_path / "a.txt").write_text("one")
    file = str(tmp_path / "a.txt")
    expected = Texts(tmp_path / "none").hashes([file])
    (tmp_path / texts.FILE).write_text(damage, encoding="latin-1")
    assert Texts(tmp_path).hashes([file]) == expected
