"""The sources of a configuration: their documents, and which of them are held out.

Here nothing is tokenised. corpus.py opens the tokens of the same sources.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lm.config.schema.chat import ChatSource
from lm.config.schema.config import Config
from lm.config.schema.data import DataConfig
from lm.config.schema.source import SingleSource
from lm.documents.conversations import Conversation
from lm.documents.reader import Reader, hash_of_text
from lm.documents.templates import ChatFormat
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.prepare import SPLITS, Split


class Source(NamedTuple):
    """A source as the configuration has it: its key, its section, and its share of the rows."""

    key: str
    section: SingleSource
    share: float

    def name(self, files: Sequence[str]) -> str:
        """Return how the log calls it if there are several sources; else an empty text."""
        if self.share == 1.0:
            return ""
        more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
        return f"{files[0]}{more} ({self.share:.0%}): "


def sources_of(data: DataConfig) -> list[Source]:
    """Return the sources to train on, then the one for validation only, if there is one."""
    total = sum(part.weight for _, part in data.parts)
    sources = [Source(key, part.source, part.weight / total) for key, part in data.parts]
    return sources + (
        [Source("data.validation", data.validation, 1.0)] if data.validation is not None else []
    )


def readers(data: DataConfig, tokenizer: Tokenizer | None = None) -> list[tuple[Reader, Split]]:
    """Return each source's documents, and which of them are held out.

    Raises:
        DataError: files are missing.
        ConfigError: a source has ids instead of text, and `tokenizer` is None.
    """
    found = [
        Reader(section, key, data.on_bad_row, tokenizer) for key, section, _ in sources_of(data)
    ]
    return [(reader, split_of(data, reader)) for reader in found]


def split_of(data: DataConfig, reader: Reader) -> Split:
    """Return which documents of a source are held out."""
    if reader.source is data.validation:
        return Split("all")
    split = Split("none") if data.validation is not None else Split(data.split, data.val_fraction)
    chat = isinstance(reader.source, ChatSource)
    return dataclasses.replace(split, test=data.test_fraction) if chat else split


def held_out_conversations(
    config: Config, tokenizer: Tokenizer
) -> tuple[ChatFormat, list[Conversation]]:
    """Return the conversations that `data.test_fraction` keeps for a test, and their format.

    If it is 0, these are the validation conversations. A conversation of several sources counts
    once, in the first of them.
    """
    conversations, formats = list[str](), list[ChatFormat]()
    for reader, split in readers(config.data, tokenizer):
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
    """Yield every document's split ("train", "val", or "test") and text, in order.

    For callers that need the text. Unlike `prepare`, this does not know `filter.max_tokens`.
    """
    if split.kind != "tail":
        for document in reader:
            hashed = np.array([hash_of_text(document.text)], np.uint64)
            side = SPLITS[int(split.held_out(hashed)[0])]
            yield "test" if split.tested(hashed)[0] else side, document.text
        return
    left = int(sum(len(document.text) for document in reader) * (1 - split.fraction))
    for document in reader:
        for side, text in zip(SPLITS, (document.text[:left], document.text[left:]), strict=True):
            if text:
                yield side, text
        left = max(0, left - len(document.text))
