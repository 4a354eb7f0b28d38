"""Documents from files: texts, refusals in one line with their place, counts of the skipped."""

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lm.config.schema.source import SingleSource as Source
from lm.documents.files import find_files
from lm.documents.reader import Reader
from lm.system.errors import DataError
from lm.tokenizer.tokenizer import load_tokenizer
from tests.support.hub import Hub, client_environment


def byte_tokenizer():
    return load_tokenizer("byte")


def reader(policy="stop", **section):
    return Reader(TypeAdapter(Source).validate_python(section), "data.source", policy)


def texts(**section):
    return [document.text for document in reader(**section)]


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


# --- txt


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", [("a ", 1), ("b", 2), ("  c", 5), ("d", 6)]),
        ("paragraph", [("a \nb", 1), ("  c\nd", 5)]),
        ("file", [("a \nb\n\n \t\n  c\nd", 1)]),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_units_line_ends_and_byte_order_mark(tmp_path, unit, expected, newline, bom):
    file = write(tmp_path / "a.txt", bom + "a \nb\n\n \t\n  c\nd".replace("\n", newline))
    assert [document[:2] for document in reader(format="txt", files=file, unit=unit)] == [
        (text, f"{file}:{line}") for text, line in expected
    ]


def test_a_whole_file_keeps_its_last_newline_and_a_late_nul_is_a_character(tmp_path):
    content = "a" * 600 + "\0b\n\nc\n"
    file = write(tmp_path / "a.txt", content)
    assert texts(format="txt", files=file, unit="file") == [content]


@pytest.mark.usefixtures("takes_seconds")
@given(
    st.lists(
        st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1
        ).filter(lambda line: line.strip())
    )
)
def test_lines_are_split_at_newlines_and_nowhere_else(tmp_path_factory, lines):
    """str.splitlines would also split at U+2028, form feeds and eight more.

    A byte order mark is one only at the start of the file.
    """
    first = ["one", "\ufefftwo"]
    file = write(
        tmp_path_factory.mktemp("lines") / "a.txt",
        "".join(line + "\n" for line in [*first, *lines]),
    )
    assert texts(format="txt", files=file, unit="line") == [*first, *lines]


# --- jsonl, parquet


def test_jsonl(tmp_path):
    rows = [{"id": 1, "text": "Grüße\n\n\u2028 \U0001f600"}, {"text": "b\0"}]
    content = "\ufeff" + json.dumps(rows[0]) + "\r\n\n" + json.dumps(rows[1], ensure_ascii=False)
    file = write(tmp_path / "a.jsonl", content)
    assert [document[:2] for document in reader(format="jsonl", files=file)] == [
        (rows[0]["text"], f"{file}:1"),
        ("b\0", f"{file}:3"),
    ]
    assert texts(
        format="jsonl", files=write(tmp_path / "b.jsonl", '{"body": "c"}'), text_key="body"
    ) == ["c"]


def test_parquet_reads_batches_over_row_groups(tmp_path):
    expected = [f"text {i}" for i in range(2500)]
    pq.write_table(
        pa.table({"n": list(range(2500)), "body": expected}),
        tmp_path / "a.parquet",
        row_group_size=700,
    )
    found = list(reader(format="parquet", files=str(tmp_path / "a.parquet"), text_key="body"))
    assert [document.text for document in found] == expected
    assert found[1234].place == f"{tmp_path}/a.parquet:1235"


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_string_types(tmp_path, kind):
    assert texts(
        format="parquet",
        files=write_parquet(tmp_path / "a.parquet", text=pa.array(["a", "b"]).cast(kind)),
    ) == ["a", "b"]


# --- files


