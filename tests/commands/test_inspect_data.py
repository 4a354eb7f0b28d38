"""The inspector's output equals slow, obvious computations, and no text from outside controls a
terminal or a browser.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import PackedDataModule
from lm.checks import overlap, rendering
from lm.checks.overlap import StoredDocuments, find_overlaps, read_held_out
from lm.checks.xray import RowStatistics, SourceStatistics, read_rows
from lm.commands import load_config
from lm.display.tables import terminal_table
from lm.documents import hub
from lm.documents.reader import Document, hash_of_text
from lm.system.errors import ConfigError, DataError
from lm.tokenizer.tokenizer import ByteTokenizer
from lm.tokens.manifest import Manifest
from lm.tokens.store import SplitWriter, TokenStore
from tests.support.hub import Hub
from tests.support.runs import config_file
from tests.tokenizer.test_tokenizer import byte_level, ours
from tests.tokens import test_stream
from tools import inspect_data

BYTES, BPE = ByteTokenizer(), ours(byte_level())
EOS, PAD = BYTES.eos_id, BYTES.pad_id
HOSTILE = (
    "a\x1b]0;title\x07\x1b[2J\x9b31m\r\n\t\x00 \u202egnp\u200b"
    ' </i><script>alert("1")</script>&amp;" onclick="alert(2) 日本 é€😀 e\u0301'
)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def batch(ids, labels, document_ids=None, step=7):
    """Return a step's item of one micro-batch."""
    tensors = {"input_ids": ids, "labels": labels} | (
        {} if document_ids is None else {"document_ids": document_ids}
    )
    return {**{name: torch.tensor(values)[None] for name, values in tensors.items()}, "step": step}


def row_of(text, tokenizer=BYTES, length=None, unlabelled=()):
    """Return a row that holds one document, padded to `length`."""
    ids = [tokenizer.eos_id, *tokenizer.encode(text), tokenizer.eos_id]
    inputs, labels = (
        ids[:-1],
        [-100 if i in unlabelled else label for i, label in enumerate(ids[1:])],
    )
    padding = max(0, (length or 0) - len(inputs))
    return read_rows(
        batch([inputs + [tokenizer.pad_id] * padding], [labels + [-100] * padding]), tokenizer, [""]
    )[0]


def make_store(folder: Path, texts: list[str], split: str = "train", tokenizer=BYTES) -> TokenStore:
    folder.mkdir(parents=True, exist_ok=True)
    writer = SplitWriter(folder, split, tokenizer.eos_id, tokenizer.dtype)
    ids, lengths = tokenizer.encode_stream(texts, [text.encode() for text in texts])
    hashes = np.array([hash_of_text(text) for text in texts], np.uint64)
    writer.add(ids, lengths, hashes, sum(len(text.encode()) for text in texts))
    return TokenStore(
        folder,
        split,
        Manifest(dtype=np.dtype(tokenizer.dtype).name, splits={split: writer.close()}),
    )


# --- rows and sources


def obvious_layout(ids, labels, document_ids):
    """Return (documents, positions, used), computed one position after the other."""
    used = len(ids)
    while used and ids[used - 1] == PAD and labels[used - 1] == -100:
        used -= 1
    documents, positions = [0], [0]
    for i in range(1, len(ids)):
        new = document_ids[i] != document_ids[i - 1] if document_ids is not None else ids[i] == EOS
        documents.append(documents[-1] + new)
        positions.append(i if document_ids is None else 0 if new else positions[-1] + 1)
    return documents, positions, used


token = st.sampled_from([1, 2, EOS, PAD])


cell = st.tuples(token, st.sampled_from([-100, 1, 2, EOS]), st.booleans())


@pytest.mark.usefixtures("takes_seconds")
@given(row=st.lists(cell, min_size=1, max_size=9), padding=st.integers(0, 3), masked=st.booleans())
@settings(max_examples=300, deadline=None)
def test_rows_are_read_from_the_tensors_alone(row, padding, masked):
    ids, labels, changes = (
        list(values) for values in zip(*row, *[(PAD, -100, False)] * padding, strict=True)
    )
    document_ids = np.cumsum(changes).tolist() if masked else None
    [found] = read_rows(batch([ids], [labels], [document_ids] if masked else None), BYTES, [""])
    documents, positions, used = obvious_layout(ids, labels, document_ids)
    assert (found.documents.tolist(), found.positions.tolist(), found.used) == (
        documents,
        positions,
        used,
    )
    assert found.supervised == sum(label != -100 for label in labels)
    assert found.starts_inside == (used > 0 and ids[0] != EOS)
    if used and labels[used - 1] != -100:
        assert found.ends_inside == (labels[used - 1] != EOS)
    else:
        assert found.ends_inside == (0 < used == len(ids))


