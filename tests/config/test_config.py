"""The configuration reader: accepted values, messages for everything else, and generated files."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import socket
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from lm.commands import load_config
from lm.config import keys
from lm.config.describe import describe, to_yaml
from lm.config.keys import help_text
from lm.config.reader import Loaded
from lm.config.scalars import flow, plain, shown
from lm.config.schema.config import Config
from lm.config.schema.model import ModelConfig
from lm.config.yaml_reader import read_file, read_text
from lm.system.errors import CheckpointError, ConfigError
from tools import config_docs

ROOT = Path(__file__).resolve().parents[2]

BASE = """\
data:
  source:
    format: txt
    files: a.txt
trainer:
  max_steps: 1000
"""
BOTH = """\
data:
  source:
    {format: jsonl, files: [a.jsonl, "b [1]: c.jsonl"], text_key: no,
     filter: {max_tokens: 1e9, ascii_only: true}}
  validation: {format: hub, dataset: a/b, config: null}
trainer: {max_tokens: 1e9, compile: on}
optimizer: {lr: 3e-5, betas: [0.8, 0.99]}
logging: {sample_prompt: "To be: or\\nnot # to be \\u00e9 \\u2028 \\U0001F600"}
"""

MIXTURE = """\
data:
  source:
    format: mixture
    parts:
      - weight: 3
        source: {format: csv, files: a.csv, delimiter: "\\t"}
      - weight: 1
        source:
          format: hub
          dataset: a/b
          filter:
            min_length: 5
    when_one_ends: go_on
