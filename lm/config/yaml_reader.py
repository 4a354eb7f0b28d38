"""The YAML of configuration files: read with the line of every key, and written one value at a
time.

Read as YAML 1.2, like the editors that check these files: `on`, `no`, `010`, `1:30` and dates are
text, `3e-5` is a number. PyYAML alone reads YAML 1.1 (`no` is False, `010` is 8, `1:30` is 90,
`3e-5` is text), lets the last of two equal keys win, and recurses until Python gives up. What a
configuration does without is refused here: duplicate keys, anchors, aliases, merge keys, tags.
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lm.system.disk import read_start
from lm.system.errors import ConfigError

KeyPath = tuple[str | int, ...]

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_SHOWN = 60

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NAMED: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_NAMED |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")
_PLAIN_KEY = re.compile(rf"[\w-]{{1,{MAX_SHOWN}}}")
_PLAIN_TEXT = re.compile(r"[A-Za-z_./][A-Za-z0-9_./*-]*( [A-Za-z0-9_./*-]+)*")

# What PyYAML says, what that means, what to do, and whether the place is where the construct began
# rather than where it broke.
_SYNTAX = (
    (
        "mapping values are not allowed",
        "a ':' where none can stand",
        "correct the indentation, or put the value in quotes",
        False,
    ),
    (
        "entries are not allowed",
        "a '-' where none can stand",
        "write each item on a line of its own, or [a, b]",
        False,
    ),
    ("could not find expected ':'", "a line that is not `key: value`", "write `key: value`", True),
    (
        "node content",
        "a value that is missing or never closed",
        "write `key: value`, with special characters in quotes",
        False,
    ),
    (
        "<block end>",
        "a line that fits neither the one above nor its indentation",
        "indent all keys of a section alike",
        False,
    ),
    (
        "<document start>",
        "a line that does not belong to what is above it",
        "write each key as `key: value` on a line of its own",
        False,
    ),
    ("unexpected end of stream", "a quote that is never closed", "close it on the same line", True),
    (
        "unexpected document separator",
        "a quote that is never closed",
        "close it on the same line",
        True,
    ),
    (
        "expected ',' or ']'",
        "a list that is never closed, or a comma that is missing",
        "write [a, b]",
        True,
    ),
    (
        "expected ',' or '}'",
        "a mapping that is never closed, or a comma that is missing",
        "write {a: 1, b: 2}",
        True,
    ),
    (
        "escape",
        'an unknown escape in "..."',
        "write \\\\ for a backslash, or use single quotes",
        False,
    ),
    ("character '\\t'", "a tab", "indent with spaces", False),
    (
        "cannot start any token",
        "a character that cannot open a value",
        "put the value in quotes",
        False,
    ),
    ("another document", "a second document", "remove the line `---`", False),
)


@dataclass
class Document:
    """What was read: the value, the line of each key and list item, and what was wrong, as (line,
    message).
    """

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)
    whole: bool = True
    """False where some value could not be read, so that judging the rest would only add wrong complaints."""


def read_file(path: Path | str) -> Document:
    """Read a YAML file of at most 1 MiB. Raises ConfigError where there is no such file, or none
    that can be read.
    """
    try:
        data = read_start(path, MAX_BYTES)
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder, write the path of a YAML file") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, write the path of a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        return _unreadable(1, "larger than 1 MiB, write a configuration, or several files of cases")
    if data.startswith(codecs.BOM_UTF8):
        return _unreadable(1, "begins with a byte order mark, save the file as UTF-8 without one")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return _unreadable(
            line, f"not UTF-8, got the byte 0x{data[error.start]:02x}, save the file as UTF-8"
        )
    return read_text(text)


def read_text(text: str) -> Document:
    """Read one YAML document; an empty one is None. Every problem is in the answer, none is raised."""
    if (start := unprintable(text)) is not None:
        return _unreadable(text.count("\n", 0, start) + 1, not_text(text[start]))
    composer = _Composer(text)
    document = Document()
    try:
        node = composer.get_single_node()
        document.value = None if node is None else _build(node, (), document)
    except yaml.MarkedYAMLError as error:
        return _unreadable(*_syntax_problem(error, text))
    except (ValueError, OverflowError):  # "\UFFFFFFFF": PyYAML hands chr() what is no character
        return _unreadable(
            composer.line + 1,
            'an escape in "..." that names no character, write the character itself',
        )
    return document


class _Composer(yaml.SafeLoader):
    """Composes nodes, which carry their lines; stops at an anchor, alias or tag, and at a depth
    that no configuration has.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        alias = isinstance(event, yaml.AliasEvent)
        forbidden = {
            "an alias (*)": alias,
            "an anchor (&)": not alias and event.anchor is not None,
            "a tag (!)": not alias and event.tag is not None,
            f"nested deeper than {MAX_DEPTH}": self.depth == MAX_DEPTH,
        }
        for what, found in forbidden.items():
            if found:
                raise yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _build(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    """Turn a node into plain Python values, noting lines and duplicate keys in `document`."""
    if isinstance(node, yaml.ScalarNode):
        # by an escape: "\0", or "\ud83d", which is half a character
        if (start := unprintable(node.value)) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"the character {shown(node.value[start])}", problem_mark=node.start_mark
            )
        return plain(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.lines[*path, index] = item.start_mark.line + 1
        return [_build(item, (*path, index), document) for index, item in enumerate(node.value)]
    mapping: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or unprintable(key.value) is not None:
            raise yaml.MarkedYAMLError(
                problem="a key that is not plain text", problem_mark=key.start_mark
            )
        if key.value == "<<":
            raise yaml.MarkedYAMLError(problem="a merge key (<<)", problem_mark=key.start_mark)
        here, line = (*path, key.value), key.start_mark.line + 1
        if key.value in mapping:
            document.problems.append(
                (
                    line,
                    (
                        f"{dotted(here)}: given twice, first on line {document.lines[here]}, remove"
                        " one of the two"
                    ),
                )
            )
        else:
            document.lines[here] = line
            mapping[key.value] = _build(value, here, document)
    return mapping


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


def _unreadable(line: int, message: str) -> Document:
    return Document(problems=[(line, message)], whole=False)


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    """The line and a plain sentence for what PyYAML calls a scanner, parser or composer error."""
    said = error.problem or error.context or "not YAML"
    row = next(
        (row for row in _SYNTAX if row[0] in said), ("", said, "write plain `key: value`", False)
    )
    mark = error.context_mark if row[3] and error.context_mark else error.problem_mark
    lines = text.splitlines() or [""]
    line = min(mark.line, len(lines) - 1) if mark else 0
    return line + 1, f"{row[1]}, got {shown(lines[line].strip())}, {row[2]}"


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