def test_counts_over_rows():
    rows = [
        row_of("abcd", length=8, unlabelled=(0, 1)),
        row_of("ab"),
        *read_rows(batch([[1, 2, EOS]], [[2, EOS, 1]]), BYTES, [""]),
    ]
    assert RowStatistics.of(rows) == RowStatistics(
        rows=3,
        positions=8 + 3 + 3,
        supervised=3 + 3 + 3,
        padding=3,
        documents=1 + 1 + 2,
        starts_inside=1,
        ends_inside=1,
    )


texts = st.lists(st.text("ab é日", min_size=1, max_size=12), min_size=1, max_size=8)


@pytest.mark.usefixtures("takes_seconds")
@given(texts=texts, others=texts, length=st.integers(2, 12))
@settings(max_examples=50, deadline=None)
def test_what_sources_give(tmp_path_factory, texts, others, length):
    folder = tmp_path_factory.mktemp("stores")
    stores = [
        ("first", make_store(folder / "a", texts)),
        ("second", make_store(folder / "b", others)),
    ]
    found = SourceStatistics.of("train", stores, length)
    tokens = [sum(len(text.encode()) + 1 for text in part) + 1 for part in (texts, others)]
    for line, part, name, total in zip(
        found, (texts, others), ("first", "second"), tokens, strict=True
    ):
        lengths = sorted(len(text.encode()) for text in part)
        assert (line.split, line.source, line.documents, line.tokens) == (
            "train",
            name,
            len(part),
            total,
        )
        assert line.share == pytest.approx(total / sum(tokens))
        assert line.bytes_per_token == 1
        assert (
            line.median_length
            == (lengths[(len(lengths) - 1) // 2] + lengths[len(lengths) // 2]) / 2
        )
        assert line.longest == lengths[-1]
        assert line.longer_than_row == sum(1 + n > length for n in lengths)


# --- overlap


def obvious_words(text):
    return re.sub(r"[^a-z ]", "", text.lower()).split()


def obvious_runs(text, n):
    words = obvious_words(text)
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


documents = st.lists(
    st.lists(st.sampled_from(["a", "B", "c,", '"A"', "!", "b-"]), max_size=9).map(" ".join),
    max_size=7,
)


@pytest.mark.usefixtures("takes_seconds")
@given(
    held_out=documents,
    training=documents,
    n=st.integers(1, 4),
    batch_size=st.integers(1, 30),
    part=st.integers(1, 30),
)
@settings(max_examples=300, deadline=None)
def test_overlap_is_what_comparing_everything_finds(held_out, training, n, batch_size, part):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "TRAINING_CHARACTERS", batch_size)
        patch.setattr(overlap, "HELD_OUT_CHARACTERS", part)
        trained = [Document(text, f"t{i}") for i, text in enumerate(training)]
        named = [Document(text, f"h{i}") for i, text in enumerate(held_out)]
        found = find_overlaps({"even": named[::2], "odd": named[1::2]}, trained, n)
    assert [line.name for line in found] == ["even", "odd"]
    for which, line in enumerate(found):
        mine = [
            (f"h{i}", obvious_runs(text, n)) for i, text in enumerate(held_out) if i % 2 == which
        ]
        assert line.documents == len(mine)
        assert line.too_short == sum(not runs for _, runs in mine)
        matches = {match.document: match for match in line.matches}
        for name, runs in mine:
            owners = [
                next(
                    (f"t{i}" for i, text in enumerate(training) if run in obvious_runs(text, n)),
                    None,
                )
                for run in runs
            ]
            shared = [(run, owner) for run, owner in zip(runs, owners, strict=True) if owner]
            assert (name in matches) == bool(shared)
            if shared:
                match = matches[name]
                assert (match.ngrams, match.shared) == (len(runs), len(shared))
                assert (tuple(obvious_words(match.words)), match.training) == shared[0]


def test_words_that_no_space_parts_count_one_by_one():
    assert overlap.WORD.findall("日本語 and naïve_x, カタ 5th") == [
        *"日本語",
        "and",
        "naïve_x",
        *"カタ",
        "5th",
    ]
    held_out, training = Document("今日は良い天気", "h"), Document("昨日は良い天気だ", "t")
    [found] = find_overlaps({"x": [held_out]}, [training], 6)
    assert [match.words for match in found.matches] == ["日は良い天気"]


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["byte", "bpe"])
def test_stored_documents_are_the_texts(tmp_path, tokenizer):
    texts = [["one", "two é日 two"], ["three"], ["four", "5", "six"]]
    stores = [
        make_store(tmp_path / str(i), part, tokenizer=tokenizer) for i, part in enumerate(texts)
    ]
    found = StoredDocuments("val", stores, tokenizer)
    expected = [
        (text, f"val document {i}")
        for i, text in enumerate([text for part in texts for text in part], 1)
    ]
    assert len(found) == 6
    assert [document[:2] for document in found] == expected