trainer:
  max_steps: 1000
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write c.yaml in an empty current directory, so that messages name it as c.yaml."""
    monkeypatch.chdir(tmp_path)

    def writer(text: str | bytes) -> str:
        Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "c.yaml"

    return writer


def complaints(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).split("\n")


def value_of(config: Config, name: str) -> Any:
    value: Any = config
    for part in re.findall(r"\w+|\[\d+\]", name):
        value = value[int(part[1:-1])] if part[0] == "[" else getattr(value, part)
    return value


# ---------------------------------------------------------------- values

READ = [
    ("optimizer: {lr: 3e-5}", "optimizer.lr", 3e-5),
    ("optimizer: {lr: 3E-5}", "optimizer.lr", 3e-5),
    ("optimizer: {lr: +.5}", "optimizer.lr", 0.5),
    ("optimizer: {lr: 1}", "optimizer.lr", 1.0),
    ("optimizer: {betas: [0, 0.5]}", "optimizer.betas", (0.0, 0.5)),
    ("model: {n_layers: 3.0}", "model.n_layers", 3),
    ("model: {rope_theta: 1e6}", "model.rope_theta", 1e6),
    ("model: {n_kv_heads: ~}", "model.n_kv_heads", None),
    ("model: {n_kv_heads: }", "model.n_kv_heads", None),
    ("model: {qk_norm: TRUE}", "model.qk_norm", True),
    ("tokenizer: {name: no}", "tokenizer.name", "no"),
    ("tokenizer: {name: 010}", "tokenizer.name", "010"),
    ("tokenizer: {name: 1:30}", "tokenizer.name", "1:30"),
    ("tokenizer: {name: 2026-11-21}", "tokenizer.name", "2026-11-21"),
    ("tokenizer: {name: '3'}", "tokenizer.name", "3"),
    ("tokenizer: {name: 'true'}", "tokenizer.name", "true"),
    ("logging:\n  sample_prompt: |-\n    a\n    b", "logging.sample_prompt", "a\nb"),
]


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
    (BASE + "optimizer: *o\n", '7: an alias (*), got "optimizer: *o", write plain `key: value`'),
    (
        BASE + "optimizer:\n  <<: {lr: 1}\n",
        '8: a merge key (<<), got "<<: {lr: 1}", write plain `key: value`',
    ),
    (
        BASE + "optimizer: !!python/object/apply:os.system [id]\n",
        (
            '7: a tag (!), got "optimizer: !!python/object/apply:os.system [id]", write plain `key:'
            " value`"
        ),
    ),
    (BASE + "  seed: !!str 3\n", '7: a tag (!), got "seed: !!str 3", write plain `key: value`'),
    (BASE + "  seed: !own 3\n", '7: a tag (!), got "seed: !own 3", write plain `key: value`'),
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


def test_no_more_than_the_limit_is_read() -> None:
    assert complaints("/dev/zero") == [
        "/dev/zero:1: larger than 1 MiB, write a configuration, or several files of cases"
    ]


# ---------------------------------------------------------------- values that the schema refuses

REFUSED = [
    (
        "  seed: fast",
        'trainer.seed: not a whole number, got "fast", write a whole number >= 0 and < 2**63',
    ),
    (
        "  seed: 010",
        'trainer.seed: not a whole number, got "010", write a whole number >= 0 and < 2**63',
    ),
    (
        "  seed: 1:30",
        'trainer.seed: not a whole number, got "1:30", write a whole number >= 0 and < 2**63',
    ),
    (
        "  seed: 1.5",
        "trainer.seed: not a whole number, got 1.5, write a whole number >= 0 and < 2**63",
    ),
    (
        "  seed: .inf",
        "trainer.seed: not a whole number, got .inf, write a whole number >= 0 and < 2**63",
    ),
    (
        "  seed: 9223372036854775808",
        "trainer.seed: too large, got 9223372036854775808, write a whole number >= 0 and < 2**63",
    ),
    (
        "  seed: true",
        "trainer.seed: not a whole number, got true, write a whole number >= 0 and < 2**63",
    ),
    (
        "  seed:",
        "trainer.seed: not a whole number, got null, write a whole number >= 0 and < 2**63",
    ),
    (
        "  seed: '3'",
        (
            'trainer.seed: not a whole number, got "3", write a whole number >= 0 and < 2**63'
            " without quotes"
        ),
    ),
    (
        "  seed: [3]",
        "trainer.seed: not a whole number, got [3], write a whole number >= 0 and < 2**63",
    ),
    (
        "  max_minutes: true",
        "trainer.max_minutes: not a number, got true, write a number > 0 or null",
    ),
    (
        "  max_minutes: .nan",
        "trainer.max_minutes: not a finite number, got .nan, write a number > 0 or null",
    ),
    (
        "  max_minutes: -.inf",
        "trainer.max_minutes: not a finite number, got -.inf, write a number > 0 or null",
    ),
    (
        "  max_minutes: '3e-5'",
        'trainer.max_minutes: not a number, got "3e-5", write a number > 0 or null without quotes',
    ),
    ("  batch_size: 0", "trainer.batch_size: too small, got 0, write a whole number >= 1"),
    (
        "  threads: 2000",
        "trainer.threads: too large, got 2000, write a whole number >= 1 and <= 1024 or null",
    ),
    ("  compile: true", "trainer.compile: not one of the choices, got true, write auto, on or off"),
    ("  compile: ON", 'trainer.compile: not one of the choices, got "ON", write auto, on or off'),
    (
        "  deterministic: on",
        'trainer.deterministic: not true or false, got "on", write true or false',
    ),
    ("  deterministic: 1", "trainer.deterministic: not true or false, got 1, write true or false"),
    ("  sed: 3", "trainer.sed: unknown key, got 3, did you mean trainer.seed?"),
    ("  Seed: 3", "trainer.Seed: unknown key, got 3, did you mean trainer.seed?"),
    (
        "  max-minutes: 3",
        "trainer.max-minutes: unknown key, got 3, did you mean trainer.max_minutes?",
    ),
    ("  lr: 3e-5", "trainer.lr: unknown key, got 3.0e-5, did you mean optimizer.lr?"),
    (
        "  weight_deca: 3e-5",
        "trainer.weight_deca: unknown key, got 3.0e-5, did you mean optimizer.weight_decay?",
    ),
    ("  null: 3", "trainer.null: unknown key, got 3, write max_steps, max_tokens,"),
    ('  "a b\\n": 3', r'trainer."a b\n": unknown key, got 3, write max_steps,'),
    ("tokenizer: {name: 3}", "tokenizer.name: not text, got 3, write text in quotes"),
    ("tokenizer: {name: ''}", 'tokenizer.name: empty, got "", write text'),
    (
        "tokenizer:",
        (
            "tokenizer: not a section, got null, write a section: its keys, indented, on the lines"
            " below"
        ),
    ),
    (
        "tokenizer: byte",
        (
            'tokenizer: not a section, got "byte", write a section: its keys, indented, on the'
            " lines below"
        ),
    ),
    (
        "tokenizer: [byte]",
        (
            "tokenizer: not a section, got [byte], write a section: its keys, indented, on the"
            " lines below"
        ),
    ),
    (
        "tokeniser: {name: byte}",
        "tokeniser: unknown key, got {name: byte}, did you mean tokenizer?",
    ),
    (
        "optimizer.lr: 3",
        (
            '"optimizer.lr": unknown key, got 3, write lr below optimizer: (dots are for the'
            " command line)"
        ),
    ),
    (
        "xyz: 3",
        (
            "xyz: unknown key, got 3, write model, tokenizer, data, optimizer, trainer, checkpoint,"
            " logging or finetune"
        ),
    ),
    (
        "optimizer: {betas: [0.9]}",
        "optimizer.betas: too few values, got [0.9], write a list of 2, each a number >= 0 and < 1",
    ),
    (
        "optimizer: {betas: [0.9, 1, 1]}",
        (
            "optimizer.betas: too many values, got [0.9, 1, 1], write a list of 2, each a number >="
            " 0 and < 1"
        ),
    ),
    (
        "optimizer: {betas: [0.9, 1]}",
        "optimizer.betas[1]: too large, got 1, write a list of 2, each a number >= 0 and < 1",
    ),
    (
        "optimizer: {betas: 0.9}",
        "optimizer.betas: not a list, got 0.9, write a list of 2, each a number >= 0 and < 1",
    ),
    ("model: {d_model: 130}", "model: d_model 130 is not divisible by n_heads 4"),
    (
        "logging: {sample_tokens: " + "9" * 80 + "}",
        "logging.sample_tokens: not a whole number, got 1.0e+80, write a whole number >= 0",
    ),
    (
        "checkpoint: {directory: [" + "a, " * 50 + "a]}",
        (
            "checkpoint.directory: not text, got [a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a,"
            " a, a, a,..., write text"
        ),
    ),
]


@pytest.mark.parametrize(("text", "expected"), REFUSED, ids=range(len(REFUSED)))
def test_a_value_that_is_refused_is_one_line(write, text: str, expected: str) -> None:
    (line,) = complaints(write(BASE + text))
    assert line.startswith(f"c.yaml:7: {expected}")
    assert line == f"c.yaml:7: {expected}" or expected.endswith(",")


SINGLE = "txt, jsonl, csv, parquet, sms, instruction, bin, hub or chat"
ANY = "txt, jsonl, csv, parquet, sms, instruction, bin, hub, chat or mixture"
NO_DELIMITER = (
    "2: data.source.delimiter: a quote or a line end has another meaning in CSV; write another"
    " character"
)
SOURCES = [
    (
        "source: a.txt",
        (
            '2: data.source: not a section, got "a.txt", write a section: its keys, indented, on'
            " the lines below"
        ),
    ),
    ("source: {files: a}", f"2: data.source.format: missing, write {ANY}"),
    ("source: {}", f"2: data.source.format: missing, write {ANY}"),
    (
        "source: {format: tsv, files: a}",
        f'2: data.source.format: not one of the choices, got "tsv", write {ANY}',
    ),
    (
        "source: {format: true, files: a}",
        f"2: data.source.format: not one of the choices, got true, write {ANY}",
    ),
    (
        "source: {format: null, files: a}",
        f"2: data.source.format: not one of the choices, got null, write {ANY}",
    ),
    (
        "source: {format: [txt], files: a}",
        f"2: data.source.format: not one of the choices, got [txt], write {ANY}",
    ),
    ("source: {format: txt}", "2: data.source.files: missing, write text or a list of text"),
    (
        "source: {format: txt, files: []}",
        "2: data.source.files: too few values, got [], write text or a list of text",
    ),
    ("source: {format: txt, files: ''}", '2: data.source.files[0]: empty, got "", write text'),
    (
        "source: {format: txt, files: 3}",
        "2: data.source.files: not text, got 3, write text in quotes or a list of text",
    ),
    (
        "source: {format: txt, files: [a, 3]}",
        "2: data.source.files[1]: not text, got 3, write text in quotes",
    ),
    (
        "source: {format: txt, files: a, txt: 3}",
        "2: data.source.txt: unknown key, got 3, write format, files, unit or filter",
    ),
    (
        "source: {format: txt, files: a, text_key: b}",
        (
            '2: data.source.text_key: unknown key, got "b", with format txt write format, files,'
            " unit or filter (text_key is for jsonl, csv, parquet or hub)"
        ),
    ),
    (
        "source: {format: hub, dataset: a, unit: line}",
        (
            '2: data.source.unit: unknown key, got "line", with format hub write format, filter,'
            " text_key, dataset, config, dataset_split, revision, streaming or window_tokens (unit"
            " is for txt)"
        ),
    ),
    (
        "source: {format: hub, dataset: a, split: b}",
        '2: data.source.split: unknown key, got "b", did you mean data.split?',
    ),
    (
        "source: {format: txt, file: a, files: b}",
        '2: data.source.file: unknown key, got "a", did you mean data.source.files?',
    ),
    (
        "text_key: a\n  source: {format: txt, files: b}",
        '2: data.text_key: unknown key, got "a", did you mean data.source.text_key?',
    ),
    (
        "source: {format: txt, files: b}\n  validation:\n    files: 3",
        f"3: data.validation.format: missing, write {SINGLE}",
    ),
    (
        "source: {format: txt, files: b}\n  validation:\n    format: txt\n    files: 3",
        "5: data.validation.files: not text, got 3, write text in quotes or a list of text",
    ),
    (
        "source: {format: txt, files: b}\n  validation: 3",
        (
            "3: data.validation: not a section, got 3, write null, or a section: its keys,"
            " indented, on the lines below"
        ),
    ),
    (
        "source: {format: txt, files: b}\n  split: tail\n  validation: {format: txt, files: c}",
        (
            "1: data: split would hold out a part of `source`, but `validation` names text of its"
            " own; remove one of the two"
        ),
    ),
    (
        "source: {format: txt, files: b}\n  validation: {format: mixture, parts: []}",
        f'3: data.validation.format: not one of the choices, got "mixture", write {SINGLE}',
    ),
    (
        "source: {format: csv, files: a, delimiter: ';;'}",
        '2: data.source.delimiter: too long, got ";;", write one character',
    ),
    (
        "source: {format: csv, files: a, delimiter: ''}",
        '2: data.source.delimiter: empty, got "", write one character',
    ),
    ("source: {format: csv, files: a, delimiter: '\"'}", NO_DELIMITER),
    ('source: {format: csv, files: a, delimiter: "\\n"}', NO_DELIMITER),
    ('source: {format: csv, files: a, delimiter: "\\r"}', NO_DELIMITER),
    (
        "source: {format: bin, files: a, dtype: int32}",
        '2: data.source.dtype: not one of the choices, got "int32", write uint16 or uint32 or null',
    ),
    (
        "source: {format: bin, files: a, filter: {ascii_only: true}}",
        "2: data.source: filter.ascii_only would change text that is token ids already; remove it",
    ),
    (
        "source: {format: txt, files: a, filter: 3}",
        (
            "2: data.source.filter: not a section, got 3, write a section: its keys, indented, on"
            " the lines below"
        ),
    ),
    (
        "source: {format: txt, files: a, filter:}",
        (
            "2: data.source.filter: not a section, got null, write a section: its keys, indented,"
            " on the lines below"
        ),
    ),
    (
        "source:\n    format: txt\n    files: a\n    filter:\n      max_documents: 0",
        "6: data.source.filter.max_documents: too small, got 0, write a whole number >= 1 or null",
    ),
    (
        "source: {format: txt, files: a, filter: {ascii_only: 1}}",
        "2: data.source.filter.ascii_only: not true or false, got 1, write true or false",
    ),
    (
        "source: {format: txt, files: a, filter: {max_docs: 1}}",
        (
            "2: data.source.filter.max_docs: unknown key, got 1, did you mean"
            " data.source.filter.max_documents?"
        ),
    ),
    (
        "source: {format: txt, files: a, filter: {xyz: 1}}",
        (
            "2: data.source.filter.xyz: unknown key, got 1, write max_documents, max_tokens,"
            " min_length, ascii_only or deduplicate"
        ),
    ),
    (
        "source: {format: txt, files: a, max_documents: 3}",
        (
            "2: data.source.max_documents: unknown key, got 3, did you mean"
            " data.source.filter.max_documents?"
        ),
    ),
    (
        "source: {format: txt, files: a}\n  min_length: 3",
        "3: data.min_length: unknown key, got 3, did you mean data.source.filter.min_length?",
    ),
    (
        (
            "source: {format: hub, dataset: a, streaming: true, filter: {max_tokens: 3,"
            " deduplicate: true}}"
        ),
        (
            "2: data.source: filter.max_tokens and filter.deduplicate would need a streaming source"
            " as a whole; remove it, or write streaming: false"
        ),
    ),
    (
        "source: {format: hub, dataset: a, streaming: true}\n  split: tail",
        (
            "1: data: split tail needs to know where the text ends, and a streamed one has no end;"
            " write split: hash"
        ),
    ),
    (
        "source: {format: txt, files: a, filter: {max_tokens: 3}}\n  split: tail",
        (
            "1: data: split tail measures the text in characters before it is tokenised, and"
            " max_tokens in tokens; write split: hash"
        ),
    ),
    (
        "source: {format: txt, files: a}\n  validation: {format: hub, dataset: a, streaming: true}",
        (
            "1: data: validation is scored as a whole, and a streamed text has no end; write"
            " streaming: false and filter.max_documents"
        ),
    ),
    (
        "source: {format: txt, files: a}\n  rows: document\n  stride: 3",
        (
            "1: data: stride is for rows: packed; with rows: document every row begins where a"
            " document does"
        ),
    ),
    (
        "source: {format: hub, dataset: a, streaming: true}\n  rows: document",
        (
            "1: data: rows: document needs text that is stored, and a stream's rows are packed, one"
            " after the other; remove it"
        ),
    ),
    (
        "source: {format: hub, dataset: a, streaming: true}\n  stride: 3",
        (
            "1: data: stride needs text that is stored, and a stream's rows are packed, one after"
            " the other; remove it"
        ),
    ),
    (
        "source: {format: txt, files: a}\n  rows: documents",
        '3: data.rows: not one of the choices, got "documents", write packed or document',
    ),
    (
        "source: {format: txt, files: a}\n  stride: 257",
        (
            "3: data.stride: 257 is longer than a row, 256 tokens, so that text between rows would"
            " never be read; make it smaller"
        ),
    ),
    (
        "source: {format: txt, files: a}\n  sequence_length: 64\n  stride: 65",
        (
            "4: data.stride: 65 is longer than a row, 64 tokens, so that text between rows would"
            " never be read; make it smaller"
        ),
    ),
    (
        "source: {format: txt, files: a}\n  stride: 0",
        "3: data.stride: too small, got 0, write a whole number >= 1 or null",
    ),
    (
        "source: {format: mixture}",
        (
            "2: data.source.parts: missing, write a list of 1 to 100 sections with weight and"
            " source, each after `- `"
        ),
    ),
    (
        "source: {format: mixture, parts: []}",
        (
            "2: data.source.parts: too few values, got [], write a list of 1 to 100 sections with"
            " weight and source, each after `- `"
        ),
    ),
    (
        "source: {format: mixture, parts: {weight: 3}}",
        (
            "2: data.source.parts: not a list, got {weight: 3}, write a list of 1 to 100 sections"
            " with weight and source, each after `- `"
        ),
    ),
    (
        "source: {format: mixture, parts: ["
        + "{weight: 1, source: {format: txt, files: a}}, " * 101
        + "]}",
        (
            "2: data.source.parts: too many values, got [{weight: 1, source: {format: txt, files:"
            " a}}, {weight: 1..., write a list of 1 to 100 sections with weight and source, each"
            " after `- `"
        ),
    ),
    (
        "source: {format: txt, files: a, parts: []}",
        (
            "2: data.source.parts: unknown key, got [], with format txt write format, files, unit"
            " or filter (parts is for mixture)"
        ),
    ),
    (
        "source: {format: txt, files: a, weight: 3}",
        "2: data.source.weight: unknown key, got 3, did you mean data.source.parts[].weight?",
    ),
]


@pytest.mark.parametrize(("data", "expected"), SOURCES, ids=range(len(SOURCES)))
def test_a_source_that_is_refused_is_one_line(write, data: str, expected: str) -> None:
    assert complaints(write(f"data:\n  {data}\ntrainer: {{max_steps: 1000}}")) == [
        f"c.yaml:{expected}"
    ]


PARTS = [  # a change of MIXTURE, and the complaint about it
    (
        "min_length: 5",
        "min_length: five",
        [
            '12: data.source.parts[1].source.filter.min_length: not a whole number, got "five", '
            "write a whole number >= 0"
        ],
    ),
    (
        "min_length: 5",
        "min_lenght: 5",
        [
            "12: data.source.parts[1].source.filter.min_lenght: unknown key, got 5, "
            "did you mean data.source.parts[1].source.filter.min_length?"
        ],
    ),
    (
        "min_length: 5",
        "text_key: a",
        [
            '12: data.source.parts[1].source.filter.text_key: unknown key, got "a", '
            "did you mean data.source.parts[1].source.text_key?"
        ],
    ),
    (
        "min_length: 5",
        "weight: 3",
        [
            "12: data.source.parts[1].source.filter.weight: unknown key, got 3, "
            "did you mean data.source.parts[1].weight?"
        ],
    ),
    (
        "dataset: a/b",
        "dataset: a/b\n          min_length: 3",
        [
            "11: data.source.parts[1].source.min_length: unknown key, got 3, "
            "did you mean data.source.parts[1].source.filter.min_length?"
        ],
    ),
    (
        "dataset: a/b",
        "datset: a/b",
        [
            "8: data.source.parts[1].source.dataset: missing, write text",
            (
                '10: data.source.parts[1].source.datset: unknown key, got "a/b", '
                "did you mean data.source.parts[1].source.dataset?"
            ),
        ],
    ),
    (
        "dataset: a/b",
        "dataset: a\n          unit: line",
        [
            '11: data.source.parts[1].source.unit: unknown key, got "line", with format hub '
            "write format, filter, text_key, dataset, config, dataset_split, revision, "
            "streaming or window_tokens (unit is for txt)"
        ],
    ),
    (
        "files: a.csv",
        "files: [a, 3]",
        ["6: data.source.parts[0].source.files[1]: not text, got 3, write text in quotes"],
    ),
    (
        "format: hub",
        "format: mixture",
        [
            '9: data.source.parts[1].source.format: not one of the choices, got "mixture", '
            f"write {SINGLE}"
        ],
    ),
    (
        "          format: hub\n",
        "",
        [f"8: data.source.parts[1].source.format: missing, write {SINGLE}"],
    ),
    (
        "weight: 1",
        "weight: 0",
        ["7: data.source.parts[1].weight: too small, got 0, write a whole number >= 1 and <= 1000"],
    ),
    (
        "weight: 1",
        "weight: 0.5",
        [
            "7: data.source.parts[1].weight: not a whole number, got 0.5, write a whole number >= 1"
            " and <= 1000"
        ],
    ),
    (
        "weight: 1",
        "wieght: 1",
        [
            "7: data.source.parts[1].weight: missing, write a whole number >= 1 and <= 1000",
            (
                "7: data.source.parts[1].wieght: unknown key, got 1, did you mean"
                " data.source.parts[1].weight?"
            ),
        ],
    ),
    (
        "weight: 1",
        "weight: 1\n        files: b",
        [
            '8: data.source.parts[1].files: unknown key, got "b", '
            "did you mean data.source.parts[1].source.files?"
        ],
    ),
    (
        "weight: 1",
        "weight: 1\n        weight: 2",
        ["8: data.source.parts[1].weight: given twice, first on line 7, remove one of the two"],
    ),
    (
        "        source: {format: csv,",
        "      - source: {format: csv,",
        [
            (
                "5: data.source.parts[0].source: missing, write a section: its "
                "keys, indented, on the lines below"
            ),
            "6: data.source.parts[1].weight: missing, write a whole number >= 1 and <= 1000",
        ],
    ),
    (
        '{format: csv, files: a.csv, delimiter: "\\t"}',
        "a.csv",
        [
            '6: data.source.parts[0].source: not a section, got "a.csv", '
            "write a section: its keys, indented, on the lines below"
        ],
    ),
    (
        "      - weight: 3\n",
        "      - a.csv\n      - weight: 3\n",
        [
            '5: data.source.parts[0]: not a section, got "a.csv", '
            "write a section: its keys, indented, on the lines below"
        ],
    ),
    (
        "      - weight: 3\n",
        "      -\n      - weight: 3\n",
        [
            "5: data.source.parts[0]: not a section, got null, "
            "write a section: its keys, indented, on the lines below"
        ],
    ),
    (
        "go_on",
        "go-on",
        [
            '13: data.source.when_one_ends: not one of the choices, got "go-on", write stop, repeat'
            " or go_on"
        ],
    ),
    (
        "go_on",
        "go_on\n    filter: {min_length: 3}",
        [
            "14: data.source.filter: unknown key, got {min_length: 3}, with format mixture write "
            f"format, parts or when_one_ends (filter is for {SINGLE})"
        ],
    ),
    (
        "go_on",
        "go_on\n    max_documents: 3",
        [
            "14: data.source.max_documents: unknown key, got 3, "
            "did you mean data.source.parts[].source.filter.max_documents?"
        ],
    ),
    (
        "go_on",
        "go_on\n    weight: 3",
        ["14: data.source.weight: unknown key, got 3, did you mean data.source.parts[].weight?"],
    ),
    (
        "dataset: a/b",
        "dataset: a/b\n          streaming: true",
        [
            "2: data.source: when_one_ends go_on needs to know how long each source "
            "is, and a streamed one has no end; write repeat"
        ],
    ),
    (
        "min_length: 5\n    when_one_ends: go_on",
        "max_tokens: 5\n          streaming: true",
        [
            "8: data.source.parts[1].source: filter.max_tokens would need a streaming source as a"
            " whole; remove it, or write streaming: false"
        ],
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), PARTS, ids=range(len(PARTS)))
def test_a_mistake_inside_a_mixture_is_named_with_its_part_and_line(
    write, old: str, new: str, expected: list[str]
) -> None:
    assert MIXTURE.count(old) == 1
    assert complaints(write(MIXTURE.replace(old, new))) == [f"c.yaml:{line}" for line in expected]


def test_missing_sections_point_at_the_first_line(write) -> None:
    assert complaints(write("\n\nmodel: {}\n")) == [
        "c.yaml:1: data: missing, write a section: its keys, indented, on the lines below",
        "c.yaml:1: trainer: missing, write a section: its keys, indented, on the lines below",
    ]


def test_checks_of_a_section_point_at_its_line_and_of_the_whole_at_the_key(write) -> None:
    sections = BASE.replace("  max_steps: 1000", "  batch_size: 9\n  micro_batch_size: 2")
    assert complaints(write(sections)) == [
        "c.yaml:5: trainer: give the run a length: max_steps, or max_tokens, or both (the smaller"
        " ends it)"
    ]
    assert complaints(write(sections), "--trainer.max_steps", "200") == [
        "c.yaml:5: trainer: batch_size 9 is not divisible by devices 1 x micro_batch_size 2"
    ]
    steps = "optimizer.warmup_steps: 100 leaves nothing of the run's 100 steps; make it smaller"
    assert complaints(write(BASE), "--trainer.max_steps=100") == [f"c.yaml:1: {steps}"]
    assert complaints(write(BASE + "optimizer:\n  lr: 1\n"), "--trainer.max_steps=100") == [
        f"c.yaml:7: {steps}"
    ]
    assert complaints(write(BASE), "--trainer.max_steps=100", "--optimizer.warmup_steps=100") == [
        f"command line: --{steps}"
    ]
    row = (
        "data.sequence_length: 512 is longer than model.context_length 256; make the rows shorter"
        " or the context longer"
    )
    assert complaints(write("data:\n  sequence_length: 512\n" + BASE[6:])) == [f"c.yaml:2: {row}"]


def test_checks_of_several_keys_blame_the_flag_among_them(write) -> None:
    assert complaints(write(BASE), "--model.n_heads", "3") == [
        "command line: --model.n_heads: d_model 128 is not divisible by n_heads 3"
    ]
    [line] = complaints(
        write("data:\n  sequence_length: 200\n" + BASE[6:]),
        "--model.context_length=100",
        "--model.n_layers=1",
    )
    assert line.startswith(
        "command line: --model.context_length: data.sequence_length 200 is longer than"
        " model.context_length 100;"
    )


def test_every_problem_is_told_at_once_in_the_order_of_the_file(write) -> None:
    text = BASE + "  sed: 1\n  max_steps: 3\nmodel:\n  n_layers: many\n  n_heads: 0\nmodle: {}\n"
    overrides = [
        "stray",
        "--optimizer.eps",
        "--optimizer.lr",
        "0",
        "--logging.every",
        "2",
        "--logging.every=2",
    ]
    assert complaints(write(text), *overrides) == [
        "c.yaml:7: trainer.sed: unknown key, got 1, did you mean trainer.seed?",
        "c.yaml:8: trainer.max_steps: given twice, first on line 6, remove one of the two",
        (
            'c.yaml:10: model.n_layers: not a whole number, got "many", write a whole number >= 1'
            " and <= 1024"
        ),
        "c.yaml:11: model.n_heads: too small, got 0, write a whole number >= 1",
        "c.yaml:12: modle: unknown key, got {}, did you mean model?",
        'command line: "stray": not a flag, write --section.key value',
        (
            "command line: --optimizer.eps: no value, write --optimizer.eps VALUE (=VALUE where it"
            " begins with --)"
        ),
        (
            "command line: --logging.every: given twice, got --logging.every before, remove one of"
            " the two"
        ),
        "command line: --optimizer.lr: too small, got 0, write a number > 0 and <= 10",
    ]


def test_no_message_speaks_pydantic(write) -> None:
    """The table has every error type that the schema's core schema can raise for JSON input."""
    from lm.config.complaints import WRONG

    seen = set()
    nasty = [
        None,
        True,
        3,
        -1e9,
        1e9,
        1.5,
        math.inf,
        "",
        "x",
        "xx",
        [],
        ["x"] * 3,
        [0.1, 0.2, 0.3],
        [{}] * 101,
        {},
        {"x": 1},
    ]
    good = {
        several: load_config(write(MIXTURE if several else BASE)).config.model_dump_json()
        for several in (True, False)
    }
    for key in keys.keys().values():
        if not key.name:
            continue
        for value in nasty:
            tree = json.loads(good["parts" in key.name])
            section = tree
            *sections, name = key.name.split(".")
            for part in sections:
                section[part.removesuffix("[]")] = section.get(part.removesuffix("[]")) or {}
                section = section[part.removesuffix("[]")]
                section = section[0] if part.endswith("[]") else section
            section |= {"format": key.formats[0]} if key.formats else {}
            section[name] = value
            try:
                Config.model_validate_json(json.dumps(tree), strict=True)
            except ValidationError as error:
                seen |= {details["type"] for details in error.errors()}
    assert seen - set(WRONG) <= {
        "extra_forbidden",
        "union_tag_invalid",
        "union_tag_not_found",
        "value_error",
    }
    assert {*WRONG} - {
        "model_type",
        "dict_type",
        "tuple_type",
    } <= seen, "else the table has rows that nobody needs"


