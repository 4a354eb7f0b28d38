"""Values and sources that the schema refuses, each in one line."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from lm.commands import load_config
from lm.config import keys
from lm.config.schema.config import UNLIMITED, Config
from tests.support.configs import BASE, MIXTURE, complaints, editor

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
    (
        "  batch_size: 0",
        "trainer.batch_size: too small, got 0, write a whole number >= 1 and <= 16777216",
    ),
    (
        "  threads: 2000",
        "trainer.threads: too large, got 2000, write a whole number >= 1 and <= 1024 or null",
    ),
    (
        "  micro_batch_size: 0",
        "trainer.micro_batch_size: too small, got 0, write a whole number >= 1, auto or null",
    ),
    (
        "  micro_batch_size: most",
        'trainer.micro_batch_size: not a whole number, got "most", write a whole number >= 1, auto'
        " or null",
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
    (
        "model: {d_model: 130}",
        (
            "model: d_model 130 is not divisible by n_heads 4 (the default); write a multiple of 4"
            " for d_model"
        ),
    ),
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


@pytest.mark.usefixtures("takes_seconds")
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
        "2: data.source.txt: unknown key, got 3, write format, files, unit, encoding or filter",
    ),
    (
        "source: {format: txt, files: a, text_key: b}",
        (
            '2: data.source.text_key: unknown key, got "b", with format txt write format, files,'
            " unit, encoding or filter (text_key is for jsonl, csv, parquet or hub)"
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
        '2: data.source.split: unknown key, got "b", did you mean data.source.dataset_split?',
    ),
    (
        "source: {format: txt, file: a, files: b}",
        '2: data.source.file: unknown key, got "a", did you mean data.source.files?',
    ),
    (
        "text_key: a\n  source: {format: txt, files: b}",
        '2: data.text_key: unknown key, got "a", write data.source.text_key, which is for jsonl,'
        " csv, parquet or hub",
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
    (
        "source: {format: csv, files: a, delimiter: ';', escape: ';'}",
        "2: data.source: delimiter and escape are both ';'; write two characters",
    ),
    (
        "source: {format: txt, files: a, encoding: utf-9}",
        "2: data.source.encoding: there is no such encoding; write one that Python knows, such as"
        " cp1252, latin-1, utf-16, cp1251, gb18030, shift_jis or euc_kr",
    ),
    (
        "source: {format: chat, files: a, columns: {question: q}}\n  document_mask: true",
        "2: data.source.columns: a layout has no key question; write the layout's key first, then"
        " the row's: {prompt: question}",
    ),
    (
        "source: {format: chat, files: a, columns: {prompt: q, output: q}}\n  document_mask: true",
        "2: data.source.columns: q is named twice; write one key for each column",
    ),
    (
        "source: {format: chat, files: a, layout: sms, columns: {prompt: q}}\n"
        "  document_mask: true",
        "2: data.source: columns are for rows with keys, and lines of sms have none; remove it",
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
            "2: data.source.parts: unknown key, got [], with format txt write format, files, unit,"
            " encoding or filter (parts is for mixture)"
        ),
    ),
    (
        "source: {format: txt, files: a, weight: 3}",
        "2: data.source.weight: unknown key, got 3, write data.source.parts[].weight, which is for"
        " mixture",
    ),
]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("delimiter: \\t", {"delimiter": "\t"}),
        ('delimiter: "\\t"', {"delimiter": "\t"}),
        ("encoding: UTF8", {"encoding": None}),
        ("encoding: Windows-1252", {"encoding": "cp1252"}),
        ("encoding: latin1", {"encoding": "iso8859-1"}),
    ],
)
def test_tabs_and_encodings_as_people_write_them(
    write, written: str, meant: dict[str, object]
) -> None:
    text = f"data:\n  source:\n    format: csv\n    files: a\n    {written}\n"
    source = load_config(write(text + "trainer: {max_steps: 1000}\n")).config.data.source
    assert {key: getattr(source, key) for key in meant} == meant


@pytest.mark.usefixtures("takes_seconds")
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
            '8: data.source.parts[1].files: unknown key, got "b", write'
            " data.source.parts[1].source.files, which is for txt, jsonl, csv, parquet, sms,"
            " instruction, bin or chat"
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


def test_missing_sections_have_no_line(write) -> None:
    assert complaints(write("\n\nmodel: {}\n")) == [
        "c.yaml: data: missing, write a section: its keys, indented, on the lines below",
        "c.yaml: trainer: missing, write a section: its keys, indented, on the lines below",
    ]


def test_checks_of_a_section_point_at_its_line_and_of_the_whole_at_the_key(write) -> None:
    sections = BASE.replace("  max_steps: 1000", "  batch_size: 9\n  micro_batch_size: 2")
    assert complaints(write(sections)) == [
        "c.yaml:5: trainer: give the run a length: max_steps, max_tokens, max_epochs, or"
        " max_minutes with optimizer.schedule_by: time (the smallest ends it)",
        "c.yaml:5: trainer: batch_size 9 is not divisible by devices 1 (the default) x"
        " micro_batch_size 2; write a multiple of 2 for batch_size",
    ]
    left = "leaves nothing of the run's 100 steps; write optimizer.warmup_steps: 10, or another"
    left += " number below 100"
    by_default = f"optimizer.warmup_steps: 100 (the default) {left}"
    assert complaints(write(BASE), "--trainer.max_steps=100") == [f"c.yaml: {by_default}"]
    assert complaints(write(BASE + "optimizer:\n  lr: 1\n"), "--trainer.max_steps=100") == [
        f"c.yaml:7: {by_default}"
    ]
    assert complaints(write(BASE), "--trainer.max_steps=100", "--optimizer.warmup_steps=100") == [
        f"command line: --optimizer.warmup_steps: 100 {left}"
    ]
    row = (
        "data.sequence_length: 512 is longer than model.context_length 256 (the default); make the"
        " rows shorter or the context longer"
    )
    assert complaints(write("data:\n  sequence_length: 512\n" + BASE[6:])) == [f"c.yaml:2: {row}"]


def test_rates_without_a_matrix_of_their_own_are_refused(write) -> None:
    head_lr = "--optimizer.head_lr=0.1"
    assert complaints(write(BASE), head_lr) == [
        "command line: --optimizer.head_lr: 0.1: with model.tie_embeddings the head is the"
        " embedding's matrix; write optimizer.embedding_lr instead"
    ]
    assert load_config(write(BASE), [head_lr, "--model.tie_embeddings=false"])
    tuned = write(BASE + "finetune: {base: a, method: lora}\n")
    assert complaints(tuned, head_lr, "--optimizer.embedding_lr=1", "--optimizer.name=muon") == [
        "command line: --optimizer.name: muon does not train the low-rank matrices of lora: it"
        " would move all their directions equally; write adamw",
        *(
            f"command line: --optimizer.{key}: has no effect with finetune.method lora, which"
            " trains adapters alone; remove it"
            for key in ("embedding_lr", "head_lr")
        ),
    ]


def test_all_disagreements_are_named_at_once(write) -> None:
    """Each section names all of its own, and the whole file all of those between sections."""
    rows = "data:\n  sequence_length: 300\n  stride: 400\n" + BASE[6:].replace("1000", "50")
    assert [
        line.partition(" is ")[0].partition(" leaves")[0] for line in complaints(write(rows))
    ] == [
        "c.yaml: optimizer.warmup_steps: 100 (the default)",
        "c.yaml:2: data.sequence_length: 300",
        "c.yaml:3: data.stride: 400",
    ]
    tuned = "finetune: {base: a, lora: {rank: 4}, dpo_beta: 0.3, choices: [a]}"
    assert [line.partition(" is ")[0] for line in complaints(write(BASE + tuned))] == [
        "c.yaml:7: finetune: lora",
        "c.yaml:7: finetune: dpo_beta",
        "c.yaml:7: finetune: choices has one answer, which leaves no choice; write several, or"
        " remove it",
    ]


def test_passes_are_a_length_that_the_text_completes(write) -> None:
    """Before the text is read, no check may guess how many steps they are."""
    alone = load_config(write(BASE.replace("max_steps: 1000", "max_epochs: 3"))).config
    assert alone.most_steps is None
    with pytest.raises(AssertionError):
        _ = alone.max_steps
    assert alone.with_epochs(0.05).max_steps == 60
    assert alone.most_steps is None, "the configuration itself stays as it is"
    assert alone.with_epochs(0.0).most_steps is None, "a checkpoint that does not say it"
    beside = load_config(write(BASE), ["--trainer.max_epochs=3"]).config
    assert beside.most_steps == 1000
    assert [beside.with_epochs(each).max_steps for each in (0.05, 0.003, 0.002)] == [60, 1000, 1000]
    assert beside.with_epochs(0.05).with_vocabulary(300).max_steps == 60, "a copy knows it too"
    assert beside.with_epochs(0.05).model_dump() == beside.model_dump(), "no file has it"
    plain = load_config(write(BASE)).config
    assert plain.with_epochs(0.05) is plain


def test_minutes_are_a_length_only_for_a_schedule_by_time(write) -> None:
    minutes = BASE.replace("max_steps: 1000", "max_minutes: 30")
    assert complaints(write(minutes)) == [
        "c.yaml:6: trainer.max_minutes: 30 alone gives the run no length; write max_steps,"
        " max_tokens, max_epochs, or max_minutes with optimizer.schedule_by: time (the smallest"
        " ends it)"
    ]
    by_time = "--optimizer.schedule_by=time"
    config = load_config(write(minutes), [by_time]).config
    assert config.most_steps is None and config.max_steps == UNLIMITED
    assert load_config(write(minutes), [by_time, "--trainer.max_steps=150"]).config.max_steps == 150
    assert complaints(write(BASE), by_time) == [
        "command line: --optimizer.schedule_by: time needs a deadline; write trainer.max_minutes"
    ]
    mixed = (
        "data:\n  source: {format: mixture, when_one_ends: stop, parts: [{weight: 1, source:"
        " {format: txt, files: a}}]}\n"
    )
    [line] = complaints(write(mixed + "trainer: {max_minutes: 3}\n"), by_time)
    assert line.endswith(
        "data.source.when_one_ends: stop needs a run whose steps are known; write repeat or go_on,"
        " or trainer.max_steps"
    )


def test_passes_over_a_stream_are_refused_with_the_reason(write) -> None:
    streamed = (
        "data:\n  source: {format: hub, dataset: a/b, streaming: true}\n"
        "trainer: {max_epochs: 2, validation_rows: 8}\n"
    )
    assert complaints(write(streamed)) == [
        "c.yaml:3: trainer.max_epochs: 2 counts passes over the text, and a streamed text has no"
        " end; write trainer.max_steps or max_tokens instead"
    ]


CHAT = "data:\n  source: {format: chat, files: a.jsonl}\ntrainer: {max_steps: 1000}\n"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (BASE, False),
        (CHAT, True),
        (BASE.replace("trainer", "  validation: {format: chat, files: b}\ntrainer"), True),
        (BASE.replace("trainer", "  document_mask: true\ntrainer"), True),
        (MIXTURE, False),
        (MIXTURE.replace('csv, files: a.csv, delimiter: "\\t"', "chat, files: a.csv"), True),
    ],
)
def test_conversations_bring_their_mask(write, text: str, masked: bool) -> None:
    loaded = load_config(write(text))
    assert loaded.config.data.document_mask is masked
    written = "document_mask" in text
    assert (loaded.origins["data.document_mask"] == "default") is not written


def test_conversations_that_would_see_each_other_are_refused(write) -> None:
    text = CHAT.replace("trainer", "  document_mask: false\ntrainer")
    assert complaints(write(text)) == [
        "c.yaml:1: data: document_mask false would let conversations in one row see each other;"
        " write document_mask: true"
    ]


def test_checks_of_several_keys_blame_the_flag_among_them(write) -> None:
    assert complaints(write(BASE), "--model.n_heads", "3") == [
        "command line: --model.n_heads: d_model 128 (the default) is not divisible by n_heads 3;"
        " write a multiple of 3 for d_model"
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


@pytest.mark.usefixtures("takes_seconds")
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
        "default_factory_not_called",
        "union_tag_invalid",
        "union_tag_not_found",
        "value_error",
    }
    assert {*WRONG} - {
        "model_type",
        "dict_type",
        "tuple_type",
    } <= seen, "else the table has rows that nobody needs"


@pytest.mark.usefixtures("takes_seconds")
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
