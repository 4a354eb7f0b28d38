"""Documents become the same shards with any number of processes, after any number of kills, and one
document at a time.
"""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lm.config.schema.source import SingleSource
from lm.documents import files, parquet
from lm.documents import reader as sources
from lm.documents.reader import Reader, hash_of_text
from lm.documents.templates import LEARNED
from lm.system.errors import CheckpointError, DataError, UserError
from lm.tokenizer.tokenizer import ByteTokenizer
from lm.tokens import engines
from lm.tokens import prepare as preparation
from lm.tokens.cache import JOURNAL, open_cache, open_or_build
from lm.tokens.engines import in_this_process, on_this_machine
from lm.tokens.manifest import sealed
from lm.tokens.prepare import Split, prepare
from lm.tokens.store import TokenStore
from tests.support.slow_split import split_slowly

ROOT = Path(__file__).parents[2]
BYTES = ByteTokenizer()
HASH, TAIL, NONE, ALL, TESTED = (
    Split("hash", 0.3),
    Split("tail", 0.3),
    Split("none"),
    Split("all"),
    Split("hash", 0.3, test=0.3),
)
SPLITS = {"hash": HASH, "tail": TAIL, "none": NONE, "all": ALL, "tested": TESTED}
WORDS = [
    "the",
    "model",
    "reads",
    "a",
    "token",
    "and",
    "looks",
    "back",
    "at",
    "every",
    "earlier",
    "one",
    "ü",
]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(files, "SPAN_BYTES", 500)
    monkeypatch.setattr(parquet, "SPAN_BYTES", 500)
    monkeypatch.setattr(sources, "PIECE_CHARACTERS", 500)
    monkeypatch.setattr(preparation, "JOURNAL_TOKENS", 2000)


def reader(section, policy="skip"):
    return Reader(TypeAdapter(SingleSource).validate_python(section), "data.source", policy)


