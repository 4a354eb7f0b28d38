"""The sources of a configuration as tokens: each has its own cache, made when it is first needed.

So a mixture can change its weights, and other mixtures can use the same sources, without tokenising
anything again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lm.config.schema.config import Config
from lm.config.schema.data import DataConfig
from lm.config.schema.source import HubSource, dataset_of, files_of, is_streamed
from lm.documents.conversations import Conversation
from lm.documents.reader import Reader, hash_of_text
from lm.documents.templates import ChatFormat
from lm.system.errors import DataError
from lm.system.units import in_bytes
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.cache import open_or_build
from lm.tokens.engines import on_this_machine
from lm.tokens.prepare import SPLITS, Split, prepare
from lm.tokens.store import FORMAT, Manifest, TokenStore
from lm.tokens.stream import Stream, choose_revision
from lm.tokens.tokenise import Engine

MOST_KINDS = 20  # of what was left out, in a line of the log


@dataclass(frozen=True)
class Corpus:
    """One source's tokens.

    Attributes:
        reader: its documents.
        name: how the log calls it if there are several sources; else empty.
        folder: its cache.
        train, val: its two splits. One of them may be empty, and `train` may be a stream.
        facts: what the log says about it.
        removed: how many documents are left out of a cache, by reason; a stream counts by window.
    """

    reader: Reader
    name: str
    folder: Path
    train: TokenStore | Stream
    val: TokenStore
    facts: list[str]
    removed: Counter[str]

    @property
    def key(self) -> str:
        """Its section of the configuration."""
        return self.reader.key

    @property
    def stores(self) -> list[TokenStore]:
        """The splits whose tokens are stored, so without a stream."""
        return [store for store in (self.train, self.val) if isinstance(store, TokenStore)]


def readers(
    data: DataConfig, tokenizer: Tokenizer | None = None
) -> list[tuple[str, Reader, Split]]:
    """Return each source's name, its documents, and which of them are held out.

    Raises:
        DataError: files are missing.
        ConfigError: a source has ids instead of text, and `tokenizer` is None.
    """
    total = sum(part.weight for _, part in data.parts)
    sources = []
    for key, part in data.parts:
        reader = Reader(part.source, key, data.on_bad_row, tokenizer)
        more = f" and {len(reader.files) - 1:,} more" if len(reader.files) > 1 else ""
        name = (
            f"{reader.files[0]}{more} ({part.weight / total:.0%}): " if len(data.parts) > 1 else ""
        )
        sources.append((name, reader, split_of(data, reader)))
    if data.validation is not None:
        reader = Reader(data.validation, "data.validation", data.on_bad_row, tokenizer)
        sources.append(("", reader, Split("all")))
    return sources


def split_of(data: DataConfig, reader: Reader) -> Split:
    """Return which documents of a source to train on are held out."""
    split = Split("none") if data.validation is not None else Split(data.split, data.val_fraction)
    return split if reader.chat is None else dataclasses.replace(split, test=data.test_fraction)


def named(corpora: Sequence[Corpus]) -> list[tuple[str, Corpus]]:
    """Return the sources with short names for tables, such as "jsonl *.jsonl".

    Names that are alike are followed by the sources' keys.
    """
    sources = [corpus.reader.source for corpus in corpora]
    files = [
        (
            [dataset]
            if (dataset := dataset_of(source))
            else [Path(file).name for file in files_of(source)]
        )
        for source in sources
    ]
    names = [
        " ".join([source.format, *patterns])
        for source, patterns in zip(sources, files, strict=True)
    ]
    count = Counter(names)
    return [
        (name if count[name] == 1 else f"{name} ({corpus.key})", corpus)
        for name, corpus in zip(names, corpora, strict=True)
    ]


def held_out_conversations(
    config: Config, tokenizer: Tokenizer
) -> tuple[ChatFormat, list[Conversation]]:
    """Return the conversations that `data.test_fraction` keeps for a test, and their format.

    If it is 0, these are the validation conversations. A conversation of several sources counts
    once, in the first of them.
    """
    conversations, formats = list[str](), list[ChatFormat]()
    for _, reader, split in readers(config.data, tokenizer):
        if reader.chat is not None:
            formats.append(reader.chat)
            choose = split.tested if config.data.test_fraction else split.held_out
            earlier = set(conversations)
            texts = (document.text for document in reader)
            conversations += [
                text
                for text in texts
                if text not in earlier and choose(np.array([hash_of_text(text)], np.uint64))[0]
            ]
    return formats[0], [Conversation.from_json(text) for text in conversations]


def documents_by_split(reader: Reader, split: Split) -> Iterator[tuple[str, str]]:
    """Yield every document's split and text, in order.

    For callers that need the text. Unlike `prepare`, this does not know `filter.max_tokens`, and
    documents that are kept for a test count as text to train on.
    """
    if split.kind != "tail":
        for document in reader:
            held_out = split.held_out(np.array([hash_of_text(document.text)], np.uint64))[0]
            yield SPLITS[int(held_out)], document.text
        return
    left = int(sum(len(document.text) for document in reader) * (1 - split.fraction))
    for document in reader:
        for side, text in zip(SPLITS, (document.text[:left], document.text[left:]), strict=True):
            if text:
                yield side, text
        left = max(0, left - len(document.text))


def open_corpora(
    config: Config,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
    engine: Engine = on_this_machine,
    revisions: Mapping[str, str] = MappingProxyType({}),
) -> list[Corpus]:
    """Open the tokens of all sources, in the order of the configuration; `data.validation` is last.

    Args:
        config: the run's configuration.
        tokenizer: makes the token ids.
        say: logs a line.
        engine: tokenises sources that have no cache yet.
        revisions: the dataset commits that a resumed run streams, by their sources' keys.

    Raises:
        DataError: the text cannot be read or is not enough.
        CheckpointError: a cache cannot be written.
    """
    data = config.data
    corpora: list[Corpus] = []
    for name, reader, split in readers(data, tokenizer):
        if is_streamed(reader.source):
            revision = revisions.get(reader.key)
            corpora.append(_open_stream(config, name, reader, split, tokenizer, revision))
            continue
        folder = cache_folder(data, reader, split, tokenizer)

        def build(empty: Path, reader: Reader = reader, split: Split = split) -> Manifest:
            return prepare(empty, reader, tokenizer, split, engine)

        manifest, cached = open_or_build(folder, build, say)
        train, val = (TokenStore(folder, split_name, manifest) for split_name in SPLITS)
        facts = _facts(manifest, train, val, f"{'read from' if cached else 'written to'} {folder}")
        removed: Counter[str] = Counter(manifest["removed"])
        corpora.append(Corpus(reader, name, folder, train, val, facts, removed))
    _check_splits(data, corpora)
    # A split by hash puts equal documents on the same side, in all sources.
    if (data.validation is not None or data.split == "tail") and (repeated := _repeated(corpora)):
        corpora[-1].facts.append(
            f"{repeated:,} of the validation documents are also in the training text"
        )
    return corpora


def _open_stream(
    config: Config,
    name: str,
    reader: Reader,
    split: Split,
    tokenizer: Tokenizer,
    resumed: str | None,
) -> Corpus:
    """Open a streamed source: its windows, and a cache of its validation documents."""
    assert isinstance(reader.source, HubSource)
    rows = reader.source.window_tokens // config.row_length
    # The folder belongs to one run and one source: two readers at different places of the stream
    # would need different windows.
    run = str(Path(config.checkpoint.directory).resolve())
    key = cache_key(reader, split, tokenizer, (rows, config.row_length, run, reader.key))
    folder = Path(config.data.cache_dir) / key
    revision = choose_revision(folder, reader.source, resumed)
    folder /= revision
    stream = Stream(folder, reader, tokenizer, split, rows, config.row_length, revision)
    val = stream.validation(
        (config.trainer.validation_rows or 0) * config.row_length if split.kind == "hash" else 0
    )
    facts = [
        f"revision {revision[:12]}",
        (
            f"windows of {rows * config.row_length:,} tokens in {folder}, up to"
            f" {in_bytes(3 * stream.window_bytes)} at a time"
        ),
    ]
    return Corpus(reader, name, folder, stream, val, facts, removed=Counter())


def cache_folder(data: DataConfig, reader: Reader, split: Split, tokenizer: Tokenizer) -> Path:
    """Return the folder for the tokens of a source that is not streamed."""
    return Path(data.cache_dir) / cache_key(reader, split, tokenizer)


def cache_key(
    reader: Reader, split: Split, tokenizer: Tokenizer, of_stream: Sequence[object] = ()
) -> str:
    """Return a hash of everything that the shards depend on, as the name of a folder.

    The length of rows does not count, because rows are cut when they are read. For a stream
    `on_bad_row` does not count: a bad row that stops a run is in no window, and the run can then
    continue with "skip". Stored text is read to its end, so "stop" must find the bad rows that
    "skip" passed over.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "tokenizer": [tokenizer.sha256, tokenizer.eos_id],
        "source": reader.identity(),
        "split": [split.kind, split.fraction, *([split.test] if split.test else [])],
        "on_bad_row": None if of_stream else reader.on_bad_row,
        "more": of_stream,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _facts(manifest: Manifest, train: TokenStore, val: TokenStore, origin: str) -> list[str]:
    """Return what the log says about a cache: bytes per token, where it is, what was skipped."""
    text_bytes, text_tokens = train.text_bytes + val.text_bytes, train.text_tokens + val.text_tokens
    facts = [f"{text_bytes / text_tokens:.2f} bytes per token"] if text_tokens else []
    facts.append(origin)
    if manifest["removed"]:
        facts.append(_left_out(manifest["removed"]))
    if manifest["ended_by"]:
        facts.append(f"the rest was not read ({manifest['ended_by']})")
    return facts


