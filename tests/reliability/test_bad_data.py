"""The real reading path refuses malformed data with exit code 3 and one line that names the file
and the fault. It leaves no tokens behind.

python -m pytest tests/reliability/test_bad_data.py
"""

from __future__ import annotations

import bz2
import concurrent.futures.process  # noqa: F401 - not importable as a user without rights
import fractions  # noqa: F401 - the same
import gzip
import json
import lzma
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.reliability.answers import answer
from tests.support.faults import ROOT, not_root
from tests.support.hub import Hub

GOOD = b'{"text": "fine"}\n'
MIB = 2**20
LIES = gzip.compress(b"some text\n" * 5000)

Writer = Callable[[Path], None]


def holding(content: bytes | str) -> Writer:
    return lambda path: (
        path.write_bytes(content.encode() if isinstance(content, str) else content) and None
    )  # type: ignore[func-returns-value]


def parquet(**columns: Any) -> Writer:
    return lambda path: pq.write_table(pa.table(columns), path)


def parquet_with(change: Callable[[bytes], bytes]) -> Writer:
    def write(path: Path) -> None:
        parquet(text=[f"text {i}" for i in range(1000)])(path)
        path.write_bytes(change(path.read_bytes()))

    return write


def zip_of(*names: str) -> Writer:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "some text")

    return write


TXT, LINES, WHOLE = (
    {"format": "txt"},
    {"format": "txt", "unit": "line"},
    {"format": "txt", "unit": "file"},
)
JSONL, CSV, PARQUET, SMS, INSTRUCTION = (
    {"format": name} for name in ("jsonl", "csv", "parquet", "sms", "instruction")
)

