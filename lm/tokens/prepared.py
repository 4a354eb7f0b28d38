"""Which cache holds a source's tokens: by its text, or by its configuration if the text is gone.

A cache is named after a hash of the text's content and of everything else that its tokens depend
on. `<cache_dir>/<hash of the configuration's part>.source` notes which cache a configuration used
last. A relative path of the text counts as it lies from `data.cache_dir`. So a project that is
moved with its caches finds them, and another project that shares the caches does not take these for
its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm.config.schema.data import DataConfig
from lm.config.schema.source import files_of
from lm.documents.reader import Reader
from lm.system.disk import read_json, replace
from lm.system.errors import CheckpointError
from lm.system.json_values import text
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.prepare import Split
from lm.tokens.store import FORMAT
from lm.tokens.texts import Texts


def cache_folder(
    data: DataConfig,
    reader: Reader,
    split: Split,
    tokenizer: Tokenizer,
    texts: Texts | None = None,
) -> Path:
    """Return the folder for the tokens of a source that is not streamed."""
    cache_dir = Path(data.cache_dir)
    return cache_dir / cache_key(reader, split, tokenizer, texts or Texts(cache_dir))


def cache_key(
    reader: Reader,
    split: Split,
    tokenizer: Tokenizer,
    texts: Texts,
    of_stream: Sequence[object] = (),
) -> str:
    """Return a hash of everything that the shards depend on, as the name of a folder.

    Of a text its content counts, wherever it lies and whatever its date.
    """
    content = {
        **settings_of(reader, split, tokenizer, of_stream),
        "source": reader.identity(texts.hashes),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def settings_of(
    reader: Reader, split: Split, tokenizer: Tokenizer, of_stream: Sequence[object] = ()
) -> dict[str, Any]:
    """Return everything that the shards depend on, but for the source.

    The length of rows does not count, because rows are cut when they are read. For a stream
    `on_bad_row` does not count: a bad row that stops a run is in no window, and the run can then
    continue with "skip". Stored text is read to its end, so "stop" must find the bad rows that
    "skip" passed over.
    """
    return {
        "format": FORMAT,
        "tokenizer": [tokenizer.sha256, tokenizer.eos_id],
        "split": [split.kind, split.fraction, *([split.test] if split.test else [])],
        "on_bad_row": None if of_stream else reader.on_bad_row,
        "more": of_stream,
    }


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
    for path in files_of(reader.source):
        absolute = os.path.isabs(path)  # noqa: PTH117
        files.append(path if absolute else os.path.relpath(path, cache_dir))
    content = json.dumps({**settings, "source": reader.section, "files": files}, sort_keys=True)
    return cache_dir / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.source"
