"""Split documents one after another. Tests compare shards with this slow and obvious version."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from lm.documents.reader import hash_of_text
from lm.tokens.prepare import Split


def split_slowly(
    kept: list[Any], split: Split, text: Callable[[Any], str]
) -> tuple[list[Any], list[Any]]:
    """Return documents to train on and to validate on; `text` gives the text of one. `tail` may cut
    one in two.
    """
    if split.kind == "hash":
        held_out = [hash_of_text(text(document)) < split.fraction * 2**64 for document in kept]
        return [d for d, out in zip(kept, held_out, strict=True) if not out], list(
            itertools.compress(kept, held_out)
        )
    train, left = [], int(sum(map(len, kept)) * (1 - split.fraction))
    while kept and len(kept[0]) <= left:
        left -= len(kept[0])
        train.append(kept.pop(0))
    if left:
        train, kept = [*train, kept[0][:left]], [kept[0][left:], *kept[1:]]
    return train, kept