def texts_of(count, seed=0):
    """Return documents of several words, a tenth of them repeated."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        again = found and chance.random() < 0.1
        found.append(
            chance.choice(found)
            if again
            else " ".join(chance.choices(WORDS, k=chance.randint(1, 12)))
        )
    return found


def source_in(folder, format="jsonl", texts=None, **filters):
    """Write a source of two files and return its section."""
    texts = texts_of(300) if texts is None else texts
    half = len(texts) // 2
    for name, part in ("a", texts[:half]), ("b", texts[half:]):
        file = folder / f"{name}.{format}"
        if format == "csv":
            file.write_text("text\n" + "".join(f'"{text}"\n' for text in part))
        elif format == "txt":
            file.write_text("\n\n".join(part) + "\n")
        else:
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return {"format": format, "files": str(folder / f"*.{format}"), "filter": filters}


def build(folder, section, split, engine=in_this_process, policy="skip"):
    """Build into a new folder, and return its files and its manifest."""
    folder.mkdir()
    manifest = prepare(folder, reader(section, policy), BYTES, split, engine)
    return content(folder), manifest


def content(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def documents(folder, manifest, split):
    """Return the texts that the shards hold."""
    store = TokenStore(folder, split, manifest)
    bounds = [*store.document_starts.tolist(), store.tokens - 1]
    stream = store.read(0, 10**9).tolist()
    assert stream[-1] == BYTES.eos_id
    assert all(stream[start] == BYTES.eos_id for start in bounds)
    return [bytes(stream[a + 1 : b]).decode() for a, b in itertools.pairwise(bounds)]


# --- how many processes


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("format", ["jsonl", "csv", "txt"])
@pytest.mark.parametrize("split", SPLITS)
def test_any_number_of_processes_writes_the_same(tmp_path, split, format):
    section = source_in(tmp_path, format, deduplicate=True)
    expected = build(tmp_path / "here", section, SPLITS[split])
    assert len(list(reader(section).pieces())) > engines.FEW + 3
    for processes in (1, 2, 3) if (split, format) == ("tail", "jsonl") else (2,):
        assert (
            build(
                tmp_path / str(processes),
                section,
                SPLITS[split],
                functools.partial(on_this_machine, processes=processes),
            )
            == expected
        )


def test_few_pieces_start_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_in_processes", None)
    section = source_in(tmp_path, texts=texts_of(10))
    assert build(tmp_path / "some", section, HASH, on_this_machine) == build(
        tmp_path / "here", section, HASH
    )


# --- the slow, obvious version


def slow(texts, split, filters):
    """Split documents one after the other. Return those to train on, those to validate on, and the
    counts of what is skipped.
    """
    removed, kept, seen, tokens = Counter(), [], set(), 0
    for text in texts:
        if filters.get("ascii_only"):
            removed["character beyond ASCII"] += sum(ord(character) > 127 for character in text)
            text = "".join(character for character in text if ord(character) < 128)
        if not text.strip():
            removed["empty document"] += 1
            continue
        if len(text) < filters.get("min_length", 0):
            removed[f"document under {filters['min_length']} characters"] += 1
            continue
        if filters.get("deduplicate") and text in seen:
            removed["repeated document"] += 1
            continue
        seen.add(text)
        if len(kept) == filters.get("max_documents") or tokens >= filters.get("max_tokens", 10**9):
            continue
        kept.append(text)
        tokens += 1 + len(text.encode())
    if split.kind in ("none", "all"):
        return (kept, [], +removed) if split.kind == "none" else ([], kept, +removed)
    return (*split_slowly(kept, split, str), +removed)


some_filters = st.fixed_dictionaries(
    {},
    optional={
        "max_documents": st.integers(1, 12),
        "max_tokens": st.integers(1, 60),
        "min_length": st.integers(1, 6),
        "ascii_only": st.booleans(),
        "deduplicate": st.booleans(),
    },
)
some_texts = st.lists(
    st.text("ab ü\n", max_size=9) | st.sampled_from(["abc", "bb", "abü"]), min_size=1, max_size=25
)


@pytest.mark.usefixtures("starts_processes")
@given(
    texts=some_texts,
    filters=some_filters,
    split=st.sampled_from(["hash", "tail", "none", "all"]),
    fraction=st.floats(0.05, 0.95),
    size=st.integers(1, 200),
)
@settings(max_examples=250, deadline=None)
def test_it_is_what_one_document_after_the_other_gives(
    tmp_path_factory, texts, filters, split, fraction, size
):
    if split == "tail":
        filters.pop("max_tokens", None)  # the configuration refuses this
    folder = tmp_path_factory.mktemp("slow")
    split = Split(split, fraction)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "SPAN_BYTES", size)
        _, manifest = build(folder / "cache", source_in(folder, texts=texts, **filters), split)
    train, val, removed = slow(texts, split, filters)
    assert documents(folder / "cache", manifest, "train") == train
    assert documents(folder / "cache", manifest, "val") == val
    for name, expected in ("train", train), ("val", val):
        store = TokenStore(folder / "cache", name, manifest)
        assert store.document_hashes.tolist() == [hash_of_text(text) for text in expected]
        assert store.text_bytes == store.text_tokens == sum(len(text.encode()) for text in expected)
    manifest.removed.pop("empty file", None)
    del removed["empty file"]
    if manifest.ended_by is None:
        assert manifest.removed == removed
    else:
        assert Counter(manifest.removed) <= removed, "what was not read cannot be counted"


@pytest.mark.usefixtures("starts_processes")
def test_tail_at_the_border_of_documents(tmp_path):
    section = source_in(
        tmp_path, texts=["a" * 7, "b" * 3, "c" * 5, "b" * 3, "d" * 5], deduplicate=True
    )
    _, manifest = build(tmp_path / "cache", section, Split("tail", 0.5))
    assert documents(tmp_path / "cache", manifest, "train") == ["a" * 7, "b" * 3]
    assert documents(tmp_path / "cache", manifest, "val") == ["c" * 5, "d" * 5]


def test_no_text_at_all_is_no_failure_here(tmp_path):
    section = source_in(tmp_path, texts=["", " ", "\n", ""])
    for split in SPLITS:
        _, manifest = build(tmp_path / split, section, SPLITS[split])
        assert [manifest.splits[name].documents for name in ("train", "val")] == [0, 0]
        assert manifest.removed == {"empty document": 4, "empty file": 2}


# --- what is wrong in the text


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_bad_row_in_a_later_piece_names_its_line(tmp_path, format, processes):
    section = source_in(tmp_path, format, texts=[f"text {i}" for i in range(400)])
    file = tmp_path / f"b.{format}"
    lines = file.read_bytes().split(b"\n")
    lines[120] = b'{"text": "\xff"}' if format == "jsonl" else b"\xff"
    file.write_bytes(b"\n".join(lines))
    engine = functools.partial(on_this_machine, processes=processes)
    with pytest.raises(DataError) as error:
        build(tmp_path / "stop", section, HASH, engine, policy="stop")
    assert str(error.value).startswith(
        f"{file}:121: not UTF-8: byte 0xff; it looks like cp1252; write"
        " data.source.encoding: cp1252, or"
    )
    assert build(tmp_path / "skip", section, HASH, engine)[1].removed == {"not UTF-8": 1}


def test_an_empty_file_is_named(tmp_path):
    section = source_in(tmp_path, texts=texts_of(100))
    (tmp_path / "ab.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"ab\.jsonl: empty file: there is no text in it"):
        build(tmp_path / "stop", section, HASH, policy="stop")
    assert build(tmp_path / "skip", section, HASH)[1].removed == {
        "empty file": 1,
        "empty document": 2,
    }


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path):
    section = source_in(tmp_path)

    def engine(function, pieces):
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write('{"text": "more"}\n')
        return in_this_process(function, pieces)

    with pytest.raises(
        DataError, match=r"data\.source: its files changed while they were read; start again"
    ):
        build(tmp_path / "cache", section, HASH, engine)


# --- kills


class Killed(BaseException):
    """An exception in place of kill -9, if the process must live on to examine what is left."""


def killed_after(pieces, while_measuring=False):
    """Return an engine that raises Killed after so many pieces."""

    def act(function, given):
        for number, tokens in enumerate(in_this_process(function, given)):
            if number == pieces and while_measuring == (function.tokenizer is None):
                raise Killed
            yield tokens

    return act


@pytest.mark.usefixtures("takes_seconds")
@given(
    data=st.data(),
    split=st.sampled_from(["hash", "tail", "tested"]),
    filters=some_filters,
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_stopped_anywhere_and_gone_on_is_the_same(tmp_path_factory, data, split, filters, seed):
    if split == "tail":
        filters.pop("max_tokens", None)
    filters = {
        key: value * 20 if key.startswith("max") else value for key, value in filters.items()
    }
    folder = tmp_path_factory.mktemp("killed")
    section = source_in(folder, texts=texts_of(120, seed), **filters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "JOURNAL_TOKENS", 300)
        expected = build(folder / "straight", section, SPLITS[split])
        killed = folder / "killed"
        killed.mkdir()
        for pieces in data.draw(st.lists(st.integers(0, 12), max_size=4)):
            with contextlib.suppress(Killed):
                prepare(
                    killed,
                    reader(section),
                    BYTES,
                    SPLITS[split],
                    killed_after(pieces, data.draw(st.booleans())),
                )
        manifest = prepare(killed, reader(section), BYTES, SPLITS[split], in_this_process)
    assert (content(killed), manifest) == expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pieces", [2, 4, 6, 8, 99])
@pytest.mark.parametrize(("documents", "tokens"), [(40, 320), (60, 300)])
def test_both_limits_and_a_test_share_after_a_kill(
    tmp_path, monkeypatch, seed, pieces, documents, tokens
):
    """A document beyond max_tokens is in no file, so it must not count towards max_documents."""
    monkeypatch.setattr(preparation, "JOURNAL_TOKENS", 300)
    limits = {"max_documents": documents, "max_tokens": tokens, "deduplicate": True}
    section = source_in(tmp_path, texts=texts_of(120, seed), **limits)
    expected = build(tmp_path / "straight", section, SPLITS["tested"])
    killed = tmp_path / "killed"
    killed.mkdir()
    with contextlib.suppress(Killed):
        prepare(killed, reader(section), BYTES, SPLITS["tested"], killed_after(pieces))
    manifest = prepare(killed, reader(section), BYTES, SPLITS["tested"], in_this_process)
    assert (content(killed), manifest) == expected


@pytest.mark.parametrize("filters", [{"deduplicate": True}, {"max_documents": 60}])
def test_a_document_that_tail_has_parted_is_one_document_after_a_kill(
    tmp_path, monkeypatch, filters
):
    monkeypatch.setattr(preparation, "JOURNAL_TOKENS", 1)
    parted = "parted " * 200
    section = source_in(
        tmp_path,
        texts=[
            parted,
            *(f"text {i}" for i in range(50)),
            parted,
            "parted ",
            *(f"text {i}" for i in range(20)),
        ],
        **filters,
    )
    split = Split("tail", 0.9)
    expected = build(tmp_path / "straight", section, split)
    folder = tmp_path / "killed"
    folder.mkdir()
    with pytest.raises(Killed):
        prepare(folder, reader(section), BYTES, split, killed_after(2))
    manifest = prepare(folder, reader(section), BYTES, split, in_this_process)
    assert (content(folder), manifest) == expected


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    "damage",
    ["{", "[]", "{}", "null", "\xff", "[" * 10**5, "cut", "missing", "other pieces", "other types"],
)
def test_a_journal_that_is_not_true_is_not_believed(tmp_path, damage, monkeypatch):
    section = source_in(tmp_path)
    expected = build(tmp_path / "straight", section, HASH)
    folder = tmp_path / "killed"
    folder.mkdir()
    with pytest.raises(Killed):
        prepare(folder, reader(section), BYTES, HASH, killed_after(15))
    assert (folder / JOURNAL).exists()
    shard = folder / "train-00000.bin"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:100])
    elif damage == "missing":
        shard.unlink()
    elif damage == "other types":
        values = json.loads((folder / JOURNAL).read_text())
        (folder / JOURNAL).write_text(json.dumps(values | {"removed": {"a": "b"}}))
    elif damage == "other pieces":
        monkeypatch.setattr(files, "SPAN_BYTES", 700)
    else:
        (folder / JOURNAL).write_text(damage, encoding="latin-1")
    manifest = prepare(folder, reader(section), BYTES, HASH, in_this_process)
    assert (content(folder), manifest) == expected


BUILD = """
import json, sys
from pathlib import Path
from lm.tokens import engines
from lm.documents import parquet
from lm.tokens import prepare as preparation
from lm.documents import reader as sources
from lm.documents import files as text_files
from tests.tokens.test_prepare import BYTES, SPLITS, reader
from lm.tokens.cache import open_or_build
text_files.SPAN_BYTES = parquet.SPAN_BYTES = sources.PIECE_CHARACTERS = 500
preparation.JOURNAL_TOKENS = 300
folder, section, split, processes, pause = json.loads(sys.argv[1])

