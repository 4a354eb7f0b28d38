"""Facts about a run's data: the lines that it logs, bytes per token, and a hash of everything."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

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
    """Return the UTF-8 bytes of stored text per token, without EOS.

    It turns nats per token into bits per byte: exactly for whole splits, and with the average of
    the split if only some rows are scored. It is NaN if the tokens lose more than MOST_LOST of the
    text, because these bits would then be of a shorter text than these bytes.
    """
    if lost_share(stores) > MOST_LOST:
        return math.nan
    return mean_token_bytes(stores)


def mean_token_bytes(stores: Sequence[TokenStore]) -> float:
    """Return the UTF-8 bytes of stored text per token, without EOS."""
    tokens = sum(store.text_tokens for store in stores)
    return sum(store.text_bytes for store in stores) / max(1, tokens)


def bytes_per_token_by_source(corpora: Sequence[Corpus]) -> dict[str, float]:
    """Return the bytes per token of each source that has validation text, by the source's name.

    Empty if there is only one: its figures are those of the whole.
    """
    stores = {name: corpus.val for name, corpus in named(corpora) if corpus.val.documents}
    if len(stores) < 2:
        return {}
    return {name: bytes_per_token([val]) for name, val in stores.items()}


def hash_of_data(corpora: Sequence[Corpus], parts: Sequence[SourceRows]) -> str:
    """Return a hash of all rows' tokens: equal for equal data, wherever the files lie.

    A stream counts by the dataset's commit. Its validation text does not count, because that
    depends on `trainer.validation_rows`, and this key may change.
    """
    of_streams = [corpus.val for corpus in corpora if isinstance(corpus.train, Stream)]
    hashes = [part.store.sha256 for part in parts if part.store not in of_streams]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
