"""Why a disk refused, in words that say what helps; and remarks that are printed once.

The module imports only the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

ELSEWHERE = "or name another folder"
HELP = {
    errno.ENOSPC: f"free some space there, {ELSEWHERE}",
    errno.EDQUOT: "remove some of your files, or ask for a larger quota",
    errno.EFBIG: "the disk or `ulimit -f` forbids files of this size: raise the limit,"
    f" {ELSEWHERE}",
    errno.EROFS: "mount it for writing (after a disk error, dmesg says why it is read-only),"
    f" {ELSEWHERE}",
    errno.EACCES: f"change its permissions (`ls -ld` shows them), {ELSEWHERE}",
    errno.EPERM: "the owner or the file system forbids it (`ls -ld` and `lsattr -d` show how):"
    f" change that, {ELSEWHERE}",
    errno.ENOTDIR: f"a part of the path is a file: remove it, {ELSEWHERE}",
    errno.EEXIST: f"a file has this name: remove it, {ELSEWHERE}",
    errno.EMFILE: "this process may open no more files: raise the limit (`ulimit -n`)",
    errno.ENFILE: "this machine may open no more files: end other programs",
    errno.EIO: f"the disk failed (dmesg says more): replace it, {ELSEWHERE}",
    errno.ESTALE: "the network folder was moved or mounted anew: mount it again, and go on with the"
    " same command",
    errno.ENAMETOOLONG: "write a shorter name",
    errno.ENXIO: "a pipe needs a program that reads it: start that first",
    errno.ELOOP: "it is a link, and nothing is written through a link: remove it, or name the file"
    " itself",
}
# a file system that does not know a call answers with one of these
UNKNOWN_CALL = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}

_printed: set[str] = set()


def why(error: OSError, path: Path | str) -> str:
    """Return why the system refused to write `path`, and what helps, as the end of a sentence."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC and not inodes_left(path):
        return (
            "no inodes are left, although bytes may be free: the disk holds as many files as it"
            " can (see df -i); remove some files"
        )
    if error.errno == errno.ELOOP and Path(path).is_symlink():
        return HELP[errno.ELOOP]
    if error.errno == errno.ELOOP:
        return "the links in its path lead back to each other: mend them, or name another folder"
    return f"{reason}; {HELP[error.errno]}" if error.errno in HELP else reason


def inodes_left(path: Path | str) -> bool:
    """Return whether the disk of a path, or of the nearest folder around it, can hold one file
    more. A file system that does not count its files can.
    """
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        disk = os.statvfs(place)
    except OSError:
        return True
    return disk.f_files == 0 or disk.f_favail > 0


def remark(line: str) -> None:
    """Print a line to stderr, once in the life of this process."""
    if line not in _printed:
        _printed.add(line)
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            print(line, file=sys.stderr)