def engine(function, pieces):
    import time
    for tokens in engines.on_this_machine(function, pieces, processes=processes):
        if function.tokenizer is not None:
            print("piece", flush=True)
            time.sleep(pause)
        yield tokens

def main():
    source = reader(section)

    def build(empty):
        return preparation.prepare(empty, source, BYTES, SPLITS[split], engine)

    open_or_build(Path(folder), build, print)

if __name__ == "__main__":
    from lm.system import errors
    errors.run(main)
"""


def start(folder, section, split, processes=1, pause=0.0):
    script = folder.parent / "build.py"
    script.write_text(BUILD)
    command = [
        sys.executable,
        str(script),
        json.dumps([str(folder), section, split, processes, pause]),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def pieces_done(process, count):
    """Wait until the process has reported so many pieces."""
    for _ in range(count):
        assert process.stdout.readline() == "piece\n", process.communicate()


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.count("piece")


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("split", ["hash", "tail"])
def test_kill_9_at_random_points(tmp_path, split, amount):
    section = source_in(tmp_path, deduplicate=True)
    (tmp_path / "straight").mkdir()
    total = finish(start(tmp_path / "straight" / "f", section, split))
    expected = content(tmp_path / "straight" / "f")
    chance = random.Random(split)
    for number in range(amount(2, 10)):
        folder = tmp_path / str(number) / "f"
        folder.parent.mkdir()
        process = start(folder, section, split, pause=0.005)
        pieces_done(process, chance.randint(3, total - 1))
        time.sleep(chance.random() * 0.01)
        process.kill()
        process.communicate()
        assert not folder.exists()
        journal = json.loads((folder.parent / "f.tmp" / JOURNAL).read_text())
        assert finish(start(folder, section, split)) == total - journal["pieces"] < total, (
            "the journal is used"
        )
        assert content(folder) == expected
        assert open_cache(folder) == open_cache(tmp_path / "straight" / "f")
        assert sorted(path.name for path in folder.parent.iterdir()) == ["build.py", "f", "f.lock"]


def children(process):
    """Return the living processes that a process has started."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,pgid=,stat=,args="], capture_output=True, text=True
    ).stdout
    rows = [line.split(None, 4) for line in listed.splitlines()]
    return [
        int(row[0])
        for row in rows
        if int(row[2]) == process.pid and int(row[0]) != process.pid and row[3][0] != "Z"
    ]