def test_files_are_sorted_and_each_is_read_once(tmp_path, monkeypatch):
    for name in ("b", "a", "c", "x"):
        write(tmp_path / f"{name}.txt", name)
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    monkeypatch.chdir(tmp_path)
    source = reader(
        format="txt", files=["x.txt", "[abcf]*.txt", "./c.txt", str(tmp_path / "link.txt")]
    )
    assert [document.text for document in source] == ["a", "b", "c", "x"]
    assert source.files == ["a.txt", "b.txt", "c.txt", "x.txt"]
    assert source.skipped == {"file named twice": 2}, "c, and a by its link; the folder is no file"
    assert reader(format="txt", files="*.txt").skipped == {}


def test_home_and_nested_globs_and_names_with_brackets(tmp_path, monkeypatch):
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    write(tmp_path / "a" / "b" / "c" / "deep.txt", "deep")
    write(tmp_path / "a" / "notes [1].txt", "brackets")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts(format="txt", files="~/a/**/deep.txt") == ["deep"]
    assert texts(format="txt", files="~/a/notes [1].txt") == ["brackets"]


def test_a_reader_can_be_read_again_and_counts_afresh(tmp_path):
    source = reader(
        "skip", format="jsonl", files=write(tmp_path / "a.jsonl", '{"text": "a"}\n{}\n')
    )
    assert list(source) == list(source)
    assert source.skipped == {"no key 'text'": 1}


@pytest.mark.usefixtures("takes_seconds")
def test_memory_is_one_document(tmp_path):
    file = tmp_path / "large.txt"
    with file.open("w") as stream:
        for i in range(20_000):
            stream.write(f"paragraph {i} " + "x" * 500 + "\n\n")
    tracemalloc.start()
    assert sum(1 for _ in reader(format="txt", files=str(file))) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 1_000_000, "the file has 10 MB"
    tracemalloc.stop()


# --- identity


def test_identity_changes_with_content_files_and_settings(tmp_path):
    file = write(tmp_path / "a.txt", "one")
    source = {"format": "txt", "files": file}
    before = json.dumps(reader(**source).identity())
    assert json.dumps(reader(**source).identity()) == before
    assert json.dumps(reader(format="txt", files=str(tmp_path / "*.txt")).identity()) == before, (
        "the same file under another pattern"
    )
    assert json.dumps(reader(**source, unit="line").identity()) != before
    os.utime(file, ns=(0, 0))
    touched = json.dumps(reader(**source).identity())
    write(tmp_path / "a.txt", "more")
    os.utime(file, ns=(0, 0))
    assert len({before, touched, json.dumps(reader(**source).identity())}) == 3, (
        "time alone and size alone are noticed"
    )


def test_identity_changes_with_a_name_that_decides_how_a_file_is_read(tmp_path):
    """Whatever the file's date says: here only the hash of its content describes it."""

    def identity(name, **section):
        file = write(tmp_path / name, "prompt,completion\na,b\n")
        section = TypeAdapter(Source).validate_python({"files": file, **section})
        return Reader(section, tokenizer=byte_tokenizer()).identity(lambda _: ["hash"])

    csv = {"format": "csv", "text_key": "prompt"}
    assert identity("a.csv", **csv) == identity("a.txt", **csv) != identity("a.tsv", **csv)
    made = [str(identity(name, format="chat")) for name in ("a.csv", "a.tsv", "a.json")]
    assert len(set(made)) == 3
    assert identity("a.csv", format="txt") == identity("a.tsv", format="txt")


# --- unreadable files. A case: its name, the file's content, the expected message after the file's
# name, the counts with `skip`.

