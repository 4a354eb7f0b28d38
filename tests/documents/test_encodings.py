"""The encoding of a text is guessed from its bytes, for a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm.documents import encodings
from lm.documents.encodings import guess

TEXTS = {
    "cp1252": "Die Straße führt über den Fluss, „sagte“ er – für 5 €. " * 20,
    "cp1251": "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 20,
    "koi8-r": "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 20,
    "shift_jis": "いろはにほへと ちりぬるを わかよたれそ つねならむ。" * 20,
    "euc_jp": "いろはにほへと ちりぬるを わかよたれそ つねならむ。" * 20,
    "euc_kr": "모든 인간은 태어날 때부터 자유로우며 존엄과 권리에 있어 동등하다. " * 20,
    "gb18030": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。" * 20,
    "utf-16": "Grüße und mehr " * 20,
    "utf-16-le": "Grüße und mehr " * 20,
    "utf-16-be": "Grüße und mehr " * 20,
    "utf-32": "Grüße und mehr " * 20,
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_texts_of_many_encodings(encoding: str) -> None:
    assert guess(TEXTS[encoding].encode(encoding)) == encoding


def test_one_umlaut_in_many_ascii_letters() -> None:
    assert guess(b'{"text": "gr\xfc\xdfe"}') == "cp1252"
    assert guess(b"caf\x81") == "latin-1"


def test_a_damage_in_utf8_is_no_other_encoding() -> None:
    assert guess("Grüße, süß und schön. ".encode() * 20 + b"\xff") is None


def test_only_some_of_many_other_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(tmp_path / f"{i}.txt") for i in range(9)]
    for file in files:
        Path(file).write_bytes("süß".encode("cp1252"))

    def named(count: int) -> str:
        return f"it looks like cp1252 (so are {', '.join(files[1 : count + 1])}"

    def remedy() -> str:
        return encodings.remedy(files[0], files, "encoding", None)

    assert remedy().startswith(named(8) + ");")
    monkeypatch.setattr(encodings, "NAMED", 3)
    assert remedy().startswith(named(3) + " and perhaps more);")
    monkeypatch.setattr(encodings, "READ_OTHERS_BYTES", 2 * encodings.FILE_BYTES)
    assert remedy().startswith(named(2) + " and perhaps more);")