def workers(process):
    """Return the children that tokenise."""
    return [
        pid for pid in children(process) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    ]


def gone(process):
    """Wait up to 20 seconds for the children, and return whether all have ended."""
    deadline = time.monotonic() + 20
    while children(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not children(process)


@pytest.mark.usefixtures("starts_processes")
def test_a_worker_that_is_killed_ends_in_one_line(tmp_path):
    process = start(
        tmp_path / "f", source_in(tmp_path, texts=texts_of(3000)), "hash", processes=2, pause=0.05
    )
    pieces_done(process, 8)
    os.kill(workers(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (
        err == "a process that tokenises was killed from outside, most often because memory did not"
        " suffice; start again with fewer: python -m tools.prepare --processes 1\n"
    )
    assert gone(process)
    assert (tmp_path / "f.tmp" / JOURNAL).exists(), "and goes on from there"


@pytest.mark.usefixtures("starts_processes")
def test_a_parent_that_is_killed_leaves_no_worker(tmp_path):
    process = start(
        tmp_path / "f", source_in(tmp_path, texts=texts_of(3000)), "hash", processes=2, pause=0.05
    )
    pieces_done(process, 8)
    assert len(workers(process)) == 2
    process.kill()
    process.wait(timeout=20)
    assert gone(process)


@pytest.mark.usefixtures("starts_processes")
def test_ctrl_c_leaves_no_worker_and_keeps_the_journal(tmp_path):
    process = start(
        tmp_path / "f", source_in(tmp_path, texts=texts_of(3000)), "hash", processes=2, pause=0.02
    )
    pieces_done(process, 8)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "stopped by Ctrl-C\n")
    assert gone(process)
    assert (tmp_path / "f.tmp" / JOURNAL).exists()


def test_a_disk_that_fills_up_keeps_what_is_done(tmp_path, monkeypatch):
    section, folder = source_in(tmp_path), tmp_path / "cache" / "f"
    expected, _ = build(tmp_path / "straight", section, HASH)

    def make(empty):
        return prepare(empty, reader(section), BYTES, HASH, in_this_process)

    append, room = preparation.SplitWriter._append, [25]

    def append_while_there_is_room(self, name, values):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, name, values)

    with monkeypatch.context() as patch:
        patch.setattr(preparation.SplitWriter, "_append", append_while_there_is_room)
        patch.setattr(preparation, "JOURNAL_TOKENS", 300)
        with pytest.raises(CheckpointError) as error:
            open_or_build(folder, make, print)
    assert (
        str(error.value)
        == f"data.cache_dir: {folder.parent} cannot be written: No space left on device; free some"
        f" space there, or name another folder; {folder}.tmp keeps what is done, and it goes on"
        " from there"
    )
    assert open_or_build(folder, make, print)[1] is False
    assert content(folder) == expected


# --- memory


@pytest.mark.usefixtures("takes_seconds")
def test_memory_is_some_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SPAN_BYTES", 50_000)
    monkeypatch.setattr(preparation, "JOURNAL_TOKENS", 1_000_000)
    section = source_in(tmp_path, texts=[f"document {i} " + "x" * 1000 for i in range(8000)])
    tracemalloc.start()
    _, manifest = _manifest_only(tmp_path / "cache", section)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(manifest.splits[name].text_bytes for name in ("train", "val")) > 8_000_000
    assert peak < 1_500_000


def _manifest_only(folder, section):
    folder.mkdir()
    return folder, prepare(folder, reader(section), BYTES, HASH, in_this_process)


def test_only_some_pieces_wait(monkeypatch):
    """Reading must not run ahead of the writer, or all of the text is soon in memory."""
    taken = itertools.count()

    class Pool:
        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def shutdown(self, **_): ...
        def submit(self, _, piece):
            from concurrent.futures import Future

            future = Future()
            future.set_result(piece)
            return future

    monkeypatch.setattr(engines, "ProcessPoolExecutor", Pool)
    given = (next(taken) for _ in range(1000))
    results = on_this_machine(None, given, processes=2)
    assert [next(results) for _ in range(20)] == list(range(20))
    assert next(taken) <= 20 + 2 * engines.WAITING + 1
    assert list(results)[-1] == 1000


@pytest.mark.parametrize(
    ("format", "filters", "split", "digest"),
    [
        ("jsonl", {}, "hash", "3accff4dcb7ddd4f"),
        ("jsonl", {"deduplicate": True, "max_tokens": 4000}, "tested", "dd26cdce23116ff4"),
        ("txt", {"min_length": 9}, "tail", "9ad87a123378c986"),
        ("csv", {"ascii_only": True, "max_documents": 200}, "none", "518252a9702a8dad"),
    ],
)
def test_caches_are_what_earlier_versions_wrote(tmp_path, format, filters, split, digest):
    """Raise `FORMAT` in lm/tokens/store.py if other files are intended."""
    section = source_in(tmp_path, format, **filters)
    files, manifest = build(tmp_path / "cache", section, SPLITS[split])
    written = hashlib.sha256(sealed(manifest).encode())
    for name in sorted(files):
        written.update(name.encode() + files[name])
    assert written.hexdigest()[:16] == digest


def test_the_eos_before_a_conversation_is_no_label(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Grüße"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    section = {"format": "chat", "files": str(tmp_path / "*.jsonl"), "template": "alpaca"}
    source = TypeAdapter(SingleSource).validate_python(section)
    (tmp_path / "cache").mkdir()
    manifest = prepare(
        tmp_path / "cache", Reader(source, tokenizer=BYTES), BYTES, NONE, in_this_process
    )
    store = TokenStore(tmp_path / "cache", "train", manifest)
    ids, flags = store.read(0, store.tokens), store.read_flags(0, store.tokens)
    assert ids[0] == BYTES.eos_id and flags[0] == 0
    learned = ids[(flags & LEARNED) > 0].tolist()
    assert bytes(learned[:-1]).decode().endswith("Grüße") and learned[-1] == BYTES.eos_id
    assert store.text_tokens == store.text_bytes == len("Grüße".encode())


def test_the_numbers_of_a_hash_are_words_of_its_own(tmp_path):
    """The hash of a text decides where it goes. It is stored next to the tokens, so that equal
    texts can be found.
    """
    section = source_in(tmp_path, texts=["Grüße", "a"])
    _, manifest = build(tmp_path / "cache", section, NONE)
    hashes = np.fromfile(tmp_path / "cache" / "train-hashes.bin", np.uint64).tolist()
    assert (
        hashes
        == [hash_of_text("Grüße"), hash_of_text("a")]
        == [10566448050427439878, 3405396810240292928]
    )
    assert re.fullmatch("[0-9a-f]{64}", manifest.splits["train"].sha256)
    assert issubclass(DataError, UserError)