# ---------------------------------------------------------------- overrides

SET = [
    (["--optimizer.lr", "3e-5"], "optimizer.lr", 3e-5),
    (["--optimizer.lr=3e-5"], "optimizer.lr", 3e-5),
    (["--trainer.max_tokens", "1e6"], "trainer.max_tokens", 10**6),
    (["--optimizer.betas", "[0.8, 0.9]"], "optimizer.betas", (0.8, 0.9)),
    (["--data.source.files", "b.txt"], "data.source.files", ["b.txt"]),
    (["--data.source.files", "b c: d.txt"], "data.source.files", ["b c: d.txt"]),
    (["--data.source.files=[b.txt, 'c, d']"], "data.source.files", ["b.txt", "c, d"]),
    (["--data.source.files", "['010', '3']"], "data.source.files", ["010", "3"]),
    (["--model.n_kv_heads", "null"], "model.n_kv_heads", None),
    (["--model.qk_norm=true"], "model.qk_norm", True),
    (["--tokenizer.name", "010"], "tokenizer.name", "010"),
    (["--tokenizer.name", "true"], "tokenizer.name", "true"),
    (["--tokenizer.name", "null"], "tokenizer.name", "null"),
    (["--trainer.compile", "on"], "trainer.compile", "on"),
    (["--logging.sample_prompt", ""], "logging.sample_prompt", ""),
    (["--logging.sample_prompt="], "logging.sample_prompt", ""),
    (["--logging.sample_prompt", "-1"], "logging.sample_prompt", "-1"),
    (["--logging.sample_prompt", "- a"], "logging.sample_prompt", "- a"),
    (["--logging.sample_prompt=--a=b"], "logging.sample_prompt", "--a=b"),
    (
        ["--logging.sample_prompt", '[INST] "To be: or # not'],
        "logging.sample_prompt",
        '[INST] "To be: or # not',
    ),
    (
        ["--logging.sample_prompt", "a\n\u3000\u200d\U0001f600"],
        "logging.sample_prompt",
        "a\n\u3000\u200d\U0001f600",
    ),
    (["--data.validation={format: txt, files: b}"], "data.validation.files", ["b"]),
    (
        ["--data.validation.format", "hub", "--data.validation.dataset", "a/b"],
        "data.validation.dataset",
        "a/b",
    ),
    (["--data.source", "{format: hub, dataset: a, config: null}"], "data.source.config", None),
    (["--data.source", "{format: hub, dataset: a}"], "data.source.dataset", "a"),
    (["--data.source.filter.min_length", "3"], "data.source.filter.min_length", 3),
    (["--data.source.filter={max_documents: 1e3}"], "data.source.filter.max_documents", 1000),
    (
        ["--data.validation={format: csv, files: b, delimiter: ;, filter: {deduplicate: true}}"],
        "data.validation.filter.deduplicate",
        True,
    ),
    (
        [
            "--data.source={format: mixture, parts: [{weight: 2, source: {format: txt, files: [a,"
            " b]}}]}"
        ],
        "data.source.parts[0].source.files",
        ["a", "b"],
    ),
    (
        ["--data.source.format", "csv", "--data.source.delimiter", "\t"],
        "data.source.delimiter",
        "\t",
    ),
]