def test_stored_documents_are_named_by_the_source_and_others_keep_their_place(tmp_path):
    held_out = StoredDocuments(
        "val", [make_store(tmp_path, ["x a b c", "y a b c", "cut a b c"], "val")], BYTES
    )
    training = StoredDocuments("train", [make_store(tmp_path, ["none", "a b c d"])], BYTES)
    source = [
        Document("y a b c", "f:1"),
        Document("x a b c", "f:2"),
        Document("a b c d", "f:4"),
        Document("a b c d", "f:5"),
    ]
    further = Document("x a b c", "cases.txt:1")
    mine, theirs = find_overlaps(
        {"val": held_out, "cases": [further]}, training, 3, [source[:2], source[2:]]
    )
    assert [(match.document, match.training) for match in mine.matches] == [
        ("f:2", "f:4"),
        ("f:1", "f:4"),
        ("val document 3", "f:4"),
    ]
    assert [(match.document, match.training) for match in theirs.matches] == [
        ("cases.txt:1", "f:4")
    ]


FURTHER = [
    ("a.txt", "one\ntwo\n\n\nthree\n", [("one\ntwo", ":1"), ("three", ":5")]),
    (
        "a.jsonl",
        '{"q": "one", "a": ["two", 3, null]}\n\n"three"\n',
        [("one\ntwo", ":1"), ("three", ":3")],
    ),
    (
        "a.json",
        '[{"q": "one", "a": {"b": "two"}}, "three"]',
        [("one\ntwo", "[0]"), ("three", "[1]")],
    ),
    (
        "a.json",
        '{"n": 1, "cases": [{"q": "one"}, {"q": "two"}]}',
        [("", ".n"), ("one", ".cases[0]"), ("two", ".cases[1]")],
    ),
    ("a.json", '"one"', [("one", "")]),
]


@pytest.mark.parametrize(("name", "content", "expected"), FURTHER)
def test_further_files_are_named_by_line_or_entry(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_text(content)
    assert [document[:2] for document in read_held_out(str(path))] == [
        (text, f"{path}{place}") for text, place in expected
    ]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.json", b'{"a": ', "a.json: not JSON"),
        ("a.jsonl", b'"fine"\n{broken\n', "a.jsonl:2: not JSON"),
        ("a.json", b"[" * 100_000, "a.json: not JSON"),
        ("a.json", b'"\xff"', "a.json: not JSON"),
        ("a.txt", b"fine\n\n\xff\n", "a.txt:3: not UTF-8"),
        ("a.csv", b"a,b\n", ".txt, .jsonl or .json"),
    ],
)
def test_further_files_that_cannot_be_read_are_refused(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(named)) as refusal:
        list(read_held_out(str(tmp_path / name)))
    assert "\n" not in str(refusal.value)


# --- the terminal


@pytest.mark.usefixtures("takes_seconds")
def test_everything_is_visible_and_nothing_is_lost():
    for start in range(0, sys.maxunicode, 4096):
        text = "".join(map(chr, range(start, start + 4096)))
        assert rendering.visible(text).isprintable()
    assert rendering.visible("a\n\tb\x1b\x7f\x9b\u202e\ud800 é日") == "a↵⇥b␛␡⟨009B⟩⟨202E⟩⟨D800⟩ é日"


