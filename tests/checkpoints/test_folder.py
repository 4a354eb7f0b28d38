"""Checkpoints are whole or absent, damage is found and named, names follow: python -m pytest
tests/checkpoints/test_folder.py.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm.checkpoints import folder as checkpoint
from lm.checkpoints.folder import (
    Checkpoint,
    checkpoints_in,
    links_to,
    newest_whole,
    open_checkpoint,
    pointed,
    step_directories,
    step_name,
    step_of,
)
from lm.checkpoints.meta import Meta
from lm.checkpoints.write import point, restore_name, retain, sweep, write_checkpoint
from lm.system.errors import CheckpointError, ConfigError
from lm.system.mark import mark_of, set_mark
from tests.support.faults import ROOT, kill_everywhere, not_root, save, sealed

FILES = ("model.safetensors", "train_state.pt", "tokenizer.json", "meta.json", "manifest.json")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def steps(folder: Path) -> list[int]:
    return [step_of(path) for path in step_directories(folder)]


@pytest.fixture
def unprivileged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the current folder, which is empty, for a user who is not root."""
    monkeypatch.chdir(tmp_path)
    with not_root(tmp_path):
        yield Path()


# A checkpoint is written whole or not at all


class NewCheckpoint:
    """A save as in training: the next step, the link, and the removal of an old checkpoint."""

    @staticmethod
    def prepare(run: Path) -> None:
        set_mark(run)
        save(run, 1)
        point(run, "last.ckpt", run / "step-00000001.ckpt")

    @staticmethod
    def act(run: Path) -> None:
        point(run, "last.ckpt", save(run, 2))
        retain(run, keep=1)

    @staticmethod
    def check(run: Path) -> None:
        newest, problems = newest_whole(run)
        assert newest is not None and not problems
        for path in step_directories(run):
            Checkpoint(path).verify()
        last = pointed(run, "last.ckpt")
        assert last is not None and last in step_directories(run), (
            "the link means a whole checkpoint at every moment"
        )
        sweep(run)
        assert set(names(run)) <= {
            ".run-id",
            "last.ckpt",
            "step-00000001.ckpt",
            "step-00000002.ckpt",
        }, "nothing half-written stays"
        NewCheckpoint.act(run)
        assert names(run) == [".run-id", "last.ckpt", "step-00000002.ckpt"]
        Checkpoint(run / "last.ckpt").verify()


class ReplacedCheckpoint:
    """A second save of the same step."""

    @staticmethod
    def prepare(run: Path) -> None:
        set_mark(run)
        save(run, 1, b"the old weights")

    @staticmethod
    def act(run: Path) -> None:
        save(run, 1, b"the new weights")

    @staticmethod
    def check(run: Path) -> None:
        for path in step_directories(run):
            Checkpoint(path).verify()
        sweep(run)
        assert names(run) == [".run-id", "step-00000001.ckpt"]
        Checkpoint(run / "step-00000001.ckpt").verify()
        assert (run / "step-00000001.ckpt" / "model.safetensors").read_bytes() in (
            b"the old weights",
            b"the new weights",
        )


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("scenario", [NewCheckpoint, ReplacedCheckpoint])
def test_killed_before_any_disk_operation_the_old_or_the_new_one_is_whole(
    tmp_path: Path, scenario: type
) -> None:
    assert kill_everywhere(f"tests.checkpoints.test_folder:{scenario.__name__}", tmp_path) > 30


def test_everything_is_on_the_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, int, int]] = []  # what, inode, size at that time
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        log.append(("fsync", status.st_ino, status.st_size))
        fsync(descriptor)

    def recorded_rename(source: Path, target: Path) -> None:
        log.append(("rename", source.stat().st_ino, 0))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    path = save(tmp_path, 1)
    inodes = {entry.stat().st_ino: entry.name for entry in [tmp_path, path, *path.iterdir()]}
    assert [(what, inodes[inode]) for what, inode, _ in log] == [
        *[("fsync", name) for name in FILES],
        ("fsync", path.name),
        ("rename", path.name),
        ("fsync", tmp_path.name),
    ]
    for (_, _, size), name in zip(log, FILES, strict=False):
        assert size == (path / name).stat().st_size, "synced after it was written"