@pytest.mark.parametrize(("overrides", "key", "expected"), SET, ids=range(len(SET)))
def test_an_override_takes_the_place_of_the_file(
    write, overrides: list[str], key: str, expected: object
) -> None:
    loaded = load_config(write(BASE), overrides)
    assert value_of(loaded.config, key) == expected
    # One override lacks data.source.config, which then has its default, not the file's value.
    assert loaded.origins[key] == "command line"


def test_the_parts_of_a_mixture_are_set_as_a_whole(write) -> None:
    loaded = load_config(
        write(MIXTURE),
        [
            "--data.source.parts",
            "[{weight: 7, source: {format: txt, files: b, filter: {min_length: 9}}}]",
        ],
    )
    [part] = loaded.config.data.source.parts
    assert (part.weight, part.source.format, part.source.files, part.source.filter.min_length) == (
        7,
        "txt",
        ["b"],
        9,
    )
    assert loaded.config.data.source.when_one_ends == "go_on"
    origins = {
        name.removeprefix("data.source."): origin
        for name, origin in loaded.origins.items()
        if name.startswith("data.source.")
    }
    assert origins["when_one_ends"] == "c.yaml:13"
    assert {name for name, origin in origins.items() if origin == "command line"} == {
        "parts[0].weight",
        "parts[0].source.format",
        "parts[0].source.files",
        "parts[0].source.filter.min_length",
    }
    assert (
        origins["parts[0].source.unit"] == origins["parts[0].source.filter.max_tokens"] == "default"
    )
    assert not any("parts[1]" in name for name in origins), "nothing is left of the file's parts"


