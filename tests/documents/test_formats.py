"""Each format, from a file to its rows: texts, and refusals with their line."""

import json
import re
import tracemalloc
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lm.config.schema.source import SingleSource
from lm.documents import formats, parquet
from lm.documents.faults import Fault
from lm.documents.formats import FORMATS, rows_before, spans
from lm.system.errors import DataError

HAM = (
    "### Instruction: classify if the SMS is spam or ham\n### Input: {0}\n### Output:"
    " {1}\n<|sep|>\n"
)


def section(**keys):
    return TypeAdapter(SingleSource).validate_python({"files": "unused", **keys})


def rows(path, content, **keys):
    """Return (number, text) or (number, kind of fault) for each row."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = FORMATS[keys["format"]](str(path), section(**keys), None)
    return [(number, text.kind if isinstance(text, Fault) else text) for number, text in found]


# --- csv

CSV = [
    ("plain", "id,text\n1,one\n2,two\n", [(2, "one"), (3, "two")]),
    ("no newline at the end", "text\none", [(2, "one")]),
    ("byte order mark", "\ufefftext,id\none,1\n", [(2, "one")]),
    ("Windows line ends", "id,text\r\n1,one\r\n2,two\r\n", [(2, "one"), (3, "two")]),
    ("newline in quotes", 'text\n"one\nmore"\ntwo\n', [(2, "one\nmore"), (4, "two")]),
    (
        "Windows newline in quotes",
        'text\r\n"one\r\nmore"\r\ntwo\r\n',
        [(2, "one\r\nmore"), (4, "two")],
    ),
    ("other line ends", "text\na\u2028b\x0bc\x0c\x85d\n", [(2, "a\u2028b\x0bc\x0c\x85d")]),
    ("delimiter in quotes", 'id,text\n1,"a, b"\n', [(2, "a, b")]),
    ("doubled quotes", 'text\n"she said ""hi"""\n', [(2, 'she said "hi"')]),
    ("quotes in the middle", 'text\n5" wide\n', [(2, '5" wide')]),
    ("quoted names", '"id","text"\n1,one\n', [(2, "one")]),
    ("newline in a name", 'text,"a\nb"\none,1\n', [(3, "one")]),
    ("empty fields", 'id,text\n1,\n2,""\n', [(2, ""), (3, "")]),
    ("blank lines", "id,text\n\n1,one\n\n", [(2, ""), (3, "one"), (4, "")]),
    ("spaces are text", "id,text\n1, one \n", [(2, " one ")]),
    ("NUL behind the head", f"text\n{'a' * 600}\0b\n", [(2, "a" * 600 + "\0b")]),
    ("names only", "id,text\n", []),
    ("nothing", "", []),
    ("too few columns", "id,text\n1\n2,two\n", [(2, "another number of columns"), (3, "two")]),
    (
        "too many columns",
        'id,text\n1,a, b\n"2\n",two\n',
        [(2, "another number of columns"), (3, "two")],
    ),
    ("bad bytes", b"id,text\n1,gr\xfc\xdfe\n2,two\n", [(2, "not UTF-8"), (3, "two")]),
    ("bad bytes elsewhere", b"id,text\n\xfc,one\n", [(2, "one")]),
    ("text behind quotes", 'id,text\n1,"one"x\n2,two\n', [(2, "broken CSV"), (3, "two")]),
    (
        "a carriage return in the middle",
        "id,text\n1,a\rb\n2,two\n",
        [(2, "broken CSV"), (3, "two")],
    ),
]


@pytest.mark.parametrize(("name", "content", "expected"), CSV, ids=[case[0] for case in CSV])
def test_csv(tmp_path, name, content, expected):
    assert rows(tmp_path / "a.csv", content, format="csv") == expected


