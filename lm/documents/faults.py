"""Rows of a format: each is a text, or the fault that makes it unusable."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from lm.system.errors import DataError

NOT_UTF8 = "not UTF-8"


class Fault(NamedTuple):
    """The reason why a row is not a document."""

    kind: str  # skipped rows are counted by it
    detail: str
    lines_below: int = 0  # where the fault is, counted from the row's first line


# A row's number, and its text or fault. A counter before a row's text says what was left out of it.
Row = tuple[int, str | Fault | Counter[str]]


def decoded(raw: bytes) -> str | Fault:
    """Decode UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte {raw[error.start]:#04x}"
        return Fault(NOT_UTF8, detail, raw.count(b"\n", 0, error.start))


def text_of(value: object) -> str | Fault:
    """Return a value if it is text that UTF-8 can encode, else a fault."""
    if not isinstance(value, str):
        return Fault("text is not a string", f"it is {reprlib.repr(value)}")
    try:
        value.isascii() or value.encode("utf-8")  # isascii takes almost no time
    except UnicodeEncodeError as error:
        return Fault(
            "half a surrogate pair",
            f"{value[error.start]!a} is no character, so UTF-8 cannot hold it",
        )
    return value


def require_column(file: str, key: str, names: Sequence[str]) -> None:
    """Raise DataError unless exactly one column has the name `key`."""
    if key not in names:
        raise DataError(
            f"{file}: no column {key!r}; there are {reprlib.repr(names)}; text_key names the one"
            " that holds the text"
        )
    require_once(file, key, names)


def require_once(file: str, key: str, names: Sequence[str]) -> None:
    """Raise DataError if several columns have the name `key`."""
    if names.count(key) > 1:
        raise DataError(
            f"{file}: {names.count(key)} columns are called {key!r}; rename all but one"
        )