def refused(path: Path, writers: dict[str, Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(path, writers)
    return str(caught.value)


@pytest.mark.usefixtures("starts_processes")
def test_a_full_disk_costs_only_the_new_checkpoint(tmp_path: Path) -> None:
    """Each save that finds too little room fails and leaves the old checkpoint whole."""
    old = save(tmp_path, 1, b"x" * 2000)
    code = f"""
import resource
from pathlib import Path
from lm.system.errors import CheckpointError
from tests.support.faults import save
for limit in range(0, 2000, 100):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save(Path({str(tmp_path)!r}), 2, b"y" * 2000)
    except CheckpointError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    messages = done.stdout.splitlines()
    assert len(messages) == 20
    for message in messages:
        assert message.startswith(
            f"{tmp_path / 'step-00000002.ckpt'} could not be written: File too large; the disk or"
        )
        assert message.endswith("B free); what was saved before is untouched")
    assert names(tmp_path) == [old.name]
    Checkpoint(old).verify()


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("Error while serializing: I/O error"), "Error while serializing: I/O error"),
        (
            RuntimeError(
                "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534\nmore"
            ),
            "unexpected pos 576 vs 534 (",
        ),
    ],
)
@pytest.mark.parametrize("existing", [1, 2])
def test_a_writer_that_fails_leaves_what_was_there(
    tmp_path: Path, failure: Exception, said: str, existing: int
) -> None:
    old = save(tmp_path, existing)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise failure

    message = refused(tmp_path / "step-00000002.ckpt", {"model.safetensors": fail})
    assert said in message and message.count("\n") == 0
    assert names(tmp_path) == [old.name]
    Checkpoint(old).verify()


def test_what_is_not_the_disk_s_fault_is_not_laid_to_it(tmp_path: Path) -> None:
    """A GPU error while its weights are copied is an internal error (exit code 1), not a checkpoint
    error (5).
    """

    def fail(path: Path) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match=r"^CUDA error"):
        write_checkpoint(tmp_path / "step-00000001.ckpt", {"model.safetensors": fail})
    assert names(tmp_path) == []


def test_ctrl_c_in_a_save_leaves_nothing_half_written(tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "step-00000001.ckpt", {"model.safetensors": interrupted})
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", range(9))
def test_a_disk_that_fails_at_any_sync_or_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The n-th sync or rename raises EIO: four files, the manifest, the directory, the old
    checkpoint aside, the new one into place, the parent.
    """
    old = save(tmp_path, 1, b"old")
    calls = iter(range(100))

    def failing(call: Any) -> Any:
        def wrapped(*arguments: Any) -> Any:
            if next(calls) == number:
                raise OSError(errno.EIO, "Input/output error")
            return call(*arguments)

        return wrapped

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "rename", failing(os.rename))
    with pytest.raises(CheckpointError, match="could not be written: Input/output error;"):
        save(tmp_path, 1, b"new")
    assert names(tmp_path) == [old.name]
    Checkpoint(old).verify()
    assert (old / "model.safetensors").read_bytes() == (b"new" if number == 8 else b"old"), (
        "complete before the last call, or not at all"
    )


def test_a_strange_file_in_the_place_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "step-00000001.ckpt").write_text("someone's own")
    assert "is in the way: it is no checkpoint" in refused(tmp_path / "step-00000001.ckpt", {})
    assert (tmp_path / "step-00000001.ckpt").read_text() == "someone's own" and len(
        names(tmp_path)
    ) == 1


def test_a_folder_that_cannot_be_written(unprivileged: Path) -> None:
    Path("run").mkdir(mode=0o555)
    assert "run/step-00000001.ckpt could not be written: Permission denied" in refused(
        Path("run/step-00000001.ckpt"), {}
    )