def obvious_cells(text):
    return sum(
        (
            0
            if unicodedata.category(c) in ("Mn", "Me")
            else 1 + (unicodedata.east_asian_width(c) in "WF")
        )
        for c in text
    )


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["byte", "bpe"])
@pytest.mark.parametrize("width", [20, 60, 200])
@pytest.mark.parametrize("text", ["the cat sat on the mat\n" * 8, HOSTILE * 3, "日本語" * 30, ""])
def test_terminal_rows_wrap_and_count_positions(tokenizer, width, text):
    row = row_of(text, tokenizer, length=1000)
    tokens = rendering.tokens_of(row, tokenizer)
    plain, coloured = (
        [*rendering.terminal_row(row, tokens, width, colour)] for colour in (False, True)
    )
    assert "\x1b" not in "".join(plain)
    shown = [COLOURS.sub("", line) for line in coloured]
    assert all(line.isprintable() for line in plain + shown)
    assert all(obvious_cells(line) <= width for line in plain[1:] + shown[1:])
    leads = [(int(line[:4]), line[5]) for line in shown[1:]]
    bodies = [line[7:] for line in shown[1:]]
    assert "".join(bodies) == "".join(token.text for token in tokens)
    begun = 0
    # A line's position is that of its first token.
    for (position, mark), body in zip(leads, bodies, strict=True):
        at = next(token for token in tokens if token.position == position)
        before = sum(len(token.text) for token in tokens if token.position < position)
        assert before <= begun < before + len(at.text)
        assert (mark == "├") == (at.begins and before == begun)
        begun += len(body)


def test_a_bytes_of_one_character_show_as_parts_of_it_and_eos_cannot_be_forged():
    tokens = rendering.tokens_of(row_of("é<|eos|>\n"), BYTES)
    assert [token.text for token in tokens] == ["⟨eos⟩", "·", "é", *"<|eos|>", "↵"]
    assert [token.special for token in tokens] == [True] + [False] * 10


def test_labels_documents_and_padding_can_be_seen_without_colour():
    ids = [[97, EOS, 98, 99, 100, PAD, PAD]]
    labels = [[EOS, 98, -100, -100, EOS, -100, -100]]
    [row] = read_rows(batch(ids, labels, [[0, 1, 1, 1, 1, 2, 2]]), BYTES, [""])
    lines = list(rendering.terminal_row(row, rendering.tokens_of(row, BYTES), 80, False))
    assert lines == [
        "step 7, row 1 of 1: 5 tokens, 3 with a label, 2 documents, cut at the start",
        "0 │ a",
        "1 ├ ⟨eos⟩⟦bc⟧d",
        "5 ├ ⟦⟨pad × 2⟩⟧",
    ]
    coloured = list(rendering.terminal_row(row, rendering.tokens_of(row, BYTES), 80, True))
    assert coloured[2].endswith("├ \x1b[0m\x1b[1;35m⟨eos⟩\x1b[0m\x1b[90mb\x1b[0m\x1b[90mc\x1b[0md")


def test_tokens_that_are_words_are_told_apart():
    row = row_of("the cat", BPE)
    tokens = rendering.tokens_of(row, BPE)
    assert all(a.text + b.text for a, b in pairwise(tokens))
    [_, plain] = rendering.terminal_row(row, tokens, 80, False)
    assert plain.split("⟨eos⟩")[1].split("┊") == [token.text for token in tokens[1:]]
    [_, coloured] = rendering.terminal_row(row, tokens, 80, True)
    assert coloured.count("48;5;") == len(tokens) - 1


def test_tables_are_aligned():
    assert (
        terminal_table([["name", "n"], ["日本", "1,000"], ["x", "2"]])
        == "name      n\n日本  1,000\nx         2"
    )


# --- HTML


