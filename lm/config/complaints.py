"""Put pydantic's errors into plain words that end with what to write."""

from __future__ import annotations

from collections.abc import Container, Mapping

from lm.config.keys import SECTION, Key, name_of
from lm.config.scalars import KeyPath, plain, shown

# pydantic's error types in plain words. The key's type and range say what to write.
WRONG = {
    "missing": "missing",
    "int_type": "not a whole number",
    "float_type": "not a number",
    "finite_number": "not a finite number",
    "bool_type": "not true or false",
    "string_type": "not text",
    "list_type": "not a list",
    "tuple_type": "not a list",
    "model_type": "not a section",
    "dict_type": "not a section",
    "literal_error": "not one of the choices",
    "greater_than": "too small",
    "greater_than_equal": "too small",
    "less_than": "too large",
    "less_than_equal": "too large",
    "string_too_short": "empty",
    "string_too_long": "too long",
    "too_short": "too few values",
    "too_long": "too many values",
}


def nearest(path: KeyPath, given: Container[KeyPath]) -> KeyPath:
    """Return the path of a key or, if it is absent, of the innermost given section around it.

    `()`, the whole file, must be in `given`.
    """
    while path not in given:
        path = path[:-1]
    return path


def in_words(
    path: KeyPath, kind: str, given: object, message: str, keys: Mapping[str, Key]
) -> tuple[KeyPath, str]:
    """Return the key that a pydantic error is about, and a plain sentence.

    Args:
        path: the error's location.
        kind: its type.
        given: its input.
        message: pydantic's own message, for types that `WRONG` does not have.
        keys: the schema's keys (`lm.config.keys.keys`).
    """
    if kind == "missing" and isinstance(path[-1], int):
        path, kind = path[:-1], "too_short"
    named = next(
        key for length in range(len(path), -1, -1) if (key := keys.get(name_of(path[:length])))
    )
    wanted = named.type
    if path and isinstance(path[-1], int):
        wanted = SECTION if named.several else "text" if "a list of text" in wanted else wanted
    if kind == "list_type" and wanted.startswith(("text or", "text, a list")):
        kind = "string_type"  # one text is accepted too
    got = "" if kind == "missing" else f", got {shown(given)}"
    if kind == "string_type" and isinstance(given, bool | int | float):
        wanted = wanted.replace("text", "text in quotes", 1)
    elif (
        kind in ("int_type", "float_type")
        and isinstance(given, str)
        and isinstance(plain(given), int | float)
    ):
        wanted += " without quotes"
    return path, f"{WRONG.get(kind, message)}{got}, write {wanted}"