# Damage is found


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path, 7, random.Random(0).randbytes(3000))


def test_what_was_saved_verifies(saved: Path) -> None:
    checkpoint = Checkpoint(saved)
    checkpoint.verify()
    assert set(checkpoint.files) == {*FILES} - {"manifest.json"}


def assert_found(path: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path).verify()
    assert str(caught.value).startswith(f"{path / name} "), caught.value
    assert "\n" not in str(caught.value)


def test_every_flipped_bit_and_every_cut_is_found_and_named(saved: Path) -> None:
    chance = random.Random(1)
    for number in range(100):
        name = FILES[number % len(FILES)]
        whole = (saved / name).read_bytes()
        flipped = bytearray(whole)
        place = chance.randrange(len(whole))
        flipped[place] ^= 1 << chance.randrange(8)
        zeroed = whole[:place] + bytes(min(512, len(whole) - place)) + whole[place + 512 :]
        for damaged in (bytes(flipped), whole[:place], whole[:-1], zeroed):
            if damaged != whole:
                (saved / name).write_bytes(damaged)
                assert_found(saved, name)
        (saved / name).write_bytes(whole)
    Checkpoint(saved).verify()


@pytest.mark.parametrize("name", FILES)
def test_missing_extra_swapped(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    (saved / name).unlink()
    assert_found(saved, name)
    (saved / name).mkdir()
    assert_found(saved, name)
    (saved / name).rmdir()
    if name != "manifest.json":
        os.mkfifo(saved / name)  # reading it would wait forever
        assert_found(saved, name)
        (saved / name).unlink()
    (saved / name).write_bytes(content)
    (saved / f"{name}.more").write_bytes(b"")
    assert_found(saved, f"{name}.more")
    (saved / f"{name}.more").unlink()
    other = FILES[FILES.index(name) - 1]
    (saved / name).write_bytes((saved / other).read_bytes())
    (saved / other).write_bytes(content)
    with pytest.raises(CheckpointError):
        Checkpoint(saved).verify()


def test_files_of_another_checkpoint(saved: Path, tmp_path: Path) -> None:
    other = save(tmp_path, 8, b"other")
    shutil.copy(other / "model.safetensors", saved)
    assert_found(saved, "model.safetensors")
    shutil.copy(other / "manifest.json", saved)
    assert_found(saved, "meta.json")


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest["files"].pop("meta.json"),
        lambda manifest: manifest["files"]["meta.json"].update(bytes=1),
        lambda manifest: manifest["files"].update(more={}),
        lambda manifest: manifest.update(sha256="0" * 64),
        lambda manifest: manifest.pop("sha256"),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest.clear(),
    ],
)
def test_an_edited_manifest(saved: Path, edit: Any) -> None:
    manifest = Checkpoint(saved).manifest
    edit(manifest)
    (saved / "manifest.json").write_text(json.dumps(manifest))
    assert_found(saved, "manifest.json")


@pytest.mark.parametrize("entry", [None, 3, {}, {"bytes": "7", "sha256": None}, {"bytes": 7}])
def test_a_manifest_with_wrong_kinds_of_values(saved: Path, entry: Any) -> None:
    files = Checkpoint(saved).files | {"meta.json": entry}
    (saved / "manifest.json").write_text(
        json.dumps({"files": files, "sha256": checkpoint.hash_of_table(files)})
    )
    assert_found(saved, "meta.json")