def test_an_override_of_null_in_the_file_opens_the_section(write) -> None:
    text = BASE.replace("data:\n", "data:\n  validation: null\n")
    loaded = load_config(
        write(text), ["--data.validation.format=txt", "--data.validation.files=v.txt"]
    )
    assert loaded.config.data.validation.files == ["v.txt"]
    assert loaded.origins["data.validation.files"] == "command line"


@pytest.mark.parametrize(("given", "expected"), [("null", None), ("Null", "Null"), ("x", "x")])
def test_null_is_none_for_text_that_may_be_null(write, given: str, expected: str | None) -> None:
    path = write(BASE.replace("txt", "hub", 1).replace("files: a.txt", "dataset: a"))
    assert load_config(path, ["--data.source.config", given]).config.data.source.config == expected
    assert load_config(path, ["--tokenizer.name", given]).config.tokenizer.name == given


def test_a_whole_section_by_override_leaves_nothing_of_the_files(write) -> None:
    loaded = load_config(
        write(BASE + "optimizer: {lr: 1e-2, eps: 1e-7}"), ["--optimizer", "{lr: 1e-4}"]
    )
    assert (loaded.config.optimizer.lr, loaded.config.optimizer.eps) == (1e-4, 1e-8)
    assert (loaded.origins["optimizer.lr"], loaded.origins["optimizer.eps"]) == (
        "command line",
        "default",
    )


