"""Which cache a configuration last used for a source: its tokens are then found without its text.

`<cache_dir>/<hash of the configuration's part>.source` names a cache. A relative path of the text
counts as it lies from `data.cache_dir`. So a project that is moved with its caches finds them, and
another project that shares the caches does not take these for its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from lm.config.schema.source import files_of
from lm.documents.reader import Reader
from lm.system.disk import read_json, replace
from lm.system.errors import CheckpointError
from lm.system.json_values import text


def recall(cache_dir: Path, reader: Reader, settings: dict[str, Any]) -> Path | None:
    """Return the folder of the cache that a source had, whether it exists or not; None: unknown."""
    try:
        name = text(read_json(_note(cache_dir, reader, settings)), "cache")
    except CheckpointError:
        return None
    return cache_dir / name if name and re.fullmatch(r"[0-9a-f]{16}", name) else None


def remember(cache_dir: Path, reader: Reader, settings: dict[str, Any], folder: Path) -> None:
    """Keep in mind which cache holds a source's tokens."""
    if recall(cache_dir, reader, settings) != folder:
        # A cache that is read-only is used all the same.
        with contextlib.suppress(CheckpointError, OSError):
            replace(_note(cache_dir, reader, settings), json.dumps({"cache": folder.name}))


def _note(cache_dir: Path, reader: Reader, settings: dict[str, Any]) -> Path:
    """Return the path of the note about a source.

    Args:
        cache_dir: the folder of the caches.
        reader: the source.
        settings: everything else that its tokens depend on.
    """
    files = []
    for pattern in files_of(reader.source):
        path = os.path.expanduser(pattern)  # noqa: PTH111 (Path's raises for an unknown ~user)
        absolute = os.path.isabs(path)  # noqa: PTH117
        files.append(path if absolute else os.path.relpath(path, cache_dir))
    content = json.dumps({**settings, "source": reader.section, "files": files}, sort_keys=True)
    return cache_dir / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.source"
