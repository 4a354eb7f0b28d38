"""Single YAML values and key paths as text: an unquoted scalar's value, a value on one line, and a
key's dotted name.
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
    """Where the first character stands that no text has: a control character other than tab and
    line end, or half a surrogate pair.
    """
    found = yaml.SafeLoader.NON_PRINTABLE.search(text)
    return found.start() if found else None


def not_text(character: str) -> str:
    """The complaint about what `unprintable` found."""
    return f"a character that text does not have, got {shown(character)}, remove it"


def plain(text: str) -> Any:
    """The value of an unquoted scalar in YAML 1.2; a whole number is an int however it is written
    (`3.0`, `1e3`).

    Text that only looks like a number (`010`, `0x10`, `1_000`, `1:30`) stays text.
    """
    if text in _NAMED:
        return _NAMED[text]
    if infinite := _INFINITE.fullmatch(text):
        return float(infinite[1] + infinite[2])
    if not _FLOAT.fullmatch(text):
        return text
    # 2**64 fits; Python's int() would refuse thousands of digits
    if _INTEGER.fullmatch(text) and len(text) <= 20:
        return int(text)
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def flow(value: Any) -> str:
    """Write a value on one line, so that both YAML 1.2 (`read_text`) and YAML 1.1
    (`yaml.safe_load`) read it back.
    """
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
    """Text in double quotes, on one line: JSON's escapes are YAML's, and what cannot be printed is
    escaped too.
    """
    return "".join(
        c if c.isprintable() else f"\\U{ord(c):08X}" for c in json.dumps(text, ensure_ascii=False)
    )


def shown(value: Any) -> str:
    """A value for a message: on one line, text in quotes, shortened where it is long."""
    text = quoted(value) if isinstance(value, str) else flow(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def dotted(path: KeyPath) -> str:
    """A key's name in messages and on the command line: optimizer.betas[1]."""
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
    """The path of which `dotted` gives this, of keys in plain letters."""
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
    # YAML 1.1 sees a number only where there is a point and a signed exponent: 3.0e-5, not Python's
    # 3e-05.
    return (
        f"{mantissa}{'' if '.' in mantissa else '.0'}e{int(exponent):+}" if exponent else mantissa
    )