class Page(HTMLParser):
    """The page as a browser sees it."""

    def __init__(self, content: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "div" and "row" in dict(attrs).get("class", ""):
            self.rows.append([])
        if tag == "i":
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "i":
            self.rows[-1][-1] += data
        elif "style" not in self.open:
            self.text.append(data)


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["byte", "bpe"])
def test_html_is_one_file_in_which_text_stays_text(tokenizer):
    rows = [
        row_of(HOSTILE, tokenizer, length=200, unlabelled=(3,)),
        row_of("plain words\n" * 3, tokenizer),
    ]
    table = {HOSTILE: [[HOSTILE, "n"], [HOSTILE, HOSTILE]]}
    content = rendering.html_page(HOSTILE, table, rows, tokenizer, {HOSTILE: [HOSTILE]})
    page = Page(content)
    assert page.open == []
    assert {tag for tag, _ in page.tags} == {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "h1",
            "h2",
            "p",
            "br",
            "div",
            "table",
            "tr",
            "th",
            "td",
            "ul",
            "li",
            "i",
        ),
        *("thead", "tbody"),
    }
    allowed = {
        "class",
        "data-t",
        "data-p",
        "charset",
        "lang",
        "name",
        "content",
        "http-equiv",
        "scope",
        "role",
        "tabindex",
        "aria-label",
    }
    assert {name for _, attributes in page.tags for name in attributes} <= allowed
    assert not re.search(r"url\(|@import|https?:", content)
    assert all(character.isprintable() or character == "\n" for character in content)
    for row, shown in zip(rows, page.rows, strict=True):
        assert [text.replace("↵\n", "↵") for text in shown] == [
            token.text for token in rendering.tokens_of(row, tokenizer)
        ]
    assert (
        page.text.count(rendering.visible(HOSTILE)) == 8
    )  # title, page heading, three cells, heading of the table, heading of the list, list item


def test_hovering_tells_all_about_a_token():
    [row] = read_rows(
        batch([[97, EOS, 98, PAD]], [[EOS, 98, -100, -100]], [[0, 1, 1, 2]]), BYTES, [""]
    )
    page = Page(rendering.html_page("", {}, [row], BYTES, {}))
    tokens = [attributes for tag, attributes in page.tags if tag == "i"]
    assert [token["data-t"] for token in tokens] == [
        "position 0 · id 97 · label 258 ⟨eos⟩ · document 1 of this row",
        "position 1, 0 in its document · id 258 · label 98 'b' · document 2 of this row",
        "position 2, 1 in its document · id 98 · no label · document 2 of this row",
        "position 3, 0 in its document · id 256 · no label · document 3 of this row",
    ]
    assert [token.get("class") for token in tokens] == [None, "s b", "q", "s q b"]


# --- the command


@pytest.fixture
def inspect(monkeypatch, capsys) -> Iterator:
    """Return a function that runs the command in this process and returns what it printed."""

    def call(*arguments: object, terminal: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["inspect_data", *map(str, arguments)])
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        monkeypatch.setenv("TERM", "xterm")
        inspect_data.main()
        return capsys.readouterr().out

    monkeypatch.delenv("NO_COLOR", raising=False)
    return call


def test_the_rows_shown_are_those_of_the_steps(tmp_path, inspect):
    config = config_file(tmp_path)
    printed = inspect("--config", config, "--step", 3, "--rows", 10, "--ngram", 0)
    data = PackedDataModule(load_config(config).config, BYTES, say=lambda line: None)
    steps = data.train_dataloader().dataset
    expected = []
    for step in (3, 4):
        tensors = (steps[step][name].reshape(-1, 16).tolist() for name in ("input_ids", "labels"))
        for number, (ids, labels) in enumerate(zip(*tensors, strict=True), 1):
            texts = [
                "⟨eos⟩" if i == EOS else chr(i)
                for i, label in zip(ids, labels, strict=True)
                if label != -100
            ]
            expected.append((f"step {step}, row {number} of 8", "".join(texts)))
    *blocks, rest = printed.split("\n\n", 10)
    assert rest.startswith(rendering.LEGEND)
    found = [
        (head.partition(":")[0], "".join(line[5:] for line in lines))
        for head, *lines in (block.split("\n") for block in blocks)
    ]
    assert [(head, text.partition("⟦⟨pad")[0]) for head, text in found] == expected[:10]
    # The counts cover both steps in full.
    assert re.search(r"^positions +256 ", printed, re.MULTILINE)


def shown(lines: list[str]) -> str:
    """Return the text that follows each line's position and mark."""
    return "".join(re.fullmatch(r" *\d+ [│├] (.*)", line)[1] for line in lines)


def mixture_of_two(tmp_path):
    """Write a mixture of two sources with equal file names, one in upper and one in lower case. The
    second gives two of three rows.
    """
    parts = []
    for weight, name, words in (1, "upper", "ABCD"), (2, "lower", "abcd"):
        (tmp_path / name).mkdir()
        file = write_texts(
            tmp_path / name / "a.jsonl", [f"{c * 9} {i} {words}" for i in range(10) for c in words]
        )
        parts.append({"weight": weight, "source": {"format": "jsonl", "files": file}})
    return {"source": {"format": "mixture", "parts": parts}, "val_fraction": 0.3}


