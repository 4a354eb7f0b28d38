"""Values in YAML 1.2, and files that are not a configuration."""

from __future__ import annotations

import math
import os
import re
import socket
from pathlib import Path

import pytest
import yaml

from lm.commands import load_config
from lm.config import yaml_reader
from lm.config.scalars import plain, shown
from tests.support.configs import BASE, READ, complaints, value_of
from tests.support.runs import ROOT

# ---------------------------------------------------------------- values


@pytest.mark.parametrize(("text", "key", "expected"), READ)
def test_values_are_read_as_yaml_1_2(write, text: str, key: str, expected: object) -> None:
    value = value_of(load_config(write(BASE + text)).config, key)
    assert value == expected
    assert type(value) is type(expected)


def test_named_values() -> None:
    for word, value in {"null": None, "true": True, "false": False}.items():
        for spelling in (word, word.upper(), word.capitalize()):
            assert plain(spelling) is value
        assert plain(word[0] + word[1:].upper()) == word[0] + word[1:].upper()
    assert plain("~") is None and plain("") is None
    assert (plain(".inf"), plain("-.Inf"), plain(".inf2"), plain("inf")) == (
        math.inf,
        -math.inf,
        ".inf2",
        "inf",
    )
    assert math.isnan(plain(".NaN"))


def test_values_in_messages_are_short() -> None:
    assert shown([1] * 20) == "[" + "1, " * 19 + "1]" and len(shown([1] * 20)) == 60
    assert shown("a" * 59) == '"' + "a" * 56 + "..."


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_compile_takes_its_words_without_quotes(write, word: str) -> None:
    assert load_config(write(BASE + f"  compile: {word}")).config.trainer.compile == word


def test_whole_numbers(write) -> None:
    assert (
        load_config(
            write(BASE + "  max_tokens: 1e9\n  seed: 9223372036854775807")
        ).config.trainer.max_tokens
        == 10**9
    )
    assert plain("9223372036854775807") == 2**63 - 1
    assert plain("-1000000000000000001") == -(10**18) - 1
    assert type(plain("1e3")) is int and type(plain("-3.0")) is int
    assert type(plain("1e15")) is int and type(plain("9007199254740992.0")) is float
    assert plain("1" * 5000) == math.inf
    assert [
        plain(text) for text in ("010", "0x10", "0o10", "1_000", "1:30", "1.2.3", "-", "e5")
    ] == [
        "010",
        "0x10",
        "0o10",
        "1_000",
        "1:30",
        "1.2.3",
        "-",
        "e5",
    ]


def test_one_file_is_a_list_of_one(write) -> None:
    assert load_config(write(BASE)).config.data.source.files == ["a.txt"]


# ---------------------------------------------------------------- files without a configuration