def test_a_manifest_cannot_point_outside(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    files = Checkpoint(saved).files | {"../secret": checkpoint.fingerprint(tmp_path / "secret")}
    (saved / "manifest.json").write_text(
        json.dumps({"files": files, "sha256": checkpoint.hash_of_table(files)})
    )
    assert_found(saved, "../secret")


def test_a_required_file_that_the_manifest_never_had(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.ckpt"
    write_checkpoint(path, {"meta.json": lambda file: file.write_text("{}") and None})
    assert_found(path, "model.safetensors")


def test_some_files_only(saved: Path) -> None:
    (saved / "train_state.pt").write_bytes(b"damaged")
    Checkpoint(saved).verify(("meta.json", "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"train_state\.pt is damaged"):
        Checkpoint(saved).verify(("meta.json", "train_state.pt"))
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is missing"):
        Checkpoint(saved).verify(("ema.safetensors",))


def test_newest_whole_passes_over_what_is_damaged_and_says_why(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in (100, 200, 300, 400, 500)]
    point(tmp_path, "last.ckpt", paths[0])
    assert newest_whole(tmp_path) == (Checkpoint(paths[4]), [])
    (paths[4] / "model.safetensors").write_bytes(b"weightz")
    (paths[3] / "manifest.json").unlink()
    sealed(paths[2], meta__json=b"[]")  # every hash is right
    newest, problems = newest_whole(tmp_path)
    assert newest == Checkpoint(paths[1])
    assert problems == [
        f"{paths[4]}/model.safetensors is damaged: its content is not what was saved",
        f"{paths[3]}/manifest.json is missing",
        f"{paths[2]}/meta.json is damaged: it should hold a JSON object",
    ]
    for path in paths[:2]:
        shutil.rmtree(path)
        path.mkdir()
    newest, problems = newest_whole(tmp_path)
    assert newest is None and len(problems) == 5
    assert newest_whole(tmp_path / "nowhere") == (None, [])


def test_strange_things_with_the_names_of_checkpoints(tmp_path: Path) -> None:
    whole = save(tmp_path, 1)
    for name in (
        "step-0000000a.ckpt",
        "step-9.ckpt",
        "step-00000009.ckpt.bak",
        "xstep-00000009.ckpt",
        "step-٠٠٠٠٠٠٠٩.ckpt",
        "step-.ckpt",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000002.ckpt").write_bytes(pickle.dumps(0))
    (tmp_path / "step-00000003.ckpt").symlink_to(whole.name)
    (tmp_path / "step-00000004.ckpt").symlink_to("nowhere")
    (tmp_path / "step-00000005.ckpt").symlink_to("step-00000005.ckpt")
    os.mkfifo(tmp_path / "step-00000006.ckpt")
    before = names(tmp_path)
    assert step_directories(tmp_path) == [whole] and newest_whole(tmp_path) == (
        Checkpoint(whole),
        [],
    )
    retain(tmp_path, keep=1)
    sweep(tmp_path)
    assert names(tmp_path) == before


def test_steps_of_any_length_are_in_order(tmp_path: Path) -> None:
    for step in (200_000_000, 0, 99_999_999, 3):
        save(tmp_path, step)
    assert steps(tmp_path) == [0, 3, 99_999_999, 200_000_000]


def test_folders_that_cannot_be_read(unprivileged: Path) -> None:
    save(unprivileged, 1)
    closed = save(unprivileged, 2)
    closed.chmod(0)
    newest, problems = newest_whole(unprivileged)
    assert newest == Checkpoint(Path("step-00000001.ckpt")) and problems == [
        "step-00000002.ckpt/manifest.json cannot be read: Permission denied"
    ]
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        open_checkpoint(closed)
    closed.chmod(0o755)
    (closed / "model.safetensors").chmod(0)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors cannot be read: Permission denied"
    ):
        Checkpoint(closed).verify()
    Path("shut").mkdir(mode=0)
    with pytest.raises(CheckpointError, match="shut cannot be read: Permission denied"):
        step_directories("shut")
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        open_checkpoint("shut/step-00000001.ckpt")


# A checkpoint is opened by its path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_path_or_link_opens_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 1)
    point(tmp_path, "best.ckpt", path)
    monkeypatch.chdir(tmp_path)
    assert (
        open_checkpoint("best.ckpt")
        == open_checkpoint(path)
        == open_checkpoint(str(path) + "/")
        == Checkpoint(path)
    )
    shutil.copytree(path, tmp_path / "my model")
    assert open_checkpoint("my model").step == 1


def test_what_is_not_a_checkpoint_is_told_in_a_line(tmp_path: Path) -> None:
    kind = (
        "not a checkpoint of this project; one is a folder like step-00001000.ckpt with a meta.json"
        " inside"
    )
    run, empty = tmp_path / "run", tmp_path / "empty"
    empty.mkdir()
    assert refusal(run / "x.ckpt") == "no such checkpoint"
    for step in (1, 2, 3, 4):
        save(run, step)
    point(run, "best.ckpt", run / "step-00000009.ckpt")
    (run / "loop.ckpt").symlink_to("loop.ckpt")
    (run / "old.ckpt").write_bytes(pickle.dumps({"state_dict": {}}))
    held = f"; {run} holds step-00000002.ckpt, step-00000003.ckpt, step-00000004.ckpt"
    assert refusal(run / "x.ckpt") == "no such checkpoint" + held
    assert refusal(run / "best.ckpt") == "no such checkpoint (the link leads nowhere)" + held
    assert refusal(run / "loop.ckpt") == "no such checkpoint (the link leads nowhere)" + held
    assert refusal(run / "old.ckpt") == kind
    assert refusal(run / "old.ckpt" / "below") == "no such checkpoint"
    assert (
        refusal(run / "step-00000001.ckpt" / "model.safetensors")
        == f"this is one file of a checkpoint; write {run}/step-00000001.ckpt"
    )
    assert refusal(empty) == kind
    assert refusal(Path("x" * 300)) == "cannot be read: File name too long"


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    hostile = pickle.dumps(Canary())
    path = sealed(save(tmp_path, 1), train_state__pt=hostile, tokenizer__json=hostile)
    Checkpoint(path).verify()
    facts = {"name": "byte", "sha256": "0" * 64, "eos_id": 0, "pad_id": 0}
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the tokenizer cannot be read"):
        Meta(path, Checkpoint(path).meta | {"tokenizer": facts}).load_tokenizer()
    (path / "meta.json").write_bytes(hostile)
    newest_whole(tmp_path)
    with pytest.raises(CheckpointError):
        _ = Checkpoint(path).meta
    assert not (tmp_path / "executed").exists()
    source = (ROOT / "lm" / "checkpoints" / "folder.py").read_text()
    assert "pickle" not in source and "torch.load" not in source


META = {"format": 1, "step": 1, "model": {}, "tokenizer": {}, "config": {}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe{}", "cannot be read"),
        (b'{"format": 1', "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"format": ' + b"1" * 5000 + b"}", "cannot be read"),
        (b"[]", "is damaged: it should hold a JSON object"),
        (b"null", "is damaged: it should hold a JSON object"),
        (b"{}", ": format None is unknown to this version of the project, which reads 1"),
        ({"format": 2}, ": format 2 is unknown to this version of the project, which reads 1"),
        ({"format": "1"}, ": format '1' is unknown"),
        ({"step": "1"}, "is damaged: step is missing or not what it should be"),
        ({"step": -1}, "is damaged: step is"),
        ({"step": True}, "is damaged: step is"),
        ({"step": 1.0}, "is damaged: step is"),
        (
            {"step": None, "model": [], "tokenizer": "byte", "config": None},
            "is damaged: step, model, tokenizer, config is",
        ),
        (
            {"step": 2},
            "is of step 2, but its folder is named for another; rename it step-00000002.ckpt",
        ),
    ],
)
def test_a_wrong_meta_json(tmp_path: Path, content: bytes | dict[str, Any], said: str) -> None:
    path = save(tmp_path, 1)
    (path / "meta.json").write_bytes(
        content if isinstance(content, bytes) else json.dumps(META | content).encode()
    )
    with pytest.raises(CheckpointError) as caught:
        _ = Checkpoint(path).meta
    assert (
        str(caught.value).startswith(f"{path}/meta.json")
        and said in str(caught.value)
        and "\n" not in str(caught.value)
    )


@pytest.mark.parametrize("key", ["step", "model", "tokenizer", "config"])
def test_a_key_that_is_missing(tmp_path: Path, key: str) -> None:
    path = save(tmp_path, 1)
    (path / "meta.json").write_text(
        json.dumps({name: value for name, value in META.items() if name != key})
    )
    with pytest.raises(CheckpointError, match=f"is damaged: {key} is missing"):
        _ = Checkpoint(path).meta


def test_the_tokenizer_is_held_against_meta(tmp_path: Path) -> None:
    from lm.tokenizer.tokenizer import ByteTokenizer

    byte = ByteTokenizer()
    stored = {
        "name": "byte",
        "sha256": byte.sha256,
        "vocab_size": 260,
        "eos_id": byte.eos_id,
        "pad_id": byte.pad_id,
    }
    (tmp_path / "tokenizer.json").write_text(byte.definition)
    assert Meta(tmp_path, {"tokenizer": stored}).load_tokenizer().encode("hi") == [104, 105]
    with pytest.raises(
        CheckpointError,
        match=r"tokenizer\.json is not the tokenizer that meta\.json names \(byte, 000000000000\)",
    ):
        Meta(tmp_path, {"tokenizer": stored | {"sha256": "0" * 64}}).load_tokenizer()
    for wrong in ({}, stored | {"eos_id": "x"}, stored | {"pad_id": None}, []):
        with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
            Meta(tmp_path, {"tokenizer": wrong}).load_tokenizer()
    for content in (b"", b"\xff", b"[" * 100_000, b"{}", b"[]", None):
        (tmp_path / "tokenizer.json").unlink()
        if content is not None:
            (tmp_path / "tokenizer.json").write_bytes(content)
        else:
            (tmp_path / "tokenizer.json").mkdir()
        with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
            Meta(tmp_path, {"tokenizer": stored}).load_tokenizer()


# Names and retention


def test_links_are_relative_replaced_at_once_and_move_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    one, two = save(run, 1), save(run, 2)
    assert pointed(run, "best.ckpt") is None
    point(run, "best.ckpt", one)
    assert (run / "best.ckpt").readlink() == Path("step-00000001.ckpt") and pointed(
        run, "best.ckpt"
    ) == one
    with monkeypatch.context() as patch:
        patch.setattr(
            os,
            "unlink",
            lambda path: (
                pytest.fail(f"{path} was removed") if Path(path).name == "best.ckpt" else None
            ),
        )
        point(run, "best.ckpt", two)
    assert pointed(run, "best.ckpt") == two
    run.rename(tmp_path / "elsewhere")
    assert Checkpoint(tmp_path / "elsewhere" / "best.ckpt").step == 2
    assert names(tmp_path / "elsewhere") == [
        "best.ckpt",
        "step-00000001.ckpt",
        "step-00000002.ckpt",
    ]


def test_a_link_that_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "best.ckpt").mkdir()
    (tmp_path / "final.ckpt").write_bytes(b"weights of another program")
    for name in ("best", "final"):
        with pytest.raises(CheckpointError, match=rf"{name}\.ckpt was not made by a run"):
            point(tmp_path, f"{name}.ckpt", tmp_path / "step-00000001.ckpt")
    assert (tmp_path / "final.ckpt").read_bytes() == b"weights of another program"

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt could not be written: Input/output error"
    ):
        point(tmp_path, "last.ckpt", tmp_path / "step-00000001.ckpt")
    assert names(tmp_path) == ["best.ckpt", "final.ckpt"]


# Copies without links


def copied(run: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of a run's folder whose names are small files, or copied directories."""
    copy = run.with_name("copy")
    shutil.copytree(run, copy, symlinks=form == "small file")
    if form == "small file":

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        with monkeypatch.context() as patch:
            patch.setattr(os, "symlink", refuse)
            for name in checkpoint.NAMES:
                if (target := pointed(copy, name)) is not None:
                    point(copy, name, target)
    assert not any(entry.is_symlink() for entry in copy.iterdir())
    return copy


def named(folder: Path) -> Path:
    """Return a folder with the checkpoints of steps 1 to 4, of which 2 is the best."""
    for step in range(1, 5):
        save(folder, step, f"weights {step}".encode())
    point(folder, "best.ckpt", folder / step_name(2))
    point(folder, "last.ckpt", folder / step_name(4))
    return folder


@pytest.mark.parametrize("form", ["small file", "directory"])
def test_a_name_need_not_be_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    copy = copied(named(tmp_path / "run"), form, monkeypatch)
    best = copy / step_name(2)
    assert pointed(copy, "best.ckpt") == best and links_to(best) == ["best"]
    assert open_checkpoint(copy / "best.ckpt") == open_checkpoint(copy) == Checkpoint(best)
    assert checkpoints_in(copy) == step_directories(copy)
    retain(copy, keep=1)
    assert steps(copy) == [2, 4]
    point(copy, "best.ckpt", copy / step_name(4))
    assert (copy / "best.ckpt").is_symlink() and links_to(copy / step_name(4)) == ["best", "last"]
    assert [name for name in names(copy) if name.startswith(".")] == []


def test_a_copied_directory_becomes_a_name_and_nothing_is_lost(tmp_path: Path) -> None:
    run = named(tmp_path / "run")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / step_name(2))  # only the copy under the name is left of step 2
    (copy / step_name(4) / "model.safetensors").write_bytes(b"damaged")
    assert open_checkpoint(copy / "best.ckpt") == Checkpoint(copy / "best.ckpt")
    assert checkpoints_in(copy)[1] == copy / "best.ckpt"
    for name in ("best.ckpt", "last.ckpt", "final.ckpt"):
        restore_name(copy, name)
    assert pointed(copy, "best.ckpt") == copy / step_name(2)
    for step in range(1, 5):
        assert Checkpoint(copy / step_name(step)).sha256 == Checkpoint(run / step_name(step)).sha256
        Checkpoint(copy / step_name(step)).verify()


def test_a_copied_directory_with_a_damaged_manifest_hides_nothing(tmp_path: Path) -> None:
    run = named(tmp_path / "run")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "best.ckpt" / "manifest.json").write_text("{")
    assert set(checkpoints_in(copy)) == {*step_directories(copy), copy / "best.ckpt"}


