"""The sources of a configuration as tokens: each has its own cache, made when it is first needed.

So a mixture can change its weights, and other mixtures can use the same sources, without tokenising
anything again.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lm.config.schema.config import Config
from lm.config.schema.data import DataConfig
from lm.config.schema.source import HubSource, dataset_of, files_of, is_streamed
from lm.documents.reader import Reader
from lm.system.errors import DataError
from lm.system.units import in_bytes
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.cache import DamagedError, open_cache, open_or_build
from lm.tokens.engines import on_this_machine
from lm.tokens.manifest import FILE as MANIFEST
from lm.tokens.manifest import Manifest
from lm.tokens.prepare import SPLITS, Split, changed_meanwhile, prepare
from lm.tokens.prepared import cache_folder, cache_key, recall, remember, settings_of
from lm.tokens.round_trip import losses
from lm.tokens.sources import Source, sources_of, split_of
from lm.tokens.store import TokenStore
from lm.tokens.stream import Stream, choose_revision
from lm.tokens.texts import Texts
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


def open_corpora(
    config: Config,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
    engine: Engine = on_this_machine,
    revisions: Mapping[str, str] = MappingProxyType({}),
    verify: bool = True,
) -> list[Corpus]:
    """Open the tokens of all sources, in the order of the configuration; `data.validation` is last.

    Args:
        config: the run's configuration.
        tokenizer: makes the token ids.
        say: logs a line.
        engine: tokenises sources that have no cache yet.
        revisions: the dataset commits that a resumed run streams, by their sources' keys.
        verify: reads and checks all tokens that exist already.

    Raises:
        DataError: the text cannot be read or is not enough.
        CheckpointError: a cache cannot be written.
    """
    data = config.data
    opening = _Opening(data, tokenizer, say, engine, tokenizer.vocab_size if verify else None)
    corpora: list[Corpus] = []
    for source in sources_of(data):
        if is_streamed(source.section):
            reader = Reader(source.section, source.key, data.on_bad_row, tokenizer)
            revision = revisions.get(reader.key)
            name, split = source.name(reader.files), split_of(data, reader)
            corpora.append(_open_stream(config, name, reader, split, tokenizer, revision))
        else:
            corpora.append(opening.open(source))
    _check_splits(data, corpora)
    # A split by hash puts equal documents on the same side, in all sources.
    if (data.validation is not None or data.split == "tail") and (repeated := _repeated(corpora)):
        corpora[-1].facts.append(
            f"{repeated:,} of the validation documents are also in the training text"
        )
    return corpora


@dataclass
class _Opening:
    """Opens the caches of a configuration's sources."""

    data: DataConfig
    tokenizer: Tokenizer
    say: Callable[[str], None]
    engine: Engine
    vocab_size: int | None  # None: do not check the tokens

    def __post_init__(self) -> None:
        self._texts = Texts(Path(self.data.cache_dir))

    def open(self, source: Source) -> Corpus:
        """Open a source's tokens: those of its text as it is now, or, without it, those prepared.

        A dataset of the hub is not asked for again once its tokens exist.
        """
        if dataset_of(source.section) is not None:
            reader = self._reader(source)
            folder = self._recall(reader)
            # Opening tells whether it is usable; if it is not, the hub is asked.
            with contextlib.suppress(DamagedError):
                if folder is not None and (manifest := open_cache(folder, self.vocab_size)):
                    origin = f"read from {folder}, as the dataset was {_made(folder)}"
                    return self._corpus(source, reader, folder, manifest, origin)
        try:
            reader = self._reader(source)
            folder = self._folder(reader)
        except DataError as error:
            return self._open_without_text(source, error)
        manifest, cached = open_or_build(
            folder, lambda empty: self._build(empty, reader, folder), self.say, self.vocab_size
        )
        remember(folder.parent, reader, self._settings(reader), folder)
        origin = f"{'read from' if cached else 'written to'} {folder}"
        return self._corpus(source, reader, folder, manifest, origin)

    def _open_without_text(self, source: Source, error: DataError) -> Corpus:
        """Open the tokens that were prepared of a text that cannot be read any more."""
        named = files_of(source.section) or [str(dataset_of(source.section))]
        reader = self._reader(source, named)
        folder = self._recall(reader)
        try:
            manifest = None if folder is None else open_cache(folder, self.vocab_size)
        except DamagedError as damage:
            raise DataError(
                f"{error}; its tokens in {folder} are damaged too ({damage}): bring the text back"
            ) from error
        if manifest is None or folder is None:
            raise error
        self.say(f"{error}: the tokens that were prepared {_made(folder)} are used")
        return self._corpus(source, reader, folder, manifest, f"read from {folder}")

    def _reader(self, source: Source, files: Sequence[str] | None = None) -> Reader:
        return Reader(source.section, source.key, self.data.on_bad_row, self.tokenizer, files)

    def _build(self, empty: Path, reader: Reader, folder: Path) -> Manifest:
        split = split_of(self.data, reader)
        manifest = prepare(empty, reader, self.tokenizer, split, self.engine)
        if self._folder(reader) != folder:
            raise changed_meanwhile(reader)  # after its hash was computed
        return manifest

    def _folder(self, reader: Reader) -> Path:
        split = split_of(self.data, reader)
        return cache_folder(self.data, reader, split, self.tokenizer, self._texts)

    def _recall(self, reader: Reader) -> Path | None:
        return recall(Path(self.data.cache_dir), reader, self._settings(reader))

    def _settings(self, reader: Reader) -> dict[str, Any]:
        return settings_of(reader, split_of(self.data, reader), self.tokenizer)

    def _corpus(
        self, source: Source, reader: Reader, folder: Path, manifest: Manifest, origin: str
    ) -> Corpus:
        train, val = (TokenStore(folder, split_name, manifest) for split_name in SPLITS)
        facts = _facts(manifest, train, val, origin)
        removed = Counter(manifest.removed)
        return Corpus(reader, source.name(reader.files), folder, train, val, facts, removed)


def _made(folder: Path) -> str:
    """Return the day on which a cache was made, in words."""
    return f"on {date.fromtimestamp((folder / MANIFEST).stat().st_mtime):%Y-%m-%d}"


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
    cache_dir = Path(config.data.cache_dir)
    of_stream = (rows, config.row_length, run, reader.key)
    folder = cache_dir / cache_key(reader, split, tokenizer, Texts(cache_dir), of_stream)
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


def _facts(manifest: Manifest, train: TokenStore, val: TokenStore, origin: str) -> list[str]:
    """Return what the log says about a cache: bytes per token, where it is, what was skipped."""
    text_bytes, text_tokens = train.text_bytes + val.text_bytes, train.text_tokens + val.text_tokens
    facts = [f"{text_bytes / text_tokens:.2f} bytes per token"] if text_tokens else []
    facts.append(origin)
    if manifest.removed:
        facts.append(_left_out(manifest.removed))
    if manifest.ended_by:
        facts.append(f"the rest was not read ({manifest.ended_by})")
    return facts + losses([train, val])


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
