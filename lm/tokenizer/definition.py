"""A tokenizer.json before a library reads it: what would take all memory is refused.

The library believes its file. One id of 2^31 makes it reserve room for so many, and a rule that
turns a letter into ten thousand fills the memory. A regular expression that would search for hours
needs no check: the library gives up by itself.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

MOST_IDS = 2**22  # the largest vocabularies in use have some 2^18
MOST_GROWTH = 64.0  # how much longer its rules may make a text
# Expressions of which Python cannot tell it: groups of any kind but `(?:`, most of what begins with
# a backslash and a letter, such as a border of a word, and a set in a set.
_UNSURE = re.compile(r"\(\?(?!:)|\\(?![sSdDwWnrtfvxu])[a-zA-Z]|\[.*\[", re.DOTALL)


def check(definition: str) -> None:
    """Raise ValueError if a tokenizer.json must not be given to the library."""
    try:
        values = json.loads(definition)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a tokenizer.json of the tokenizers library: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ValueError("not a tokenizer.json of the tokenizers library: it has no model")
    for token, number in _ids(values):
        if type(number) is not int or not 0 <= number < MOST_IDS:
            raise ValueError(
                f"the token {token[:40]!r} has the id {str(number)[:40]}; ids are integers from 0"
                f" to {MOST_IDS - 1:,}"
            )
    growth = 1.0
    for rule in _rules([values.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]):
        growth *= max(1.0, _growth(rule))
        if growth > MOST_GROWTH:
            raise ValueError(
                f"its rules make a text more than {MOST_GROWTH:.0f} times as long, the last of them"
                f" by {str(rule.get('content'))[:40]!r}"
            )


def is_of_another_program(error: BaseException) -> bool:
    """Return whether an error is none of the library's own: a signal, for example.

    The library raises no class of its own, and where it has a bug a `PanicException`, which is no
    `Exception`.
    """
    return not isinstance(error, Exception) and type(error).__name__ != "PanicException"


def _ids(values: dict[str, Any]) -> Iterator[tuple[str, object]]:
    vocab = values["model"].get("vocab")
    if isinstance(vocab, dict):
        yield from vocab.items()
    elif isinstance(vocab, list):
        yield "the last", len(vocab) - 1 if vocab else 0
    added = values.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict):
            yield str(token.get("content")), token.get("id")


def _rules(values: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield all rules in normalizers, pre-tokenizers and decoders, and in sequences of them."""
    left = values[::-1]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value[::-1]
        elif isinstance(value, dict):
            yield value
            left += [value.get(key) for key in ("normalizers", "pretokenizers", "decoders")]


def _growth(rule: dict[str, Any]) -> float:
    """Return how many characters a rule writes for each that it takes."""
    content, pattern = rule.get("content"), rule.get("pattern")
    if rule.get("type") != "Replace" or not isinstance(content, str):
        return 1.0
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(literal, str) and literal:
        return len(content) / len(literal)
    expression = pattern.get("Regex") if isinstance(pattern, dict) else None
    # One that matches nothing inserts at every place; others take a character or more.
    return len(content) + float(_matches_nothing(expression))


def _matches_nothing(expression: object) -> bool:
    """Return whether a regular expression may match at a place without taking a character. True if
    Python cannot tell: the library's expressions have more forms.
    """
    if not isinstance(expression, str) or _UNSURE.search(expression):
        return True
    try:
        with warnings.catch_warnings(action="ignore"):
            return re.compile(expression).match("") is not None
    except (re.error, RecursionError, OverflowError):
        return True
