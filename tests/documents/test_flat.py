"""Flat files of token ids, read and written."""

import bz2
import functools
import gzip
import hashlib
import itertools
import json
import lzma
import pickle
import subprocess
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lm.config.schema.source import BinSource, SingleSource
from lm.documents import files as text_files
from lm.documents import flat as flat_tokens
from lm.documents.reader import Reader, hash_of_text
from lm.system.errors import ConfigError, DataError
from lm.system.units import in_bytes
from lm.tokenizer.tokenizer import ByteTokenizer
from lm.tokens import prepare as preparation
from lm.tokens.engines import in_this_process, on_this_machine
from lm.tokens.prepare import Split, prepare
from lm.tokens.store import TokenStore
from tests.support import runs
from tests.support.slow_split import split_slowly

BYTES = ByteTokenizer()
EOS, BOS = BYTES.eos_id, 257
NONE, ALL = Split("none"), Split("all")


class Large(ByteTokenizer):
    """A tokenizer whose ids need four bytes."""

    def __init__(self):
        super().__init__()
        self.vocab_size = 70_000


def write(path, ids, dtype="<u2"):
    np.array(ids, dtype).tofile(path)
    return str(path)


def stream(*texts):
    """Return documents as the bytes that nanoGPT's prepare.py writes."""
    return [id for text in texts for id in (*text.encode(), EOS)]


def reader(files, policy="stop", tokenizer=BYTES, **section):
    return Reader(
        TypeAdapter(SingleSource).validate_python({"format": "bin", "files": files, **section}),
        "data.source",
        policy,
        tokenizer,
    )


def build(folder, source, split=NONE, engine=in_this_process):
    folder.mkdir()
    manifest = prepare(folder, source, source.tokenizer, split, engine)
    return manifest, {name: TokenStore(folder, name, manifest) for name in ("train", "val")}


def documents(store):
    """Return the documents of a split as lists of ids."""
    bounds = [*store.document_starts.tolist(), store.tokens - 1]
    ids = store.read(0, 10**9).tolist()
    return [ids[a + 1 : b] for a, b in itertools.pairwise(bounds)]


def text(ids):
    return bytes(ids).decode(errors="replace")


# --- read: the slow, obvious version


def slow(files, split, filters):
    """Return the documents to train on, those to validate on, and counts of what is left out."""
    kept, removed, seen, tokens = [], Counter(), set(), 0
    for ids in files:
        found = [[]]
        for id in ids:
            if id == EOS:
                found.append([])
            else:
                found[-1].append(id)
        for document in found if found[-1] else found[:-1]:
            if BOS in document:
                removed[flat_tokens.SPECIAL] += 1
            elif not document:
                removed["empty document"] += 1
            elif len(text(document)) < filters.get("min_length", 0):
                removed[f"document under {filters['min_length']} characters"] += 1
            elif filters.get("deduplicate") and text(document) in seen:
                removed["repeated document"] += 1
            elif tokens < filters.get("max_tokens", 10**9):
                seen.add(text(document))
                kept.append(document)
                tokens += 1 + len(document)
    return (*split_slowly(kept, split, text), removed)