@pytest.mark.parametrize("delimiter", [";", "\t", "|", " ", "€"])
def test_csv_with_another_delimiter(tmp_path, delimiter):
    content = f"id{delimiter}text\n1{delimiter}a,b\n"
    assert rows(tmp_path / "a.csv", content, format="csv", delimiter=delimiter) == [(2, "a,b")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "id,body\n1,one\n",
            (
                ": no column 'text'; there are ['id', 'body']; text_key names the one that holds"
                " the text"
            ),
        ),
        (
            "id;text\n1;one\n",
            (
                ": no column 'text'; there are ['id;text']; text_key names the one that holds the"
                " text, and delimiter"
            ),
        ),
        ("\n\nid,text\n", ": no column 'text'; there are []; text_key"),
        ("text,text\na,b\n", ": 2 columns are called 'text'; rename all but one"),
        (
            'text\n"one\ntwo\nthree\n',
            ":2: broken CSV: a quote that opens here is never closed; correct it",
        ),
        (
            'text\none\n"two\n\nthree',
            ":3: broken CSV: a quote that opens here is never closed; correct it",
        ),
        ('"text"x,id\none,1\n', ":1: broken CSV: ',' expected after '\"'; correct it"),
    ],
)
def test_csv_that_no_policy_can_read(tmp_path, content, expected):
    with pytest.raises(DataError) as error:
        rows(tmp_path / "a.csv", content, format="csv")
    assert str(error.value).startswith(f"{tmp_path}/a.csv{expected}")


fields = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    | st.sampled_from('",\n\r;\t '),
    max_size=12,
)


@pytest.mark.usefixtures("takes_seconds")
@given(table=st.lists(st.tuples(fields, fields), max_size=8), delimiter=st.sampled_from(",;\t|"))
@settings(max_examples=150, deadline=None)
def test_csv_gives_back_what_was_quoted(tmp_path_factory, table, delimiter):
    """The file is quoted by hand, not by the library that reads it."""
    lines = [("id", "text"), *table]
    content = "".join(
        delimiter.join('"' + field.replace('"', '""') + '"' for field in line) + "\n"
        for line in lines
    )
    found = rows(
        tmp_path_factory.mktemp("csv") / "a.csv", content, format="csv", delimiter=delimiter
    )
    assert [text for _, text in found] == [text for _, text in table]
    numbers = [1 + content_before.count("\n") for content_before in _before(lines, delimiter)]
    assert [number for number, _ in found] == numbers


def _before(lines, delimiter):
    text = ""
    for number, line in enumerate(lines):
        if number:
            yield text
        text += delimiter.join(line) + "\n"


# --- sms, instruction: the template of four lines


def test_sms(tmp_path):
    content = "\ufeffham\tGo on\u2028 {now}\r\nspam\tWIN\ta prize\n\nham\t\n"
    found = rows(tmp_path / "a", content, format="sms")
    assert found == [
        (1, HAM.format("Go on\u2028 {now}", "ham")),
        (2, HAM.format("WIN\ta prize", "spam")),
        (3, ""),
        (4, HAM.format("", "ham")),
    ]


@pytest.mark.parametrize(
    "line", ["ham Go on", "HAM\tGo on", "\tGo on", "label\ttext", "ham,Go on", "spam"]
)
def test_lines_that_are_no_labelled_message(tmp_path, line):
    assert rows(tmp_path / "a", f"ham\tfine\n{line}\n", format="sms") == [
        (1, HAM.format("fine", "ham")),
        (2, "not a labelled message"),
    ]


