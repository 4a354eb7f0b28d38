"""Single YAML values and key paths as text, and back.

Values are read as YAML 1.2 and written so that YAML 1.1 reads them alike.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


MAX_SHOWN = 60

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NAMED: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_NAMED |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")
_PLAIN_KEY = re.compile(rf"[\w-]{{1,{MAX_SHOWN}}}")
_PLAIN_TEXT = re.compile(r"[A-Za-z_./][A-Za-z0-9_./*-]*( [A-Za-z0-9_./*-]+)*")


def unprintable(text: str) -> int | None:
    """Return the index of the first character that no text has; None if there is none.

    Such a character is half a surrogate pair, or a control character other than tab and line end.
    """
    match = yaml.SafeLoader.NON_PRINTABLE.search(text)
    return match.start() if match else None


def not_text(character: str) -> str:
    """Return the complaint about a character that `unprintable` found."""
    return f"a character that text does not have, got {shown(character)}, remove it"


def plain(text: str) -> Any:
    """Return the value of an unquoted scalar in YAML 1.2.

    A whole number is an int in any notation (`3.0`, `1e3`). Text that only looks like a number
    (`010`, `0x10`, `1_000`, `1:30`) stays text.
    """
    if text in _NAMED:
        return _NAMED[text]
    if infinite := _INFINITE.fullmatch(text):
        return float(infinite[1] + infinite[2])
    if not _FLOAT.fullmatch(text):
        return text
    # 20 digits are enough for 2**64. Python's int() refuses thousands of digits.
    if _INTEGER.fullmatch(text) and len(text) <= 20:
        return int(text)
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def flow(value: Any) -> str:
    """Return a value on one line, readable by YAML 1.2 (`read_text`) and 1.1 (`yaml.safe_load`)."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        return value if _safe_unquoted(value) else quoted(value)
    if isinstance(value, float):
        return _float_text(value)
    return json.dumps(value)


def quoted(text: str) -> str:
    """Return text in double quotes on one line, with unprintable characters escaped.

    JSON's escapes are YAML's too.
    """
    return "".join(
        c if c.isprintable() else f"\\U{ord(c):08X}" for c in json.dumps(text, ensure_ascii=False)
    )


def shown(value: Any) -> str:
    """Return a value for a message: on one line, text in quotes, shortened to MAX_SHOWN."""
    text = quoted(value) if isinstance(value, str) else flow(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def dotted(path: KeyPath) -> str:
    """Return a key's name in messages and on the command line, such as optimizer.betas[1]."""
    parts = (
        (
            f"[{part}]"
            if isinstance(part, int)
            else "." + (part if _PLAIN_KEY.fullmatch(part) else shown(part))
        )
        for part in path
    )
    return "".join(parts).removeprefix(".")


def path_of(name: str) -> KeyPath:
    """Return the path of a dotted name whose keys have plain letters."""
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", name))


def _safe_unquoted(text: str) -> bool:
    if not _PLAIN_TEXT.fullmatch(text) or plain(text) != text:
        return False
    return not any(
        pattern.match(text)
        for _, pattern in yaml.SafeLoader.yaml_implicit_resolvers.get(text[0], [])
    )


def _float_text(number: float) -> str:
    if not abs(number) < float("inf"):
        return {"inf": ".inf", "-inf": "-.inf"}.get(repr(number), ".nan")
    mantissa, _, exponent = repr(number).partition("e")
    # For YAML 1.1, a number has a point and a signed exponent: 3.0e-5, not Python's 3e-05.
    return (
        f"{mantissa}{'' if '.' in mantissa else '.0'}e{int(exponent):+}" if exponent else mantissa
    )
