"""Shards hold exactly the tokens that went in, and a cache is used only if it is whole."""

import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import shards
from lm.errors import CheckpointError
from lm.shards import SplitWriter, TokenStore, open_or_build, read_manifest

EOS = 9
ROOT = Path(__file__).parents[1]


def write(folder, batches, dtype=np.uint16, shard_tokens=2**26):
    """A cache of one split, from batches of documents."""
    writer = SplitWriter(folder, "train", EOS, dtype, shard_tokens)
    for documents in batches:
        writer.add([np.array(ids, dtype) for ids in documents], text_bytes=sum(map(len, documents)))
    return {"dtype": np.dtype(dtype).name, "splits": {"train": writer.close()}}


documents = st.lists(st.lists(st.integers(0, 8), max_size=12), min_size=1, max_size=6)


@given(batches=st.lists(documents, min_size=1, max_size=4), shard_tokens=st.integers(1, 30), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_span_reads_back(tmp_path_factory, batches, shard_tokens, data):
    folder = tmp_path_factory.mktemp("cache")
    store = TokenStore(folder, "train", write(folder, batches, shard_tokens=shard_tokens))
    stream, starts = [], []
    for ids in (ids for batch in batches for ids in batch):
        starts.append(len(stream))
        stream += [EOS, *ids]
    stream.append(EOS)
    assert store.read(0, 10**9).tolist() == stream
    assert store.document_starts.tolist() == starts
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
    assert manifest["splits"]["train"]["files"]["train-00000.bin"] == 4 * np.dtype(dtype).itemsize


def test_ids_of_another_type_are_not_squeezed_in(tmp_path):
    writer = SplitWriter(tmp_path, "train", EOS, np.uint16)
    with pytest.raises(AssertionError, match="uint32 ids for uint16 shards"):
        writer.add([np.array([70_000], np.uint32)], 5)


def test_the_hash_is_of_the_tokens_not_of_how_they_are_cut(tmp_path):
    hashes = []
    for i, (batches, shard_tokens) in enumerate([([[[1, 2], [3]]], 100), ([[[1, 2]], [[3]]], 2), ([[[1, 2], [4]]], 100)]):
        (tmp_path / str(i)).mkdir()
        hashes.append(TokenStore(tmp_path / str(i), "train", write(tmp_path / str(i), batches, shard_tokens=shard_tokens)).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_store_is_sent_to_workers_without_its_content(tmp_path):
    store = TokenStore(tmp_path, "train", write(tmp_path, [[[1] * 50_000]]))
    store.read(0, 10)
    sent = pickle.dumps(store)
    assert len(sent) < 2000
    assert pickle.loads(sent).read(0, 3).tolist() == [EOS, 1, 1]


# --- the cache's folder


def build(folder):
    return write(folder, [[[1, 2, 3]]])


def never(_):
    raise AssertionError("built again")


def open_cache(folder, build):
    said = []
    manifest, cached = open_or_build(folder, build, said.append)
    assert manifest["fingerprint"] == folder.name
    return cached, said


def test_built_once_then_read(tmp_path):
    folder = tmp_path / "deep" / "cache" / "f1"
    assert open_cache(folder, build) == (False, [])
    assert open_cache(folder, never) == (True, [])
    assert sorted(path.name for path in folder.parent.iterdir()) == ["f1", "f1.lock"]


def test_another_fingerprint_is_another_cache(tmp_path):
    open_cache(tmp_path / "f1", build)
    assert open_cache(tmp_path / "f2", build) == (False, [])
    (tmp_path / "f1").rename(tmp_path / "f3")
    assert open_cache(tmp_path / "f3", build)[0] is False, "a folder that was renamed by hand"


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "shard cut": lambda folder: cut(folder / "train-00000.bin"),
    "shard longer": lambda folder: (folder / "train-00000.bin").open("ab").write(b"x"),
    "shard missing": lambda folder: (folder / "train-00000.bin").unlink(),
    "starts cut": lambda folder: cut(folder / "train-starts.bin"),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut": lambda folder: cut(folder / "manifest.json"),
    "manifest empty": lambda folder: (folder / "manifest.json").write_text("{}"),
    "manifest a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "manifest binary": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\0"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_again_and_that_is_said(tmp_path, damage):
    folder = tmp_path / "f1"
    open_cache(folder, build)
    DAMAGE[damage](folder)
    assert read_manifest(folder) is None
    cached, said = open_cache(folder, build)
    assert cached is False
    assert said == [f"{folder} is damaged (its files are not as its manifest.json says): building it again"]
    assert open_cache(folder, never) == (True, [])


def test_what_goes_wrong_while_building_leaves_nothing(tmp_path):
    def fail(folder):
        build(folder)
        raise CheckpointError("bad text")

    with pytest.raises(CheckpointError, match="bad text"):
        open_cache(tmp_path / "f1", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["f1.lock"]
    assert open_cache(tmp_path / "f1", build) == (False, [])


def build_half_and_wait(folder):
    build(folder)
    (folder.parent / "half").touch()
    time.sleep(60)


def test_killed_half_way_leaves_nothing_that_is_used(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=open_cache, args=(tmp_path / "f1", build_half_and_wait))
    process.start()
    while not (tmp_path / "half").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / "f1.tmp" / "train-00000.bin").exists(), "the killed process left its files"
    assert not (tmp_path / "f1").exists()
    assert open_cache(tmp_path / "f1", build) == (False, [])
    assert TokenStore(tmp_path / "f1", "train", read_manifest(tmp_path / "f1")).tokens == 5, "not on top of the old files"
    assert not (tmp_path / "f1.tmp").exists()


def test_processes_at_once_all_end_well_and_one_builds(tmp_path):
    folder, log = tmp_path / "f1", tmp_path / "log"

    def say(line):
        with log.open("a") as file:
            file.write(line + "\n")

    def build_while_another_waits(empty):
        say("building")
        while "waiting for it" not in log.read_text():
            time.sleep(0.01)
        return build(empty)

    def use(number):
        manifest, cached = open_or_build(folder, build_while_another_waits, say)
        tokens = TokenStore(folder, "train", manifest).read(0, 9).tolist()
        (tmp_path / f"result-{number}").write_text(json.dumps([cached, tokens]))

    processes = [multiprocessing.get_context("fork").Process(target=use, args=(i,)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    results = [json.loads((tmp_path / f"result-{i}").read_text()) for i in range(3)]
    assert sorted(results) == [[False, [EOS, 1, 2, 3, EOS]]] + 2 * [[True, [EOS, 1, 2, 3, EOS]]]
    assert log.read_text().count("building") == 1
    assert f"another process is preparing the same tokens in {tmp_path}: waiting for it\n" in log.read_text()


def test_a_cache_that_is_there_needs_no_right_to_write(tmp_path, monkeypatch):
    open_cache(tmp_path / "f1", build)
    monkeypatch.setattr(shards, "_lock", never)
    assert open_cache(tmp_path / "f1", never) == (True, [])


def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk(tmp_path):
    with pytest.raises(CheckpointError) as error:
        open_cache(tmp_path / "f1", full)
    expected = f"data.cache_dir: {tmp_path} cannot be written (No space left on device); free some space there or name another folder"
    assert str(error.value) == expected
    assert not (tmp_path / "f1.tmp").exists()


def test_a_disk_that_really_fills_up(tmp_path):
    """The system call fails, not a stand-in: files may not grow past 4 kB in that process."""
    program = (
        "import resource, sys, pathlib, signal; from tests.test_shards import open_cache, write; from lm.errors import CheckpointError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: open_cache(pathlib.Path(sys.argv[1]) / 'f1', lambda folder: write(folder, [[[1] * 9000]]))\n"
        "except CheckpointError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.startswith(f"data.cache_dir: {tmp_path} cannot be written (File too large);"), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["f1.lock"]


@pytest.mark.parametrize("name", ["file/cache", "file"])
def test_a_folder_that_cannot_be_made(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"data\.cache_dir: .*file.* cannot be written \("):
        open_cache(tmp_path / name / "f1", build)