BAD_TXT = [
    ("latin-1", b"fine\n\ngr\xfc\xdfe\n", ":3: not UTF-8: byte 0xfc;", {"not UTF-8": 1}),
    (
        "second line of a paragraph",
        b"fine\n\na\nb\n\xff\n",
        ":5: not UTF-8: byte 0xff;",
        {"not UTF-8": 1},
    ),
    (
        "cut in a character",
        "fine\n\nGrü".encode()[:-1],
        ":3: not UTF-8: byte 0xc3;",
        {"not UTF-8": 1},
    ),
    ("surrogate in UTF-8", b"fine\n\n\xed\xa0\x80", ":3: not UTF-8: byte 0xed;", {"not UTF-8": 1}),
    ("empty", b"", ": empty file: there is no text in it;", {"empty file": 1}),
    ("white space", b" \n\n\t\n", ": empty file: there is no text in it;", {"empty file": 1}),
    (
        "byte order mark only",
        b"\xef\xbb\xbf",
        ": empty file: there is no text in it;",
        {"empty file": 1},
    ),
]
GOOD = b'{"text": "fine"}\n'
BAD_JSONL = [
    (
        "missing key",
        GOOD + b'{"body": "x", "id": 1}\n',
        ":2: no key 'text': there are ['body', 'id'];",
        {"no key 'text'": 1},
    ),
    ("no keys", GOOD + b"{}", ":2: no key 'text': there are [];", {"no key 'text'": 1}),
    (
        "null",
        GOOD + b'{"text": null}',
        ":2: text is not a string: it is None;",
        {"text is not a string": 1},
    ),
    (
        "number",
        GOOD + b'{"text": 3}\n',
        ":2: text is not a string: it is 3;",
        {"text is not a string": 1},
    ),
    (
        "list",
        GOOD + b'{"text": ["a"]}\n',
        ":2: text is not a string: it is ['a'];",
        {"text is not a string": 1},
    ),
    (
        "cut line",
        GOOD + b'{"text": "ab',
        ":2: broken JSON: Unterminated string starting at at column 10;",
        {"broken JSON": 1},
    ),
    (
        "single quotes",
        GOOD + b"{'text': 'a'}\n",
        ":2: broken JSON: Expecting property name",
        {"broken JSON": 1},
    ),
    (
        "two objects",
        GOOD + b'{"text": "a"} {"text": "b"}\n',
        ":2: broken JSON: Extra data at column 15;",
        {"broken JSON": 1},
    ),
    ("object over lines", GOOD + b'{\n"text": "a"\n}\n', ":2: broken JSON:", {"broken JSON": 3}),
    (
        "raw control character",
        GOOD + b'{"text": "a\tb"}\n',
        ":2: broken JSON: Invalid control character at",
        {"broken JSON": 1},
    ),
    (
        "not an object",
        GOOD + b'"text"\n',
        ":2: not a JSON object: a line must look like",
        {"not a JSON object": 1},
    ),
    ("array", GOOD + b'[{"text": "a"}]', ":2: not a JSON object:", {"not a JSON object": 1}),
    (
        "deep nesting",
        GOOD + b"[" * 100_000,
        ":2: broken JSON: nested too deeply",
        {"broken JSON": 1},
    ),
    (
        "huge number",
        GOOD + b'{"text": ' + b"9" * 5000 + b"}",
        ":2: broken JSON: nested too deeply, or a number",
        {"broken JSON": 1},
    ),
    (
        "half a surrogate pair",
        GOOD + rb'{"text": "a\ud800"}',
        r":2: half a surrogate pair: '\ud800' is no",
        {"half a surrogate pair": 1},
    ),
    ("latin-1", GOOD + b'{"text": "gr\xfc\xdfe"}', ":2: not UTF-8: byte 0xfc;", {"not UTF-8": 1}),
    (
        "nul bytes",
        GOOD.rstrip(b"\n") + b" " * 600 + b"\n\0\0\0\0\n",
        ":2: broken JSON: Expecting value at column 1;",
        {"broken JSON": 1},
    ),
    ("empty", b"", ": empty file: there is no text in it;", {"empty file": 1}),
    (
        "blank lines",
        b"\n \n",
        ": empty file: there is no text in it;",
        {"empty file": 1, "empty document": 2},
    ),
    (
        "empty strings",
        b'{"text": ""}\n{"text": " \\n"}',
        ": empty file: there is no",
        {"empty file": 1, "empty document": 2},
    ),
]
CASES = [("txt", *case) for case in BAD_TXT] + [("jsonl", *case) for case in BAD_JSONL]


