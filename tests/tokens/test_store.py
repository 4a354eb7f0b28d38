"""Shards hold exactly the tokens that went in, however often their writer was killed."""

import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.tokens import store as token_store
from lm.tokens.manifest import Manifest, facts_of
from lm.tokens.store import SplitWriter, TokenStore

EOS = 9


def add(writer, documents, dtype=np.uint16):
    """Add documents as lists of ids; the hash of each is its length."""
    lengths = [len(ids) for ids in documents]
    stream = np.array([i for ids in documents for i in (EOS, *ids)], dtype)
    writer.add(
        stream, np.array(lengths, np.int64), np.array(lengths, np.uint64), text_bytes=sum(lengths)
    )


def write(folder, batches, dtype=np.uint16, shard_tokens=2**26):
    """Write a cache of one split from batches of documents, and return its manifest."""
    writer = SplitWriter(folder, "train", EOS, dtype, shard_tokens)
    for documents in batches:
        add(writer, documents, dtype)
    return Manifest(dtype=np.dtype(dtype).name, splits={"train": writer.close()})


documents = st.lists(st.lists(st.integers(0, 8), max_size=12), min_size=1, max_size=6)


@pytest.mark.usefixtures("takes_seconds")
@given(
    batches=st.lists(documents, min_size=1, max_size=4),
    shard_tokens=st.integers(1, 30),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_span_reads_back(tmp_path_factory, batches, shard_tokens, data):
    folder = tmp_path_factory.mktemp("cache")
    manifest = write(folder, batches, shard_tokens=shard_tokens)
    store = TokenStore(folder, "train", manifest)
    stream, starts = [], []
    for ids in (ids for batch in batches for ids in batch):
        starts.append(len(stream))
        stream += [EOS, *ids]
    stream.append(EOS)
    assert store.read(0, 10**9).tolist() == stream
    assert store.sha256 == hashlib.sha256(np.array(stream, np.uint16).tobytes()).hexdigest()
    assert manifest.files == {file.name: facts_of(file) for file in folder.iterdir()}
    assert store.document_starts.tolist() == starts
    assert store.document_hashes.tolist() == [len(ids) for batch in batches for ids in batch]
    assert (store.tokens, store.documents) == (len(stream), len(starts))
    assert store.text_tokens == store.text_bytes == len(stream) - len(starts) - 1
    start = data.draw(st.integers(0, len(stream) - 1))
    length = data.draw(st.integers(1, len(stream) + 3))
    assert store.read(start, length).tolist() == stream[start : start + length]
    sizes = [file.stat().st_size // 2 for file in sorted(folder.glob("train-0*.bin"))]
    assert all(size == shard_tokens for size in sizes[:-1])
    assert 0 < sizes[-1] <= shard_tokens


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_the_largest_id_survives(tmp_path, dtype):
    largest = int(np.iinfo(dtype).max)
    manifest = write(tmp_path, [[[0, largest]]], dtype)
    assert TokenStore(tmp_path, "train", manifest).read(1, 2).tolist() == [0, largest]
    assert manifest.splits["train"].files["train-00000.bin"].bytes == 4 * np.dtype(dtype).itemsize


def test_ids_of_another_type_are_not_squeezed_in(tmp_path):
    writer = SplitWriter(tmp_path, "train", EOS, np.uint16)
    with pytest.raises(AssertionError, match="uint32 ids for uint16 shards"):
        add(writer, [[70_000]], np.uint32)


def test_the_hash_is_of_the_tokens_not_of_how_they_are_cut(tmp_path):
    hashes = []
    for i, (batches, shard_tokens) in enumerate(
        [([[[1, 2], [3]]], 100), ([[[1, 2]], [[3]]], 2), ([[[1, 2], [4]]], 100)]
    ):
        (tmp_path / str(i)).mkdir()
        hashes.append(
            TokenStore(
                tmp_path / str(i),
                "train",
                write(tmp_path / str(i), batches, shard_tokens=shard_tokens),
            ).sha256
        )
    assert hashes[0] == hashes[1] != hashes[2]


def test_beyond_five_digits_shards_are_hashed_in_the_order_of_their_numbers(tmp_path):
    writer = SplitWriter(tmp_path, "train", 256, np.uint16, shard_tokens=1)
    numbers = (1, 9_999, 10_000, 99_999, 100_000, 100_001, 999_999, 1_000_000)
    for number in numbers:
        np.array([number % 251], np.uint16).tofile(tmp_path / f"train-{number:05d}.bin")
    entry = writer.close()
    assert (
        entry.sha256
        == hashlib.sha256(
            np.array([256, *(number % 251 for number in numbers)], np.uint16).tobytes()
        ).hexdigest()
    )


def test_a_store_is_sent_to_workers_without_its_content(tmp_path):
    store = TokenStore(tmp_path, "train", write(tmp_path, [[[1] * 50_000]]))
    store.read(0, 10)
    sent = pickle.dumps(store)
    assert len(sent) < 2000
    assert pickle.loads(sent).read(0, 3).tolist() == [EOS, 1, 1]


def test_a_split_without_documents(tmp_path):
    writer = SplitWriter(tmp_path, "train", EOS, np.uint16)
    manifest = Manifest(dtype="uint16", splits={"train": writer.close()})
    store = TokenStore(tmp_path, "train", manifest)
    assert (store.tokens, store.documents, store.text_tokens, store.text_bytes) == (1, 0, 0, 0)
    assert store.read(0, 5).tolist() == [EOS]
    assert store.document_starts.dtype == np.int64
    assert len(store.document_starts) == len(store.document_hashes) == 0
    assert sorted(manifest.files) == ["train-00000.bin"]


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(token_store, "MOST_OPEN", 3)
    ids = [i % 9 for i in range(500)]
    store = TokenStore(tmp_path, "train", write(tmp_path, [[ids]], shard_tokens=7))
    before = len([*Path("/proc/self/fd").iterdir()])
    for start in (0, 350, 7, 490, 21, 0, 77):
        assert store.read(start, 20).tolist() == [EOS, *ids, EOS][start : start + 20]
        assert len([*Path("/proc/self/fd").iterdir()]) <= before + 3


def test_a_cache_that_was_made_again_is_not_read_from_the_old_files(tmp_path):
    for content in ([1, 2], [3, 4]):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        (tmp_path / "cache").mkdir()
        store = TokenStore(tmp_path / "cache", "train", write(tmp_path / "cache", [[content]]))
        assert store.read(1, 2).tolist() == content


@pytest.mark.usefixtures("takes_seconds")
@given(
    batches=st.lists(documents, min_size=1, max_size=5),
    shard_tokens=st.integers(1, 30),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_another_writer_goes_on_from_any_state(tmp_path_factory, batches, shard_tokens, data):
    """The second writer overwrites what the first one wrote after its state was read."""
    folder, straight = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("straight")
    expected = write(straight, batches, shard_tokens=shard_tokens)
    known = data.draw(st.integers(0, len(batches)))
    first = SplitWriter(folder, "train", EOS, np.uint16, shard_tokens)
    for batch in batches[:known]:
        add(first, batch)
    state = first.state
    for batch in data.draw(st.lists(documents, max_size=3)):
        add(first, batch)
    if data.draw(st.booleans()):
        first.close()
    second = SplitWriter(folder, "train", EOS, np.uint16, shard_tokens, state)
    for batch in batches[known:]:
        add(second, batch)
    assert second.close() == expected.splits["train"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in straight.iterdir()
    }


@pytest.mark.parametrize("name", ["00000", "00001", "starts", "hashes"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_state_that_the_files_do_not_bear_out_is_refused(tmp_path, name, damage):
    writer = SplitWriter(tmp_path, "train", EOS, np.uint16, shard_tokens=4)
    add(writer, [[1, 2, 3], [4, 5]])
    file = tmp_path / f"train-{name}.bin"
    file.write_bytes(file.read_bytes()[:-1]) if damage == "cut" else file.unlink()
    with pytest.raises(ValueError, match=f"train-{name}.bin is not what was written"):
        SplitWriter(tmp_path, "train", EOS, np.uint16, 4, writer.state)