WRONG_FLAGS = [
    (
        ["--optimizer.lr"],
        ["--optimizer.lr: no value, write --optimizer.lr VALUE (=VALUE where it begins with --)"],
    ),
    (
        ["--optimizer.lr", "--model.n_layers", "2"],
        ["--optimizer.lr: no value, write --optimizer.lr VALUE (=VALUE where it begins with --)"],
    ),
    (
        ["3", "--", "-x"],
        [f'"{word}": not a flag, write --section.key value' for word in ("3", "--", "-x")],
    ),
    (["--optimizer.lr", "1e-3", "1e-4"], ['"1e-4": not a flag, write --section.key value']),
    (["a\nb"], [r'"a\nb": not a flag, write --section.key value']),
    (
        ["--optimizer.lr=1", "--optimizer.lr", "1"],
        ["--optimizer.lr: given twice, got --optimizer.lr before, remove one of the two"],
    ),
    (
        ["--optimizer={lr: 1}", "--optimizer.lr=2"],
        ["--optimizer.lr: given twice, got --optimizer before, remove one of the two"],
    ),
    (
        ["--optimizer.lr=2", "--optimizer={}"],
        ["--optimizer: given twice, got --optimizer.lr before, remove one of the two"],
    ),
    (
        ["--foo.bar", "3"],
        [
            "--foo.bar: unknown key, got {bar: 3}, write model, tokenizer, data, optimizer,"
            " trainer, checkpoint, logging or finetune"
        ],
    ),
    (
        ["--optimiser.lr", "3"],
        ["--optimiser.lr: unknown key, got {lr: 3}, did you mean optimizer?"],
    ),
    (["--optimizer.lrr", "3"], ["--optimizer.lrr: unknown key, got 3, did you mean optimizer.lr?"]),
    (["--trainer.lr=3e-5"], ["--trainer.lr: unknown key, got 3.0e-5, did you mean optimizer.lr?"]),
    (["--lr", "3"], ["--lr: unknown flag, did you mean optimizer.lr?; see --help"]),
    (
        ["--verbose", "--optimizer.lr", "1e-3"],
        [
            "--verbose: unknown flag, write model, tokenizer, data, optimizer, trainer, checkpoint,"
            " logging or finetune; see --help"
        ],
    ),
    (["--optimizer.", "3"], ['--optimizer."": unknown key, got 3, write name, lr,']),
    (
        ["--optimizer.a\nb"],
        [
            r'--optimizer."a\nb": no value, write --optimizer."a\nb" VALUE (=VALUE where it begins'
            r" with --)"
        ],
    ),
    (
        ["--optimizer.lr.x", "3"],
        ["--optimizer.lr.x: optimizer.lr is not a section, got 0.001, write --optimizer.lr VALUE"],
    ),
    (
        ["--optimizer.betas", "[0.9"],
        [
            "--optimizer.betas: a list that is never closed, or a comma that is missing, got"
            ' "[0.9", write [a, b]'
        ],
    ),
    (
        ["--optimizer.betas", "[*a]"],
        ['--optimizer.betas: an alias (*), got "[*a]", write plain `key: value`'],
    ),
    (
        ["--data.source", "{format: txt, format: hub, files: a}"],
        ["--data.source: format: given twice, first on line 1, remove one of the two"],
    ),
    (
        ["--optimizer.lr", ""],
        ['--optimizer.lr: not a number, got "", write a number > 0 and <= 10'],
    ),
    (
        ["--model.n_layers", "-2"],
        ["--model.n_layers: too small, got -2, write a whole number >= 1 and <= 1024"],
    ),
    (
        ["--model.n_layers", "true"],
        ["--model.n_layers: not a whole number, got true, write a whole number >= 1 and <= 1024"],
    ),
    (
        ["--model.n_layers", "'2'"],
        [
            '--model.n_layers: not a whole number, got "2", write a whole number >= 1 and <= 1024'
            " without quotes"
        ],
    ),
    (
        ["--trainer.deterministic", "on"],
        ['--trainer.deterministic: not true or false, got "on", write true or false'],
    ),
    (
        ["--logging.sample_prompt", "a\udcff"],
        [
            r'--logging.sample_prompt: a character that text does not have, got "\U0000DCFF",'
            r" remove it"
        ],
    ),
    (
        ["--data.source.format", "jsonl", "--data.source.files", "[]"],
        ["--data.source.files: too few values, got [], write text or a list of text"],
    ),
    (
        ["--data.validation.format", "txt"],
        ["--data.validation.files: missing, write text or a list of text"],
    ),
    (
        ["--data.validation", "{format: txt}"],
        ["--data.validation.files: missing, write text or a list of text"],
    ),
    (
        ["--data.source.dataset", "a"],
        [
            '--data.source.dataset: unknown key, got "a", with format txt write format, files, unit'
            " or filter (dataset is for hub or chat)"
        ],
    ),
    (
        ["--data.source.filter.min_length", "x"],
        ['--data.source.filter.min_length: not a whole number, got "x", write a whole number >= 0'],
    ),
    (
        ["--data.source.filter.min_len", "3"],
        [
            "--data.source.filter.min_len: unknown key, got 3, did you mean"
            " data.source.filter.min_length?"
        ],
    ),
    (
        ["--data.filter.min_length", "3"],
        [
            "--data.filter.min_length: unknown key, got {min_length: 3}, did you mean"
            " data.source.filter?"
        ],
    ),
    (
        ["--data.source.parts", "[{weight: x, source: {format: txt, fils: c}}]"],
        [
            "--data.source.parts: unknown key, got [{weight: x, source: {format: txt, fils: c}}],"
            " with format txt write format,"
        ],
    ),
    (
        [
            "--data.source",
            "{format: mixture, parts: [{weight: x, source: {format: txt, fils: c}}]}",
        ],
        [
            (
                '--data.source.parts[0].weight: not a whole number, got "x", write a whole number'
                " >= 1 and <= 1000"
            ),
            "--data.source.parts[0].source.files: missing, write text or a list of text",
            (
                '--data.source.parts[0].source.fils: unknown key, got "c", did you mean'
                " data.source.parts[0].source.files?"
            ),
        ],
    ),
    (
        [
            "--data.source={format: mixture, parts: [{weight: 1, source: {format: hub, dataset: a,"
            " filter: {max_tokens: 3}, streaming: true}}]}"
        ],
        [
            "--data.source.parts[0].source: filter.max_tokens would need a streaming source as a"
            " whole; remove it, or write streaming: false"
        ],
    ),
    (
        ["--data.source={format: hub, dataset: a, filter: {max_tokens: 3}, streaming: true}"],
        [
            "--data.source: filter.max_tokens would need a streaming source as a whole; remove it,"
            " or write streaming: false"
        ],
    ),
    (
        ["--data.stride=3", "--data.rows=document"],
        [
            "--data.stride: stride is for rows: packed; with rows: document every row begins where"
            " a document does"
        ],
    ),
    (
        ["--data.stride", "300"],
        [
            "--data.stride: 300 is longer than a row, 256 tokens, so that text between rows would"
            " never be read; make it smaller"
        ],
    ),
]


@pytest.mark.parametrize(("overrides", "expected"), WRONG_FLAGS, ids=range(len(WRONG_FLAGS)))
def test_wrong_flags_are_one_line_each(write, overrides: list[str], expected: list[str]) -> None:
    lines = complaints(write(BASE + "optimizer: {lr: 1e-3}"), *overrides)
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(f"command line: {start}")
        assert line == f"command line: {start}" or start.endswith(",")


def test_a_list_item_of_the_file_is_not_set_silently(write) -> None:
    assert complaints(
        write(BASE + "optimizer: {betas: [0.1, 0.2]}"), "--optimizer.betas.0", "0.3"
    ) == [
        "command line: --optimizer.betas.0: optimizer.betas is not a section, got [0.1, 0.2], write"
        " --optimizer.betas VALUE"
    ]


def test_one_weight_of_the_file_is_not_set_silently(write) -> None:
    [line] = complaints(write(MIXTURE), "--data.source.parts.0.weight", "3")
    assert re.fullmatch(
        r"command line: --data\.source\.parts\.0\.weight: data\.source\.parts is not a section, got"
        r" \[\{weight: 3, .*\.\.\., "
        r"write --data\.source\.parts VALUE",
        line,
    )
    assert complaints(write(MIXTURE), "--data.source.parts[0].weight", "3") == [
        'command line: --data.source."parts[0]".weight: unknown key, got {weight: 3}, did you mean'
        " data.source.parts?"
    ]


def test_a_mistake_in_parts_from_the_command_line(write) -> None:
    assert complaints(write(MIXTURE), "--data.source.parts", "a.txt") == [
        'command line: --data.source.parts: not a list, got "a.txt", '
        "write a list of 1 to 100 sections with weight and source, each after `- `"
    ]
    parts = "[{weight: 1, source: {format: txt, files: a, filter: {min_length: few}}}, {weight: 1}]"
    assert complaints(write(MIXTURE), "--data.source.parts", parts) == [
        (
            "command line: --data.source.parts[0].source.filter.min_length: not a whole number, got"
            ' "few", write a whole number >= 0'
        ),
        (
            "command line: --data.source.parts[1].source: missing, write a section: its keys,"
            " indented, on the lines below"
        ),
    ]


def test_flags_are_judged_even_where_the_file_cannot_be_read_through(write) -> None:
    assert complaints(write("a: [1"), "stray") == [
        (
            'c.yaml:1: a list that is never closed, or a comma that is missing, got "a: [1", write'
            " [a, b]"
        ),
        'command line: "stray": not a flag, write --section.key value',
    ]


# ---------------------------------------------------------------- writing


def test_origins(write) -> None:
    loaded = load_config(write(BASE), ["--optimizer.lr", "3e-5"])
    assert loaded.origins["trainer.max_steps"] == "c.yaml:6"
    assert loaded.origins["data.source.files"] == "c.yaml:4"
    assert loaded.origins["optimizer.lr"] == "command line"
    assert (
        loaded.origins["model.n_layers"]
        == loaded.origins["data.source.unit"]
        == loaded.origins["data.validation"]
        == "default"
    )
    assert "data.source" not in loaded.origins


def test_origins_inside_a_mixture(write) -> None:
    origins = {
        name.removeprefix("data.source."): origin
        for name, origin in load_config(write(MIXTURE)).origins.items()
        if "source" in name
    }
    assert {name: origin for name, origin in origins.items() if origin != "default"} == {
        "format": "c.yaml:3",
        "parts[0].weight": "c.yaml:5",
        **dict.fromkeys(
            [f"parts[0].source.{name}" for name in ("format", "files", "delimiter")], "c.yaml:6"
        ),
        "parts[1].weight": "c.yaml:7",
        "parts[1].source.format": "c.yaml:9",
        "parts[1].source.dataset": "c.yaml:10",
        "parts[1].source.filter.min_length": "c.yaml:12",
        "when_one_ends": "c.yaml:13",
    }
    assert (
        origins["parts[0].source.filter.min_length"]
        == origins["parts[1].source.text_key"]
        == "default"
    )