@pytest.mark.parametrize(
    ("format", "name", "content", "line", "counts"),
    CASES,
    ids=[f"{case[0]}: {case[1]}" for case in CASES],
)
def test_rows_that_cannot_be_read(tmp_path, format, name, content, line, counts):
    file = write(tmp_path / f"bad.{format}", content)
    with pytest.raises(DataError) as error:
        list(reader(format=format, files=file))
    message = str(error.value)
    assert message.startswith(file + line)
    assert message.endswith(", or skip such rows with data.on_bad_row: skip")
    assert "\n" not in message
    assert len(message) < len(file) + 250
    skipping = reader("skip", format=format, files=file)
    assert [document.text for document in skipping] == ["fine"] * (
        b"fine\n" in content or b'"fine"' in content
    )
    assert skipping.skipped == counts


def bad_arrow_text():
    return pa.Array.from_buffers(
        pa.string(),
        2,
        [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])), pa.py_buffer(b"a\xff")],
    )


@pytest.mark.parametrize(
    ("column", "line", "counts"),
    [
        (["fine", None], ":2: text is not a string: it is None;", {"text is not a string": 1}),
        ([1, 2], ":1: text is not a string: it is 1;", {"text is not a string": 2}),
        ([b"a", b"b"], ":1: text is not a string: it is b'a';", {"text is not a string": 2}),
        ([["a"], ["b"]], ":1: text is not a string: it is ['a'];", {"text is not a string": 2}),
        (bad_arrow_text(), ":2: not UTF-8: byte 0xff;", {"not UTF-8": 1}),
        (pa.array([], pa.string()), ": empty file: there is no text in it;", {"empty file": 1}),
    ],
)
def test_parquet_rows_that_cannot_be_read(tmp_path, column, line, counts):
    file = write_parquet(tmp_path / "bad.parquet", text=column)
    with pytest.raises(DataError) as error:
        list(reader(format="parquet", files=file))
    assert str(error.value).startswith(file + line)
    skipping = reader("skip", format="parquet", files=file)
    list(skipping)
    assert skipping.skipped == counts


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "page"])
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_damaged_parquet_is_never_skipped(tmp_path, damage, policy):
    file = Path(write_parquet(tmp_path / "a.parquet", text=[f"text {i}" for i in range(1000)]))
    whole = file.read_bytes()
    broken = {
        "garbage": b"not parquet" * 10,
        "empty": b"",
        "cut": whole[:-100],
        "page": whole[:20] + b"\xff" * 100 + whole[120:],
    }
    file.write_bytes(broken[damage])
    with pytest.raises(DataError) as error:
        list(reader(policy, format="parquet", files=str(file)))
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_column_names_those_there_are(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", body=["a"], id=[1])
    with pytest.raises(DataError) as error:
        list(reader("skip", format="parquet", files=file))
    expected = (
        f"{file}: no column 'text'; there are ['body', 'id']; text_key names the one that holds the"
        " text"
    )
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (
            "missing.txt",
            "data.source.files: {0}/missing.txt does not exist; relative paths start in {1}",
        ),
        ("*.md", "data.source.files: {0}/*.md matches no file; relative paths start in {1}"),
        (
            "folder",
            "data.source.files: {0}/folder is a folder; name its files, such as {0}/folder/*.txt",
        ),
        ("fold*", "data.source.files: {0}/fold* matches no file; relative paths start in {1}"),
        (
            "pipe",
            "data.source.files: {0}/pipe is not an ordinary file; relative paths start in {1}",
        ),
        ("x" * 300, "data.source.files: {0}/" + "x" * 300 + " cannot be read (File name too long)"),
        (
            "a.txt/b.txt",
            "data.source.files: {0}/a.txt/b.txt does not exist; relative paths start in {1}",
        ),
    ],
)
def test_names_without_a_file(tmp_path, pattern, expected):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path / "a.txt", "a")
    with pytest.raises(DataError) as error:
        reader(format="txt", files=str(tmp_path / pattern))
    assert str(error.value) == expected.format(tmp_path, Path.cwd())


