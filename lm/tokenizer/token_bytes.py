"""How many bytes of text each token id stands for."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm.tokenizer.fast_bpe import byte_symbols
from lm.tokenizer.tokenizer import Tokenizer

ONE_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # what SentencePiece writes for a byte without a token


def bytes_of_tokens(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return the UTF-8 bytes of the text of each id, (V,); 0 for special ids and for holes.

    The ids of a text sum to its bytes if the tokenizer is byte-level. Others may add a space at the
    start of a text, or change characters before they encode them.
    """
    definition = json.loads(tokenizer.definition)
    vocabulary: dict[str, int] = definition["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
        vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
    added = {token["id"]: token["content"] for token in definition.get("added_tokens", [])}
    ids = [i for i in vocabulary.values() if i not in added and i not in tokenizer.special_ids]
    names = {i: token for token, i in vocabulary.items()}
    sizes = np.zeros(tokenizer.vocab_size, np.int64)
    if _decodes_bytes(definition.get("decoder") or {}):
        symbols = set(byte_symbols())
        for i in ids:
            name = names[i]
            sizes[i] = len(name) if symbols.issuperset(name) else len(name.encode())
    else:
        # Behind another token: a decoder may drop the space at the start of a text.
        before = tokenizer.encode("a")[:1]
        start = len(tokenizer.decode(before).encode())
        for i in ids:
            one_byte = ONE_BYTE.fullmatch(names[i])
            sizes[i] = 1 if one_byte else len(tokenizer.decode([*before, i]).encode()) - start
    for i, content in added.items():
        sizes[i] = 0 if i in tokenizer.special_ids else len(content.encode())
    # Text may become the unknown token, whose nats count: it stands for a byte at least.
    if tokenizer.unknown_id is not None:
        sizes[tokenizer.unknown_id] = 1
    return sizes.clip(0)


def _decodes_bytes(decoder: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json's decoder turns each character of a token into a byte."""
    steps = decoder.get("decoders", [decoder])
    return any(step.get("type") == "ByteLevel" for step in steps)
