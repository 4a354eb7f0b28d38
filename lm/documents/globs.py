"""Paths that a glob names, where links may lead round in circles.

`glob.glob` follows links below `**` again and again: two links to the folder itself and to the one
above it are more paths than any disk has files.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path


def expand(pattern: str) -> list[str]:
    """Return the paths that a glob names, as `glob.glob` does; `**` enters each folder once."""
    head, stars, rest = pattern.partition(f"**{os.sep}")
    if not stars and pattern.endswith("**"):
        head, stars, rest = pattern[:-2], "**", "*"
    if not stars or (head and not head.endswith(os.sep)):
        return glob.glob(pattern, recursive=True)  # noqa: PTH207 (Path's takes no absolute pattern)
    found = {}
    for base in glob.glob(head) if head else [""]:  # noqa: PTH207
        for folder in folders(base):
            found.update(dict.fromkeys(expand(str(Path(glob.escape(folder), rest)))))
    return list(found)


def folders(base: str) -> Iterator[str]:
    """Yield a folder and all below it, each once, in order; those with a dot in front stay out."""
    seen = set()
    left = [base]
    while left:
        folder = left.pop()
        with contextlib.suppress(OSError):  # as in glob.glob: what cannot be read names nothing
            status = os.stat(folder or os.curdir)  # noqa: PTH116
            if (key := (status.st_dev, status.st_ino)) in seen:
                continue
            seen.add(key)
            with os.scandir(folder or os.curdir) as entries:
                inner = sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")
            yield folder
            left += [str(Path(folder, name)) for name in reversed(inner)]