def test_the_home_of_nobody():
    with pytest.raises(DataError, match="~nobody-here/x does not exist"):
        find_files(["~nobody-here/x"], "data.source.files")


def test_a_file_that_vanishes(tmp_path):
    source = reader(format="txt", files=write(tmp_path / "a.txt", "a"))
    (tmp_path / "a.txt").unlink()
    for use in (source.identity, lambda: list(source)):
        with pytest.raises(
            DataError, match=r"data\.source: .* cannot be read \(No such file or directory\)"
        ):
            use()


# --- hub: a server on loopback and the real client, which reads its settings when it is imported

PROBE = """
import json, sys
from lm.system.errors import DataError
from lm.config.schema.source import HubSource
from lm.documents.reader import Reader
for section in json.loads(sys.argv[1]):
    reader = Reader(HubSource(format="hub", **section), on_bad_row="skip")
    try:
        version = reader.identity()["version"]
        documents = [document[:2] for document in reader]
        print("FOUND", version, documents, dict(reader.skipped))
    except DataError as error:
        print("FOUND", error)
"""


def probe(environment, *sections):
    command = [sys.executable, "-c", PROBE, json.dumps(sections)]
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return [
        line.removeprefix("FOUND ")
        for line in result.stdout.splitlines()
        if line.startswith("FOUND ")
    ]


STORIES = {"dataset": "someone/stories"}
NO_SUCH_THING = [
    (
        {**STORIES, "text_key": "body"},
        "someone/stories: no column 'body'; there are ['text', 'n']; text_key names",
    ),
    (
        {**STORIES, "dataset_split": "test"},
        "dataset 'someone/stories', config None, dataset_split 'test': cannot be loaded (",
    ),
    (
        {**STORIES, "config": "large"},
        "dataset 'someone/stories', config 'large', dataset_split 'train': cannot be loaded (",
    ),
    (
        {"dataset": "someone/other"},
        "dataset 'someone/other', config None, dataset_split 'train': cannot be loaded (",
    ),
    (
        {"dataset": "not an id"},
        "dataset 'not an id', config None, dataset_split 'train': cannot be loaded (",
    ),
]