# The section of the source, the function that writes the file, and the beginning of the message.
# {f} is the file.
CASES: dict[str, tuple[dict[str, str], Writer, str]] = {
    # --- text
    "Latin-1": (
        TXT,
        holding(b"fine\n\ngr\xfc\xdfe\n"),
        "{f}:3: not UTF-8: byte 0xfc; it looks like cp1252; write",
    ),
    "Latin-1 far down": (
        LINES,
        holding(b"fine\n" * 40_000 + b"gr\xfc\xdfe\n"),
        "{f}:40001: not UTF-8: byte 0xfc;",
    ),
    "Latin-1 in a whole file": (
        WHOLE,
        holding(b"a\nb\ngr\xfc\xdfe\n"),
        "{f}:3: not UTF-8: byte 0xfc;",
    ),
    "UTF-16": (TXT, holding("fine\n".encode("utf-16")), "{f}: NUL bytes, as in utf-16;"),
    "UTF-32": (TXT, holding("fine\n".encode("utf-32")), "{f}: NUL bytes, as in utf-32;"),
    "cut in a character": (
        TXT,
        holding("fine\n\nGrü".encode()[:-1]),
        "{f}:3: not UTF-8: byte 0xc3;",
    ),
    "overlong UTF-8": (TXT, holding(b"\xc0\xaf"), "{f}:1: not UTF-8: byte 0xc0;"),
    "half a pair in UTF-8": (TXT, holding(b"\xed\xa0\x80"), "{f}:1: not UTF-8: byte 0xed;"),
    "a program": (
        TXT,
        holding(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\xff\xfe"),
        "{f}: a program, not text;",
    ),
    "all bytes": (TXT, holding(bytes(range(256))), "{f}:"),
    "nothing": (
        TXT,
        holding(b""),
        (
            "{f}: empty file: there is no text in it; correct it, or skip such rows with"
            " data.on_bad_row: skip"
        ),
    ),
    "blanks": (TXT, holding(" \n\n\t\r\n"), "{f}: empty file: there is no text in it;"),
    "a byte order mark alone": (
        LINES,
        holding(b"\xef\xbb\xbf"),
        "{f}: empty file: there is no text in it;",
    ),
    "one document for two splits": (
        WHOLE,
        holding("all in one\n"),
        "data.split: hash needs several documents, and the text is a single one;",
    ),
    # --- packed
    "gzip, header only": (
        TXT,
        holding(LIES[:5]),
        "{f}: the gzip file is cut or damaged; fetch it again (",
    ),
    "gzip, cut": (
        TXT,
        holding(LIES[:40]),
        "{f}: the gzip file is cut or damaged; fetch it again (",
    ),
    "gzip, flipped": (
        JSONL,
        holding(LIES[:30] + b"\xff\xff\xff" + LIES[33:]),
        "{f}: the gzip file is cut or damaged; fetch it again (",
    ),
    "gzip of nothing": (
        TXT,
        holding(gzip.compress(b"")),
        "{f}: empty file: there is no text in it;",
    ),
    "gzip of Latin-1": (TXT, holding(gzip.compress(b"\n\n\xfc")), "{f}:3: not UTF-8: byte 0xfc;"),
    "a zip": (
        TXT,
        zip_of("a.txt"),
        "{f}: a zip archive, not text; unpack it first, or pack it with gzip",
    ),
    "a zip of nothing": (JSONL, zip_of(), "{f}: an empty zip archive, not text;"),
    "xz, cut": (
        CSV,
        holding(lzma.compress(b"text\none\n" * 99)[:-30]),
        "{f}: the xz file is cut or damaged; fetch it again (",
    ),
    "bzip2, flipped": (
        SMS,
        holding(bz2.compress(b"ham\ta\n" * 99)[:-9] + b"not the end"),
        "{f}: the bzip2 file is cut or damaged; fetch it again (",
    ),
    "zstd": (INSTRUCTION, holding(b"\x28\xb5\x2f\xfd" + bytes(20)), "{f}: "),
    "7z": (TXT, holding(b"7z\xbc\xaf\x27\x1c" + bytes(20)), "{f}: a 7z archive, not text;"),
    # --- JSON lines
    "cut line": (
        JSONL,
        holding(GOOD + b'{"text": "ab'),
        "{f}:2: broken JSON: Unterminated string starting at at column 10;",
    ),
    "NULs": (JSONL, holding(GOOD + bytes(9)), "{f}: NUL bytes, not text;"),
    "a line of 100 MB": (
        JSONL,
        holding(GOOD + b"x" * (100 * MIB)),
        "{f}:2: broken JSON: Expecting value at column 1;",
    ),
    "a byte order mark inside a line": (
        JSONL,
        holding(GOOD + b'{"text": \xef\xbb\xbf"a"}'),  # in front of a line it is read past
        "{f}:2: broken JSON: ",
    ),
    "a JSON list": (JSONL, holding("[\n" + '  {"text": "a"}\n]'), "{f}:1: broken JSON: "),
    "another key": (
        JSONL,
        holding(GOOD + b'{"body": "a"}'),
        "{f}:2: no key 'text': there are ['body']; text_key names the one that holds",
    ),
    "a key that commands the terminal": (
        JSONL,
        holding(rb'{"\u001b[2J\u202e": 1}'),
        "{f}:1: no key 'text': there are ['\\x1b[2J\\u202e'];",
    ),
    "a number": (JSONL, holding(GOOD + b'{"text": 3}'), "{f}:2: text is not a string: it is 3;"),
    "null": (JSONL, holding(GOOD + b'{"text": null}'), "{f}:2: text is not a string: it is None;"),
    "NaN": (JSONL, holding(b'{"text": NaN}'), "{f}:1: text is not a string: it is nan;"),
    "a huge number": (
        JSONL,
        holding(b'{"text": ' + b"9" * 5000 + b"}"),
        "{f}:1: broken JSON: nested too deeply, or a number of too many",
    ),
    "deep nesting": (
        JSONL,
        holding(b'{"text": ' + b"[" * 200_000),
        "{f}:1: broken JSON: nested too deeply, or a number of too many digits",
    ),
    "half a surrogate pair": (
        JSONL,
        holding(rb'{"text": "\ud800"}'),
        "{f}:1: half a surrogate pair: '\\ud800' is no character,",
    ),
    "a very long value": (
        JSONL,
        holding(json.dumps({"text": ["y" * MIB]})),
        "{f}:1: text is not a string: it is ['yyyyyyyyyyyy...yyyyyyyyyyyyy'];",
    ),
    # --- CSV
    "csv, another column": (
        CSV,
        holding("id,body\n1,a\n"),
        "{f}: no column 'text'; there are ['id', 'body']; text_key names the one that",
    ),
    "csv, another delimiter": (
        CSV,
        holding("id;text\n1;a\n"),
        "{f}: no column 'text'; there are ['id;text'];",
    ),
    "csv, no line of names": (
        CSV,
        holding("1,a\n2,b\n"),
        "{f}: no column 'text'; there are ['1', 'a'];",
    ),
    "csv, too few columns": (
        CSV,
        holding('id,text\n1,"a\nb"\n2\n'),
        "{f}:4: another number of columns: 1 where there are 2 names;",
    ),
    "csv, too many columns": (
        CSV,
        holding("id,text\n1,a, b\n"),
        "{f}:2: another number of columns: 3 where there are 2 names;",
    ),
    "csv, a quote without an end": (
        CSV,
        holding('id,text\n1,a\n2,"b\n3,c\n'),
        "{f}:3: broken CSV: a quote that opens here is never closed; correct it",
    ),
    "tsv, quotes that are letters": (
        {"format": "csv", "delimiter": "\t"},
        holding('id\ttext\n1\t"a\n2\tb"\n'),
        "{f}:2: quote that takes in rows: the quote that opens here closes on line 3,",
    ),
    "csv, text behind a quote": (
        CSV,
        holding('id,text\n1,"a"b\n'),
        "{f}:2: broken CSV: ',' expected after '\"';",
    ),
    "csv, Latin-1": (CSV, holding(b'id,text\n1,"a\n\xfc"\n'), "{f}:3: not UTF-8: byte 0xfc;"),
    "csv, twice the same name": (
        CSV,
        holding("text,text\na,b\n"),
        "{f}: 2 columns are called 'text'; rename all but one",
    ),
    "csv, names only": (CSV, holding("id,text\n"), "{f}: empty file: there is no text in it;"),
    "csv, UTF-16": (
        CSV,
        holding("id,text\n1,a\n".encode("utf-16")),
        "{f}: NUL bytes, as in utf-16;",
    ),
    # --- parquet
    "parquet, cut": (
        PARQUET,
        parquet_with(lambda content: content[:-100]),
        "{f}: not a readable parquet file (",
    ),
    "parquet, not even": (PARQUET, holding("id,text\n1,a\n"), "{f}: not a readable parquet file ("),
    "parquet of nothing": (PARQUET, holding(b""), "{f}: not a readable parquet file ("),
    "parquet, a broken page": (
        PARQUET,
        parquet_with(lambda content: content[:20] + b"\xff" * 100 + content[120:]),
        "{f}: not a readable parquet file (",
    ),
    "parquet without rows": (
        PARQUET,
        parquet(text=pa.array([], pa.string())),
        "{f}: empty file: there is no text in it;",
    ),
    "parquet, another column": (
        PARQUET,
        parquet(body=["a"]),
        "{f}: no column 'text'; there are ['body'];",
    ),
    "parquet of numbers": (PARQUET, parquet(text=[1, 2]), "{f}:1: text is not a string: it is 1;"),
    "parquet with a null": (
        PARQUET,
        parquet(text=["a", None]),
        "{f}:2: text is not a string: it is None;",
    ),
    # --- messages and instructions
    "sms, spaces for a tab": (
        SMS,
        holding("ham\ta\nspam  b\n"),
        "{f}:2: not a labelled message: a line must be ham or spam, a tab and the message,",
    ),
    "sms, another label": (SMS, holding("ok\ta\n"), "{f}:1: not a labelled message:"),
    "instruction without output": (
        INSTRUCTION,
        holding('[{"instruction": "a"}]'),
        "{f}:1: no key 'output': entry 1 of the list: there are ['instruction'];",
    ),
    "instruction, a number": (
        INSTRUCTION,
        holding('{"instruction": 1, "output": "b"}'),
        "{f}:1: text is not a string: instruction: it is 1;",
    ),
    "instruction, a list that is cut": (
        INSTRUCTION,
        holding('[{"instruction": "a"'),
        "{f}: broken JSON (",
    ),
    "instruction, an object around": (
        INSTRUCTION,
        holding('{"data": []}'),
        "{f}:1: no key 'instruction': there are ['data'];",
    ),
    "instruction, nesting": (INSTRUCTION, holding("[" * 200_000), "{f}: broken JSON ("),
    "instruction, an empty list": (
        INSTRUCTION,
        holding("[]"),
        "{f}: empty file: there is no text in it;",
    ),
    # --- things that are no file
    "missing": (
        TXT,
        lambda path: None,
        "data.source.files: {f} does not exist; relative paths start in ",
    ),
    "a folder": (
        TXT,
        lambda path: path.mkdir(),
        "data.source.files: {f} is a folder; name its files, such as {f}/*.txt",
    ),
    "a pipe": (
        TXT,
        lambda path: os.mkfifo(path),
        "data.source.files: {f} is not an ordinary file;",
    ),
    "/dev/zero": (
        TXT,
        lambda path: path.symlink_to("/dev/zero"),
        "data.source.files: {f} is not an ordinary file;",
    ),
    "a link to nothing": (
        TXT,
        lambda path: path.symlink_to("nothing"),
        "data.source.files: {f} does not exist;",
    ),
    "a link to itself": (TXT, lambda path: path.symlink_to(path.name), "data.source.files: {f} "),
    "a file that cannot be read": (
        TXT,
        lambda path: path.symlink_to("/proc/self/mem"),
        "data.source: {f} cannot be read (Input/output error)",
    ),
}
BY_TRAIN = ["Latin-1", "gzip, cut", "csv, a quote without an end", "parquet, cut", "a pipe"]


def arranged(folder: Path, case: str) -> tuple[Path, str]:
    """Return a configuration and the beginning of the expected message."""
    section, write, expected = CASES[case]
    file = folder / "data"
    write(file)
    return configured(folder, section | {"files": str(file)}), expected.format(f=file)


def configured(folder: Path, source: dict[str, str]) -> Path:
    values = {
        "data": {"source": source, "cache_dir": str(folder / "cache")},
        "trainer": {"max_steps": 200},
        "checkpoint": {"directory": str(folder / "run")},
    }
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def tokens_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("cache/*") if path.suffix != ".lock"]


