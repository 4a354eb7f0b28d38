"""Texts that are not UTF-8: which files those are, and which encoding each looks like."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from lm.documents.files import HEAD, opened, wide_encoding
from lm.system.errors import DataError

READ_BYTES = 2**22  # of each file, to find what is not UTF-8
GUESS_BYTES = 2**16
READ_OTHERS_BYTES = 2**26  # of all other files together
FILE_BYTES = 2**14  # how many of these a small file takes: opening it costs time, too
NAMED = 20
# Encodings of East Asia. The bytes of one are often valid in another, but become rare characters
# there: these are the frequent ones of all their languages.
EAST_ASIAN = ("cp932", "euc_jp", "gb18030", "big5", "euc_kr")
FREQUENT = re.compile(
    "[\u3041-\u3096\u30a1-\u30fc、。「」・，（）：；！？《》“”"  # kana and punctuation
    "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小"
    "么心多天而能好都然没日于起还发成事只作当想看文无开手用主行方又如前所本见经头面公同三已老从动两长知民"
    "样现分将外但身些与高意进把法此实回二理美点月明其种声全工己话儿者向情部正名定女问力机给等几很业最间新"
    "什打便位因重被走电四第门相次东政海口使教西再平真听世气信北少关并内加化由却代军产入先山五太水万市"
    "這來國個說們為時會過學對裡後麼沒於還發當無開見經頭長動兩樣現將與進實點種聲話問機給幾業間電門東"
    "氣關並內軍產萬臺灣書館立區圖報員場總務議院系"
    "気広実図関県駅権発変円楽対会学国東京都社員務場的区報書議記度平成令和府省庁党町村島川田木原藤井"
    "大英店目百千十九八七六院系北京清華復旦安广州深圳"
    "이다는을의에가고하지한로기리사도서어아나자시인은들그게라니있해것대수일과정만주전제상보구부오장여"
    "조면원무관성마비동유안소스용생모경스모든국위화민공학신세선우않없으며를와간러르개당실문물습입합됩할함된및때더본타파트"
    "법영식외설역발작목연결현바번내같많말받알님씨]"
)
MOST_FREQUENT = 0.2  # of a text's characters beyond ASCII; by chance it is some 0.05
# Other encodings with the letters that most texts in them have, the least share of these among the
# characters beyond ASCII, and the least and the largest share of such characters in the text. The
# first that fits is the guess; cp1250 is named with cp1252 where both fit. Cyrillic letters stand
# together, unlike those beyond ASCII in other languages.
GUESSES = (
    ("cp1251", "[а-яё]{3,}", 0.5, 0.1, 1.0),
    ("koi8-r", "[а-яё]{3,}", 0.5, 0.1, 1.0),
    ("cp1252", "[à-öø-ÿß’‘“”–—…€ÄÖÜÉ]", 0.6, 0.0, 0.7),
    ("cp1250", "[ąćęłńóśźżŁŚŻáčďéěíňřšťúůýžČŘŠŽőűöüÁÉÖÜäôľĺßăâîşţ’‘“”„–—…€]", 0.8, 0.0, 0.7),
)
CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")  # texts have no such bytes


def remedy(file: str, files: Sequence[str], key: str, given: str | None) -> str:
    """Return what to write for a file that is not UTF-8, and which others are not either.

    Args:
        file: the file.
        files: all files of its source.
        key: the key of its source's encoding.
        given: the encoding that this key has; its bytes are not of it.
    """
    if given:
        return f"it is not {given} either; correct {key}"
    found = guesses(_start(file, READ_BYTES))
    others, all_read = _not_utf8([other for other in files if other != file])
    more = "" if all_read else " and perhaps more"
    also = f" (so are {', '.join(others)}{more})" if others else ""
    if found == []:
        return f"it holds control bytes, so it is not text but a file of a program{also}; remove it"
    if found is None:
        return f"the rest of it is UTF-8, so a character is damaged{also}; correct it"
    names = " or ".join(found)
    return f"it looks like {names}{also}; write {key}: {names}"


def guesses(start: bytes) -> list[str] | None:
    """Return the encodings that a text's first bytes look like, the likeliest first.

    There are none if the bytes are no text. For UTF-8 with damages it is None.
    """
    if wide := wide_encoding(start):
        return [wide]
    if CONTROL.search(start[:HEAD]):
        return []
    as_utf8 = re.findall(r"[^\x00-\x7f]", start.decode("utf-8", "replace"))
    if as_utf8.count("\ufffd") * 10 < len(as_utf8):
        return None
    if east := _east_asian(start):
        return east
    shares: dict[str, float] = {}
    for encoding, letters, least, least_beyond, most_beyond in GUESSES:
        share = _share(start, encoding, letters, least, least_beyond, most_beyond)
        if share is not None:
            shares.setdefault(encoding, share)
    first = next(iter(shares), None)
    if first is None:
        fits = [
            name for name in EAST_ASIAN if _share(start, name, _IDEOGRAPHS, 0.9, 0.5) is not None
        ]
        return fits or ["cp1252" if _share(start, "cp1252", "", 0, 0) is not None else "latin-1"]
    if first not in ("cp1252", "cp1250") or not {"cp1252", "cp1250"} <= set(shares):
        return [first]
    one, other = (start[:GUESS_BYTES].decode(name) for name in ("cp1252", "cp1250"))
    return (
        ["cp1252"] if one == other else sorted(("cp1252", "cp1250"), key=lambda name: -shares[name])
    )


_IDEOGRAPHS = "[\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]"


def _east_asian(start: bytes) -> list[str]:
    """Return the encodings in which a text has many frequent characters, the likeliest first.

    Another is named too if it has half as many; without any there are none.
    """
    texts: dict[str, str] = {}
    shares: dict[str, float] = {}
    for encoding in EAST_ASIAN:
        text = _decoded(start, encoding)
        share = _share(start, encoding, FREQUENT.pattern, MOST_FREQUENT, 0.1)
        several = len(set(FREQUENT.findall(text))) > 1
        if share is not None and several and text not in texts.values():
            texts[encoding], shares[encoding] = text, share
    best = max(shares.values(), default=0.0)
    return sorted(
        (name for name, share in shares.items() if 2 * share >= best),
        key=lambda name: -shares[name],
    )


def _share(
    start: bytes,
    encoding: str,
    letters: str,
    least: float,
    least_beyond: float,
    most_beyond: float = 1.0,
) -> float | None:
    """Return the share of an encoding's letters beyond ASCII; None if the text does not fit it."""
    text = _decoded(start, encoding)
    beyond = re.findall(r"[^\x00-\x7f]", text)
    share = sum(map(len, re.findall(letters, text))) / max(1, len(beyond))
    dense = least_beyond * len(text) <= len(beyond) <= most_beyond * len(text)
    return share if "\ufffd" not in beyond and dense and share >= least else None


def _decoded(start: bytes, encoding: str) -> str:
    # A character of several bytes may be cut at the end.
    return codecs.getincrementaldecoder(encoding)("replace").decode(start[:GUESS_BYTES])


def _not_utf8(files: Sequence[str]) -> tuple[list[str], bool]:
    """Return the first files that are not UTF-8, and whether these are all."""
    found: list[str] = []
    left = READ_OTHERS_BYTES
    for file in files:
        if left <= 0:
            return found, False
        start = b""
        try:
            start = _start(file, min(READ_BYTES, left))
            codecs.getincrementaldecoder("utf-8")().decode(start)
        except UnicodeDecodeError:
            if len(found) == NAMED:
                return found, False
            found.append(file)
        except (DataError, OSError):
            pass  # its own message comes when it is read
        left -= max(len(start), FILE_BYTES)
    return found, True


def _start(file: str, size: int) -> bytes:
    with opened(file) as stream:
        return stream.read(size)