def test_a_copied_directory_that_is_another_checkpoint_is_left_alone(tmp_path: Path) -> None:
    folder = named(tmp_path / "run")
    (folder / "best.ckpt").unlink()
    other = save(tmp_path / "other", 2, b"of another run")
    shutil.copytree(other, folder / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"not the same as step-00000002\.ckpt; move it away"):
        restore_name(folder, "best.ckpt")
    with pytest.raises(CheckpointError, match="move it away"):
        point(folder, "best.ckpt", folder / step_name(4))
    Checkpoint(folder / "best.ckpt").verify()


@pytest.mark.parametrize("content", ["", "step-2.ckpt", "../run/step-00000002.ckpt", "x" * 100])
def test_a_file_that_names_no_step_is_no_name(tmp_path: Path, content: str) -> None:
    save(tmp_path, 2)
    (tmp_path / "best.ckpt").write_text(content)
    assert pointed(tmp_path, "best.ckpt") is None


def test_a_run_folder_stands_for_its_best_checkpoint_else_its_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = named(tmp_path / "run")
    for name, step in (("best.ckpt", 2), ("last.ckpt", 4)):
        assert open_checkpoint(run) == open_checkpoint(run) == Checkpoint(run / step_name(step))
        line = f"{run}: a run's folder: {name} is used ({step_name(step)})\n"
        assert capsys.readouterr().err == line, "once"
        (run / name).unlink()
    assert open_checkpoint(run) == Checkpoint(run / step_name(4))
    assert capsys.readouterr().err.endswith("step-00000004.ckpt is used, the newest\n")