ENTRIES = [
    {"instruction": "Add {1}", "input": "1 + 1\n", "output": "2"},
    {"instruction": "Say", "output": "ü\u2028", "id": 3},
    {"instruction": "", "input": "", "output": ""},
]
TEXTS = [
    "### Instruction: Add {1}\n### Input: 1 + 1\n\n### Output: 2\n<|sep|>\n",
    "### Instruction: Say\n### Input: \n### Output: ü\u2028\n<|sep|>\n",
    "### Instruction: \n### Input: \n### Output: \n<|sep|>\n",
]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("indent", [None, 2])
def test_instructions_in_a_list(tmp_path, bom, indent):
    """Each has the number of the line on which it begins."""
    content = bom + json.dumps(ENTRIES, indent=indent)
    lines = [1, 1, 1] if indent is None else [2, 7, 12]
    left_out = Counter({"key 'id'": 1})
    assert rows(tmp_path / "a.json", content, format="instruction") == [
        (lines[0], TEXTS[0]),
        (lines[1], left_out),
        *zip(lines[1:], TEXTS[1:], strict=True),
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [("", ","), ("", " , \r"), ("\x1e", ""), ("\ufeff", ""), ("\ufeff\x1e", ",")],
    ids=["commas", "commas and spaces", "RFC 7464", "joined files", "all"],
)
def test_marks_around_the_value_of_a_line(tmp_path, before, after):
    content = "".join(f'{before}{{"text": "{text}"}}{after}\n' for text in ("a,", "b", "c"))
    expected = [(1, "a,"), (2, "b"), (3, "c")]
    assert rows(tmp_path / "a.jsonl", content, format="jsonl") == expected
    content = "".join(before + json.dumps(entry) + after + "\n" for entry in ENTRIES[:1] * 2)
    expected = [(1, TEXTS[0]), (2, TEXTS[0])]
    assert rows(tmp_path / "a.jsonl", content, format="instruction") == expected


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (json.dumps([{"text": "a"}], indent=2), r"a list over several lines .* as jq -c '\.\[\]'"),
        (json.dumps([{"text": "a"}]), r"jq -c '\.\[\]' writes each row of a list on a line"),
        (json.dumps({"text": "a"}, indent=2), r"an object over several lines .* as jq -c \. does"),
        ('{"text": "a"}{"text": "b"}', r"column 14; each line must hold one value, as jq -c \."),
        ('{"text": "a"},{"text": "b"},', "column 14; each line must hold one value"),
        ("{'text': 'a'}", "Python's print is no JSON, json.dumps writes it"),
    ],
)
def test_other_json_is_told_how_to_become_lines(tmp_path, content, told):
    (tmp_path / "a.jsonl").write_text(content)
    found = FORMATS["jsonl"](str(tmp_path / "a.jsonl"), section(format="jsonl"), None)
    fault = next(found)[1]
    assert isinstance(fault, Fault)
    assert re.search(told, fault.detail)


def test_instructions_in_lines(tmp_path):
    content = "\n" + "".join(json.dumps(entry, ensure_ascii=False) + "\r\n" for entry in ENTRIES)
    assert rows(tmp_path / "a.jsonl", content, format="instruction") == [
        (1, "\n"),
        (2, TEXTS[0]),
        (3, Counter({"key 'id'": 1})),
        (3, TEXTS[1]),
        (4, TEXTS[2]),
    ]