def test_rows_of_a_mixture_name_their_source_and_the_table_has_each(tmp_path, inspect):
    config = config_file(
        tmp_path,
        data=mixture_of_two(tmp_path),
        trainer={"batch_size": 12, "micro_batch_size": 4, "max_steps": 12},
    )
    printed = inspect("--config", config, "--step", 5, "--rows", 12)
    *blocks, rest = printed.split("\n\n", 12)
    origins = []
    for number, (head, *lines) in enumerate((block.split("\n") for block in blocks), 1):
        text = shown(lines).replace("⟨eos⟩", "").partition("⟦⟨pad")[0]
        name = re.match(rf"step 5, row {number} of 12, (.+?): \d+ tokens", head)[1]
        assert name == f"jsonl a.jsonl (data.source.parts[{int(text == text.lower())}].source)"
        assert text in (text.lower(), text.upper())
        origins.append(name)
    assert sorted(map(origins.count, set(origins))) == [4, 8]
    report = json.loads(inspect("--config", config, "--json"))
    names = [f"jsonl a.jsonl (data.source.parts[{i}].source)" for i in (0, 1)]
    found = [(line["split"], line["source"]) for line in report["sources"]]
    assert found == [(split, name) for split in ("train", "val") for name in names]
    assert [
        sum(line["documents"] for line in report["sources"] if line["source"] == name)
        for name in names
    ] == [40, 40]
    assert report["streamed"] == []
    [overlap] = report["overlaps"]
    assert overlap["documents"] == sum(
        line["documents"] for line in report["sources"] if line["split"] == "val"
    )
    assert f"train: {names[0]}" in rest


def test_documents_of_any_source_of_a_mixture_are_compared_and_named(tmp_path, inspect):
    numbers = "one two three four five six seven eight nine ten eleven twelve thirteen"
    parts = [
        write_texts(tmp_path / "a.jsonl", ["filler " * 20]),
        write_texts(tmp_path / "b.jsonl", ["no", f"so {numbers} it is"]),
    ]
    source = {
        "format": "mixture",
        "parts": [{"weight": 1, "source": {"format": "jsonl", "files": file}} for file in parts],
    }
    val = write_texts(tmp_path / "val.jsonl", ["nothing of it", numbers])
    data = {"source": source, "validation": {"format": "jsonl", "files": val}, "val_fraction": 0.05}
    report = json.loads(inspect("--config", config_file(tmp_path, data=data), "--json"))
    assert [(line["split"], line["source"]) for line in report["sources"]] == [
        *(("train", "jsonl a.jsonl"), ("train", "jsonl b.jsonl"), ("val", "jsonl val.jsonl"))
    ]
    [match] = report["overlaps"][0]["matches"]
    assert (match["document"], match["training"]) == (f"{val}:2", f"{parts[1]}:2")


# --- the command, on what is streamed


# the documents in the order in which the hub serves them
STREAMED = [
    f"Article {i}.{j}. " + f"It tells of {j * 7919 % 1000}. " * (j % 9)
    for i in range(3)
    for j in range(400)
]