def test_a_path_is_expanded_and_an_empty_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STEP", path.name)
    assert open_checkpoint("~/$STEP") == Checkpoint(path)
    with pytest.raises(ConfigError, match="the path is empty"):
        open_checkpoint("")
    with pytest.raises(ConfigError, match=r"the variable \$NOT_SET is not set"):
        open_checkpoint("$NOT_SET/x")


# Other people's files


def test_only_a_checkpoint_and_nothing_else_is_deleted_or_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / step_name(1)
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    noted = save(tmp_path, 2)
    (noted / "notes.txt").write_text("mine too")
    for step in (3, 4, 5):
        save(tmp_path, step)
    retain(tmp_path, keep=1)
    assert steps(tmp_path) == [1, 2, 5] and capsys.readouterr().err.count("is not deleted") == 2
    for step in (1, 2):
        with pytest.raises(CheckpointError, match="is in the way"):
            save(tmp_path, step)
    (tmp_path / step_name(6)).symlink_to(step_name(5))
    with pytest.raises(CheckpointError, match="is in the way"):
        save(tmp_path, 6)
    assert (mine / "notes.txt").exists() and (noted / "notes.txt").exists()
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


def test_retention_keeps_the_newest_and_what_a_link_means(tmp_path: Path) -> None:
    for step in range(1, 10):
        save(tmp_path, step)
    point(tmp_path, "best.ckpt", tmp_path / "step-00000002.ckpt")
    (tmp_path / "nice").symlink_to("best.ckpt")  # a name that the user chose
    (tmp_path / "mine").symlink_to(tmp_path / "step-00000004.ckpt")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    retain(tmp_path, keep=3)
    assert steps(tmp_path) == [2, 4, 7, 8, 9]
    retain(tmp_path, keep=100)
    assert steps(tmp_path) == [2, 4, 7, 8, 9]
    retain(tmp_path, keep=1)
    assert steps(tmp_path) == [2, 4, 9]
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


