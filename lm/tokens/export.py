"""Write a split of a token cache as a flat file of ids: nanoGPT's train.bin and the like.

    d1 EOS d2 EOS ... dn EOS        ids of one type, lowest byte first, without a header

This is the split's stream (`lm/tokens/store.py`) without its first EOS, so nothing is lost.
`lm/documents/flat.py` reads such files.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from lm.system.disk import refusals, replacing
from lm.tokens.store import TokenStore

CHUNK = 2**20  # ids that are copied at a time


def write_flat(store: TokenStore, file: Path) -> dict[str, Any]:
    """Write a split as a flat file, complete or not at all.

    Returns:
        The file's size and hash: {"bytes", "sha256"}.

    Raises:
        CheckpointError: the disk refuses the file.
    """
    digest = hashlib.sha256()
    size = (store.tokens - 1) * store.dtype.itemsize
    with refusals(file, size), replacing(file) as new, new.open("wb") as stream:
        for start in range(1, store.tokens, CHUNK):  # from behind the first EOS
            ids = store.read(start, CHUNK).astype(store.dtype.newbyteorder("<"), copy=False)
            digest.update(ids.data)
            stream.write(ids.data)
    return {"bytes": size, "sha256": digest.hexdigest()}
