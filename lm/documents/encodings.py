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
# Encodings with the letters that most texts in them have, the least share of these among the
# characters beyond ASCII, and the least share of such characters in the text. The first that fits
# is the guess; cp1250 is named with cp1252 where both fit. Cyrillic letters stand together, unlike
# those beyond ASCII in other languages.
GUESSES = (
    ("cp932", "[\u3040-\u30ff]", 0.3, 0.1),
    ("euc_jp", "[\u3040-\u30ff]", 0.3, 0.1),
    ("euc_kr", "[\uac00-\ud7a3]", 0.9, 0.1),
    ("cp1251", "[а-яё]{3,}", 0.5, 0.1),
    ("koi8-r", "[а-яё]{3,}", 0.5, 0.1),
    ("cp1252", "[à-öø-ÿß’‘“”–—…€ÄÖÜÉ]", 0.6, 0.0),
    ("cp1250", "[ąćęłńóśźżŁŚŻáčďéěíňřšťúůýžČŘŠŽőűöüÁÉÖÜäôľĺßăâîşţ’‘“”„–—…€]", 0.8, 0.0),
    ("gb18030", "[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef]", 0.9, 0.1),
    ("cp1252", "(?!)", 0.0, 0.0),
    ("latin-1", "(?!)", 0.0, 0.0),
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
    shares: dict[str, float] = {}
    for encoding, letters, least, least_beyond in GUESSES:
        share = _share(start, encoding, letters, least, least_beyond)
        if share is not None:
            shares.setdefault(encoding, share)
    first, *_ = shares
    if first not in ("cp1252", "cp1250") or not {"cp1252", "cp1250"} <= set(shares):
        return [first]
    one, other = (start[:GUESS_BYTES].decode(name) for name in ("cp1252", "cp1250"))
    return (
        ["cp1252"] if one == other else sorted(("cp1252", "cp1250"), key=lambda name: -shares[name])
    )


def _share(
    start: bytes, encoding: str, letters: str, least: float, least_beyond: float
) -> float | None:
    """Return the share of an encoding's letters beyond ASCII; None if the text does not fit it."""
    # A character of several bytes may be cut at the end.
    text = codecs.getincrementaldecoder(encoding)("replace").decode(start[:GUESS_BYTES])
    beyond = re.findall(r"[^\x00-\x7f]", text)
    share = sum(map(len, re.findall(letters, text))) / max(1, len(beyond))
    fits = "\ufffd" not in beyond and len(beyond) >= least_beyond * len(text) and share >= least
    return share if fits else None


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