def _left_out(removed: Mapping[str, int]) -> str:
    kinds = list(removed.items())
    if len(kinds) > MOST_KINDS:
        kinds = sorted(kinds, key=lambda kind: -kind[1])
        others = sum(count for _, count in kinds[MOST_KINDS:])
        kinds[MOST_KINDS:] = [(f"{len(kinds) - MOST_KINDS} other kinds", others)]
    return "left out: " + ", ".join(f"{count:,} x {kind}" for kind, count in kinds)


def _repeated(corpora: Sequence[Corpus]) -> int:
    """Count the validation documents whose text is in the training text too."""
    held_out = np.concatenate([corpus.val.document_hashes for corpus in corpora])
    known = np.zeros(len(held_out), bool)
    for corpus in corpora:
        if isinstance(corpus.train, TokenStore):
            known |= np.isin(held_out, corpus.train.document_hashes)
    return int(known.sum())


def _check_splits(data: DataConfig, corpora: Sequence[Corpus]) -> None:
    """Raise DataError if a source has no text, or if a split has none."""
    stored = [(corpus, corpus.train) for corpus in corpora if isinstance(corpus.train, TokenStore)]
    for corpus, train in stored:
        if train.text_tokens + corpus.val.text_tokens == 0:
            left_out = f" ({_left_out(corpus.removed)})" if corpus.removed else ""
            raise DataError(
                f"{corpus.key}: there is no text in it{left_out}; name files that hold some, or"
                " leave out less"
            )
    to_train_on = len(stored) < len(corpora) or any(train.text_tokens for _, train in stored)
    if to_train_on and any(corpus.val.text_tokens for corpus in corpora):
        return
    n_train = sum(train.documents for _, train in stored)
    n_val = sum(corpus.val.documents for corpus in corpora)
    if data.chat is not None:
        raise DataError(
            f"data.val_fraction: {data.val_fraction} leaves {n_train} of the conversations to"
            f" train on and {n_val} to validate on; give more conversations, another val_fraction,"
            " or others in data.validation"
        )
    if n_train + n_val == 1 and data.split == "hash":
        raise DataError(
            "data.split: hash needs several documents, and the text is a single one; write"
            " data.split: tail, which holds out its end"
        )
    raise DataError(
        f"data.val_fraction: {data.val_fraction} with data.split: {data.split} leaves {n_train}"
        f" documents to train on and {n_val} to validate on; give more text or another val_fraction"
        + (", or write data.split: tail" if data.split == "hash" else "")
    )
