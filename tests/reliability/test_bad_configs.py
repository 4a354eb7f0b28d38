"""Commands refuse malformed configurations and argument lines: one clear line each, exit code 2,
nothing written.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm.commands import load_config
from lm.config.keys import leaves
from lm.system.errors import CheckpointError, ConfigError
from tests.reliability.answers import Answer, answer, picture
from tests.support.faults import ROOT, not_root

BASE = """\
data:
  source:
    format: txt
    files: a.txt
trainer:
  max_steps: 200
checkpoint:
  directory: run
"""
# A line on stderr begins with a place in the file, a flag, or the file as a whole.
PLACE = r"(c\.yaml:\d+: |command line: |c\.yaml: )\S.*"
MIB = 2**20


def bomb(levels: int = 12) -> str:
    return "a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, levels)
    )


# ---------------------------------------------------------------- files: their content, and the
# text that the message must hold

FILES: dict[str, tuple[str | bytes, str]] = {
    "nothing": (b"", "c.yaml:1: empty"),
    "blanks": (" \n\n  \n", "c.yaml:1: empty"),
    "comments": ("# data:\n# trainer:\n", "c.yaml:1: empty"),
    "null": ("null\n", "c.yaml:1: empty"),
    "a word": ("train\n", "c.yaml:1: not a mapping"),
    "a number": ("42\n", "c.yaml:1: not a mapping"),
    "NaN": (".nan\n", "c.yaml:1: not a mapping"),
    "a list": ("- data\n- trainer\n", "c.yaml:1: not a mapping"),
    "a list of mappings": ("- data: 1\n- trainer: 2\n", "c.yaml:1: not a mapping"),
    "text in quotes": ('"data: trainer:"\n', "c.yaml:1: not a mapping"),
    "JSON that is cut": ('{"data": {"source": {"format": "txt", ', "c.yaml:1: "),
    "TOML": ("[data]\nformat = 'txt'\n", "c.yaml:2: "),
    "INI": ("[data]\nformat=txt\n", "c.yaml:2: "),
    "XML": ("<config><data/></config>\n", "c.yaml:1: not a mapping"),
    "Python": ("import os\nos.system('touch EXECUTED')\n", "c.yaml:1: not a mapping"),
    "HTML of a login page": (
        "<!DOCTYPE html>\n<html><head><title>Log in: here</title></head></html>\n",
        "c.yaml:",
    ),
    "a merge conflict": (
        BASE + "<<<<<<< HEAD\n  seed: 1\n=======\n  seed: 2\n>>>>>>> other\n",
        "c.yaml:",
    ),
    "a pickle": (
        b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00cposix\nsystem\n.",
        "c.yaml:1: not UTF-8",
    ),
    "gzip": (
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03+I-.\x01\x00\x0c~\x7f\xd8",
        "c.yaml:1: not UTF-8",
    ),
    "a zip": (
        b"PK\x03\x04\x14\x00\x00\x00\x08\x00",
        "c.yaml:1: a character that text does not have",
    ),
    "an ELF program": (
        b"\x7fELF\x02\x01\x01\x00" + bytes(64),
        "c.yaml:1: a character that text does not have",
    ),
    "all bytes": (bytes(range(256)) * 4, "c.yaml:"),
    "zeros": (bytes(4096), "c.yaml:1: a character that text does not have"),
    "Latin-1": (
        "# größer\n".encode("latin-1") + BASE.encode(),
        "c.yaml:1: not UTF-8, got the byte 0xf6",
    ),
    "UTF-16 with a mark": (BASE.encode("utf-16"), "c.yaml:1: not UTF-8"),
    "UTF-16 without a mark": (
        BASE.encode("utf-16-le"),
        "c.yaml:1: a character that text does not have",
    ),
    "UTF-32": (BASE.encode("utf-32"), "c.yaml:1: not UTF-8"),
    "a byte order mark": (
        b"\xef\xbb\xbf" + BASE.encode(),
        "c.yaml:1: begins with a byte order mark",
    ),
    "a mark in the middle": (
        BASE.encode() + b"\xef\xbb\xbflogging: {}\n",
        'c.yaml:9: "\\U0000FEFFlogging": unknown key',
    ),
    "overlong UTF-8": (BASE.encode() + b"a: \xc0\xaf\n", "c.yaml:9: not UTF-8"),
    "half a pair in UTF-8": (BASE.encode() + b"a: \xed\xa0\x80\n", "c.yaml:9: not UTF-8"),
    "a character that is cut": (BASE.encode() + b"a: \xe2\x82", "c.yaml:9: not UTF-8"),
    "NUL in a key": (BASE + "a\0b: 1\n", "c.yaml:9: a character that text does not have"),
    "an escape sequence": (BASE + "\x1b[2J: 1\n", "c.yaml:9: a character that text does not have"),
    "a bell": (BASE + "a: \a\n", "c.yaml:9: a character that text does not have"),
    "a C1 control": (BASE + "a: \x9b31m\n", "c.yaml:9: a character that text does not have"),
    "delete": (BASE + "a: \x7f\n", "c.yaml:9: a character that text does not have"),
    "text from right to left": (
        BASE + "tr\u202eainer: 1\n",
        'c.yaml:9: "tr\\U0000202Eainer": unknown key',
    ),
    "a tab for indentation": ("data:\n\tsource: a\n", "c.yaml:2: a tab"),
    "a tab under a section": (BASE.replace("  max_steps", "\tmax_steps"), "c.yaml:6: a tab"),
    "tabs and blanks": (BASE + "logging:\n  \tevery: 3\n", "c.yaml:10: a tab"),
    "1 MiB and a byte": ("#" * MIB + "\n", "c.yaml:1: larger than 1 MiB"),
    "10 MB of a comment": ("# " + "x" * 10**7, "c.yaml:1: larger than 1 MiB"),
    "10 MB of keys": (
        "".join(f"k{i}: {i}\n" for i in range(800_000)),
        "c.yaml:1: larger than 1 MiB",
    ),
    "10 MB of one list": ("a: [" + "1, " * 3_400_000 + "1]\n", "c.yaml:1: larger than 1 MiB"),
    "50 MB of blanks": (" " * 50_000_000, "c.yaml:1: larger than 1 MiB"),
    "a value of a megabyte": (
        BASE + "xyz: " + "y" * 1_000_000 + "\n",
        "c.yaml:9: xyz: unknown key",
    ),
    "a key of 100,000 letters": (BASE + "x" * 100_000 + ": 1\n", "c.yaml:9: "),
    "100,000 open lists": (BASE + "a: " + "[" * 100_000, "c.yaml:9: nested deeper than 32"),
    "100,000 open mappings": (BASE + "a: " + "{a: " * 100_000, "c.yaml:9: "),
    "33 levels": (
        BASE + "\n".join(" " * depth + "a:" for depth in range(40)),
        "nested deeper than 32",
    ),
    "lists in lists by dashes": (BASE + "a: \n" + "- " * 5000 + "x\n", "c.yaml:10: "),
    "an alias bomb": (bomb(), "c.yaml:1: an anchor (&)"),
    "a cycle": ("a: &a\n  b: *a\n", "c.yaml:1: an anchor (&)"),
    "a cycle of lists": ("a: &a [*a]\n", "c.yaml:1: an anchor (&)"),
    "an alias to nothing": (BASE + "logging: *nothing\n", "c.yaml:9: an alias (*)"),
    "an anchor never used": (BASE + "logging: &x {every: 3}\n", "c.yaml:9: an anchor (&)"),
    "an anchor at the top": ("&top\n" + BASE, "c.yaml:1: an anchor (&)"),
    "a merge key": (BASE + "logging:\n  <<: {every: 3}\n", "c.yaml:10: a merge key"),
    "a merge of an alias": (
        "x: &x {every: 3}\n" + BASE + "logging:\n  <<: *x\n",
        "c.yaml:1: an anchor (&)",
    ),
    "a tag that runs code": (
        BASE + "logging: !!python/object/apply:os.system ['touch EXECUTED']\n",
        "c.yaml:9: a tag (!)",
    ),
    "a tag that builds": (
        BASE + "logging: !!python/object/new:os.mkdir [EXECUTED]\n",
        "c.yaml:9: a tag (!)",
    ),
    "a tag that names a module": (
        BASE + "logging: !!python/module:antigravity\n",
        "c.yaml:9: a tag (!)",
    ),
    "a tag for a type": (BASE + "  seed: !!int '3'\n", "c.yaml:9: a tag (!)"),
    "a tag for binary": (BASE + "  x: !!binary aGVsbG8=\n", "c.yaml:9: a tag (!)"),
    "a tag for a set": (BASE + "logging: !!set {every}\n", "c.yaml:9: a tag (!)"),
    "a tag of its own": ("%TAG ! tag:example.org,2000:\n---\n" + BASE + "x: !y 1\n", "c.yaml:"),
    "a YAML version of the future": ("%YAML 9.9\n---\n" + BASE, "c.yaml:1: "),
    "two documents": (BASE + "---\n" + BASE, "c.yaml:9: a second document"),
    "a section twice": (
        BASE + "trainer:\n  max_steps: 5\n",
        "c.yaml:9: trainer: given twice, first on line 5",
    ),
    "a key twice": (
        BASE + "  keep: 3\n  keep: 3\n",
        "c.yaml:10: checkpoint.keep: given twice, first on line 9",
    ),
    "a key twice in a flow": (
        BASE + "logging: {every: 1, every: 2}\n",
        "c.yaml:9: logging.every: given twice",
    ),
    "a key twice, once in quotes": (
        BASE + 'logging: {every: 1, "every": 2}\n',
        "c.yaml:9: logging.every: given twice",
    ),
    "a key that is a list": (BASE + "? [a]\n: 1\n", "c.yaml:9: a key that is not plain text"),
    "a key that is a mapping": (BASE + "{a: 1}: 1\n", "c.yaml:9: a key that is not plain text"),
    "an empty key": (BASE + '"": 1\n', 'c.yaml:9: "": unknown key'),
    "a key of dots": (BASE + "...: 1\n", "c.yaml:"),
    "a key with dots": (BASE + "trainer.seed: 1\n", 'c.yaml:9: "trainer.seed": unknown key'),
    "a quote that stays open": (BASE + "  x: 'a\n", "c.yaml:9: a quote that is never closed"),
    "a list that stays open": (BASE + "  x: [a\n", "c.yaml:9: a list that is never closed"),
    "a mapping that stays open": (
        BASE + "  x: {a: 1\n",
        "c.yaml:9: a mapping that is never closed",
    ),
    "a block that is none": (BASE + "  x: |x\n    a\n", "c.yaml:9: "),
    "an indentation that fits nothing": (BASE + " keep: 3\n", "c.yaml:9: a line that fits neither"),
    "no space behind the colon": ("data:\n  source:txt\ntrainer:{}\n", "c.yaml:"),
    "an equals sign": (BASE + "keep = 3\n", "c.yaml:9: a line that is not `key: value`"),
    "an @": (BASE + "  x: @home\n", "c.yaml:9: a character that cannot open a value"),
    "a backquote": (BASE + "  x: `id`\n", "c.yaml:9: a character that cannot open a value"),
    "a percent sign": (BASE + "  x: %x\n", "c.yaml:9: a character that cannot open a value"),
    "an unknown escape": (BASE + '  x: "\\q"\n', "c.yaml:9: an unknown escape"),
    "an escape of half a pair": (BASE + '  x: "\\ud800"\n', "c.yaml:9: the character"),
    "an escape of no character": (BASE + '  x: "\\UFFFFFFFF"\n', "c.yaml:9: an escape"),
    "Jinja": (BASE + "  directory: {{ run }}\n", "c.yaml:9: "),
    "a variable of the shell": (
        BASE + "  keep: ${KEEP}\n",
        "c.yaml:9: checkpoint.keep: not a whole number",
    ),
    "an include": (BASE + "include: other.yaml\n", "c.yaml:9: include: unknown key"),
    "Windows line ends and a mistake": (
        BASE.replace("\n", "\r\n") + "  keep: x\r\n",
        "c.yaml:9: checkpoint.keep: not a whole number",
    ),
    "old Mac line ends and a mistake": (
        BASE.replace("\n", "\r") + "  keep: x\r",
        "c.yaml:9: checkpoint.keep: not a whole number",
    ),
}

# ---------------------------------------------------------------- values: a wrong one for every key
# of the schema

WRONG_FOR = {
    "a whole number": ["x", "1.5", ".nan", ".inf", "-3", "1e30", "9" * 30, "true", "null", "'3'",
    "[3]", "{a: 3}",
                       "2026-11-21", "0x10", "010", "1_000"],
    "a number": ["x", ".nan", "-.inf", "-1e9", "1e300", "false", "'0.1'", "[0.1]", "{}"],
    "true or false": ["yes", "on", "1", "0", "'true'", "null", "[true]"],
    "text": ["3", "true", "[a]", "{a: b}", "''"],
    "a list": ["x", "3", "[]", "[[1]]", "{a: 1}", "null", "[1, 2, 3]", "[x, y]"],
}  # fmt: skip


def wrong_values() -> Iterator[tuple[str, str]]:
    """Yield pairs of (dotted key, YAML text) that the schema refuses, for each of its keys."""
    for key in leaves():
        if key.name.startswith("data.source.") or key.name.startswith("data.validation"):
            continue
        kind = next(
            (
                kind
                for kind in ("a whole number", "a number", "true or false", "a list", "text")
                if key.type.startswith(kind)
            ),
            None,
        )
        for value in (
            WRONG_FOR[kind] if kind else ["x", "1", "true", "null", "[auto]", "{}", "AUTO"]
        ):
            nothing = value == "null" and "null" in key.type
            texts = (
                value in ("[]", "[x, y]")
                and key.type == "a list of text"
                and (value != "[]" or key.default == "[]")
            )
            empty = value == "''" and key.name == "logging.sample_prompt"
            small = value == "1e300" and "<" not in key.type  # a number without an upper limit
            if not (nothing or empty or small or texts):
                yield key.name, value


VALUES = list(wrong_values())

SOURCES = {
    "no source": ("data: {}", "data.source: missing"),
    "data that is null": ("data:", "data: not a section"),
    "data that is a list": ("data: [a.txt]", "data: not a section"),
    "a source in words": ("data: {source: a.txt}", "data.source: not a section"),
    "a source that is a list": (
        "data: {source: [{format: txt, files: a}]}",
        "data.source: not a section",
    ),
    "no format": ("data: {source: {files: a.txt}}", "data.source.format: missing"),
    "an unknown format": (
        "data: {source: {format: xlsx, files: a.xlsx}}",
        "data.source.format: not one of the choices",
    ),
    "a format in capitals": (
        "data: {source: {format: TXT, files: a.txt}}",
        "data.source.format: not one of the choices",
    ),
    "a format that is NaN": (
        "data: {source: {format: .nan, files: a.txt}}",
        "data.source.format: not one of the choices",
    ),
    "no files": ("data: {source: {format: txt}}", "data.source.files: missing"),
    "an empty list of files": (
        "data: {source: {format: txt, files: []}}",
        "data.source.files: too few values",
    ),
    "a file without a name": (
        "data: {source: {format: txt, files: ['']}}",
        "data.source.files[0]: empty",
    ),
    "a file that is null": (
        "data: {source: {format: txt, files: [null]}}",
        "data.source.files[0]: not text",
    ),
    "files that are a mapping": (
        "data: {source: {format: txt, files: {a: b}}}",
        "data.source.files: not text",
    ),
    "a key of another format": (
        "data: {source: {format: txt, files: a, text_key: b}}",
        "data.source.text_key: unknown key",
    ),
    "a dataset without a name": (
        "data: {source: {format: hub, dataset: ''}}",
        "data.source.dataset: empty",
    ),
    "a dataset for files": (
        "data: {source: {format: jsonl, files: a, dataset: b}}",
        "data.source.dataset: unknown key",
    ),
    "a filter in words": (
        "data: {source: {format: txt, files: a, filter: ascii}}",
        "data.source.filter: not a section",
    ),
    "a filter that filters nothing known": (
        "data: {source: {format: txt, files: a, filter: {profanity: true}}}",
        "data.source.filter.profanity: unknown key",
    ),
    "a mixture of nothing": (
        "data: {source: {format: mixture, parts: []}}",
        "data.source.parts: too few values",
    ),
    "a mixture of files": (
        "data: {source: {format: mixture, files: [a, b]}}",
        "data.source.files: unknown key",
    ),
    "a mixture of words": (
        "data: {source: {format: mixture, parts: [a]}}",
        "data.source.parts[0]: not a section",
    ),
    "a mixture of mixtures": (
        (
            "data: {source: {format: mixture, parts: [{weight: 1, source: {format: mixture, parts:"
            " []}}]}}"
        ),
        "data.source.parts[0].source.format: not one of the choices",
    ),
    "a weight of nothing": (
        "data: {source: {format: mixture, parts: [{weight: 0, source: {format: txt, files: a}}]}}",
        "data.source.parts[0].weight: too small",
    ),
    "a share for a weight": (
        (
            "data: {source: {format: mixture, parts: [{weight: 0.5, source: {format: txt, files:"
            " a}}]}}"
        ),
        "data.source.parts[0].weight: not a whole number",
    ),
    "validation in words": (
        "data: {source: {format: txt, files: a}, validation: b.txt}",
        "data.validation: not a section",
    ),
    "two ways to validate": (
        (
            "data: {source: {format: txt, files: a}, validation: {format: txt, files: b},"
            " val_fraction: 0.2}"
        ),
        "data: val_fraction would hold out",
    ),
}

# ---------------------------------------------------------------- argument lines

LINES: dict[str, tuple[list[str], str]] = {
    "a word": (["fast"], 'command line: "fast": not a flag'),
    "an empty word": ([""], 'command line: "": not a flag'),
    "two dashes": (["--"], 'command line: "--": not a flag'),
    "one dash": (["-"], 'command line: "-": not a flag'),
    "a short flag": (["-x", "3"], 'command line: "-x": not a flag'),
    "a number": (["--trainer.seed", "3", "4"], 'command line: "4": not a flag'),
    "an unknown flag": (["--fast"], "command line: --fast: unknown flag"),
    "an unknown section": (
        ["--modle.n_layers", "3"],
        "command line: --modle.n_layers: unknown key",
    ),
    "an unknown key": (["--model.layers", "3"], "command line: --model.layers: unknown key"),
    "a key of another section": (["--trainer.lr", "3"], "command line: --trainer.lr: unknown key"),
    "a flag without a section": (["--lr", "3"], "command line: --lr: unknown flag"),
    "capitals": (["--Trainer.Seed", "3"], "command line: --Trainer.Seed: unknown key"),
    "dashes for underscores": (
        ["--trainer.max-steps", "3"],
        "command line: --trainer.max-steps: unknown key",
    ),
    "no value": (["--trainer.seed"], "command line: --trainer.seed: no value"),
    "a flag for a value": (
        ["--trainer.seed", "--trainer.max_steps", "3"],
        "command line: --trainer.seed: no value",
    ),
    "nothing behind the equals sign": (
        ["--trainer.seed="],
        "command line: --trainer.seed: not a whole number",
    ),
    "two equals signs": (["--trainer.seed==3"], "command line: --trainer.seed: not a whole number"),
    "a blank before the equals sign": (
        ["--trainer.seed ", "3"],
        'command line: --trainer."seed ": unknown key',
    ),
    "twice": (
        ["--trainer.seed", "1", "--trainer.seed", "2"],
        "command line: --trainer.seed: given twice",
    ),
    "twice, once with an equals sign": (
        ["--trainer.seed=1", "--trainer.seed", "1"],
        "command line: --trainer.seed: given twice",
    ),
    "a section and a key of it": (
        ["--logging={}", "--logging.every=2"],
        "command line: --logging.every: given twice",
    ),
    "a section in words": (["--trainer", "fast"], "command line: --trainer: not a section"),
    "a section that is a list": (["--trainer", "[1]"], "command line: --trainer: not a section"),
    "below a value": (["--trainer.seed.x", "3"], "command line: --trainer.seed"),
    "below a list": (["--optimizer.betas.0", "0.9"], "command line: --optimizer.betas"),
    "a trailing dot": (["--trainer.", "3"], 'command line: --trainer."": unknown key'),
    "a leading dot": (["--.seed", "3"], "command line: "),
    "many dots": (["--a" + ".a" * 200, "3"], 'command line: "--a.a.a'),
    "1,000 letters": (["--" + "a" * 1000, "3"], 'command line: --"aaa'),
    "100,000 letters for a number": (
        ["--trainer.seed", "9" * 100_000],
        "command line: --trainer.seed: not a whole number",
    ),
    "letters": (["--trainer.seed", "three"], "command line: --trainer.seed: not a whole number"),
    "a negative number": (["--trainer.seed", "-1"], "command line: --trainer.seed: too small"),
    "a negative step": (
        ["--trainer.max_steps", "-5"],
        "command line: --trainer.max_steps: too small",
    ),
    "no steps": (["--trainer.max_steps", "0"], "command line: --trainer.max_steps: too small"),
    "half a step": (
        ["--trainer.max_steps", "1.5"],
        "command line: --trainer.max_steps: not a whole number",
    ),
    "NaN": (["--optimizer.lr", ".nan"], "command line: --optimizer.lr: not a finite number"),
    "nan in Python": (["--optimizer.lr", "nan"], "command line: --optimizer.lr: not a number"),
    "infinity": (["--optimizer.lr", ".inf"], "command line: --optimizer.lr: not a finite number"),
    "a number of 400 digits": (
        ["--optimizer.lr", "1" * 400],
        "command line: --optimizer.lr: not a finite number",
    ),
    "a decimal comma": (["--optimizer.lr", "0,001"], "command line: --optimizer.lr: not a number"),
    "a percentage": (
        ["--data.val_fraction", "5%"],
        "command line: --data.val_fraction: not a number",
    ),
    "the whole as a share": (
        ["--data.val_fraction", "1"],
        "command line: --data.val_fraction: too large",
    ),
    "yes": (["--model.qk_norm", "yes"], "command line: --model.qk_norm: not true or false"),
    "none": (
        ["--model.n_kv_heads", "None"],
        "command line: --model.n_kv_heads: not a whole number",
    ),
    "an open list": (
        ["--optimizer.betas", "[0.9"],
        "command line: --optimizer.betas: a list that is never closed",
    ),
    "an open quote": (
        ["--data.source.files", "'a"],
        "command line: --data.source.files: a quote that is never closed",
    ),
    "an alias": (["--optimizer.betas", "[*a, *a]"], "command line: --optimizer.betas: an alias"),
    "an anchor": (["--optimizer", "{lr: &a 1}"], "command line: --optimizer: an anchor"),
    "a tag that runs code": (
        ["--optimizer", "{lr: !!python/object/apply:os.mkdir [EXECUTED]}"],
        "command line: --optimizer: a tag",
    ),
    "100,000 open lists": (
        ["--optimizer.betas", "[" * 100_000],
        "command line: --optimizer.betas: nested deeper than 32",
    ),
    "three momenta": (
        ["--optimizer.betas", "[0.9, 0.9, 0.9]"],
        "command line: --optimizer.betas: too many values",
    ),
    "a line end": (
        ["--trainer.precision", "fp32\nfp16"],
        "command line: --trainer.precision: not one of the choices",
    ),
    "an escape sequence": (
        ["--trainer.precision", "\x1b[2J"],
        "command line: --trainer.precision: a character that text does not have",
    ),
    "an escape sequence in a flag": (["--trainer.\x1b[2J", "3"], "command line: --trainer"),
    "bytes that are not UTF-8": (
        ["--trainer.precision", "\udcff"],
        "command line: --trainer.precision: a character that text does not have",
    ),
    "a device of elsewhere": (
        ["--trainer.device", "tpu"],
        "command line: --trainer.device: not one of the choices",
    ),
    "a precision of elsewhere": (
        ["--trainer.precision", "int4"],
        "command line: --trainer.precision: not one of the choices",
    ),
    "a million processes": (
        ["--trainer.devices", "1000000"],
        "command line: --trainer.devices: too large",
    ),
    "a billion layers": (
        ["--model.n_layers", "1000000000"],
        "command line: --model.n_layers: too large",
    ),
    "a width of 2**40": (
        ["--model.d_model", str(2**40)],
        "command line: --model.d_model: too large",
    ),
    "a vocabulary of 2**40": (
        ["--model.vocab_size", str(2**40)],
        "command line: --model.vocab_size: too large",
    ),
    "a context of 2**40": (
        ["--model.context_length", str(2**40)],
        "command line: --model.context_length: too large",
    ),
    "a batch of 2**40": (
        ["--trainer.batch_size", str(2**40)],
        "command line: --trainer.batch_size: too large",
    ),
    "heads that do not divide": (["--model.n_heads", "3"], "command line: --model.n_heads: "),
    "micro-batches that do not divide": (
        ["--trainer.micro_batch_size", "5"],
        "command line: --trainer.micro_batch_size: ",
    ),
    "rows longer than the context": (
        ["--data.sequence_length", "99999"],
        "command line: --data.sequence_length",
    ),
    "a warm-up without end": (
        ["--optimizer.warmup_steps", "200"],
        "command line: --optimizer.warmup_steps",
    ),
    "an empty folder": (
        ["--checkpoint.directory", ""],
        "command line: --checkpoint.directory: empty",
    ),
    "an empty tokenizer": (["--tokenizer.name="], "command line: --tokenizer.name: empty"),
}

# These messages come from argparse. The line that counts comes last, below the usage.
USAGE: dict[str, tuple[list[str], str]] = {
    "nothing at all": (["train"], "--config"),
    "a config without a value": (["train", "--config"], "--config"),
    "two ways to start": (
        ["train", "--config", "c.yaml", "--resume", "auto", "--init-from", "x"],
        "not allowed with",
    ),
    "resume without a value": (["train", "--config", "c.yaml", "--resume"], "--resume"),
    "a flag with a value it does not take": (
        ["train", "--config", "c.yaml", "--print-config=yes"],
        "--print-config",
    ),
    "eval without a checkpoint": (["eval_val", "--config", "c.yaml"], "--ckpt"),
    "eval without a config": (["eval_val", "--ckpt", "x"], "--config"),
    "eval on a device of elsewhere": (
        ["eval_val", "--ckpt", "x", "--config", "c.yaml", "--device", "tpu"],
        "--device",
    ),
    "infer without a checkpoint": (["infer", "--prompt", "a"], "--ckpt"),
    "infer with two prompts": (
        ["infer", "--ckpt", "x", "--prompt", "a", "--prompt-file", "b"],
        "not allowed with",
    ),
    "infer with words for a number": (
        ["infer", "--ckpt", "x", "--prompt", "a", "--max-new-tokens", "many"],
        "--max-new-tokens",
    ),
    "infer with an unknown flag": (["infer", "--ckpt", "x", "--prompt", "a", "--fast"], "--fast"),
    "infer with an abbreviation": (
        ["infer", "--ckpt", "x", "--prompt", "a", "--temp", "1"],
        "--temp",
    ),
    "list with two folders": (["list", "a", "b"], "b"),
}
OUT_OF_RANGE = [
    *(["infer", "--ckpt", "x", "--prompt", "a", flag, value] for flag, value in (
        ("--temperature", "-1"), ("--temperature", "nan"), ("--temperature", "inf"), ("--top-p",
        "0"), ("--top-p", "2"), ("--top-p", "nan"),
        ("--top-k", "-1"), ("--min-p", "1.5"), ("--repetition-penalty", "0"),
        ("--repetition-penalty", "nan"), ("--max-new-tokens", "0"),
        ("--max-new-tokens", "-3"), ("--max-new-tokens", str(2**63)), ("--num-samples", "0"),
        ("--seed", "-1"), ("--seed", str(2**64)),
    )),
    ["list", "--sort", "beauty"],
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(content: str | bytes) -> None:
    Path("c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())


def assert_refused(got: Answer, named: str) -> None:
    """Check for exit code 2 and lines that each name a place. One names the mistake, and none holds
    control characters of a terminal.
    """
    assert got.code == 2, got
    assert got.out == ""
    assert got.lines and all(re.fullmatch(PLACE, line) for line in got.lines), got
    assert any(named in line for line in got.lines), got
    assert "Traceback" not in got.err and "internal error" not in got.err
    assert all(character.isprintable() or character == "\n" for character in got.err), repr(got.err)
    assert all(len(line) < 600 for line in got.lines), "a line for people"


def assert_that_it_refuses(named: str, *arguments: str, command: str = "train") -> None:
    """Check that a command refuses and leaves the folder as it was."""
    before = picture(Path())
    assert_refused(answer(command, *arguments), named)
    assert picture(Path()) == before and not Path("EXECUTED").exists()


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("name", FILES)
def test_a_malformed_file(here: Path, name: str) -> None:
    content, named = FILES[name]
    write(content)
    assert_that_it_refuses(named, "--config", "c.yaml")
    assert_that_it_refuses(named, "--config", "c.yaml", "--ckpt", "x", command="eval_val")


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("key", sorted({key for key, _ in VALUES}))
def test_wrong_values_of_a_key(here: Path, key: str) -> None:
    """Every wrong value of the key in the file is refused with a line that names the key."""
    *sections, name = key.split(".")
    tree = yaml.safe_load(BASE) | (
        {"finetune": {"base": "x"}} if sections[:1] == ["finetune"] else {}
    )
    inner = tree
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = "THE-VALUE"
    for value in [value for of, value in VALUES if of == key]:
        write(yaml.safe_dump(tree).replace("THE-VALUE", value))
        assert_that_it_refuses(f": {key}", "--config", "c.yaml")


@pytest.mark.parametrize("name", SOURCES)
def test_a_malformed_source(here: Path, name: str) -> None:
    data, named = SOURCES[name]
    write(data + "\ntrainer: {max_steps: 200}\n")
    assert_that_it_refuses(f"c.yaml:1: {named}", "--config", "c.yaml")


# wrong for a training alone, so other commands go on
FOR_TRAINING = ("micro-batches that do not divide", "a warm-up without end")


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("name", LINES)
def test_a_malformed_argument_line(here: Path, name: str) -> None:
    arguments, named = LINES[name]
    write(BASE)
    assert_that_it_refuses(named, "--config", "c.yaml", *arguments)
    if name not in FOR_TRAINING:
        assert_that_it_refuses(
            named, "--config", "c.yaml", "--ckpt", "x", *arguments, command="eval_val"
        )


@pytest.mark.parametrize("name", USAGE)
def test_what_argparse_answers(here: Path, name: str) -> None:
    (command, *arguments), named = USAGE[name]
    write(BASE)
    before = picture(here)
    got = answer(command, *arguments)
    assert got.code == 2 and got.out == "" and named in got.lines[-1], got
    assert len(got.lines) == 1 and got.lines[0].endswith("(--help names all flags)")
    assert picture(here) == before


@pytest.mark.parametrize("words", OUT_OF_RANGE, ids=" ".join)
def test_a_flag_that_is_out_of_range(here: Path, words: list[str]) -> None:
    command, *arguments = words
    got = answer(command, *arguments)
    assert got.code == 2 and len(got.lines) == 1 and words[-2] in got.lines[0], got


def places() -> dict[str, tuple[Callable[[], object], str]]:
    """Return ways to put something else in the place of a file, and the expected messages."""
    return {
        "nothing": (lambda: None, "c.yaml: no such file"),
        "a folder": (lambda: Path("c.yaml").mkdir(), "c.yaml: a folder"),
        "a link to a folder": (lambda: Path("c.yaml").symlink_to("/"), "c.yaml: a folder"),
        "a link to itself": (lambda: Path("c.yaml").symlink_to("c.yaml"), "c.yaml: cannot be read"),
        "a link to nothing": (lambda: Path("c.yaml").symlink_to("gone"), "c.yaml: no such file"),
        "a link to /dev/zero": (
            lambda: Path("c.yaml").symlink_to("/dev/zero"),
            "c.yaml:1: larger than 1 MiB",
        ),
        "a link to /dev/null": (lambda: Path("c.yaml").symlink_to("/dev/null"), "c.yaml:1: empty"),
        "a link to /dev/full": (
            lambda: Path("c.yaml").symlink_to("/dev/full"),
            "c.yaml:1: larger than 1 MiB",
        ),
        "a pipe into which nobody writes": (lambda: os.mkfifo("c.yaml"), "c.yaml:1: empty"),
        "a link to /proc/self/mem": (
            lambda: Path("c.yaml").symlink_to("/proc/self/mem"),
            "c.yaml: cannot be read",
        ),
    }


@pytest.mark.parametrize("name", places())
def test_something_else_where_a_file_is_meant(here: Path, name: str) -> None:
    make, named = places()[name]
    make()
    assert_that_it_refuses(named, "--config", "c.yaml")
    assert_that_it_refuses(named, "--config", "c.yaml", "--ckpt", "x", command="eval_val")


def test_names_that_no_file_has(here: Path) -> None:
    for name in (
        "",
        "x" * 300,
        "a" * 5000,
        "c.yaml/x",
        "https://example.org/c.yaml",
        "~/c.yaml",
        "*.yaml",
        "\x1b[2J.yaml",
        "a\nb.yaml",
    ):
        got = answer("train", "--config", name)
        assert got.code == 2 and "Traceback" not in got.err, got
        assert all(character.isprintable() or character == "\n" for character in got.err)


def test_a_file_and_folders_without_permission(here: Path) -> None:
    write(BASE + "data:\n")
    Path("c.yaml").chmod(0)
    with not_root(here):
        got = answer("train", "--config", "c.yaml")
    assert_refused(got, "c.yaml: cannot be read: Permission denied")
    Path("c.yaml").chmod(0o644)
    write(BASE)
    Path("closed").mkdir(mode=0o555)
    before = picture(here)
    with not_root(here):
        got = answer("train", "--config", "c.yaml", "--checkpoint.directory", "closed/run")
    assert got.code == 5 and got.lines == [
        "checkpoint.directory: closed/run cannot be a run's folder: Permission denied; change its"
        " permissions (`ls -ld` shows them), or name another folder"
    ], got
    assert picture(here) == before


@pytest.mark.parametrize(
    ("folder", "said"),
    [("c.yaml", "it is a file"), ("c.yaml/run", "Not a directory"), ("loop",
    "it is a broken link"), ("x" * 300, "File name too long"),
     ("/proc/run", "")],
)  # fmt: skip
def test_an_output_folder_that_cannot_be_one(here: Path, folder: str, said: str) -> None:
    write(BASE)
    Path("loop").symlink_to("loop")
    before = picture(here)
    got = answer("train", "--config", "c.yaml", "--checkpoint.directory", folder)
    assert (
        got.code == 5
        and len(got.lines) == 1
        and said in got.lines[0]
        and "checkpoint.directory" in got.lines[0]
    ), got
    assert picture(here) == before


def test_text_that_is_not_there_is_exit_3_and_leaves_nothing(here: Path) -> None:
    write(BASE)
    before = picture(here)
    got = answer("train", "--config", "c.yaml")
    assert got.code == 3 and "a.txt" in got.err and len(got.lines) == 1, got
    assert picture(here) == before, "the run's folder was made only to be locked"


BY_THEMSELVES = [
    "nothing",
    "an alias bomb",
    "a tag that runs code",
    "10 MB of keys",
    "100,000 open lists",
    "a pickle",
]
HEAVY = {
    "torch",
    "lightning",
    "numpy",
    "transformers",
    "datasets",
    "tokenizers",
    "matplotlib",
    "pyarrow",
}


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_as_a_process_nothing_heavy_is_imported(here: Path, name: str) -> None:
    content, named = FILES[name]
    write(content)
    words = [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "--config", "c.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    rest = "".join(
        f"{line}\n" for line in done.stderr.splitlines() if not line.startswith("import time:")
    )
    assert_refused(Answer(done.returncode, done.stdout, rest), named)
    assert (
        len(imports) > 50
        and not {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in imports} & HEAVY
    )
    assert sorted(path.name for path in here.iterdir()) == ["c.yaml"]


@pytest.mark.usefixtures("starts_processes")
def test_a_config_from_a_pipe_is_read(here: Path) -> None:
    """A pipe is no mistake if a process writes into it: `--config <(make-config)`."""
    write(BASE)
    words = [
        "bash",
        "-c",
        f"{sys.executable} {ROOT / 'train.py'} --config <(sleep 0.3; cat c.yaml) --print-config",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "max_steps: 200" in done.stdout, done


def test_the_corpus_is_as_large_as_it_says(figure: Callable[[str], None]) -> None:
    files, lines = (
        len(FILES) + len(SOURCES) + len(places()),
        len(LINES) + len(USAGE) + len(OUT_OF_RANGE),
    )
    figure(
        f"{files} files and places, {len(VALUES)} wrong values, {lines} argument lines: exit code"
        " 2, key named, nothing written"
    )
    assert files >= 100 and lines >= 90 and len(VALUES) >= 300
    assert set(BY_THEMSELVES) <= set(FILES)


# ---------------------------------------------------------------- anything at all

FULL = "\n".join(
    [
        "data:", "  source: {format: jsonl, files: [a.jsonl, 'b c.jsonl'], text_key: body}",
        "  sequence_length: 64", "  val_fraction: 0.1",
        "model:", "  n_layers: 3", "  d_model: 96", "  n_heads: 3", "  dropout: 0.1",
        "  qk_norm: true", "tokenizer: {name: gpt2}",
        "optimizer:", "  lr: 3e-4", "  betas: [0.9, 0.99]", "  schedule: wsd",
        "  warmup_steps: 10", "trainer:", "  max_tokens: 1e6",
        "  max_minutes: 12.5", "  batch_size: 24", "  micro_batch_size: 12", "  seed: 7",
        "checkpoint:", "  directory: run", "  keep: 3",
        "logging:", '  sample_prompt: "To be: or\\nnot # to be \\u00e9"', "  every: 5", "",
    ]
)  # fmt: skip
SHIPPED = [
    BASE,
    FULL,
    *(
        path.read_text(encoding="utf-8")
        for path in sorted(ROOT.glob("*.yaml")) + sorted(ROOT.glob("configs/*.yaml"))
    ),
]
SNIPPETS = [
    "\t", "\0", "\r", "\ufeff", "\x85", "\u2028", "\U0001f600", "&a ", "*a", "<<: ", "!!int ",
    "? ", "- ", "[", "]", "{", "}",
    "'", '"', "|", ">", "%", "@", "`", "#", ": ", ",", "---\n", "...\n", "\n\n", "  ", "1e999",
    ".nan", "-.inf", "9" * 25, "-1",
    "0x1F", "true", "null", "~", "\\", "\\x", "\ud7ff",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["auto", "on", "cpu", "byte", "txt", "3e-4"]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | SCALARS, inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def by_bytes(draw: st.DrawFn) -> bytes:
    """Draw a good file in which pieces are cut, doubled, moved or replaced."""
    data = draw(st.sampled_from(SHIPPED)).encode()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 2, 7, 40])))
        piece = draw(
            st.one_of(
                st.sampled_from(SNIPPETS).map(lambda text: text.encode()),
                st.binary(max_size=3),
                st.just(data[start:end] * 2),
            )
        )
        data = data[:start] + piece + data[end:]
    return data


@st.composite
def by_structure(draw: st.DrawFn) -> bytes:
    """Draw a good configuration, as YAML, in which keys are renamed, removed, moved or given other
    values.
    """
    tree = yaml.safe_load(draw(st.sampled_from(SHIPPED)))
    for _ in range(draw(st.integers(1, 3))):
        section, *inner = [tree]
        for _ in range(draw(st.integers(0, 2))):
            inner = [value for value in section.values() if isinstance(value, dict) and value]
            section = draw(st.sampled_from(inner)) if inner else section
        key = draw(st.sampled_from(sorted(section, key=str)))
        deed = draw(st.sampled_from(["set", "remove", "rename", "move"]))
        if deed == "set":
            section[key] = draw(TREES)
        elif len(section) > 1 and deed == "remove":
            del section[key]
        else:
            target = section if deed == "rename" else tree
            target[
                draw(st.text(max_size=6) | st.sampled_from(["lr", "seed", "Trainer", "a.b"]))
            ] = section.pop(key) if len(section) > 1 else 1
    return yaml.safe_dump(
        tree,
        allow_unicode=draw(st.booleans()),
        default_flow_style=draw(st.sampled_from([None, True, False])),
    ).encode(errors="surrogatepass")


NAMES = st.sampled_from([key.name for key in leaves()])
FLAGS = st.lists(
    st.one_of(
        st.text(max_size=10),
        st.builds("--{}={}".format, NAMES, st.text(max_size=8) | st.sampled_from(SNIPPETS)),
        st.builds("--{}".format, st.text(st.characters(codec="utf-8"), max_size=12)),
    ),
    max_size=3,
)  # fmt: skip


@pytest.mark.usefixtures("takes_seconds")
def test_anything_loads_or_is_refused_in_lines(
    here: Path, amount: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    """Mutated configurations and argument lines load, or are refused in well-formed lines."""
    count = {"loaded": 0, "refused": 0}

    @settings(
        max_examples=amount(300, 10_000),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=by_bytes() | by_structure(), flags=FLAGS)
    def mutations(data: bytes, flags: list[str]) -> None:
        Path("c.yaml").write_bytes(data)
        try:
            load_config("c.yaml", flags)
        except ConfigError as error:
            count["refused"] += 1
            for line in str(error).split("\n"):
                assert re.fullmatch(PLACE, line) and line.isprintable(), line
        except CheckpointError as error:  # the base does not exist
            assert "no such checkpoint" in str(error)
        else:
            count["loaded"] += 1

    mutations()
    figure(
        f"{sum(count.values()):,} mutated configurations: {count['loaded']:,} load,"
        f" {count['refused']:,} refused in well-formed lines"
    )
    assert min(count.values()) > 0, "mutations that never or always fail test nothing"
    assert [path.name for path in here.iterdir()] == ["c.yaml"]