def check(code: int, err: str, expected: str, folder: Path) -> None:
    assert code == 3, err
    assert err.startswith(expected)
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert len(err) < 500 + len(str(folder))
    assert err.strip("\n").isprintable()


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("case", CASES)
def test_bad_data(tmp_path: Path, case: str) -> None:
    config, expected = arranged(tmp_path, case)
    found = answer("tools.prepare", "--config", config)
    check(found.code, found.err, expected, tmp_path)
    if case != "one document for two splits":
        assert tokens_in(tmp_path) == []


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("case", BY_TRAIN)
def test_bad_data_in_training(tmp_path: Path, case: str) -> None:
    config, expected = arranged(tmp_path, case)
    done = subprocess.run(
        [sys.executable, "train.py", "--config", str(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    check(done.returncode, done.stderr, expected, tmp_path)


def test_a_file_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").write_text("some text\n")
    Path("data").chmod(0)
    configured(Path(), TXT | {"files": "data"})
    with not_root(tmp_path):
        found = answer("tools.prepare", "--config", "c.yaml")
    check(found.code, found.err, "data.source: data cannot be read (Permission denied)\n", tmp_path)


@pytest.mark.usefixtures("starts_processes")
def test_a_dataset_without_the_split(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets" / "someone" / "stories"
    folder.mkdir(parents=True)
    parquet(text=["one", "two"])(folder / "train.parquet")
    config = configured(
        tmp_path, {"format": "hub", "dataset": "someone/stories", "dataset_split": "test"}
    )
    with Hub(tmp_path / "hub") as hub:
        environment = os.environ | hub.environment(tmp_path / "home")
        command = [sys.executable, "-m", "tools.prepare", "--config", str(config)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
        )
    assert done.returncode == 3
    answered = done.stderr.splitlines()[-1]
    assert answered.startswith(
        "dataset 'someone/stories', config None, dataset_split 'test': cannot be loaded ("
    )
    assert answered.endswith(
        "; check the names, and fetch it once while online: later runs find it in the hub's cache"
    )
