"""Texts that are not UTF-8: which files those are, and which encoding each looks like."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from lm.documents.files import opened, wide_encoding
from lm.system.errors import DataError

READ_BYTES = 2**22  # of each file, to find what is not UTF-8
GUESS_BYTES = 2**16
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


def remedy(file: str, files: Sequence[str], key: str) -> str:
    """Return what to write for a file that is not UTF-8, and which others are not either.

    Args:
        file: the file.
        files: all files of its source.
        key: the source's key.
    """
    encoding = guess(_start(file, READ_BYTES))
    others = [other for other in files if other != file and not _is_utf8(other)]
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    also = f" (so are {', '.join(others[:NAMED])}{more})" if others else ""
    if encoding is None:
        return f"the rest of it is UTF-8, so a character is damaged{also}; correct it"
    return f"it looks like {encoding}{also}; write {key}.encoding: {encoding}"


def guess(start: bytes) -> str | None:
    """Return the encoding that a text's first bytes look like; None for UTF-8 with damages."""
    if wide := wide_encoding(start):
        return wide
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


def _is_utf8(file: str) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(_start(file, READ_BYTES))
    except UnicodeDecodeError:
        return False
    except (DataError, OSError):
        pass  # its own message comes when it is read
    return True


def _start(file: str, size: int) -> bytes:
    with opened(file) as stream:
        return stream.read(size)
