"""The encoding of a text is guessed from its bytes, for a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm.documents import encodings
from lm.documents.encodings import guesses, remedy

TEXTS = {
    "cp1252": "Die Straße führt über den Fluss, „sagte“ er – für 5 €. " * 20,
    "cp1251": "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 20,
    "koi8-r": "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 20,
    "cp932": "いろはにほへと ちりぬるを わかよたれそ つねならむ。" * 20,
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
    assert guesses(TEXTS[encoding].encode(encoding)) == [encoding]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        (encoding, text)
        for encodings_of, texts in {
            ("cp932", "euc_jp"): [
                "日本国憲法前文\n正当選挙国会代表者行動\n",
                "東京都千代田区永田町一丁目\n大阪府大阪市中央区大手前\n",
                "政府は三日、東京都内で会議を開催。経済産業省、財務省等が参加。",
                '{"text": "東京"}\n{"text": "大阪"}\n',
            ],
            ("gb18030",): ["北京大学\n清华大学\n上海交通大学\n", "你好，我们走吧"],
            ("big5",): ["國立臺灣大學\n臺北市立圖書館\n", "人人生而自由，在尊嚴和權利上一律平等。"],
            ("euc_kr",): ["大韓民國은 民主共和國이다. 主權은 國民에게 있다."],
        }.items()
        for encoding in encodings_of
        for text in texts
    ],
)  # fmt: skip
def test_east_asian_texts_are_told_by_their_frequent_characters(encoding: str, text: str) -> None:
    """Few kana do not make Japanese text Chinese, whose bytes they would be valid as, too."""
    assert guesses(text.encode(encoding)) == [encoding]


def test_east_asian_encodings_that_fit_alike_are_all_named(tmp_path: Path) -> None:
    """Roses, lemons and grapes are no frequent characters, so nothing tells one from another."""
    assert guesses("家庭电话".encode("gb18030")) == ["gb18030", "euc_jp", "euc_kr"]  # 社優窮三
    rare = "薔薇檸檬\n葡萄\n"
    for encoding in ("cp932", "euc_jp", "big5"):
        found = guesses(rare.encode(encoding)) or []
        assert encoding in found and len(found) > 1
    (tmp_path / "a.txt").write_bytes(rare.encode("euc_jp"))
    told = remedy(str(tmp_path / "a.txt"), [], "encoding", None)
    assert "it looks like euc_jp or gb18030 or big5; write encoding: euc_jp or" in told


def test_one_umlaut_in_many_ascii_letters() -> None:
    assert guesses(b'{"text": "gr\xfc\xdfe"}') == ["cp1252"]
    assert guesses(b"caf\x81") == ["latin-1"]
    assert guesses("Glücksspiel".encode("cp1252")) == ["cp1252"], "and not Gl點ksspiel"


def test_a_damage_in_utf8_is_no_other_encoding() -> None:
    assert guesses("Grüße, süß und schön. ".encode() * 20 + b"\xff") is None


def test_only_some_of_many_other_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(tmp_path / f"{i}.txt") for i in range(9)]
    for file in files:
        Path(file).write_bytes("süß".encode("cp1252"))

    def named(count: int) -> str:
        return f"it looks like cp1252 (so are {', '.join(files[1 : count + 1])}"

    def said() -> str:
        return remedy(files[0], files, "encoding", None)

    assert said().startswith(named(8) + ");")
    monkeypatch.setattr(encodings, "NAMED", 3)
    assert said().startswith(named(3) + " and perhaps more);")
    monkeypatch.setattr(encodings, "READ_OTHERS_BYTES", 2 * encodings.FILE_BYTES)
    assert said().startswith(named(2) + " and perhaps more);")


@pytest.mark.parametrize(
    "text",
    [
        "Zażółć gęślą jaźń, proszę państwa, w Szczebrzeszynie chrząszcz brzmi w trzcinie. ",
        "Příliš žluťoučký kůň úpěl ďábelské ódy. ",
        "Árvíztűrő tükörfúrógép, őszi idő. ",
    ],
)
def test_central_european_text_is_cp1250_first(text: str) -> None:
    assert (guesses(text.encode("cp1250") * 20) or [])[0] == "cp1250"


def test_two_encodings_that_fit_are_both_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("né en forêt, où il était".encode("cp1252"))
    assert "it looks like cp1252 or cp1250; write encoding: cp1252 or cp1250" in remedy(
        str(tmp_path / "a.txt"), [], "encoding", None
    )


def test_japanese_with_characters_of_windows() -> None:
    assert guesses("①これは髙島屋の話です。".encode("cp932") * 20) == ["cp932"]


@pytest.mark.parametrize("control", [b"\x01", b"\x0b", b"\x1f"])
def test_a_file_with_control_bytes_is_no_text(tmp_path: Path, control: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xfc\x81\xdf" + control + b"more")
    said = remedy(str(tmp_path / "a.txt"), [], "key", None)
    assert said.startswith("it holds control bytes, so it is not text")
    assert "encoding" not in said
    assert guesses(b"gr\xfc\xdfe\t\r\n\f\x1b") == ["cp1252"]