SYNTAX = [
    ("", "1: empty, write the sections data: and trainer:"),
    ("# only a comment\n", "1: empty, write the sections data: and trainer:"),
    ("---\n...\n", "1: empty, write the sections data: and trainer:"),
    ("- a\n", "1: not a mapping, got [a], write the sections data: and trainer:"),
    ("data\n", '1: not a mapping, got "data", write the sections data: and trainer:'),
    ("3\n", "1: not a mapping, got 3, write the sections data: and trainer:"),
    (
        BASE + "trainer:\n  max_steps: 5\n",
        "7: trainer: given twice, first on line 5, remove one of the two",
    ),
    (
        BASE + "  max_steps: 6\n",
        "7: trainer.max_steps: given twice, first on line 6, remove one of the two",
    ),
    (
        BASE + "optimizer: &o {lr: 1e-3}\n",
        '7: an anchor (&), got "optimizer: &o {lr: 1e-3}", write plain `key: value`',
    ),
    (
        BASE + "optimizer: *o\n",
        '7: an alias (*), got "optimizer: *o", put the value in quotes, or write it out',
    ),
    (
        "data:\n  source:\n    files: *.jsonl\n",
        '3: a value that begins with * or &, got "files: *.jsonl", put the value in quotes',
    ),
    (
        "data:\n  source: {files: [a, **/*.txt]}\n",
        '2: a value that begins with * or &, got "source: {files: [a, **/*.txt]}", put the value in'
        " quotes",
    ),
    (
        BASE + "a: >b\n",
        '7: a value that begins with | or >, got "a: >b", put the value in quotes',
    ),
    (
        BASE + "optimizer:\n  <<: {lr: 1}\n",
        '8: a merge key (<<), got "<<: {lr: 1}", write plain `key: value`',
    ),
    (
        BASE + "optimizer: !!python/object/apply:os.system [id]\n",
        (
            '7: a tag (!), got "optimizer: !!python/object/apply:os.system [id]", put the value in'
            " quotes"
        ),
    ),
    (BASE + "  seed: !!str 3\n", '7: a tag (!), got "seed: !!str 3", put the value in quotes'),
    (BASE + "  seed: !own 3\n", '7: a tag (!), got "seed: !own 3", put the value in quotes'),
    (BASE + "\tseed: 3\n", '7: a tab, got "seed: 3", indent with spaces'),
    (BASE + "  seed:\t\t@3\n", '7: a tab, got "seed:\\t\\t@3", indent with spaces'),
    (
        BASE + "optimizer: {lr: 3\n",
        (
            '7: a mapping that is never closed, or a comma that is missing, got "optimizer: {lr:'
            ' 3", write {a: 1, b: 2}'
        ),
    ),
    (
        BASE + "optimizer:\n  betas: [1, 2\n",
        (
            '8: a list that is never closed, or a comma that is missing, got "betas: [1, 2", write'
            " [a, b]"
        ),
    ),
    (
        BASE + "tokenizer:\n  name: 'a\n",
        """8: a quote that is never closed, got "name: 'a", close it on the same line""",
    ),
    (
        BASE + " seed: 3\n",
        (
            '7: a line that fits neither the one above nor its indentation, got "seed: 3", indent'
            " all keys of a section alike"
        ),
    ),
    (
        BASE + "  seed 3\n  keep: 4\n",
        '7: a line that is not `key: value`, got "seed 3", write `key: value`',
    ),
    (BASE + "seed\n", '7: a line that is not `key: value`, got "seed", write `key: value`'),
    (
        BASE + "  device: a: b\n",
        "7: a ':' where none can stand, got \"device: a: b\", correct the indentation, or put the"
        " value in quotes",
    ),
    (
        BASE + "  device: @cpu\n",
        '7: a character that cannot open a value, got "device: @cpu", put the value in quotes',
    ),
    (
        BASE + "  device: `cpu`\n",
        '7: a character that cannot open a value, got "device: `cpu`", put the value in quotes',
    ),
    (BASE + "---\n" + BASE, '7: a second document, got "---", remove the line `---`'),
    (
        BASE + "optimizer: [\n",
        (
            '7: a value that is missing or never closed, got "optimizer: [", write `key: value`,'
            " with special characters in quotes"
        ),
    ),
    (
        BASE + "optimizer: ]\n",
        (
            '7: a value that is missing or never closed, got "optimizer: ]", write `key: value`,'
            " with special characters in quotes"
        ),
    ),
    (
        "a: {b: 1}\n  c: 2\n" + BASE,
        (
            '2: a line that fits neither the one above nor its indentation, got "c: 2", indent all'
            " keys of a section alike"
        ),
    ),
    (
        "  a: 3\n" + BASE,
        (
            '2: a line that does not belong to what is above it, got "data:", write each key as'
            " `key: value` on a line of its own"
        ),
    ),
    (
        BASE + "  seed: - 3\n",
        "7: a '-' where none can stand, got \"seed: - 3\", write each item on a line of its own, or"
        " [a, b]",
    ),
    (
        BASE + "  device: 'cpu\n---\n",
        """7: a quote that is never closed, got "device: 'cpu", close it on the same line""",
    ),
    (
        BASE + '  device: "a\\qb"\n',
        (
            r'7: an unknown escape in "...", got "device: \"a\\qb\"", write \\ for a backslash, or'
            r" use single quotes"
        ),
    ),
    (
        BASE + '  device: "a\\u12"\n',
        (
            r'7: an unknown escape in "...", got "device: \"a\\u12\"", write \\ for a backslash, or'
            r" use single quotes"
        ),
    ),
    (
        BASE + "? [a, b]\n: 3\n",
        '7: a key that is not plain text, got "? [a, b]", write plain `key: value`',
    ),
    (
        BASE + 'logging: {sample_prompt: "\\ud83d"}\n',
        (
            r'7: the character "\U0000D83D", got "logging: {sample_prompt: \"\\ud83d\"}", write'
            r" plain `key: value`"
        ),
    ),
    (
        BASE + 'logging: {sample_prompt: "\\0"}\n',
        (
            r'7: the character "\u0000", got "logging: {sample_prompt: \"\\0\"}", write plain `key:'
            r" value`"
        ),
    ),
    (
        BASE + 'logging: {sample_prompt: "\\UFFFFFFFF"}\n',
        '7: an escape in "..." that names no character, write the character itself',
    ),
    (BASE + "a: " + "[" * 100_000, None),
    (BASE + "a: " + "{a: " * 100_000, None),
    (
        BASE + "\n".join(" " * depth + "a:" for depth in range(40)),
        '38: nested deeper than 32, got "a:", write plain `key: value`',
    ),
    (BASE.encode() + b"a: \xff\n", "7: not UTF-8, got the byte 0xff, save the file as UTF-8"),
    (BASE.encode("utf-16"), "1: not UTF-8, got the byte 0xff, save the file as UTF-8"),
    (
        b"\xef\xbb\xbf" + BASE.encode(),
        "1: begins with a byte order mark, save the file as UTF-8 without one",
    ),
    (BASE + "a: \0\n", '7: a character that text does not have, got "\\u0000", remove it'),
    (BASE + "a: \x1b[31m\n", '7: a character that text does not have, got "\\u001b", remove it'),
    (bytes(range(256)), None),
    ("#" * 2**20 + "#", "1: larger than 1 MiB, write a configuration, or several files of cases"),
]


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(("text", "expected"), SYNTAX, ids=range(len(SYNTAX)))
def test_a_file_that_is_not_a_configuration_is_one_line(
    write, text: str | bytes, expected: str | None
) -> None:
    lines = complaints(write(text))
    assert len(lines) == 1
    if expected is not None:
        assert lines == [f"c.yaml:{expected}"]
    assert re.fullmatch(r"c\.yaml:\d+: \S.*", lines[0])


