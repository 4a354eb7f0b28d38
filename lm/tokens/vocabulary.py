"""The vocabulary that a run learns from its own text: `tokenizer: {name: bpe, vocab_size: 5000}`.

It is learnt before the text becomes tokens, and only from what is trained on: a word that occurs in
held-out text alone gets no token of its own. It is kept in `data.cache_dir`, under a hash of the
text and of all else that it depends on. Checkpoints hold it, and a run that goes on uses the one in
its checkpoint, whatever has become of the text.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from lm.config.schema.chat import ChatSource
from lm.config.schema.config import Config
from lm.config.schema.data import DataConfig
from lm.config.schema.source import is_streamed
from lm.documents import hub
from lm.documents.conversations import Conversation
from lm.documents.reader import Reader
from lm.documents.templates import TEMPLATES
from lm.system.disk import read_json, refusals, replace
from lm.system.errors import CheckpointError, ConfigError, DataError
from lm.system.json_values import text
from lm.system.locks import hold
from lm.tokenizer.learn import LEAST_VOCABULARY, PATTERN, excerpt, learn
from lm.tokenizer.tokenizer import ByteTokenizer, Tokenizer, from_definition, load_tokenizer
from lm.tokens.prepare import Split
from lm.tokens.sources import documents_by_split, readers
from lm.tokens.texts import Texts

LEARNT = "bpe"  # as tokenizer.name
# Bytes that a vocabulary is learnt from: one to two minutes, and up to 2 GiB of memory. More gains
# little: with 16,000 tokens, 7 instead of 4 MB of film reviews made held-out text 0.2 % shorter.
BUDGET = 200_000_000
STREAM_BUDGET = 20_000_000  # of a stream, whose beginning is fetched once more for the training

Say = Callable[[str], None]


class Learnt(NamedTuple):
    """A tokenizer.json, the bytes that it was learnt from, and what was left out, by kind."""

    definition: str
    text_bytes: int
    skipped: Counter[str]


def make_tokenizer(config: Config, say: Say) -> Tokenizer:
    """Return the tokenizer of a new run: the named one, or one that is learnt from the run's text.

    Raises:
        ConfigError: there is no such tokenizer, or no text to learn one from.
        DataError: the text cannot be read.
        CheckpointError: the cache cannot be written.
    """
    name, size = config.tokenizer.name, config.tokenizer.vocab_size
    if name != LEARNT or size is None:
        return load_tokenizer(name)
    definition = _learnt_before_or_now(config, size, say)
    ids = {token["content"]: token["id"] for token in json.loads(definition)["added_tokens"]}
    pad, _, eos, _ = ByteTokenizer.SPECIALS
    tokenizer = from_definition(definition, LEARNT, ids[eos], ids[pad])
    if tokenizer.vocab_size < size:
        say(
            f"tokenizer.vocab_size: {tokenizer.vocab_size:,} instead of {size:,}, the largest that"
            " this text supports: no pair of its tokens occurs twice"
        )
    return tokenizer


def learn_from(
    data: DataConfig, vocab_size: int, specials: Sequence[str], budget: int = BUDGET
) -> Learnt:
    """Learn a vocabulary from the training side of the configured sources, by their weights.

    Ctrl-C and signals are answered meanwhile, though `tokenizers` ignores them.

    Raises:
        ConfigError: a source has ids instead of text.
        DataError: the text cannot be read, or there is none.
    """
    sources = _trained_on(data)
    total = sum(part.weight for _, part in data.parts)
    limits = [
        min(budget * part.weight // total, STREAM_BUDGET if is_streamed(part.source) else budget)
        for _, part in data.parts
    ]
    texts = itertools.chain.from_iterable(
        excerpt(texts_of(reader, split, "train"), limit)
        for (reader, split), limit in zip(sources, limits, strict=True)
    )
    definition, text_bytes = _in_a_thread(lambda read: learn(read, vocab_size, specials), texts)
    if text_bytes == 0:
        advice = (
            "; a single document needs data.split: tail"
            if data.split == "hash" and data.validation is None
            else ""
        )
        raise DataError(f"data.source: there is no text on the training side of the split{advice}")
    skipped = sum((reader.skipped for reader, _ in sources), start=Counter[str]())
    return Learnt(definition, text_bytes, skipped)


def texts_of(reader: Reader, split: Split, side: str) -> Iterator[str]:
    """Yield the texts of a source on one side of its split; of a conversation, what is said in it.

    `side` is "train", "val", or "test".
    """
    chat = isinstance(reader.source, ChatSource)
    for name, content in documents_by_split(reader, split):
        if name == side:
            yield Conversation.from_json(content).plain_text if chat else content


def special_tokens(config: Config) -> list[str]:
    """Return the special tokens of a learnt vocabulary: those configured, and those that the
    templates of the conversations need.
    """
    needed = (n for _, chat in config.data.conversations for n in TEMPLATES[chat.template].specials)
    names = dict.fromkeys([*config.tokenizer.special_tokens, *needed])
    return [name for name in names if name not in ByteTokenizer.SPECIALS]


def _trained_on(data: DataConfig) -> list[tuple[Reader, Split]]:
    return [(reader, split) for reader, split in readers(data) if split.kind != "all"]


def _learnt_before_or_now(config: Config, size: int, say: Say) -> str:
    """Return a tokenizer.json from the cache, or learn it and keep it there."""
    data, cache_dir, specials = config.data, Path(config.data.cache_dir), special_tokens(config)
    if size < (least := LEAST_VOCABULARY + len(specials)):
        raise ConfigError(
            f"tokenizer.vocab_size: {size} has no room for bytes, special tokens and one pair;"
            f" write {least} or more"
        )
    settings: dict[str, Any] = {
        "learnt by": [PATTERN, version("tokenizers"), BUDGET, STREAM_BUDGET],
        "size": [size, specials],
        "how it is read": [data.on_bad_row, [part.weight for _, part in data.parts]],
    }
    sections = [part.source.model_dump(mode="json") for _, part in data.parts]
    note = cache_dir / f"{_hash({**settings, 'sections': sections})}.vocabulary"
    try:
        file = cache_dir / f"{_hash({**settings, 'texts': _identities(data)})}.tokenizer.json"
    except DataError as error:  # the text is gone; its prepared tokens may be there
        if (name := _value(note, "file")) and (kept := _kept(cache_dir / Path(name).name)):
            say(f"{error}: the vocabulary that was learnt from it is used")
            return kept
        raise
    with refusals(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
    waiting = f"another process learns the same vocabulary in {cache_dir}: waiting for it"
    if (definition := _kept(file)) is None:
        with refusals(file), hold(file.with_suffix(".lock"), lambda: say(waiting)):
            definition = _kept(file) or _learn_and_keep(data, size, specials, file, say)
    if _value(note, "file") != file.name:
        replace(note, json.dumps({"file": file.name}))
    return definition


def _learn_and_keep(data: DataConfig, size: int, specials: list[str], file: Path, say: Say) -> str:
    say(f"learning a vocabulary of {size:,} tokens from the training text")
    learnt = learn_from(data, size, specials)
    sha256 = hashlib.sha256(learnt.definition.encode()).hexdigest()
    replace(file, json.dumps({"sha256": sha256, "tokenizer": learnt.definition}))
    say(f"learnt it from {learnt.text_bytes:,} bytes; kept as {file}")
    return learnt.definition


def _kept(file: Path) -> str | None:
    """Return the tokenizer.json that is kept in a file; None if there is none, or it is damaged."""
    definition = _value(file, "tokenizer")
    if definition is None:
        return None
    whole = hashlib.sha256(definition.encode()).hexdigest() == _value(file, "sha256")
    return definition if whole else None


def _value(file: Path, key: str) -> str | None:
    try:
        return text(read_json(file), key)
    except CheckpointError:
        return None


def _identities(data: DataConfig) -> list[Any]:
    """Return JSON that changes when the texts do that are trained on."""
    texts = Texts(Path(data.cache_dir))
    return [
        [
            reader.identity(texts.hashes),
            hub.newest_revision(reader.source) if is_streamed(reader.source) else None,
            [split.kind, split.fraction, split.test],
        ]
        for reader, split in _trained_on(data)
    ]


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _in_a_thread(
    work: Callable[[Iterator[str]], tuple[str, int]], texts: Iterable[str]
) -> tuple[str, int]:
    """Return the result of `work(texts)`, done in a thread: signals reach the main thread then."""
    future: Future[tuple[str, int]] = Future()
    stopped = threading.Event()

    def read() -> Iterator[str]:
        for content in texts:
            if stopped.is_set():
                raise InterruptedError("the main thread has been told to stop")
            yield content

    def run() -> None:
        try:
            future.set_result(work(read()))
        except BaseException as error:
            future.set_exception(error)

    # A daemon, because a process that was told to stop does not wait until all is learnt. But it
    # must have stopped reading: a thread that wants the interpreter at its end aborts the process.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        return future.result()
    finally:
        stopped.set()
        thread.join(timeout=1)
