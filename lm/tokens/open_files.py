"""Reading from the middle of many files, of which only the latest stay open.

Not through memory maps: thousands of them would be open at once, and their pages would count as the
process's memory.
"""

from __future__ import annotations

import os

MOST_OPEN = 128  # files at a time: a process may have 1,024, and a large corpus has more shards.

_descriptors: dict[str, int] = {}


def read_at(path: str, start: int, size: int) -> bytes:
    """`size` bytes of a file from `start` on; fewer at its end."""
    return os.pread(_descriptor(path), size, start)


def let_go(prefix: str) -> None:
    """Close the files whose paths begin so: the room of one that was removed is free only when
    nobody has it open.
    """
    for path in [path for path in _descriptors if path.startswith(prefix)]:
        os.close(_descriptors.pop(path))


def _descriptor(path: str) -> int:
    """A file's descriptor, for reading: the last `MOST_OPEN` that were asked for stay open,
    whichever stores they belong to.
    """
    descriptor = _descriptors.pop(path, None)
    # removed since, and perhaps made again
    if descriptor is not None and os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        descriptor = None
    if descriptor is None:
        if len(_descriptors) >= MOST_OPEN:
            os.close(_descriptors.pop(next(iter(_descriptors))))
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _descriptors[path] = descriptor  # the latest is last
    return descriptor