def test_depth(write) -> None:
    assert "nested deeper than 32" in complaints(write(BASE + "a: " + "[" * 100_000))[0]
    depth_32 = "[" * 31 + "]" * 31
    assert complaints(write(BASE + f"a: {depth_32}"))[0].startswith("c.yaml:7: a: unknown key")


def test_no_alias_bomb(write) -> None:
    bomb = "a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    assert complaints(write(bomb)) == [
        'c.yaml:1: an anchor (&), got "a0: &a0 [x]", write plain `key: value`'
    ]


def test_a_place_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaints("no.yaml") == ["no.yaml: no such file, write the path of a YAML file"]
    Path("folder").mkdir()
    assert complaints("folder") == ["folder: a folder, write the path of a YAML file"]
    with socket.socket(socket.AF_UNIX) as server:  # cannot be opened, not even by root
        server.bind("socket.yaml")
        assert re.fullmatch(r"socket\.yaml: cannot be read: \S.*", *complaints("socket.yaml"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(write) -> None:
    Path(write(BASE)).chmod(0)
    assert complaints("c.yaml") == ["c.yaml: cannot be read: Permission denied"]


def test_a_large_file_takes_libyaml_alone(write, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML's own parser takes 13 s for 1 MiB. The message and its line come from libyaml then."""
    monkeypatch.setattr(yaml_reader, "_ExplainingComposer", None)
    large = "\n".join(f"# {'x' * 60}" for _ in range(2000)) + "\n"
    assert len(large) > yaml_reader.MAX_EXPLAINED
    assert yaml_reader.read_text(large + "a: [1, 'b', c]\n").value == {"a": [1, "b", "c"]}
    assert complaints(write(large + "a: [1\nb: 2\n")) == [
        "c.yaml:2001: a list that is never closed, or a comma that is missing, got"
        ' "a: [1", write [a, b]'
    ]


def test_both_parsers_read_the_same() -> None:
    for path in (*ROOT.glob("*.yaml"), *ROOT.glob("configs/*.yaml"), *ROOT.glob("cases/*.yaml")):
        text = path.read_text("utf-8")
        one, other = (
            _tree(composer(text).get_single_node())
            for composer in (yaml_reader._Composer, yaml_reader._ExplainingComposer)
        )
        assert one == other


def _tree(node: yaml.Node | tuple[yaml.Node, yaml.Node]) -> object:
    if isinstance(node, tuple):
        return [_tree(part) for part in node]
    if isinstance(node, yaml.ScalarNode):
        return node.start_mark.line, bool(node.style), node.value
    return node.start_mark.line, [_tree(part) for part in node.value]


def test_problems_beyond_two_hundred_are_counted(write) -> None:
    lines = complaints(write(BASE + "".join(f"k{i}: 1\n" for i in range(202))))
    assert len(lines) == 201 and lines[-1] == "c.yaml: and 2 more problems"


def test_no_more_than_the_limit_is_read() -> None:
    assert complaints("/dev/zero") == [
        "/dev/zero:1: larger than 1 MiB, write a configuration, or several files of cases"
    ]
