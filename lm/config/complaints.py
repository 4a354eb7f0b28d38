"""What is wrong with a YAML file that a pydantic schema describes: at which line, and in plain
words that end with what to write.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from lm.config.keys import SECTION, Key, name_of
from lm.config.scalars import KeyPath, plain, shown

# pydantic's error types in plain words; what to write comes from the key's own type and range.
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


def nearest(path: KeyPath, there: Container[KeyPath]) -> KeyPath:
    """Where to point for a key: at itself or, where it is absent, at the nearest section around it
    that is there; `()` always is.
    """
    while path not in there:
        path = path[:-1]
    return path


def in_words(
    path: KeyPath, kind: str, given: object, message: str, keys: Mapping[str, Key]
) -> tuple[KeyPath, str]:
    """A pydantic error, by its type, its input and its own message, as the key that it is about and
    a plain sentence.

    `keys` are those of the schema (`config_keys.keys`).
    """
    if kind == "missing" and isinstance(path[-1], int):
        path, kind = path[:-1], "too_short"
    named = next(
        key for length in range(len(path), -1, -1) if (key := keys.get(name_of(path[:length])))
    )
    wanted = named.type
    if path and isinstance(path[-1], int):
        wanted = SECTION if named.several else "text" if "a list of text" in wanted else wanted
    if kind == "list_type" and wanted.startswith("text or"):
        kind = "string_type"  # a lone text would have been taken
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