@pytest.mark.usefixtures("starts_processes")
def test_hub(tmp_path):
    folder = tmp_path / "hub" / "datasets" / "someone" / "stories"
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), folder / "train.parquet"
    )
    with Hub(tmp_path / "hub") as hub:
        first, *refusals = probe(
            hub.environment(tmp_path / "home"), STORIES, *(section for section, _ in NO_SUCH_THING)
        )
    assert first.endswith(
        "[('one', 'someone/stories:1'), ('two', 'someone/stories:3')] {'text is not a string': 1}"
    )
    for line, (_, expected) in zip(refusals, NO_SUCH_THING, strict=True):
        assert line.startswith(expected)
    offline = {**client_environment("http://127.0.0.1:9", tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    again, unknown = probe(offline, STORIES, {"dataset": "someone/new"})
    assert again == first, (
        "cached, and under the same version, so that the tokens made from it are found again"
    )
    assert unknown.startswith(
        "dataset 'someone/new', config None, dataset_split 'train': cannot be loaded ("
    )
    assert unknown.endswith(
        "); check the names, and fetch it once while online: later runs find it in the hub's cache"
    )


# --- encodings, and what is left out of rows that stay


def test_all_files_in_another_encoding_are_named(tmp_path):
    for name, encoding in {"a": "utf-8", "b": "cp1252", "c": "cp1252", "d": "cp1252"}.items():
        write(tmp_path / f"{name}.txt", "Die Straße ist süß.\n".encode(encoding))
    with pytest.raises(DataError) as error:
        texts(format="txt", files=f"{tmp_path}/*.txt")
    assert str(error.value) == (
        f"{tmp_path}/b.txt:1: not UTF-8: byte 0xdf; it looks like cp1252 (so are {tmp_path}/c.txt,"
        f" {tmp_path}/d.txt); write data.source.encoding: cp1252, or skip such rows with"
        " data.on_bad_row: skip"
    )
    (tmp_path / "a.txt").unlink()
    source = {"format": "txt", "files": f"{tmp_path}/*.txt", "encoding": "cp1252"}
    assert texts(**source) == ["Die Straße ist süß."] * 3
    with pytest.raises(DataError, match=r"not cp949 either; correct data.source.encoding"):
        texts(**source | {"encoding": "cp949"})


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
def test_text_in_utf16_is_read_like_any_other(tmp_path, unit):
    content = "Eins\r\nzwei\r\n\r\ndrei ü\r\n"
    plain, wide = tmp_path / "a.txt", tmp_path / "b.txt"
    write(plain, content)
    write(wide, content.encode("utf-16"))
    expected = texts(format="txt", files=str(plain), unit=unit)
    assert texts(format="txt", files=str(wide), unit=unit, encoding="utf-16") == expected


CONVERSATIONS = [
    {"instruction": f"Name colour {i}", "input": "", "output": "Red.", "id": i} for i in range(3)
]


def chats(file, policy="stop", **keys):
    """Return the first question and the answer of each conversation, and what was left out."""
    source = TypeAdapter(Source).validate_python({"format": "chat", "files": str(file), **keys})
    found = Reader(source, "data.source", policy, tokenizer=byte_tokenizer())
    turns = [json.loads(document.text)[0] for document in found]
    return [(each[-2][1], each[-1][1]) for each in turns], found.skipped


def test_conversations_in_csv_tsv_and_parquet(tmp_path):
    names = ["id", "instruction", "output", "input"]
    cells = [[str(row[name]) for name in names] for row in CONVERSATIONS]
    expected = [(f"Name colour {i}", "Red.") for i in range(3)]
    for name, separator in {"a.csv": ",", "a.tsv": "\t", "a.csv.gz": ","}.items():
        text = "\n".join(separator.join(line) for line in [names, *cells]) + "\n\n"
        packed = gzip.compress(text.encode()) if name.endswith("gz") else text
        file = write(tmp_path / name, packed)
        assert chats(file) == (expected, {"key 'id'": 3, "empty document": 1})
    columns = {name: [row[name] for row in CONVERSATIONS] for name in names}
    file = write_parquet(tmp_path / "a.parquet", **columns)
    assert chats(file) == (expected, {"key 'id'": 3})
    text = "frage;antwort\nWas?;Süß.\n".encode("cp1252")
    file = write(tmp_path / "c.csv", text)
    keys = {"delimiter": ";", "encoding": "cp1252"}
    columns = {"prompt": "frage", "completion": "antwort"}
    assert chats(file, **keys, columns=columns) == ([("Was?", "Süß.")], {})


def test_keys_of_csv_are_not_ignored_for_json(tmp_path):
    file = write(tmp_path / "a.jsonl", json.dumps(CONVERSATIONS[0]))
    for keys in ({"delimiter": ";"}, {"quoting": "none"}, {"names": ["a", "b"]}):
        with pytest.raises(DataError, match="are for CSV, and this file's name says JSON"):
            chats(file, **keys)
    for name in ("a.json.csv", "a.jsonl.tab"):
        file = write(tmp_path / name, "prompt;completion\na?;b\n")
        assert chats(file, delimiter=";") == ([("a?", "b")], {}), "the last ending decides"
    named = write(tmp_path / "b.txt", "a?|b\n")
    keys = {"delimiter": "|", "names": ["prompt", "completion"]}
    assert chats(named, **keys) == ([("a?", "b")], {})


def test_preferences_in_parquet_with_lists_of_messages(tmp_path):
    asks, says = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}
    rejected = [asks, {**says, "content": "c"}]
    file = write_parquet(tmp_path / "a.parquet", chosen=[[asks, says]], rejected=[rejected], n=[1])
    assert chats(file, layout="preferences") == ([("a?", "b")], {"key 'n'": 1})


def test_conversations_as_lists_of_messages(tmp_path):
    """A line is a conversation; a list that ends on its own line, with no more, is a JSON list."""
    lists = [
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "b"}]
        for i in range(2)
    ]
    expected = [("0?", "b"), ("1?", "b")]
    lines = "".join(json.dumps(each) + "\n" for each in lists)
    assert chats(write(tmp_path / "a.jsonl", lines)) == (expected, {})
    assert chats(write(tmp_path / "b.json", json.dumps(lists))) == (expected, {})
    assert chats(write(tmp_path / "c.json", json.dumps(lists, indent=1))) == (expected, {})


