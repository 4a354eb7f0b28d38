"""What a text is known by: the SHA-256 of its files, so that equal sizes and dates prove nothing.

Hashing a text at each start would take half a second or more per gigabyte. So the hashes stand in
`texts.json` in `data.cache_dir`, with what the system says about each file: its size, the times of
its last changes, and its inode. Programs can set the first time back, but not the second (`ctime`).
A file that changes while it is hashed, or shortly before, is hashed again at the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from lm.documents.reader import states
from lm.system.disk import read_bytes, replace
from lm.system.errors import CheckpointError
from lm.system.locks import hold
from lm.tokens.hashing import hash_files
from lm.tokens.manifest import Digest

FILE = "texts.json"
LOCK = "texts.lock"
MOST_BYTES = 2**28  # a million files
# Seconds. A clock of the file system may stand still for a while, so two changes can look like one.
SETTLED = 2.0

State = tuple[int, int, int, int]  # an entry of `states`
Known = dict[str, tuple[int, int, int, int, Digest]]  # by path: its `states`, and the hash
READ = TypeAdapter(Annotated[Known, Field(max_length=2_000_000)])


class Texts:
    """The hashes of text files, kept in a folder of token caches."""

    def __init__(self, cache_dir: Path):
        self._cache_dir = cache_dir
        self._changed = False
        self._known = self._read()

    def hashes(self, files: Sequence[str]) -> list[str]:
        """Return the SHA-256 of each file.

        Raises:
            OSError: a file cannot be read.
        """
        paths = [os.path.realpath(file) for file in files]  # Path.resolve raises at a loop of links
        # Read as they are named: the folders above a path need not be open to everybody.
        state_of = dict(zip(paths, states(files), strict=True))
        as_named = dict(zip(paths, files, strict=True))
        with contextlib.ExitStack() as turn:
            if len(self._kept(state_of)) < len(state_of) and self._cache_dir.is_dir():
                # Of processes that start together one hashes, and the others read what it has kept.
                # A folder that is read-only, or has no locks, is no problem: then each hashes.
                with contextlib.suppress(OSError, CheckpointError):
                    turn.enter_context(hold(self._cache_dir / LOCK, lambda: None))
                    self._known |= self._read()
            found = self._hashes(state_of, as_named)
        return [found[path] for path in paths]

    def _hashes(self, state_of: dict[str, State], as_named: dict[str, str]) -> dict[str, str]:
        """Return the hashes of files by their paths, and keep those of files that rest."""
        result = self._kept(state_of)
        new = [path for path in state_of if path not in result]
        if new:
            now = time.time_ns()
            named = [Path(as_named[path]) for path in new]
            result |= zip(new, hash_files("reading the text", named), strict=True)
            for path in new:
                _, modified, changed, _ = state = state_of[path]
                settled = now - max(modified, changed) > SETTLED * 1e9
                if settled and states([as_named[path]]) == [state]:
                    self._known[path] = (*state, result[path])
                    self._changed = True
        if self._changed and self._cache_dir.is_dir():
            # It only saves time, so a cache that is read-only is no problem.
            with contextlib.suppress(CheckpointError):
                replace(self._cache_dir / FILE, json.dumps(self._known))
            self._changed = False
        return result

    def _kept(self, state_of: dict[str, State]) -> dict[str, str]:
        """Return the hashes that are known of files in this state."""
        return {
            path: self._known[path][4]
            for path, state in state_of.items()
            if path in self._known and self._known[path][:4] == state
        }

    def _read(self) -> Known:
        """Return the hashes that were kept; none if there are none yet, or if they are damaged."""
        try:
            # Names of files need not be UTF-8, and pydantic's own JSON refuses them.
            return READ.validate_python(json.loads(read_bytes(self._cache_dir / FILE, MOST_BYTES)))
        except (OSError, ValueError, RecursionError):
            return {}
