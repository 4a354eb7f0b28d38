"""Facts about a run's data: the lines that it logs, bytes of text, and a hash of everything."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lm.tokenizer.token_bytes import bytes_of_tokens
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.corpus import Corpus, named
from lm.tokens.round_trip import MOST_LOST, lost_share
from lm.tokens.rows import ConversationRows, DocumentRows, SourceRows
from lm.tokens.store import TokenStore
from lm.tokens.stream import Stream


def summary(
    trained: Sequence[Corpus],
    corpora: Sequence[Corpus],
    train: Sequence[SourceRows],
    val: Sequence[SourceRows],
) -> list[str]:
    """Return a line for each source: its text, its rows, where it lies, and what is skipped.

    If there is more than one source to train on, a line for all of them follows.

    Args:
        trained: the sources to train on.
        corpora: the configuration's sources; one of them may be there for validation only.
        train: the rows to train on.
        val: the rows to validate on.
    """
    lines = []
    for corpus in [*trained, *(corpus for corpus in corpora if corpus not in trained)]:
        own = [part for part in train if part.store is corpus.train]
        own_val = [part for part in val if part.store is corpus.val]
        facts = [*_counts("train", own), *_counts("val", own_val)]
        skipped = Counter[str]()
        for part in [*own, *own_val]:
            if isinstance(part, ConversationRows):
                skipped += part.skipped
        facts += [f"{count:,} x {reason}" for reason, count in skipped.items()]
        lines.append(f"data: {corpus.name}{'; '.join([*facts, *corpus.facts])}")
    if len(train) > 1:
        lines.append(
            f"data: together: {'; '.join([*_counts('train', train), *_counts('val', val)])}"
        )
    return lines


def _counts(split: str, parts: Sequence[SourceRows]) -> list[str]:
    """Return how many documents, tokens and rows a split has; nothing if it has no rows."""
    if not parts:
        return []
    n_rows, length = sum(map(len, parts)), parts[0].length
    stores = [part.store for part in parts if isinstance(part.store, TokenStore)]
    if len(stores) < len(parts):
        return [f"{split} as it comes, {n_rows:,} rows of {length:,} shuffled together"]
    documents = sum(store.documents for store in stores)
    tokens = sum(store.tokens for store in stores)
    chat = all(isinstance(part, ConversationRows) for part in parts)
    padding = ""
    if all(isinstance(part, DocumentRows) for part in parts):
        # Every token is an input once, except the last of each source.
        padding = f", {1 - (tokens - len(parts)) / (n_rows * length):.0%} of it padding"
    elif isinstance(parts[0], ConversationRows) and len(parts) == 1 and n_rows:
        padding = f", {1 - parts[0].n_inputs / (n_rows * length):.0%} of it padding"
    return [
        f"{split} {documents:,} {'conversations' if chat else 'documents'}, {tokens:,} tokens,"
        f" {n_rows:,} rows of {length:,}{padding}"
    ]


def bytes_per_token(stores: Sequence[TokenStore]) -> float:
    """Return the UTF-8 bytes of stored text per token, without EOS."""
    tokens = sum(store.text_tokens for store in stores)
    return sum(store.text_bytes for store in stores) / max(1, tokens)


def text_bytes(tokenizer: Tokenizer, stores: Sequence[TokenStore]) -> NDArray[np.float64]:
    """Return the bytes of stored text that each id stands for, (V,); 0 if it is no text.

    They turn the loss of any rows of the text into bits per byte. Over all of the text they sum to
    its bytes exactly, also if the tokenizer changes it: each byte of a token then stands for a
    little more or less than one of the text. All are 0 if the tokens lose more than MOST_LOST of
    the text: bits per byte would then be of a shorter text than these bytes.
    """
    sizes = bytes_of_tokens(tokenizer)
    if lost_share(stores) > MOST_LOST:
        return np.zeros(len(sizes))
    decoded = sum(int(store.count_ids(len(sizes)) @ sizes) for store in stores)
    text = sum(store.text_bytes for store in stores)
    return sizes.astype(np.float64) * (text / max(1, decoded))


def text_bytes_by_source(
    tokenizer: Tokenizer, corpora: Sequence[Corpus]
) -> dict[str, NDArray[np.float64]]:
    """Return the `text_bytes` of each source that has validation text, by the source's name.

    Empty if there is only one: its figures are those of the whole.
    """
    stores = {name: corpus.val for name, corpus in named(corpora) if corpus.val.documents}
    if len(stores) < 2:
        return {}
    return {name: text_bytes(tokenizer, [val]) for name, val in stores.items()}


def hash_of_data(corpora: Sequence[Corpus], parts: Sequence[SourceRows]) -> str:
    """Return a hash of all rows' tokens: equal for equal data, wherever the files lie.

    A stream counts by the dataset's commit. Its validation text does not count, because that
    depends on `trainer.validation_rows`, and this key may change.
    """
    of_streams = [corpus.val for corpus in corpora if isinstance(corpus.train, Stream)]
    hashes = [part.store.sha256 for part in parts if part.store not in of_streams]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