def test_a_mixture_is_written_as_people_write_it(write) -> None:
    loaded = load_config(write(MIXTURE))
    lines = [
        line.partition("  #")[0].rstrip()
        for line in describe(loaded.config, loaded.origins).splitlines()
    ]
    first = lines.index("  source:")
    assert lines[first : first + 9] == [
        "  source:",
        "    format: mixture",
        "    parts:",
        "      - weight: 3",
        "        source:",
        "          format: csv",
        "          files: [a.csv]",
        "          text_key: text",
        '          delimiter: "\\t"',
    ]
    assert lines[first + 9 : first + 11] == ["          filter:", "            max_documents: null"]
    assert lines.count("      - weight: 1") == 1


@pytest.mark.parametrize("text", [BASE, BOTH, MIXTURE])
def test_what_is_written_loads_again_as_the_same(write, text: str) -> None:
    loaded = load_config(write(text), ["--trainer.max_steps=200", "--optimizer.eps=1e-12"])
    for written in (to_yaml(loaded.config), describe(loaded.config, loaded.origins)):
        again = load_config(write(written))
        assert again.config == loaded.config
        assert all(origin.startswith("c.yaml:") for origin in again.origins.values())
        # readers of YAML 1.1 too
        assert Config.model_validate(yaml.safe_load(written)) == loaded.config


def test_describe_names_each_origin_in_line(write) -> None:
    loaded = load_config(write(BASE), ["--optimizer.lr", "3e-5"])
    lines = describe(loaded.config, loaded.origins).splitlines()
    by_key = {line.split(":")[0].strip(): line for line in lines}
    assert re.fullmatch(r"  max_steps: 1000 +# c\.yaml:6", by_key["max_steps"])
    assert re.fullmatch(r"  lr: 3\.0e-5 +# command line", by_key["lr"])
    assert re.fullmatch(r"  n_layers: 4 +# default", by_key["n_layers"])
    assert by_key["model"] == "model:"
    assert len({line.index("  # ") for line in lines if "  # " in line}) <= 2
    assert all(not line.endswith(" ") for line in lines)


UNPRINTABLE = "".join(
    chr(code)
    for code in [
        *range(9),
        11,
        12,
        *range(14, 32),
        *range(127, 133),
        *range(134, 160),
        0xFFFE,
        0xFFFF,
    ]
)
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters=UNPRINTABLE))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXTS.filter(lambda text: text != "<<"), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
@example("on")
@example("3e-5")
@example("1:30")
@example("\x85\u2028\ufeff\U000e0001")
@example(["a, b", "]", "# x", "- a", ""])
def test_flow_is_read_back_by_both_yamls(value: Any) -> None:
    text = f"a: {flow(value)}"
    assert "\n" not in text and "\r" not in text
    document = read_text(text)
    assert (document.problems, document.value) == ([], {"a": value})
    assert yaml.safe_load(text) == {"a": value}


def test_help_tells_every_key_within_120_columns() -> None:
    text = help_text()
    assert max(map(len, text.splitlines())) <= 120
    listed = re.findall(r"^  --(\S+) ", text, re.MULTILINE)
    elsewhere = ("data.validation.", "data.source.parts[]")  # the same keys as of data.source
    assert listed == [key.name for key in keys.leaves() if not key.name.startswith(elsewhere)]
    assert {"data.source.parts", "data.source.filter.min_length", "data.validation"} < {*listed}
    headings = re.findall(r"^(?:(\w+): |  --(\w+)\.)", text, re.MULTILINE)
    section = ""
    for heading, flag in headings:
        section = heading or section
        assert flag in ("", section)
    assert all(key.default in text for key in keys.leaves())
    unwrapped = " ".join(text.split())
    assert "The highest learning rate. [a number > 0 and <= 10; default 0.001]" in unwrapped
    assert "[auto, on or off; default auto]" in unwrapped
    assert "[null, or the same keys as data.source, but no mixture; default null]" in unwrapped
    assert (
        "[a list of 1 to 100 sections with weight and source, each after `- `; required; only"
        " mixture]" in unwrapped
    )
    for name in keys.keys()[""].children:
        assert f"\n{name}: " in text


def test_the_table_of_keys_is_the_schema() -> None:
    """A slow, obvious walk over the pydantic models finds the same keys and defaults."""

    def models_in(annotation: Any) -> list[Any]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [model for argument in typing.get_args(annotation) for model in models_in(argument)]

    def walk(model: Any, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, info in model.model_fields.items():
            inner, several = models_in(info.annotation), typing.get_origin(info.annotation) is list
            if not inner or several or type(None) in typing.get_args(info.annotation):
                found[prefix + name] = info.default
            for section in inner:
                found |= walk(section, f"{prefix}{name}{'[]' * several}.")
        return found

    expected = walk(Config, "")
    assert {key.name for key in keys.leaves()} == set(expected)
    for key in keys.leaves():
        if key.default != "required":
            default = expected[key.name]
            assert plain(key.default) == default or yaml.safe_load(key.default) == (
                list(default) if isinstance(default, tuple) else default
            )
        assert key.description, key.name


# ---------------------------------------------------------------- generated files and shipped files


def test_generated_files_are_fresh() -> None:
    for path, text in config_docs.generated().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is stale: run python -m tools.config_docs"
        )


