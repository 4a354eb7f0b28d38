"""What the formats give row by row: a text, or what keeps the row from being one."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import NamedTuple

from lm.system.errors import DataError


class Fault(NamedTuple):
    """What keeps a row from being a document (skipped rows are counted by this), the particulars,
    and how many lines below its first.
    """

    kind: str
    detail: str
    lines_below: int = 0


Row = tuple[int, str | Fault]


def decoded(raw: bytes) -> str | Fault:
    """The text of UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte {raw[error.start]:#04x}; a text in another encoding can be converted"
        return Fault("not UTF-8", detail, raw.count(b"\n", 0, error.start))


def text_of(value: object) -> str | Fault:
    """A value that should be text."""
    if not isinstance(value, str):
        return Fault("text is not a string", f"it is {reprlib.repr(value)}")
    try:
        value.isascii() or value.encode("utf-8")  # asking first costs nothing
    except UnicodeEncodeError as error:
        return Fault(
            "half a surrogate pair",
            f"{value[error.start]!a} is no character, so UTF-8 cannot hold it",
        )
    return value


def require_column(file: str, key: str, names: Sequence[str]) -> None:
    """Raise DataError unless one of a table's columns is the one that is wanted."""
    if key not in names:
        raise DataError(
            f"{file}: no column {key!r}; there are {reprlib.repr(names)}; text_key names the one"
            " that holds the text"
        )
    if names.count(key) > 1:
        raise DataError(
            f"{file}: {names.count(key)} columns are called {key!r}; rename all but one"
        )
