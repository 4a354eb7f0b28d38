"""A cache is built once, used only if it is whole, and goes on where its build was stopped."""

import errno
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lm.system.disk import fingerprint
from lm.system.environment import DECIDED
from lm.system.errors import CheckpointError, DataError
from lm.tokens import cache
from lm.tokens.cache import JOURNAL, DamagedError, open_or_build
from lm.tokens.cache import open_cache as read_cache
from lm.tokens.manifest import read_values
from lm.tokens.store import SplitWriter, TokenStore
from tests.support.faults import not_root
from tests.tokens.test_store import EOS, write

ROOT = Path(__file__).parents[2]


def build(folder, documents=((1, 2, 3),)):
    manifest = write(folder, [documents])
    val = SplitWriter(folder, "val", EOS, np.uint16).close()
    return manifest.model_copy(update={"splits": {**manifest.splits, "val": val}})


def never(_):
    raise AssertionError("built again")


def open_cache(folder, build):
    said = []
    manifest, cached = open_or_build(folder, build, said.append)
    assert manifest.fingerprint == folder.name
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
    with pytest.raises(DamagedError):
        read_cache(folder)
    cached, said = open_cache(folder, build)
    assert cached is False
    [line] = said
    assert line.startswith(f"{folder} is damaged (")
    assert line.endswith("): building it again")
    assert open_cache(folder, never) == (True, [])


def test_a_damaged_cache_stays_until_another_takes_its_place(tmp_path):
    folder = tmp_path / "f1"
    open_cache(folder, build)
    cut(folder / "train-00000.bin")
    with pytest.raises(CheckpointError):
        open_cache(folder, refuse)
    assert (folder / "manifest.json").exists()
    assert open_cache(folder, build)[0] is False
    assert open_cache(folder, never) == (True, [])


def test_what_goes_wrong_while_building_leaves_nothing(tmp_path):
    def fail(folder):
        build(folder)
        (folder / JOURNAL).touch()
        raise DataError("bad text")

    with pytest.raises(DataError, match="bad text"):
        open_cache(tmp_path / "f1", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["f1.lock"]
    assert open_cache(tmp_path / "f1", build) == (False, [])


def build_half_and_wait(folder):
    build(folder)
    (folder.parent / "half").touch()
    time.sleep(60)


@pytest.mark.usefixtures("starts_processes")
def test_killed_half_way_leaves_nothing_that_is_used(tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=open_cache, args=(tmp_path / "f1", build_half_and_wait)
    )
    process.start()
    while not (tmp_path / "half").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / "f1.tmp" / "train-00000.bin").exists(), "the killed process left its files"
    assert not (tmp_path / "f1").exists()
    assert open_cache(tmp_path / "f1", build) == (False, [])
    assert TokenStore(tmp_path / "f1", "train", read_cache(tmp_path / "f1")).tokens == 5, (
        "not on top of the old files"
    )
    assert not (tmp_path / "f1.tmp").exists()


@pytest.mark.usefixtures("starts_processes")
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

    processes = [
        multiprocessing.get_context("fork").Process(target=use, args=(i,)) for i in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    results = [json.loads((tmp_path / f"result-{i}").read_text()) for i in range(3)]
    assert sorted(results) == [[False, [EOS, 1, 2, 3, EOS]]] + 2 * [[True, [EOS, 1, 2, 3, EOS]]]
    assert log.read_text().count("building") == 1
    assert (
        f"another process is preparing the same tokens in {tmp_path}: waiting for it\n"
        in log.read_text()
    )


def test_a_cache_that_is_there_needs_no_right_to_write(tmp_path, monkeypatch):
    open_cache(tmp_path / "f1", build)
    monkeypatch.setattr(cache, "hold", never)
    assert open_cache(tmp_path / "f1", never) == (True, [])


def refuse(_, code=errno.ENOSPC):
    raise OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("code", "help_"),
    [
        (errno.ENOSPC, "free some space there, or name another folder"),
        (errno.EDQUOT, "remove some of your files"),
        (errno.EROFS, "mount it for writing"),
        (errno.EACCES, "change its permissions"),
        (errno.EPERM, "the owner or the file system forbids it"),
        (errno.EMFILE, "this process may open no more files"),
    ],
)
def test_a_folder_that_cannot_be_written_is_told_the_true_cause(tmp_path, code, help_):
    with pytest.raises(CheckpointError) as error:
        open_cache(tmp_path / "f1", functools.partial(refuse, code=code))
    assert str(error.value).startswith(
        f"data.cache_dir: {tmp_path} cannot be written: {os.strerror(code)}; {help_}"
    )
    assert not (tmp_path / "f1.tmp").exists()


