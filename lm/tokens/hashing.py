"""Read files once from beginning to end, in threads, and hash them.

hashlib releases the interpreter's lock. One core hashes about 2 GB a second where the processor has
instructions for SHA-256, and about 0.5 GB without.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lm.system.machine import usable_cores
from lm.system.progress import ReadingProgress

CHUNK = 2**18  # bytes
MOST_THREADS = 8


def hash_files(
    what: str, files: Sequence[Path], see: Callable[[Path, bytes], None] = lambda *_: None
) -> list[str]:
    """Return the SHA-256 of each file, and show progress if that takes long.

    Args:
        what: the activity, for the progress.
        files: the files.
        see: called with each file's chunks in their order; a chunk has `CHUNK` bytes or is the
            last.

    Raises:
        OSError: a file cannot be read.
        ValueError: from `see`.
    """
    one_at_a_time = threading.Lock()
    with ReadingProgress(what, [str(file) for file in files], 0) as progress:

        def digest(file: Path) -> str:
            result = hashlib.sha256()
            try:
                with file.open("rb") as stream:
                    while chunk := stream.read(CHUNK):
                        result.update(chunk)
                        see(file, chunk)
                        with one_at_a_time:
                            progress.advance(len(chunk))
            except OSError as error:  # one of a read names no file
                raise OSError(error.errno, error.strerror, str(file)) from error
            return result.hexdigest()

        threads = max(1, min(MOST_THREADS, usable_cores() or 1, len(files)))
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(digest, files))