@pytest.mark.usefixtures("takes_seconds")
@given(
    files=st.lists(
        st.lists(st.sampled_from([*b"ab \xc3\xbc", EOS, EOS, BOS]), max_size=40),
        min_size=1,
        max_size=3,
    ),
    dtype=st.sampled_from(["uint16", "uint32"]),
    filters=st.fixed_dictionaries(
        {},
        optional={
            "min_length": st.integers(1, 4),
            "deduplicate": st.booleans(),
            "max_tokens": st.integers(1, 30),
        },
    ),
    kind=st.sampled_from(["hash", "tail"]),
    fraction=st.floats(0.05, 0.95),
    sizes=st.tuples(st.integers(1, 60), st.integers(1, 20)),
)
@settings(max_examples=400, deadline=None)
def test_it_is_what_one_document_after_the_other_gives(
    tmp_path_factory, files, dtype, filters, kind, fraction, sizes
):
    if kind == "tail":
        filters.pop("max_tokens", None)  # refused by the configuration
    folder, split = tmp_path_factory.mktemp("slow"), Split(kind, fraction)
    for number, ids in enumerate(files):
        write(folder / f"{number}.bin", ids, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "SPAN_BYTES", sizes[0])
        patch.setattr(flat_tokens, "CHUNK", sizes[1])
        source = reader(str(folder / "*.bin"), "skip", dtype=dtype, filter=filters)
        manifest, stores = build(folder / "cache", source, split)
        places = [document.place for document in source]
    *expected, removed = slow(files, split, filters)
    for store, found in zip(stores.values(), expected, strict=True):
        assert documents(store) == found
        assert store.text_bytes == sum(len(text(ids).encode()) for ids in found)
        assert store.document_hashes.tolist() == [hash_of_text(text(ids)) for ids in found]
    if manifest.ended_by is None:
        manifest.removed.pop("empty file", None)
        assert manifest.removed == removed
        for place in places:
            file, start = place.rsplit(":", 1)
            ids = np.fromfile(file, dtype).tolist()
            assert int(start) == 0 or ids[int(start) - 1] == EOS


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("kind", ["hash", "tail"])
def test_any_number_of_processes_writes_the_same(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(text_files, "SPAN_BYTES", 300)
    monkeypatch.setattr(preparation, "JOURNAL_TOKENS", 1000)
    file = write(
        tmp_path / "a.bin", stream(*(f"text {i % 150}" * (1 + i % 40) for i in range(300)))
    )
    source = reader(file, filter={"deduplicate": True})
    expected, _ = build(tmp_path / "one", source, Split(kind, 0.3))
    assert (
        build(
            tmp_path / "two",
            source,
            Split(kind, 0.3),
            functools.partial(on_this_machine, processes=2),
        )[0]
        == expected
    )


def test_a_file_without_an_end_of_text_is_one_document(tmp_path):
    """nanoGPT's Shakespeare is such a file: `tail` splits it by ids and loses none."""
    ids = list(b"to be or not to be")
    _, stores = build(
        tmp_path / "cache", reader(write(tmp_path / "a.bin", ids)), Split("tail", 0.5)
    )
    assert [documents(store) for store in stores.values()] == [[ids[:9]], [ids[9:]]]


def test_white_space_stays_and_equal_texts_are_on_the_side_of_text(tmp_path):
    """Ids are kept as they are.

    Only the hashes are of the text, so that they equal those of a text source.
    """
    _, stores = build(tmp_path / "cache", reader(write(tmp_path / "a.bin", stream(" ", "ü", "\n"))))
    assert documents(stores["train"]) == [[32], [0xC3, 0xBC], [10]]
    assert stores["train"].document_hashes.tolist() == [
        hash_of_text(part) for part in (" ", "ü", "\n")
    ]
    assert stores["train"].text_bytes == 4


@pytest.mark.parametrize(("dtype", "option"), [("<u4", None), ("<u2", "uint16")])
def test_a_large_vocabulary_has_four_bytes_unless_it_is_said(tmp_path, dtype, option):
    file = write(tmp_path / "a.bin", stream("one", "two"), dtype)
    manifest, stores = build(tmp_path / "cache", reader(file, tokenizer=Large(), dtype=option))
    assert manifest.dtype == "uint32"
    assert [text(ids) for ids in documents(stores["train"])] == ["one", "two"]


@pytest.mark.usefixtures("takes_seconds")
def test_memory_is_a_piece(tmp_path):
    file = write(tmp_path / "a.bin", stream(*["some words " * 20] * 20_000))
    tracemalloc.start()
    count = sum(1 for _ in flat_tokens.read_flat(file, reader(file).source, None, BYTES))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 60e6, "of 4 million ids, which are more than one piece"


# --- refusals


def with_npy(path):
    with path.open("wb") as file:
        np.save(file, np.array(stream("text"), np.uint16))


def with_npz(path):
    with path.open("wb") as file:
        np.savez(file, np.array(stream("text"), np.uint16))


def llm_c(*texts, magic=20240520, version=1, dtype="<u2"):
    """Return a file as llm.c and modded-nanogpt write it: an EOS opens each document."""
    ids = np.array([i for text in texts for i in (EOS, *text)], dtype)
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    return header.tobytes() + ids.tobytes()


@pytest.mark.parametrize(
    ("magic", "version", "dtype"), [(20240520, 1, "<u2"), (20240801, 7, "<u4")]
)
@pytest.mark.parametrize("span", [100, 1024, 1030, 2**22])
def test_the_header_of_llm_c_is_no_text(tmp_path, monkeypatch, magic, version, dtype, span):
    monkeypatch.setattr(text_files, "SPAN_BYTES", span)
    texts = [b"first", b"second" * 30, b"third"]
    file = tmp_path / "fineweb_train_000001.bin"
    file.write_bytes(llm_c(*texts, magic=magic, version=version, dtype=dtype))
    source = reader(str(file))
    manifest, stores = build(tmp_path / "cache", source)
    assert documents(stores["train"]) == [list(text) for text in texts]
    assert manifest.removed == {"empty document": 1}, "before the first EOS"
    file.write_bytes(llm_c(b"ab", b"c\xff", magic=magic, version=version, dtype=dtype))
    with file.open("r+b") as stream:
        stream.seek(-np.dtype(dtype).itemsize, 2)
        stream.write((999).to_bytes(np.dtype(dtype).itemsize, "little"))
    with pytest.raises(DataError, match=r"000001\.bin:5: id 999 is beyond the 260"):
        build(tmp_path / "again", source)


NEIGHBOURS = {
    "nanoGPT's characters": (
        "meta.pkl",
        pickle.dumps({"vocab_size": 65, "itos": {0: "a"}}),
        "its ids are of a vocabulary of 65, says meta.pkl next to it (nanoGPT's numbers for",
    ),
    "a pickle without a size": (
        "meta.pkl",
        pickle.dumps({"a": [1]}),
        "its ids are of another vocabulary, says meta.pkl",
    ),
    "no pickle": ("meta.pkl", b"\xff" * 50, "its ids are of another vocabulary, says meta.pkl"),
    "Megatron": ("a.idx", b"MMIDIDX\0\0" + b"\0" * 30, "a dataset of Megatron or fairseq, whose"),
    "litdata": ("index.json", b'{"chunks": [], "config": {}}', "a part of a dataset of litdata"),
    "streaming": ("index.json", b'{"shards": [], "version": 2}', "a part of a dataset of litdata"),
}


@pytest.mark.parametrize(("name", "content", "message"), NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_what_lies_beside_the_file_says_what_its_ids_are(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    file = write(tmp_path / "a.bin", stream("text"))
    with pytest.raises(DataError) as error:
        build(tmp_path / "cache", reader(file))
    assert str(error.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_vocabulary_of_the_same_size_is_this_one(tmp_path, protocol):
    meta = {"itos": {}, "vocab_size": 260, "stoi": {"vocab": 9}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
    file = write(tmp_path / "a.bin", stream("text"))
    assert documents(build(tmp_path / "cache", reader(file))[1]["train"]) == [list(b"text")]


def test_nothing_in_a_pickle_runs(tmp_path):
    class Opens:
        def __reduce__(self):
            return open, (str(tmp_path / "it ran"), "w")

    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"x": Opens(), "vocab_size": 65}))
    with pytest.raises(DataError, match="a vocabulary of 65"):
        build(tmp_path / "cache", reader(write(tmp_path / "a.bin", stream("text"))))
    assert not (tmp_path / "it ran").exists()


REFUSED = {
    "an id beyond the vocabulary": (
        [97, EOS, 98, 260],
        "{f}:3: id 260 is beyond the 260 of the tokenizer byte; name the one that made",
    ),
    "half an id": (
        b"a\0b",
        (
            "{f}: 3 bytes are not a whole number of uint16 ids; fetch the file again, or name its"
            " type in dtype"
        ),
    ),
    "nothing": ([], "{f}: empty file: there is no text in it;"),
    "nothing but ends": ([EOS, EOS], "{f}: empty file: there is no text in it;"),
    "another special id": (
        [97, EOS, 98, BOS, 256, EOS],
        "{f}:2: special id: 257 in the document that begins here; text has",
    ),
    "four bytes read as two": (
        np.array(stream("a longer text"), "<u4").tobytes(),
        "{f}: every other id is 0, as it is where ids of four",
    ),
    "numpy.save": (
        with_npy,
        "{f}: an array of numpy.save; write its ids flat, without a header (numpy: array.astype(",
    ),
    "eight bytes read as two": (
        np.array(stream("a longer text"), "<i8").tobytes(),
        "{f}: three of four ids are 0, as it is where ids of eight bytes are read as two; write",
    ),
    "text": (b"This is a text, and no token ids.\n", "{f}: text, not token ids; name it as"),
    "JSON": (b'{"text": "some words here"}\n ', "{f}: text, not token ids; name it as"),
    "text in Russian": (
        "Съешь же ещё этих мягких".encode(),
        "{f}: text, not token ids; name it as",
    ),
    "text in Chinese, cut in a character": (
        "人人生而自由\n".encode() * 300,
        "{f}: text, not token ids; name it as",
    ),
    "gzip": (gzip.compress(b"a" * 100), "{f}: packed by gzip; unpack it first"),
    "xz": (lzma.compress(b"a" * 100), "{f}: packed by xz; unpack it first"),
    "bzip2": (bz2.compress(b"a" * 100), "{f}: packed by bzip2; unpack it first"),
    "zstd": (b"\x28\xb5\x2f\xfd" + b"\1" * 60, "{f}: packed by zstd; unpack it first"),
    "a pickle": (pickle.dumps(list(range(90)), protocol=4), "{f}: a pickle; write its ids flat"),
    "numpy.savez": (with_npz, "{f}: a zip archive, such as numpy.savez"),
    "safetensors": (
        (64).to_bytes(8, "little") + b'{"a":{"dtype":"U16"}}'.ljust(64) + b"\1\0" * 9,
        "{f}: a safetensors file; name a file of token ids",
    ),
    "an index of Megatron's": (b"MMIDIDX\0\0" + b"\1" * 41, "{f}: the index of a Megatron or"),
    "an index of fairseq's": (b"TNTIDX\0\0" + b"\1" * 40, "{f}: the index of a Megatron or"),
    "llm.c, another version": (
        llm_c(b"some text", version=2),
        "{f}: a header of llm.c with the number 20240520 and version 2, which are not known",
    ),
    "llm.c, another number, cut": (
        llm_c(b"some text", magic=20241231)[:-1],
        "{f}: a header of llm.c with the number 20241231 and version 1, which are not known",
    ),
    "llm.c, cut": (llm_c(b"some text")[:-2], "{f}: its header (llm.c) counts 10 ids, and 18 bytes"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(tmp_path, content, message):
    file = tmp_path / "a.bin"
    if callable(content):
        content(file)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        write(file, content)
    with pytest.raises(DataError) as error:
        build(tmp_path / "cache", reader(str(file)))
    assert str(error.value).startswith(message.format(f=file))


FOREIGN = {
    "GGUF": (b"GGUF\3\0\0\0", "a model in GGUF"),
    "GGML": (b"lmgg\1\0\0\0", "a model in GGML"),
    "GGJT": (b"tjgg\3\0\0\0", "a model in GGML"),
    "SentencePiece": (b"\x0a\x0e\x0a\x05<unk>\x15", "a model of SentencePiece"),
    "Avro": (b"Obj\1\4\x16avro", "an Avro file"),
    "ORC": (b"ORC\x0a\x06", "an ORC file"),
    "SQLite": (b"SQLite format 3\0\x10", "an SQLite database"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0", "a PNG image"),
    "WAV": (b"RIFF\x24\x08\0\0WAVEfmt ", "a WAV recording"),
    "ELF": (b"\x7fELF\2\1\1", "a program"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40", "packed by lz4"),
    "tar": (b"a.txt".ljust(257, b"\0") + b"ustar\x0000", "a tar archive"),
    "a list in a pickle": (pickle.dumps([1, 2], protocol=2), "a pickle"),
    "torch.save": (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "a pickle"),
}


@pytest.mark.parametrize("rest", [b"\1\0" * 20, b"\1" * 21])
@pytest.mark.parametrize(("content", "name"), FOREIGN.values(), ids=FOREIGN)
def test_other_files_are_known_before_their_size_is_judged(tmp_path, content, name, rest):
    file = tmp_path / "a.bin"
    file.write_bytes(content + rest)
    with pytest.raises(DataError) as error:
        build(tmp_path / "cache", reader(str(file)))
    assert str(error.value).startswith(f"{file}: {name}; ")


@pytest.mark.parametrize(
    ("name", "beside", "content", "message"),
    [
        ("a.ds", "a.ds.metadata", b"gpt2|5\n", "a dataset of datatrove, whose documents"),
        ("a.ds", "a.ds.index", bytes(8), "a dataset of datatrove, whose documents"),
        ("a.bin", "dict.txt", b"the 999\n, 888\n", "its ids are those of fairseq's dict.txt"),
    ],
)
def test_neighbours_of_datatrove_and_fairseq(tmp_path, name, beside, content, message):
    (tmp_path / beside).write_bytes(content)
    file = write(tmp_path / name, stream("text"))
    with pytest.raises(DataError) as error:
        build(tmp_path / "cache", reader(file))
    assert str(error.value).startswith(f"{file}: {message}")


def test_two_bytes_read_as_four_are_beyond_the_vocabulary(tmp_path):
    with pytest.raises(DataError, match=r"a\.bin:0: id 7,143,521 is beyond the 70,000"):
        build(tmp_path / "cache", reader(write(tmp_path / "a.bin", list(b"am")), tokenizer=Large()))


def test_ids_of_which_every_other_is_0_can_be_meant(tmp_path):
    ids = [97, 0] * 20
    _, stores = build(tmp_path / "cache", reader(write(tmp_path / "a.bin", ids), dtype="uint16"))
    assert documents(stores["train"]) == [ids]


def test_where_text_is_wanted_ids_are_none(tmp_path):
    with pytest.raises(
        ConfigError,
        match=(r"data\.source\.format: bin files hold token ids, and this command needs text"),
    ):
        reader(write(tmp_path / "a.bin", stream("a")), tokenizer=None)


# --- written, and back


def export(*arguments, code=0):
    command = [sys.executable, "-m", "tools.export_tokens", *map(str, arguments)]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr.splitlines()[-1]


def flat(folder):
    return {name: (folder / name).read_bytes() for name in ("train.bin", "val.bin")}


def read_back(folder, **data):
    """Return a configuration whose source is the exported files."""
    source, validation = (
        {"format": "bin", "files": str(folder / name)} for name in ("train.bin", "val.bin")
    )
    base = runs.config_file(folder)
    parts = {
        "source": source,
        "validation": validation,
        "val_fraction": 0.05,
        "cache_dir": str(folder / "cache"),
    }
    return base, runs.config_file(folder, data=parts | data)


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("split", ["hash", "tail"])
def test_written_read_and_written_again_it_is_the_same(tmp_path, split):
    config = runs.config_file(tmp_path, data={"split": split})
    # a warm-up that leaves nothing of the run is no matter of the tokens
    warmup = "--optimizer.warmup_steps=5000"
    said = export("--config", config, "--out", tmp_path / "one", warmup)
    written = flat(tmp_path / "one")
    # nanoGPT reads it in this way.
    ids = np.memmap(tmp_path / "one" / "train.bin", np.uint16, mode="r")
    train = bytes(ids[ids != EOS].astype(np.uint8).tolist()).decode()
    found = [
        text(part.tolist())
        for part in np.split(ids, np.flatnonzero(ids == EOS) + 1)[:-1]
        for part in [part[:-1]]
    ]
    paragraphs = (tmp_path / "corpus.txt").read_text().rstrip("\n").split("\n\n")
    assert "".join(found) == train
    if split == "hash":
        assert found == [
            paragraph for paragraph in paragraphs if hash_of_text(paragraph) >= 0.3 * 2**64
        ]
    else:
        assert found[:-1] == paragraphs[: len(found) - 1]
        assert paragraphs[len(found) - 1].startswith(found[-1])
    meta = json.loads((tmp_path / "one" / "meta.json").read_text())
    assert (meta["dtype"], meta["vocab_size"], meta["eos_id"], meta["tokenizer"]["sha256"]) == (
        "uint16",
        260,
        EOS,
        BYTES.sha256,
    )
    for name, entry in meta["splits"].items():
        content = written[entry["file"]]
        assert (entry["bytes"], entry["sha256"]) == (
            len(content),
            hashlib.sha256(content).hexdigest(),
        )
        assert (entry["tokens"], entry["documents"]) == (
            len(content) // 2,
            content.count(EOS.to_bytes(2, "little")),
        )
        assert entry["text_bytes"] == entry["tokens"] - entry["documents"]
        assert (
            f"{name}.bin: {entry['tokens']:,} tokens, {entry['documents']:,} documents,"
            f" {in_bytes(entry['bytes'])}\n" in said
        )
    _, back = read_back(tmp_path / "one")
    export("--config", back, "--out", tmp_path / "two")
    assert flat(tmp_path / "two") == written
    assert json.loads((tmp_path / "two" / "meta.json").read_text()) == meta
    (tmp_path / "two" / "meta.json").write_text(
        json.dumps({**meta, "tokenizer": {"name": "gpt2", "sha256": "0"}})
    )
    source = BinSource(format="bin", files=str(tmp_path / "two" / "train.bin"))
    with pytest.raises(
        DataError,
        match=(
            r"train.bin: its ids are of the tokenizer gpt2, says meta.json next to it, and"
            r" tokenizer.name is "
        ),
    ):
        list(Reader(source, tokenizer=BYTES))


@pytest.mark.usefixtures("starts_processes")
def test_what_others_wrote_comes_out_as_it_was_and_an_end_that_was_missing_is_added(tmp_path):
    for name, end in ("whole", True), ("cut", False):
        folder = tmp_path / name
        folder.mkdir()
        ids = stream("to be", " ", "\xfc or not", "to be")
        write(folder / "train.bin", ids if end else ids[:-1])
        write(folder / "val.bin", stream("that is", "the question"))
        before = flat(folder)
        _, config = read_back(folder)
        export("--config", config, "--out", folder / "out")
        after = flat(folder / "out")
        assert after["train.bin"] == before["train.bin"] + (
            b"" if end else EOS.to_bytes(2, "little")
        )
        assert after["val.bin"] == before["val.bin"]


@pytest.mark.usefixtures("starts_processes", "trains")
def test_a_run_on_flat_files_is_the_run_on_the_text(tmp_path):
    """Equal rows give equal losses, to the last digit."""
    short = ["--trainer.max_steps", "2", "--optimizer.warmup_steps", "1"]
    for folder in "text", "ids":
        (tmp_path / folder).mkdir()
    runs.train(config := runs.config_file(tmp_path / "text"), *short)
    export("--config", config, "--out", tmp_path / "ids")
    runs.train(read_back(tmp_path / "ids")[1], *short)
    results = [
        (tmp_path / folder / "run" / "evaluations.jsonl").read_text().splitlines()
        for folder in ("text", "ids")
    ]
    scores = [
        [
            {k: v for k, v in json.loads(line).items() if "loss" in k or "bits" in k}
            for line in lines
        ]
        for lines in results
    ]
    assert scores[0] == scores[1]
    assert scores[0]
    assert scores[0][0]


@pytest.mark.usefixtures("starts_processes")
def test_what_is_there_is_written_over_only_when_told(tmp_path):
    config, out = runs.config_file(tmp_path), tmp_path / "out"
    export("--config", config, "--out", out)
    written = flat(out)
    (out / "val.bin").write_bytes(b"mine")
    line = export("--config", config, "--out", out, code=2)
    assert (
        f"--out: {out / 'train.bin'} exists already; name another folder, or write over it with"
        " --force" in line
    )
    assert (out / "val.bin").read_bytes() == b"mine"
    export("--config", config, "--out", out, "--force")
    assert flat(out) == written
    assert sorted(path.name for path in out.iterdir()) == ["meta.json", "train.bin", "val.bin"]


@pytest.mark.usefixtures("starts_processes")
def test_what_cannot_be_exported(tmp_path):
    file = str(runs.corpus(tmp_path))
    parts = [{"weight": weight, "source": {"format": "txt", "files": file}} for weight in (1, 2)]
    mixture = runs.config_file(tmp_path, data={"source": {"format": "mixture", "parts": parts}})
    assert "data.source.format: the rows of a mixture are mixed as training goes" in export(
        "--config", mixture, "--out", tmp_path, code=2
    )
    streamed = {"source": {"format": "hub", "dataset": "a/b", "streaming": True}}
    config = runs.config_file(tmp_path, data=streamed, trainer={"validation_rows": 4})
    assert "data.source.streaming: a streamed source has no end" in export(
        "--config", config, "--out", tmp_path, code=2
    )
    (tmp_path / "file").touch()
    config = runs.config_file(tmp_path)
    assert "could not be written" in export(
        "--config", config, "--out", tmp_path / "file" / "out", code=5
    )
