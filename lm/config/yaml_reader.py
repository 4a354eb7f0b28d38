"""Read the YAML of configuration files, with the line of every key.

Files are read as YAML 1.2, like the editors that check them: `on`, `no`, `010`, `1:30` and dates
are text, `3e-5` is a number. PyYAML alone reads YAML 1.1: `no` is False, `010` is 8, `1:30` is 90,
and `3e-5` is text. It also accepts duplicate keys, and recurses until Python gives up. Duplicate
keys, anchors, aliases, merge keys and tags are refused, because a configuration needs none of them.

libyaml parses: it takes a second for the largest file, PyYAML's own parser 13. The messages for
mistakes are PyYAML's, which parses a small file again for them.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lm.config.scalars import KeyPath, dotted, not_text, plain, shown, unprintable
from lm.system.disk import read_start
from lm.system.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 32
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # some builds lack libyaml
MAX_EXPLAINED = 2**16  # characters of a file that PyYAML's own parser reads again, in a second

# A part of PyYAML's message, its meaning, the advice, and whether to point to the start of the
# construct instead of the place of the error.
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
    (
        "alphabetic or numeric character",
        "a value that begins with * or &",
        "put the value in quotes",
        False,
    ),
    (
        "indentation indicators",
        "a value that begins with | or >",
        "put the value in quotes",
        False,
    ),
    ("an alias (*)", "an alias (*)", "put the value in quotes, or write it out", False),
    ("a tag (!)", "a tag (!)", "put the value in quotes", False),
    ("another document", "a second document", "remove the line `---`", False),
)


@dataclass
class Document:
    """A YAML document: its value, the line of each key and list item, and its problems."""

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)  # (line, message)
    # False if a value could not be read: checking the rest would only add wrong complaints.
    is_complete: bool = True


def read_file(path: Path | str) -> Document:
    """Read a YAML file of at most 1 MiB.

    Raises:
        ConfigError: the file does not exist or cannot be read.
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
    """Read one YAML document; an empty one is None. Problems are returned, never raised."""
    if (start := unprintable(text)) is not None:
        return _unreadable(text.count("\n", 0, start) + 1, not_text(text[start]))
    document = Document()
    composer: _Nodes = _Composer(text)
    try:
        try:
            node = composer.get_single_node()
        except (yaml.scanner.ScannerError, yaml.parser.ParserError):
            if len(text) > MAX_EXPLAINED:
                raise
            composer = _ExplainingComposer(text)
            node = composer.get_single_node()
        document.value = None if node is None else _build(node, (), document)
    except yaml.MarkedYAMLError as error:
        return _unreadable(*_syntax_problem(error, text))
    except (ValueError, OverflowError):  # "\UFFFFFFFF": chr() in PyYAML raises
        return _unreadable(
            composer.line + 1,
            'an escape in "..." that names no character, write the character itself',
        )
    return document


class _Nodes(yaml.composer.Composer):
    """A composer of nodes that stops at anchors, aliases, tags and great depth."""

    depth = 0
    peek_event: Callable[[], Any]  # of the parser below
    line = 0  # PyYAML's own parser counts it

    def resolve(self, kind: object, value: object, implicit: object) -> None:
        """Give no node a tag: `plain` decides what a value is."""

    def descend_resolver(self, parent: object, index: object) -> None:
        """Do nothing, as no path in the file has a tag."""

    def ascend_resolver(self) -> None:
        """Do nothing, as above."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        alias = isinstance(event, yaml.AliasEvent)
        forbidden = {
            "an alias (*)": alias,
            "an anchor (&)": not alias and event.anchor is not None,
            "a tag (!)": not alias and event.tag is not None,
            f"nested deeper than {MAX_DEPTH}": self.depth == MAX_DEPTH,
        }
        for problem, occurs in forbidden.items():
            if occurs:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Composer(_Nodes, _LOADER):
    """A composer on libyaml."""

    def __init__(self, text: str):
        _LOADER.__init__(self, text)
        _Nodes.__init__(self)  # libyaml's loader composes in C, without what this prepares


class _ExplainingComposer(_Nodes, yaml.SafeLoader):
    """A composer on PyYAML's own parser."""


def _build(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    """Turn a node into plain Python values; note lines and duplicate keys in `document`."""
    if isinstance(node, yaml.ScalarNode):
        # An escape can make it: "\0", or "\ud83d", which is half a character.
        if (start := unprintable(node.value)) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"the character {shown(node.value[start])}", problem_mark=node.start_mark
            )
        return node.value if node.style else plain(node.value)  # a plain one has "" or None
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
        key_path, line = (*path, key.value), key.start_mark.line + 1
        if key.value in mapping:
            message = (
                f"{dotted(key_path)}: given twice, first on line {document.lines[key_path]}, remove"
                " one of the two"
            )
            document.problems.append((line, message))
        else:
            document.lines[key_path] = line
            mapping[key.value] = _build(value, key_path, document)
    return mapping


def _unreadable(line: int, message: str) -> Document:
    return Document(problems=[(line, message)], is_complete=False)


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    """Return the line and a plain sentence for PyYAML's scanner, parser or composer error."""
    message = error.problem or error.context or "not YAML"
    unknown = ("", message, "write plain `key: value`", False)
    _, meaning, advice, at_start = next((row for row in _SYNTAX if row[0] in message), unknown)
    mark = error.context_mark if at_start and error.context_mark else error.problem_mark
    lines = text.splitlines() or [""]
    line = min(mark.line, len(lines) - 1) if mark else 0
    return line + 1, f"{meaning}, got {shown(lines[line].strip())}, {advice}"