def test_one_conversation_alone_and_rows_in_an_object(tmp_path):
    one = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    for name in ("a.jsonl", "a.json"):
        assert chats(write(tmp_path / name, json.dumps(one) + "\n")) == ([("a?", "b")], {})
    file = write(tmp_path / "b.json", json.dumps({"data": CONVERSATIONS}))
    with pytest.raises(DataError, match=r"if data is the list of rows, .* as jq \.data does"):
        chats(file)


def test_columns_of_one_name_and_values_that_python_does_not_have(tmp_path):
    file = write(tmp_path / "a.csv", "prompt,completion,prompt\na,b,c\n")
    with pytest.raises(DataError, match="2 columns are called 'prompt'; rename all but one"):
        chats(file)
    far = pa.array([10**18], pa.timestamp("us"))
    file = write_parquet(tmp_path / "a.parquet", prompt=["a"], completion=["b"], when=far)
    assert chats(file, "skip")[1] == {"value beyond Python's types": 1}
    when = pa.array([0, 10**18, 0], pa.timestamp("us"))
    file = write_parquet(
        tmp_path / "a.parquet", prompt=list("acd"), completion=["b"] * 3, when=when
    )
    pairs, skipped = chats(file, "skip")
    assert pairs == [("a", "b"), ("d", "b")] and skipped["value beyond Python's types"] == 1


def test_another_delimiter_of_conversations_is_guessed(tmp_path):
    file = write(tmp_path / "a.csv", "prompt;completion\na;b\n")
    with pytest.raises(DataError, match=r'if \';\' parts the columns, write delimiter: ";"'):
        chats(file)


def test_a_bad_entry_of_a_list_is_named_by_line_and_number(tmp_path):
    entries = [*CONVERSATIONS, {"instruction": "x", "output": ""}, *CONVERSATIONS]
    file = write(tmp_path / "a.json", "\n" + json.dumps(entries, indent=2))
    with pytest.raises(DataError) as error:
        chats(file)
    line = (tmp_path / "a.json").read_text().splitlines().index('    "instruction": "x",')
    assert str(error.value).startswith(f"{file}:{line}: empty answer: entry 4 of the list: what")
    assert chats(file, "skip")[1] == {"key 'id'": 6, "empty answer": 1}


def test_an_object_over_several_lines_is_told_what_to_be(tmp_path):
    file = write(tmp_path / "a.json", json.dumps(CONVERSATIONS[0], indent=2))
    with pytest.raises(DataError, match="an object over several lines must be written on one"):
        chats(file)


def test_new_keys_leave_fingerprints_as_they_were(tmp_path):
    """Tokens that were made before such a key existed are found again."""
    file = write(tmp_path / "a.csv", "text\none\n")
    for section, keys in {
        "csv": {"format", "text_key", "delimiter", "filter"},
        "txt": {"format", "unit", "filter"},
    }.items():
        found = reader(format=section, files=file).identity()
        assert set(found) - {"files"} == keys and found.get("delimiter", ",") == ","
    source = {"format": "chat", "files": file}
    made = {}
    for name, more in {
        "plain": {},
        "other": {"delimiter": ";", "columns": {"prompt": "q"}},
    }.items():
        section = TypeAdapter(Source).validate_python(source | more)
        made[name] = set(Reader(section, tokenizer=byte_tokenizer()).identity())
    assert made["other"] - made["plain"] == {"delimiter", "columns"}
