"""What is written is whole, goes through no link, and a refusal says what helps: python -m pytest
tests/system/test_disk.py.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm.system import disk, refusal
from lm.system.errors import CheckpointError
from lm.system.mark import leftovers, mark_of, set_mark, temporary


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        disk.replace(path, "new")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path} could not be written: ")


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / ("é" * 120)  # 240 bytes: a temporary name has to be shorter than it
    for text in ("old", "new"):
        disk.replace(file, text)
        assert file.read_text() == text and [*tmp_path.iterdir()] == [file]


def test_a_folder_and_a_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("mine")
    for target in ("text", "nowhere", "."):
        link = tmp_path / "link"
        link.symlink_to(target)
        assert refused(link).startswith("it is a link, and nothing is written through a link")
        assert link.is_symlink() and (tmp_path / "text").read_text() == "mine"
        link.unlink()
    assert refused(tmp_path).startswith("it is a folder; name a file")
    assert refused(Path("/")).startswith("it is a folder; name a file")
    with pytest.raises(CheckpointError, match="it is a folder; name a file"):
        disk.replace(Path(), "new")


def test_a_device_is_written_to_and_stays_a_device() -> None:
    for path in (Path("/dev/null"), Path("/dev/full")):
        before = path.stat()
        if path.name == "null":
            disk.replace(path, "new")
        else:
            assert refused(path).startswith(
                "No space left on device; free some space there, or name"
            )
        assert path.stat().st_rdev == before.st_rdev and path.is_char_device()


def test_a_pipe_is_written_to_if_somebody_reads_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert refused(pipe).startswith("No such device or address"), "it does not wait for a reader"
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    while True:
        try:
            disk.replace(pipe, "new")
            break
        except CheckpointError:
            pass  # the reader has not opened it yet
    reader.join()
    assert read == ["new"] and pipe.is_fifo()
    disk_link = tmp_path / "like the name of stdout"
    disk_link.symlink_to("/dev/null")
    disk.replace(disk_link, "new")
    assert disk_link.is_symlink()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["a folder", "a pipe"])
def test_only_a_regular_file_is_appended_to(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "log")
    with pytest.raises(
        CheckpointError, match=r"log could not be written: (Is a dir|not a regular)"
    ):
        disk.append(tmp_path / "log", "line")
    (tmp_path / "link").symlink_to("text")
    with pytest.raises(CheckpointError, match="it is a link"):
        disk.append(tmp_path / "link", "line")
    assert not (tmp_path / "text").exists()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_is_used_and_it_is_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    for text in ("old", "new"):
        disk.replace(tmp_path / "file", text)
    assert (tmp_path / "file").read_text() == "new"
    assert capsys.readouterr().err.count("a power cut may take the newest checkpoint") == 1
    code = errno.EIO
    with pytest.raises(CheckpointError, match="Input/output error"):
        disk.replace(tmp_path / "file", "newer")
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize(
    ("code", "help_"),
    [
        (errno.EDQUOT, "Disk quota exceeded; remove some of your files, or ask for a larger quota"),
        (errno.EACCES, "Permission denied; change its permissions"),
        (errno.EPERM, "Operation not permitted; the owner or the file system forbids it"),
        (errno.ENOTDIR, "Not a directory; a part of the path is a file"),
        (errno.EMFILE, "Too many open files; this process may open no more files: raise the limit"),
        (errno.ENFILE, "Too many open files in system; this machine may open no more files"),
        (errno.EIO, "Input/output error; the disk failed"),
        (errno.ELOOP, "the links in its path lead back to each other: mend them"),
        (errno.ESTALE, "Stale file handle; the network folder was moved or mounted anew: mount it"),
        (errno.EROFS, "Read-only file system; mount it for writing"),
        (errno.ENAMETOOLONG, "File name too long; write a shorter name"),
    ],
)
def test_a_refusal_says_what_helps(tmp_path: Path, code: int, help_: str) -> None:
    with (
        pytest.raises(CheckpointError, match=f"file could not be written: {help_}") as caught,
        disk.refusals(tmp_path / "file"),
    ):
        raise OSError(code, os.strerror(code))
    message = str(caught.value)
    assert " free)" not in message and "some space" not in message, "space was not missing"


@pytest.mark.parametrize(
    ("code", "help_"),
    [(errno.ENOSPC, "free some space there"), (errno.EFBIG, "the disk or `ulimit -f` forbids")],
)
def test_where_space_is_missing_the_message_says_how_much(
    tmp_path: Path, code: int, help_: str
) -> None:
    with pytest.raises(CheckpointError) as caught, disk.refusals(tmp_path / "file", 2000):
        raise OSError(code, os.strerror(code))
    message = str(caught.value)
    assert f"could not be written: {os.strerror(code)}; {help_}" in message
    assert " or name another folder (2 kB needed, " in message and " free); what was" in message


def test_no_inodes_left_is_not_called_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(free: int) -> str:
        state = SimpleNamespace(f_files=16, f_favail=free)
        monkeypatch.setattr(os, "statvfs", lambda _: state)
        return refusal.why(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "a" / "b")

    assert full(0).startswith("no inodes are left, although bytes may be free")
    assert full(1).startswith("No space left on device; free some space")


def test_temporary_names_carry_the_mark_of_their_folder(tmp_path: Path) -> None:
    assert leftovers(tmp_path) == [] and mark_of(tmp_path) == ""
    unmarked = temporary(tmp_path / "a.txt")
    set_mark(tmp_path)
    first = mark_of(tmp_path)
    set_mark(tmp_path)
    assert mark_of(tmp_path) == first, "a mark is for ever"
    ours = temporary(tmp_path / "a.txt")
    for path in (unmarked, ours):
        path.write_text("")
    assert first in ours.name and leftovers(tmp_path) == [ours]
    assert temporary(tmp_path / "a.txt") != ours


@pytest.mark.parametrize("content", ["", "x", "0123456789abcdeg", "0" * 15, "0" * 100])
def test_a_mark_that_no_run_wrote_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / ".run-id").write_text(content)
    assert mark_of(tmp_path) == ""
