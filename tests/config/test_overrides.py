"""Keys on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lm.commands import load_config
from lm.system.errors import ConfigError
from tests.support.configs import BASE, MIXTURE, complaints, value_of

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
        ["--shiny", "--optimizer.lr", "1e-3"],
        [
            "--shiny: unknown flag, write model, tokenizer, data, optimizer, trainer, checkpoint,"
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
        ['--optimizer.betas: an alias (*), got "[*a]", put the value in quotes, or write it out'],
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
            '--data.source.dataset: unknown key, got "a", with format txt write format, files,'
            " unit, encoding or filter (dataset is for hub or chat)"
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


@pytest.mark.usefixtures("takes_seconds")
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
        'command line: --data.source."parts[0]".weight: unknown key, got {weight: 3}, write'
        " data.source.parts: a list of 1 to 100 sections with weight and source, each after `- `"
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


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--optimizer.warmup_steps=5000"], "optimizer.warmup_steps"),
        (["--trainer.micro_batch_size=3"], "trainer.micro_batch_size"),
        (["--optimizer.schedule_by=time"], "optimizer.schedule_by"),
    ],
)
def test_what_is_wrong_for_a_training_alone_stops_no_other_command(
    tmp_path: Path, flags: list[str], key: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {source: {format: txt, files: a}}\ntrainer: {max_steps: 200}\n")
    with pytest.raises(ConfigError, match=re.escape(key)):
        load_config(path, flags)
    assert load_config(path, flags, trains=False).config.trainer.max_steps == 200
    with pytest.raises(ConfigError, match="give the run a length"):
        load_config(path, ["--trainer.max_steps=null"], trains=False)
