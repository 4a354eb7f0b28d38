"""Provide configurations as text, and the messages about them, for several test modules."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lm.commands import load_config
from lm.config.schema.config import Config
from lm.config.yaml_reader import read_text
from lm.system.errors import ConfigError

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


def editor(text: str) -> list[str]:
    """Return the errors that an editor with the generated JSON Schema marks."""
    schema = json.loads((ROOT / "docs/config.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    document = read_text(text)
    assert not document.problems
    return [
        error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document.value)
    ]