@pytest.mark.usefixtures("starts_processes")
def test_rows_of_a_stream_are_those_of_its_window_and_the_rest_is_said(tmp_path):
    """The test uses the real client, the process that makes the windows, and a step in the third
    window.
    """
    test_stream.serve(tmp_path / "root")
    config = test_stream.config(tmp_path, "run")
    command = [
        sys.executable,
        "-m",
        "tools.inspect_data",
        "--config",
        str(config),
        "--step",
        "40",
        "--rows",
        "16",
    ]
    with Hub(tmp_path / "root") as server:
        environment = os.environ | server.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        run = functools.partial(
            subprocess.run,
            cwd=test_stream.ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        done, report = run(command), run([*command, "--json"])
    assert done.returncode == 0, done.stderr
    *blocks, rest = done.stdout.split("\n\n", 16)
    sequence, _ = test_stream.slow_sequence(3 * 8000, STREAMED, 0.05)
    window = "".join("⟨eos⟩" if i == EOS else chr(i) for i in sequence[2 * 8000 :])
    for number, (head, *lines) in enumerate((block.split("\n") for block in blocks), 1):
        assert head.startswith(f"step 40, row {number} of 16: 32 tokens, 32 with a label, ")
        assert shown(lines) in window
    assert "\nval: hub wikimedia/wikipedia " in rest
    assert "train:" not in rest
    heading = (
        "streamed, so neither counted nor compared; overlap with the training text cannot be"
        " computed, because none of it is stored"
    )
    assert rest.endswith(f"\n\n{heading}\n  hub wikimedia/wikipedia\n")
    numbers = json.loads(report.stdout)
    assert numbers["streamed"] == ["hub wikimedia/wikipedia"]
    assert numbers["overlaps"] == []
    assert [line["split"] for line in numbers["sources"]] == ["val"]


@pytest.mark.usefixtures("starts_processes")
def test_beside_a_stream_what_is_stored_is_compared(tmp_path, inspect, monkeypatch):
    monkeypatch.setattr(hub, "newest_revision", lambda source: "0123456789abcdef")
    monkeypatch.setattr(hub, "stream", test_stream.fake_hub(test_stream.TEXTS))
    numbers = "one two three four five six seven eight nine ten eleven twelve thirteen"
    file = write_texts(tmp_path / "a.jsonl", [numbers, "filler " * 20])
    sources = [
        {"format": "hub", "dataset": "a/b", "streaming": True, "window_tokens": 1024},
        {"format": "jsonl", "files": file},
    ]
    val = {"format": "jsonl", "files": write_texts(tmp_path / "val.jsonl", [f"well, {numbers}"])}
    source = {"format": "mixture", "parts": [{"weight": 1, "source": source} for source in sources]}
    config = config_file(tmp_path, data={"source": source, "validation": val, "val_fraction": 0.05})
    stream = (
        PackedDataModule(load_config(config).config, BYTES, say=lambda line: None).corpora[0].train
    )
    for window in range(2):  # their own process would not know the fake hub
        stream.make(window)
    html_file = tmp_path / "rows.html"
    printed = inspect("--config", config, "--rows", 8, "--html", html_file)
    heads = re.findall(r"^step 0, row \d of 8, (.+?): ", printed, re.MULTILINE)
    assert sorted(heads) == ["hub a/b"] * 4 + ["jsonl a.jsonl"] * 4
    assert (
        f'{val["files"]}:1: 1 of 2 runs of 13 words, first "{numbers}", as in {file}:1' in printed
    )
    assert printed.endswith("\n\nstreamed, so neither counted nor compared\n  hub a/b\n")
    assert "streamed, so neither counted nor compared" in Page(html_file.read_text()).text
    assert not multiprocessing.active_children()


def test_colours_only_where_they_are_wanted(tmp_path, inspect, monkeypatch):
    config = config_file(tmp_path)
    assert "\x1b" not in inspect("--config", config)
    assert "\x1b[" in inspect("--config", config, terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in inspect("--config", config, terminal=True)


def write_texts(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_offending_documents_are_named(tmp_path, inspect):
    numbers = "one two three four five six seven eight nine ten eleven twelve thirteen"
    train = write_texts(
        tmp_path / "train.jsonl", ["filler " * 20, f"start {numbers}, fourteen", HOSTILE]
    )
    val = write_texts(
        tmp_path / "val.jsonl", ["nothing of it", f"Before {numbers.upper()}! after", "short"]
    )
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps([{"prompt": numbers.replace(" ", ", ")}, {"prompt": "else"}]))
    sections = {
        split: {"format": "jsonl", "files": file}
        for split, file in (("source", train), ("validation", val))
    }
    config = config_file(tmp_path, data={**sections, "val_fraction": 0.05})
    html_file = tmp_path / "rows.html"
    command = ("--config", config, "--against", cases, "--html", html_file)
    report = json.loads(inspect(*command, "--json"))
    validation, further = report["overlaps"]
    assert (validation["documents"], validation["too_short"], len(validation["matches"])) == (
        3,
        2,
        1,
    )
    match = {
        "ngrams": 3,
        "shared": 1,
        "words": numbers.upper(),
        "document": f"{val}:2",
        "training": f"{train}:2",
    }
    assert validation["matches"] == [match]
    assert further["name"] == str(cases)
    assert [(m["document"], m["training"]) for m in further["matches"]] == [
        (f"{cases}[0]", f"{train}:2")
    ]
    assert [(line["split"], line["source"]) for line in report["sources"]] == [
        ("train", "jsonl train.jsonl"),
        ("val", "jsonl val.jsonl"),
    ]
    assert report["rows"]["rows"] == 8

    line = f'{val}:2: 1 of 3 runs of 13 words, first "{numbers.upper()}", as in {train}:2'
    assert line in inspect(*command)
    assert line in Page(html_file.read_text()).text


def test_hostile_text_stays_text_on_the_whole_way(tmp_path, inspect):
    file = write_texts(tmp_path / "a.jsonl", [f"{HOSTILE} {i}" for i in range(30)])
    config = config_file(
        tmp_path,
        data={"source": {"format": "jsonl", "files": file}, "val_fraction": 0.3},
        model={"context_length": 64},
    )
    html_file = tmp_path / "rows.html"
    printed = inspect("--config", config, "--ngram", 2, "--html", html_file, terminal=True)
    assert "<script>" in printed
    assert all(c.isprintable() or c == "\n" for c in COLOURS.sub("", printed))
    assert "script" not in {tag for tag, _ in Page(html_file.read_text()).tags}


EPOCHS = ["--trainer.max_steps=null", "--trainer.max_epochs=0.8"]


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (["--step", "12"], ConfigError, "--step: the run has the steps 0 to 11, got 12"),
        (["--step", "-1"], ConfigError, "--step"),
        # the number of steps is known when the text is read
        (["--step", "7", *EPOCHS], ConfigError, "--step: the run has the steps 0 to 6, got 7"),
        (["--step", "-1", *EPOCHS], ConfigError, "--step: the run has the steps from 0, got -1"),
        (["--rows", "0"], ConfigError, "--rows"),
        (["--ngram", "-1"], ConfigError, "--ngram"),
        (["--trainer.max_stepz", "3"], ConfigError, "max_steps"),
        (["--against", "nowhere.json"], DataError, "--against: nowhere.json does not exist"),
        (["--data.source.files", "nowhere.txt"], DataError, "nowhere.txt"),
    ],
)
def test_mistakes_are_answered_in_one_line(tmp_path, inspect, arguments, error, named):
    with pytest.raises(error, match=re.escape(named)) as refusal:
        inspect("--config", config_file(tmp_path), *arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.usefixtures("starts_processes")
def test_as_a_person_types_it(tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "tools.inspect_data",
            "--config",
            str(config_file(tmp_path)),
            *arguments,
        ]
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            cwd=Path(__file__).parents[2],
        )

    done = run()
    assert done.returncode == 0, done.stderr
    assert "step 0, row 4 of 8" in done.stdout and "\x1b" not in done.stdout
    refused = run("--html", str(tmp_path / "no" / "folder.html"))
    assert refused.returncode == 5
    assert "folder.html" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize("flag", [["--html", "a.html"], ["--json"], ["--against", "a.txt"]])
