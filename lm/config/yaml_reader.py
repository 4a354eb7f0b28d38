"""The YAML of configuration files: read with the line of every key, and written one value at a
time.

Read as YAML 1.2, like the editors that check these files: `on`, `no`, `010`, `1:30` and dates are
text, `3e-5` is a number. PyYAML alone reads YAML 1.1 (`no` is False, `010` is 8, `1:30` is 90,
`3e-5` is text), lets the last of two equal keys win, and recurses until Python gives up. What a
configuration does without is refused here: duplicate keys, anchors, aliases, merge keys, tags.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lm.config.scalars import KeyPath, dotted, not_text, plain, shown, unprintable
from lm.system.disk import read_start
from lm.system.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 32

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
