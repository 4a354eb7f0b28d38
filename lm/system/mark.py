"""The mark of a run's folder, and the temporary names that carry it.

    .run-id                            16 hexadecimal digits, written when the run first starts
    .step-00000500.ckpt.tmp-MARK-...   being written, replaced or deleted by that run

A run removes only names with its own mark, so no file of anybody else can be taken for a leftover.
An empty `.run-id` is a user's permission to let a run begin in a folder that holds other files. The
mark of such a folder says so: it is never moved aside as a whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from pathlib import Path

from lm.system.regular import open_regular

MARK = ".run-id"
SHARED = "shared"  # the second word in the mark of a folder that holds a user's files too
MOST_NAME = 48  # characters of a name that its temporary name repeats: names are limited


def mark_of(folder: Path) -> str:
    """Return the mark of a folder; empty if it has none, or one that no run has filled in."""
    mark = next(iter(_words(folder)), "")
    return mark if re.fullmatch("[0-9a-f]{16}", mark) else ""


def is_shared(folder: Path) -> bool:
    """Return whether a run was allowed into a folder that holds a user's files."""
    return _words(folder)[1:] == [SHARED]


def _words(folder: Path) -> list[str]:
    try:
        with open_regular(folder / MARK, os.O_RDONLY | os.O_NOFOLLOW) as file:
            return file.read(64).decode(errors="replace").split()
    except OSError:
        return []


def is_allowed(folder: Path) -> bool:
    """Return whether a folder holds the mark of a run, or the empty file that allows one."""
    with contextlib.suppress(OSError):
        found = (folder / MARK).lstat()
        return stat.S_ISREG(found.st_mode) and (found.st_size == 0 or mark_of(folder) != "")
    return False


def set_mark(folder: Path, mark: str = "", shared: bool = False) -> None:
    """Write a new mark, or the given one, into a folder without one. Raises OSError."""
    if not mark_of(folder):
        words = [mark or secrets.token_hex(8), SHARED]
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
        with open_regular(folder / MARK, flags, "wb") as file:
            file.write(" ".join(words[: 1 + shared]).encode() + b"\n")


def temporary(path: Path, purpose: str = "") -> Path:
    """Return a temporary name next to `path`, with the mark of their folder if it has one.

    Args:
        path: the file or folder that it is for.
        purpose: what it is for; by default a random word, so that no two names are equal.
    """
    mark = mark_of(path.parent)
    end = "-".join(filter(None, [mark, purpose or secrets.token_hex(4)]))
    return path.with_name(f".{path.name[:MOST_NAME]}.tmp-{end}")


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files and folders that carry the folder's mark."""
    mark = mark_of(folder)
    if not mark:
        return []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if f".tmp-{mark}-" in entry.name]
    return []