def test_sample_refuses_flags_that_it_would_ignore(flag: list[str]) -> None:
    words = ["--config", "config_smoke.yaml", "--sample", "1", *flag]
    arguments = inspect_data.parser().parse_args(words)
    config = load_config("config_smoke.yaml").config
    with pytest.raises(ConfigError, match=f"{flag[0]}: --sample shows one conversation"):
        inspect_data.check(arguments, config)


def test_a_second_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--config: given twice, got a.yaml before"):
        inspect_data.parser().parse_args(["--config", "a.yaml", "--config", "b.yaml"])


def test_a_conversation_is_shown_by_its_tokens_and_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its words can be searched, however the vocabulary cuts them."""
    asked = {"role": "user", "content": 'Say "é".'}
    turns = {"messages": [asked, {"role": "assistant", "content": "No."}]}
    (tmp_path / "turns.jsonl").write_text(json.dumps(turns) + "\n")
    source = {"format": "chat", "files": str(tmp_path / "turns.jsonl")}
    words = {"data": {"source": source, "val_fraction": 0.1}, "trainer": {"max_steps": 200}}
    (tmp_path / "config.yaml").write_text(json.dumps(words))
    config = load_config(str(tmp_path / "config.yaml"), trains=False).config
    inspect_data.show_sample(config, ByteTokenizer(), 1)
    shown = capsys.readouterr().out
    assert "⟦" in shown
    text = json.loads(shown.splitlines()[-1].removeprefix("as text: "))
    assert 'Say "é".' in text and text.endswith("No.")