@pytest.mark.parametrize(
    ("entry", "kind", "detail"),
    [
        ({"output": "x"}, "no key 'instruction'", "there are ['output']"),
        ({"instruction": "x"}, "no key 'output'", "there are ['instruction']"),
        ({"instruction": "x", "output": 2}, "text is not a string", "output: it is 2"),
        ({"instruction": "x", "input": 0, "output": "y"}, "text is not a string", "input: it is 0"),
        ({"instruction": "x", "output": "y", "label": False}, "answer that label says", "label is"),
        (
            {"instruction": "x", "output": "\ud800"},
            "half a surrogate pair",
            r"output: '\ud800' is no character",
        ),
        ("text", "not a JSON object", 'it must look like {"instruction": "...", "output": "..."}'),
        (None, "not a JSON object", "it must look like"),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_entries_that_are_no_instruction(tmp_path, entry, kind, detail, listed):
    file = tmp_path / "a.json"
    file.write_text(
        json.dumps([ENTRIES[0], entry])
        if listed
        else json.dumps(ENTRIES[0]) + "\n" + json.dumps(entry)
    )
    (_, first), (number, fault) = FORMATS["instruction"](
        str(file), section(format="instruction"), None
    )
    assert (first, number) == (TEXTS[0], 1 if listed else 2)
    assert fault.kind.startswith(kind)
    assert fault.detail.startswith(f"entry 2 of the list: {detail}" if listed else detail)


@pytest.mark.parametrize(
    "content", ["[", '[{"instruction": "x"', "[1, 2] x", "[" * 100_000, "[" + "9" * 5000 + "]"]
)
def test_a_broken_list_is_refused_as_a_whole(tmp_path, content):
    with pytest.raises(DataError) as error:
        rows(tmp_path / "a.json", content, format="instruction")
    assert str(error.value).startswith(f"{tmp_path}/a.json: broken JSON (")


# --- jsonl


def test_an_escaped_half_is_told_from_a_bad_byte(tmp_path):
    """For Python both are the same character."""
    content = rb'{"text": "\udcfc"}' + b"\n" + b'{"text": "\xfc"}\n'
    assert rows(tmp_path / "a", content, format="jsonl") == [
        (1, "half a surrogate pair"),
        (2, "not UTF-8"),
    ]


LINES = [
    rb'{"text": "a \n \u00e9 \ud83d\ude00", "more": [1, -2.5e3, {"x": null}]}',
    '{"text": "é\u2028", "text": "b", "ü": true}'.encode(),
    b'{"text": "\\ud83d", "more": NaN}',
    b'{"more": -Infinity, "text": "", "text ": 0.1}\r',
    b'{"text": 18446744073709551616}',
    b"[" * 150 + b"]" * 150,
    b"[" * 300 + b"]" * 300,
    b'["text", "a"]',
    b'"text"',
    b"",
]
PARTS = [
    *rb'{ } [ ] , : " \ \u \ud83d \ude00 \x41 - -0 . e 0 01 1. +1 1e999 NaN -NaN Infinity inf tru'
    rb' "text":1, "text":"a",'.split(),
    *(
        b" ",
        b"\t",
        b"\r",
        b"\0",
        b"\x0b",
        b"\x7f",
        b"\xc2\xa0",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xff",
        b"9" * 4301,
    ),
]
EDITS = st.lists(
    st.tuples(st.integers(0, 80), st.integers(0, 3), st.sampled_from(PARTS)), max_size=3
)


@pytest.mark.usefixtures("takes_seconds")
@settings(max_examples=1000)
@given(line=st.sampled_from(LINES), edits=EDITS)
def test_a_line_is_what_json_makes_of_it(line, edits):
    """`from_json` reads most lines, and neither texts nor refusals show it."""
    for place, removed, part in edits:
        line = line[:place] + part + line[place + removed :]
    found = formats._from_json_line(line, "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "from_json", lambda *_, **__: json.loads(""))
        assert found == formats._from_json_line(line, "text")


# --- parquet


def write_groups(path, texts, size):
    pq.write_table(
        pa.table({"text": texts, "other": ["x" * 50] * len(texts)}), path, row_group_size=size
    )
    return str(path)


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("span_bytes", [1, 3000, 10**9])
def test_row_groups_make_pieces(tmp_path, monkeypatch, span_bytes):
    texts = [f"{i} " + "y" * (i % 40) for i in range(1000)]
    file, source = write_groups(tmp_path / "a.parquet", texts, 70), section(format="parquet")
    monkeypatch.setattr(parquet, "SPAN_BYTES", span_bytes)
    found = spans(file, source)
    assert len(found) == {1: 15, 10**9: 1}.get(span_bytes, len(found))
    assert 1 < len(found) < 15 or span_bytes != 3000
    read = [
        (rows_before(file, source, span) + number, text)
        for span in found
        for number, text in FORMATS["parquet"](file, source, span)
    ]
    assert read == list(enumerate(texts, 1))


def test_a_large_row_group_is_read_from_its_beginning(tmp_path, monkeypatch):
    """One row group may be the whole file, and a piece must fit into memory."""
    file = write_groups(tmp_path / "a.parquet", ["y" * 1000 + str(i) for i in range(100)], 100)
    assert len(spans(file, section(format="parquet"))) == 1
    monkeypatch.setattr(parquet, "MOST_ROW_GROUP_BYTES", 50_000)
    assert spans(file, section(format="parquet")) is None


@pytest.mark.usefixtures("takes_seconds")
def test_memory_is_not_a_row_group(tmp_path):
    texts = [f"{i} " * 300 for i in range(20_000)]
    file = write_groups(tmp_path / "a.parquet", texts, 20_000)
    size = sum(map(len, texts))
    del texts
    allocated = pa.total_allocated_bytes()
    tracemalloc.start()
    most = max(
        pa.total_allocated_bytes() - allocated
        for _ in FORMATS["parquet"](file, section(format="parquet"), None)
    )
    assert most + tracemalloc.get_traced_memory()[1] < size / 3
    tracemalloc.stop()


def test_a_table_without_rows(tmp_path):
    file = write_groups(tmp_path / "a.parquet", pa.array([], pa.string()), 10)
    source = section(format="parquet")
    assert [
        row
        for span in spans(file, source) or [(0, 0)]
        for row in FORMATS["parquet"](file, source, span)
    ] == []