def test_a_folder_that_the_system_refuses_is_told_the_true_cause(tmp_path, monkeypatch):
    """The real system calls fail: there is a file, a link, a long name and a lack of rights."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    Path("shut").mkdir(mode=0o555)
    for folder, cause in {
        "file": "File exists; a file has this name: remove it, or name another folder",
        "file/cache": "Not a directory; a part of the path is a file",
        "loop/cache": "the links in its path lead back to each other",
        "x" * 300: "File name too long; write a shorter name",
        "shut": "Permission denied; change its permissions",
    }.items():
        with not_root(tmp_path), pytest.raises(CheckpointError) as error:
            open_cache(Path(folder) / "f1", never)
        assert str(error.value).startswith(f"data.cache_dir: {folder} cannot be written: {cause}")


@pytest.mark.usefixtures("starts_processes")
def test_a_disk_that_really_fills_up(tmp_path):
    """The real system call fails, because files may not grow past 4 kB in that process."""
    program = (
        "import resource, sys, pathlib, signal; from tests.tokens.test_cache import open_cache,"
        " write; from lm.system.errors import CheckpointError\nsignal.signal(signal.SIGXFSZ,"
        " signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\ntry:"
        " open_cache(pathlib.Path(sys.argv[1]) / 'f1', lambda folder: write(folder, [[[1] *"
        " 9000]]))\nexcept CheckpointError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, cwd=ROOT
    )
    assert result.stdout.startswith(
        f"data.cache_dir: {tmp_path} cannot be written: File too large;"
    ), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["f1.lock"]


# --- what was stopped goes on


@pytest.mark.parametrize(
    "failure",
    [
        KeyboardInterrupt(),
        CheckpointError("disk"),
        RuntimeError("bug"),
        OSError(errno.ENOSPC, "full"),
    ],
)
def test_a_journal_is_kept_with_what_belongs_to_it(tmp_path, failure):
    folder = tmp_path / "f1"

    def fail(temporary):
        (temporary / "half").touch()
        (temporary / JOURNAL).touch()
        raise failure

    def go_on(temporary):
        assert (temporary / "half").exists()
        (temporary / "half").unlink()
        return build(temporary)

    with pytest.raises((type(failure), CheckpointError)) as error:
        open_cache(folder, fail)
    if isinstance(failure, OSError):
        assert str(error.value).endswith(
            f"; {tmp_path}/f1.tmp keeps what is done, and it goes on from there"
        )
    assert open_cache(folder, go_on) == (False, [])
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "train-00000.bin",
        "train-hashes.bin",
        "train-starts.bin",
        "val-00000.bin",
    ]
    assert not (tmp_path / "f1.tmp").exists()


def test_without_a_journal_nothing_is_kept(tmp_path):
    def fail(temporary):
        (temporary / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path / "f1", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["f1.lock"]


def test_a_kill_before_the_last_renaming_finds_the_journal(tmp_path, monkeypatch):
    """The journal of a killed build is found. The longest builds would otherwise lose most."""

    def build_with_journal(temporary):
        (temporary / JOURNAL).touch()
        return build(temporary)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_cache(tmp_path / "f1", build_with_journal)
    assert cache.unfinished(tmp_path / "f1")


def opened(folder, vocab_size=10):
    said = []
    _, cached = open_or_build(folder, build, said.append, vocab_size)
    return cached, said


def flip(path):
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize("name", ["train-00000", "train-starts", "train-hashes", "val-00000"])
def test_one_bit_is_found_where_a_command_learns_from_it(tmp_path, name):
    folder = tmp_path / "f1"
    opened(folder)
    flip(folder / f"{name}.bin")
    assert open_cache(folder, never) == (True, []), "sizes are as they should be"
    cached, [line] = opened(folder)
    assert not cached
    assert line.startswith(f"{folder} is damaged ({name}.bin h")
    assert opened(folder) == (True, [])


def test_only_the_first_process_of_a_machine_reads_it_all(tmp_path, monkeypatch):
    opened(tmp_path / "f1")
    flip(tmp_path / "f1" / "train-00000.bin")
    monkeypatch.delenv(DECIDED, raising=False)  # a training in this process may have set it
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert opened(tmp_path / "f1") == (True, [])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert opened(tmp_path / "f1")[0] is False, "LOCAL_RANK is left over from another program"


def test_several_processes_start_again_after_damage(tmp_path, monkeypatch):
    """Another process may have opened the damaged files."""
    opened(tmp_path / "f1")
    flip(tmp_path / "f1" / "train-00000.bin")
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CheckpointError, match="was damaged and is built again; start again with"):
        opened(tmp_path / "f1")
    assert opened(tmp_path / "f1") == (True, [])


def forge(folder, change):
    """Change values in a manifest, and the hashes with them, as someone might who means it."""
    values = read_values(folder / "manifest.json")
    for split in values["splits"].values():
        for name, file in split["files"].items():
            file |= fingerprint(folder / name)
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def test_ids_of_another_vocabulary_never_reach_a_model(tmp_path):
    opened(tmp_path / "f1")
    np.array([EOS, 1, 2, 10, EOS], np.uint16).tofile(tmp_path / "f1" / "train-00000.bin")
    forge(tmp_path / "f1", lambda values: None)
    cached, [line] = opened(tmp_path / "f1")
    assert "train-00000.bin holds the id 10, beyond the tokenizer's 10" in line
    assert not cached


@pytest.mark.parametrize("starts", [[5], [-1], [2**40]])
def test_documents_begin_where_there_is_text(tmp_path, starts):
    opened(tmp_path / "f1")
    np.array(starts, np.int64).tofile(tmp_path / "f1" / "train-starts.bin")
    forge(tmp_path / "f1", lambda values: None)
    assert "train-starts.bin holds places" in opened(tmp_path / "f1")[1][0]


def put(*keys, value):
    def change(values):
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


TRAIN = ("splits", "train")
FORGED = {
    "a count in words": put(*TRAIN, "tokens", value="five"),
    "a count that is true": put(*TRAIN, "documents", value=True),
    "a fraction": put(*TRAIN, "tokens", value=5.5),
    "a negative count": put(*TRAIN, "text_bytes", value=-1),
    "an absurd count": put(*TRAIN, "tokens", value=10**30),
    "shards of nothing": put(*TRAIN, "shard_tokens", value=0),
    "shards beyond number": put(*TRAIN, "shard_tokens", value=1),
    "more documents": put(*TRAIN, "documents", value=2),
    "no split": put("splits", value={}),
    "a list of splits": put("splits", value=[]),
    "files of nothing": put(*TRAIN, "files", value=None),
    "a file elsewhere": put(*TRAIN, "files", "../f1/train-00000.bin", value={}),
    "another type": put("dtype", value="object"),
    "removed in words": put("removed", value={"x": "many"}),
    "a line in a reason": put("removed", value={"a\nb": 1}),
}


@pytest.mark.parametrize("change", FORGED)
def test_a_manifest_of_another_shape_is_a_damaged_cache(tmp_path, change):
    opened(tmp_path / "f1")
    forge(tmp_path / "f1", FORGED[change])
    cached, [line] = opened(tmp_path / "f1")
    assert not cached
    assert line.startswith(f"{tmp_path / 'f1'} is damaged (")
    assert "\n" not in line


def test_a_manifest_that_was_edited_is_a_damaged_cache(tmp_path):
    """No file contradicts the number of bytes of text."""
    opened(tmp_path / "f1")
    file = tmp_path / "f1" / "manifest.json"
    values = json.loads(file.read_text())
    values["splits"]["train"]["text_bytes"] += 1
    file.write_text(json.dumps(values))
    assert "was changed after it was written" in opened(tmp_path / "f1")[1][0]


def test_a_cache_of_an_earlier_version_has_no_hash_of_its_manifest(tmp_path):
    opened(tmp_path / "f1")
    forge(tmp_path / "f1", lambda values: None)
    assert opened(tmp_path / "f1") == (True, [])


@pytest.mark.parametrize("content", ["[" * 10**6, "[]", "null", '{"a": ' + "1" * 5000 + "}", ""])
def test_a_manifest_that_is_no_object_is_a_damaged_cache(tmp_path, content):
    opened(tmp_path / "f1")
    (tmp_path / "f1" / "manifest.json").write_text(content)
    assert opened(tmp_path / "f1")[0] is False


@pytest.mark.parametrize("name", ["manifest.json", "train-00000.bin"])
def test_a_pipe_in_a_cache_is_not_waited_for(tmp_path, name):
    opened(tmp_path / "f1")
    (tmp_path / "f1" / name).unlink()
    os.mkfifo(tmp_path / "f1" / name)
    assert opened(tmp_path / "f1")[0] is False