def test_retention_that_the_disk_refuses_is_told(unprivileged: Path) -> None:
    run = Path("run")
    save(run, 1)
    save(run, 2)
    run.chmod(0o555)
    with pytest.raises(
        CheckpointError, match=r"step-00000001\.ckpt could not be written: Permission denied"
    ):
        retain(run, keep=1)
    run.chmod(0o755)
    assert steps(run) == [1, 2]


def test_sweep_removes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    set_mark(tmp_path)
    mark = mark_of(tmp_path)
    whole = save(tmp_path, 1)
    half = tmp_path / f".step-00000002.ckpt.tmp-{mark}-17"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    for step, purpose in ((0, "deleted"), (1, "replaced")):
        shutil.copytree(whole, tmp_path / f".step-0000000{step}.ckpt.tmp-{mark}-{purpose}")
    (tmp_path / f".best.ckpt.tmp-{mark}-17").symlink_to("step-00000001.ckpt")
    (tmp_path / f".metrics.csv.tmp-{mark}-17").write_text("")
    kept = [".a.tmp-17", ".b.tmp-0123456789abcdef-17", ".lock", ".notes", ".run-id"]
    for name in kept[:-1]:
        (tmp_path / name).write_text("a user's")
    sweep(tmp_path)
    assert names(tmp_path) == [*kept, "step-00000001.ckpt"]
    Checkpoint(whole).verify()
    (tmp_path / ".run-id").unlink()
    half.mkdir()
    sweep(tmp_path)
    assert half.exists(), "without a mark nothing is known to be a leftover"


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    "module", ["lm.checkpoints.folder", "lm.system.disk", "lm.system.errors", "lm.runs.folder"]
)
def test_only_the_standard_library_is_imported(module: str) -> None:
    code = (
        f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}} -"
        " sys.stdlib_module_names - set(sys.argv[1:]))"
    )
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print(*{name.split('.')[0] for name in sys.modules})"],
        capture_output=True,
        text=True,
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *bare.stdout.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["lm"]
