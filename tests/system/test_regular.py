"""A regular file is opened, and everything else is refused at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lm.system.regular import open_regular


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "not a regular file"),  # nobody writes it: opening it plainly would wait
        (make_device, "not a regular file"),
        (Path.mkdir, "Is a directory"),
    ],
    ids=["a pipe", "a device without end", "a folder"],
)
def test_what_is_no_regular_file_is_refused_and_closed(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "x")
    before = open_files()
    with pytest.raises(OSError, match=reason) as caught:
        open_regular(tmp_path / "x")
    assert caught.value.filename == str(tmp_path / "x")
    assert open_files() == before


def test_flags_and_mode_belong_together(tmp_path: Path) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    for text in (b"one ", b"two"):
        with open_regular(tmp_path / "x", flags, "a+b") as file:
            file.write(text)
    with open_regular(tmp_path / "x") as file:
        assert file.read() == b"one two"
    (tmp_path / "link").symlink_to("x")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"one two"
    with pytest.raises(OSError, match="symbolic links"):
        open_regular(tmp_path / "link", flags)
