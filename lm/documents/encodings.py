"""Texts that are not UTF-8: which files those are, and which encoding each looks like."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from lm.documents.files import opened
from lm.system.errors import DataError

READ_BYTES = 2**22  # of each file, to find what is not UTF-8
GUESS_BYTES = 2**16
READ_OTHERS_BYTES = 2**26  # of all other files together
FILE_BYTES = 2**14  # how many of these a small file takes: opening it costs time, too
NAMED = 20
# Encodings with the letters that most texts in them have, the least share of these among the
# characters beyond ASCII, and the least share of such characters in the text. The first that fits
# is the guess.
GUESSES = (
    ("shift_jis", "[\u3040-\u30ff]", 0.3, 0.1),
    ("euc_jp", "[\u3040-\u30ff]", 0.3, 0.1),
    ("euc_kr", "[\uac00-\ud7a3]", 0.9, 0.1),
    ("cp1251", "[а-яё]", 0.7, 0.1),
    ("koi8-r", "[а-яё]", 0.7, 0.1),
    ("cp1252", "[à-öø-ÿß’‘“”–—…€ÄÖÜÉ]", 0.6, 0.0),
    ("gb18030", "[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef]", 0.9, 0.1),
    ("cp1252", ".", 0.0, 0.0),
)


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
    encoding = guess(_start(file, READ_BYTES))
    others, all_read = _not_utf8([other for other in files if other != file])
    more = "" if all_read else " and perhaps more"
    also = f" (so are {', '.join(others)}{more})" if others else ""
    if encoding is None:
        return f"the rest of it is UTF-8, so a character is damaged{also}; correct it"
    return f"it looks like {encoding}{also}; write {key}: {encoding}"


def guess(start: bytes) -> str | None:
    """Return the encoding that a text's first bytes look like; None for UTF-8 with damages."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if start.count(b"\0") > len(start) / 5:
        return "utf-16-le" if start[1::2].count(b"\0") > start[::2].count(b"\0") else "utf-16-be"
    as_utf8 = re.findall(r"[^\x00-\x7f]", start.decode("utf-8", "replace"))
    if as_utf8.count("\ufffd") * 10 < len(as_utf8):
        return None
    for encoding, letters, least, least_beyond in GUESSES:
        # A character of several bytes may be cut at the end.
        text = codecs.getincrementaldecoder(encoding)("replace").decode(start[:GUESS_BYTES])
        beyond = re.sub(r"[\x00-\x7f]+", "", text)
        if (
            "\ufffd" not in beyond
            and len(beyond) >= least_beyond * len(text)
            and len(re.findall(letters, beyond)) >= least * len(beyond)
        ):
            return encoding
    return "latin-1"


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