def test_check_names_what_is_stale_and_writing_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(config_docs, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()

    def exit_code(*arguments: str) -> object:
        monkeypatch.setattr(sys, "argv", ["config_docs", *arguments])
        with pytest.raises(SystemExit) as caught:
            config_docs.main()
        return caught.value.code

    assert exit_code("--check") == 1
    assert not list((tmp_path / "docs").iterdir())
    assert exit_code() == 0
    assert exit_code("--check") == 0
    (tmp_path / "docs" / "CONFIG_REFERENCE.md").write_text("old")
    capsys.readouterr()
    assert exit_code("--check") == 1
    assert (
        capsys.readouterr().out
        == "docs/CONFIG_REFERENCE.md: stale, run python -m tools.config_docs\n"
    )
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == [
        "CONFIG_REFERENCE.md",
        "config.schema.json",
    ]


def test_the_reference_shows_true_examples(write) -> None:
    text = config_docs.reference()
    assert (
        load_config(write(text.split("```yaml\n")[1].split("```")[0])).config.trainer.max_steps
        == 500
    )
    for line in re.findall(r"^(?:config\.yaml:\d+|command line): (.*)$", text, re.MULTILINE):
        said = complaints(
            write(BASE + "  lr: 3e-5\noptimizer: {lr: fast}"), "--trainer.max_steps", "-3"
        )
        assert any(line.removeprefix("--") in complaint for complaint in said), line
    rows = re.findall(r"^\| `(\S+)` \| ([^|]+) \|", text, re.MULTILINE)
    assert len({*rows}) == len(rows)
    # the same keys as of data.source
    elsewhere = ("data.validation.", "data.source.parts[].source.")
    shown = [
        key for name, key in keys.keys().items() if "." in name and not name.startswith(elsewhere)
    ]
    assert [name for name, _ in rows] == [key.name.partition(".")[2] for key in shown]
    kinds = dict(rows)
    assert kinds["source"] == kinds["source.filter"] == "a section"
    assert (
        kinds["source.parts"]
        == "a list of 1 to 100 sections with weight and source, each after `- `"
    )
    assert kinds["source.parts[].source"] == "a section with the keys of `source`, but no mixture"
    assert kinds["validation"] == "a section with the keys of `source`, but no mixture, or null"
    assert "Which documents are dropped. The log counts them. (every format but mixture) |" in text


def editor(text: str) -> list[str]:
    """Return the errors that an editor with the generated JSON Schema marks."""
    schema = json.loads((ROOT / "docs/config.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    document = read_text(text)
    assert not document.problems
    return [
        error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document.value)
    ]


def test_the_json_schema_accepts_what_the_reader_accepts(write) -> None:
    written = [to_yaml(load_config(write(text)).config) for text in (BASE, BOTH, MIXTURE)]
    for text in (BASE, BOTH, MIXTURE, *written, *(BASE + text for text, _, _ in READ)):
        assert editor(text) == []


def test_the_json_schema_refuses_what_the_reader_refuses() -> None:
    for text, expected in REFUSED:
        # A JSON Schema cannot express checks across keys, infinities (not in JSON), and whole
        # numbers for text.
        if (
            "is not divisible" not in expected
            and ".inf" not in text
            and ".nan" not in text
            and "9" * 80 not in text
        ):
            assert editor(BASE + text), text
    files = [
        (f"data:\n  {data}\ntrainer: {{max_steps: 1000}}", expected) for data, expected in SOURCES
    ]
    files += [(MIXTURE.replace(old, new), expected[0]) for old, new, expected in PARTS]
    for text, expected in files:
        across_keys = ", got " not in expected and ": missing" not in expected
        assert across_keys or editor(text), text


def test_the_json_schema_explains_every_key() -> None:
    schema = json.loads((ROOT / "docs/config.schema.json").read_text(encoding="utf-8"))
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "prefixItems" not in json.dumps(schema)
    for node in (schema, *schema["$defs"].values()):
        assert node["additionalProperties"] is False
        assert all(child.get("description") for child in node["properties"].values())


SHIPPED = [*sorted(ROOT.glob("*.yaml")), *sorted(ROOT.glob("configs/*.yaml"))]


def check_shipped(path: Path) -> Loaded:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named, f"{path.name}: the first line names no schema: {first}"
    assert (path.parent / named[1]).resolve() == ROOT / "docs/config.schema.json"
    assert editor(path.read_text(encoding="utf-8")) == []
    return load_config(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_yaml_loads_and_names_its_schema(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fine-tuning configuration names a checkpoint that another run makes first.
    monkeypatch.setattr(
        "lm.checkpoints.base.filled",
        lambda config: config.model_dump() | {"model": ModelConfig(vocab_size=260).model_dump()},
    )
    loaded = check_shipped(path)
    assert load_config(path).config == loaded.config
    assert read_file(path).value


def test_the_check_of_shipped_files_can_fail(tmp_path: Path) -> None:
    good = tmp_path / "c.yaml"
    schema = os.path.relpath(ROOT / "docs/config.schema.json", tmp_path.resolve())
    good.write_text(f"# yaml-language-server: $schema={schema}\n{BASE}")
    check_shipped(good)
    for first in ("", "# yaml-language-server: $schema=docs/config.schema.json\n"):
        good.write_text(first + BASE)
        with pytest.raises(AssertionError):
            check_shipped(good)


# ---------------------------------------------------------------- the project


@pytest.mark.usefixtures("starts_processes")
def test_a_configuration_is_answered_without_anything_heavy(write) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from lm.commands import load_config
from lm.config import keys
from lm.config import describe
from lm.system import errors
loaded = load_config({str(Path(write(BASE)).resolve())!r})
describe.describe(loaded.config, loaded.origins), keys.help_text()
try:
    load_config("nothing.yaml")
except errors.ConfigError:
    pass
heavy = {{"torch", "numpy", "lightning", "transformers", "datasets", "matplotlib"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.usefixtures("starts_processes")
def test_a_mistake_leaves_with_exit_code_2_and_no_traceback(write) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from lm.commands import load_config
from lm.system import errors
errors.run(lambda: load_config("c.yaml", sys.argv[1:]))
"""
    write(BASE + "  sed: 1\n")
    done = subprocess.run(
        [sys.executable, "-c", program, "--optimizer.lr", b"\xff"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "c.yaml:7: trainer.sed: unknown key, got 1, did you mean trainer.seed?",
        (
            r'command line: --optimizer.lr: a character that text does not have, got "\U0000DCFF",'
            r" remove it"
        ),
    ]


def test_no_key_without_a_reader() -> None:
    """Some code reads an attribute of each key's name.

    Of the schema's own code, only properties count.
    """
    treats_all_alike = {
        ROOT / "lm/config/reader.py",
        ROOT / "lm/config/keys.py",
        ROOT / "lm/config/scalars.py",
        ROOT / "lm/config/yaml_reader.py",
        ROOT / "tools/config_docs.py",
    }
    files = {
        *ROOT.glob("*.py"),
        *ROOT.glob("lm/**/*.py"),
        *ROOT.glob("tools/**/*.py"),
    } - treats_all_alike
    read: set[str] = set()
    for file in files:
        scopes: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
        if file.is_relative_to(ROOT / "lm/config/schema"):
            functions = [node for node in ast.walk(scopes[0]) if isinstance(node, ast.FunctionDef)]
            scopes = [
                node
                for node in functions
                if any(
                    isinstance(by, ast.Name) and by.id == "property" for by in node.decorator_list
                )
            ]
        for node in (node for scope in scopes for node in ast.walk(scope)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    unread = sorted(key.name for key in keys.leaves() if key.short not in read)
    assert not unread, f"nothing reads {', '.join(unread)}"


# ---------------------------------------------------------------- anything at all

NASTY = [
    "", "null", "true", "no", "-5", "0", "1e400", "3e-5", ".nan", "010", "1:30", "fast", "''", '"',
    "[", "]", "[1, 2]", "{a: 1}", "{", "&a 1", "*a", "!!python/name:os.system x", "!x", "|", ">",
    "%", "@", "`", "? a", "- a", ": ", "# c", "\t", "\0", "\ufeff", "\u2028", "é", "\x85",
    "<<: {a: 1}", "---", "...", "%YAML 9.9", "%TAG ! x", '"\\ud800"', '"\\UFFFFFFFF"', '"\\x"',
    "9" * 5000, "a" * 200, "[" * 50, "txt", "hub",
]  # fmt: skip
PLACE = st.integers(0, 10_000)
MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), PLACE, st.sampled_from(NASTY) | st.text(max_size=8)),
        st.tuples(st.just("value"), PLACE, st.sampled_from(NASTY)),
        st.tuples(
            st.just("key"), PLACE, st.sampled_from([*NASTY, "lr", "seed", "files", "n_layer"])
        ),
        st.tuples(st.just("cut"), PLACE, st.integers(1, 30)),
        st.tuples(st.just("drop"), PLACE, st.none()),
        st.tuples(st.just("double"), PLACE, st.none()),
        st.tuples(st.just("indent"), PLACE, st.sampled_from([" ", "  ", "    ", "\t"])),
    ),
    max_size=3,
)
FLAGS = st.lists(
    st.sampled_from([f"--{key.name}" for key in keys.keys().values()])
    | st.sampled_from([*NASTY, "--a\n", "--model.\x85"])
    | st.builds(
        "--{}={}".format,
        st.sampled_from([*keys.keys(), "a.b", "model.", ".model", "..", "data.txt.x", "a\n.b"]),
        st.sampled_from(NASTY),
    ),
    max_size=4,
)
JARGON = re.compile(
    r"Input should|Value error|Field required|pydantic|Extra inputs|block"
    r" mapping|<stream|dict_type|Traceback"
)


def mutated(text: str, mutations: list[tuple[str, int, Any]]) -> str:
    for kind, place, what in mutations:
        lines = text.split("\n")
        at, row = place % (len(text) + 1), place % len(lines)
        if kind == "insert":
            text = text[:at] + what + text[at:]
            continue
        if kind == "cut":
            text = text[:at] + text[at + what :]
            continue
        head, _, tail = lines[row].partition(":")
        changed = {
            "value": [f"{head}: {what}"],
            "key": [f"{head[: len(head) - len(head.lstrip())]}{what}:{tail}"],
            "drop": [],
        }
        lines[row : row + 1] = changed.get(
            kind, [lines[row]] * 2 if kind == "double" else [f"{what}{lines[row]}"]
        )
        text = "\n".join(lines)
    return text


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutations") / "m.yaml"


@settings(max_examples=300, deadline=None)
@given(given=st.sampled_from([BOTH, MIXTURE]), long=st.booleans(), mutations=MUTATIONS, flags=FLAGS)
def test_anything_is_a_configuration_or_a_list_of_complaints(
    one_file: Path, given: str, long: bool, mutations: list[Any], flags: list[str]
) -> None:
    if long:
        one_file.write_text(given)
        given = to_yaml(load_config(one_file).config)
    text = mutated(given, mutations)
    one_file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        loaded = load_config(one_file, flags)
    except ConfigError as error:
        for line in str(error).split("\n"):
            assert re.fullmatch(rf"({re.escape(str(one_file))}:\d+|command line): \S.*", line), line
            assert line.isprintable() and not JARGON.search(line), line
    except CheckpointError as error:  # a base that does not exist
        assert "no such checkpoint" in str(error)
    else:
        one_file.write_text(describe(loaded.config, loaded.origins))
        assert load_config(one_file).config == loaded.config
