"""Text to token ids and back: the byte tokenizer, and any Hugging Face tokenizer with a fast form.

Each tokenizer is the content of one Hugging Face `tokenizer.json` (`definition`) and two ids: end
of text and padding. Every checkpoint carries these, so a model keeps the tokenizer that it was
trained with, also without a network. Other programs can read the file too.

Heavy libraries are imported only where they are needed: none for bytes, `tokenizers` for a file or
a folder, `tiktoken` for much text, `huggingface_hub` for a hub id, and `transformers` to convert
another form.

Text never becomes a special id: `<|endoftext|>` in a document or a prompt is thirteen ordinary
characters. Only the program places EOS and padding.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence, Sized
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm.system.errors import ConfigError, DataError, first_line
from lm.tokenizer.definition import is_of_another_program
from lm.tokenizer.fast_bpe import FastBpe, NotTheSame, byte_symbols


class Tokenizer(ABC):
    """The interface that the rest of the project uses."""

    name: str
    vocab_size: int  # the largest id + 1: added tokens and holes count
    eos_id: int
    pad_id: int
    special_ids: frozenset[int]  # these decode to no text
    reserved_ids: frozenset[int]  # text never encodes to these: special ids without unk's
    definition: str  # the whole content of a tokenizer.json
    unknown_id: int | None = None  # what text outside the vocabulary becomes, if it can
    instant = False  # whether encoding is faster than passing ids between processes
    lossless = False  # whether every text is known to come back from its ids

    @abstractmethod
    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the ids of all texts, concatenated, of `dtype`, and the number of ids of each.

        No special ids are added. With tiktoken it runs in one thread: encode much text in several
        processes.

        Raises:
            DataError: a text is not Unicode.
        """

    def encode_stream(
        self, texts: Sequence[str], utf8: Sequence[bytes]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return what `encode_flat` does, but with an EOS before each text's ids.

        `utf8` is the same texts in UTF-8. The lengths do not count EOS.
        """
        ids, lengths = self.encode_flat(texts)
        return with_eos(ids, lengths, self.eos_id), lengths

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` without special tokens; bytes outside UTF-8 become U+FFFD."""

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Return the ids of each text, as views of the array of `encode_flat`."""
        ids, lengths = self.encode_flat(texts)
        borders = [0, *np.cumsum(lengths).tolist()]
        return [ids[a:b] for a, b in itertools.pairwise(borders)]

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text."""
        return list(self.encode_flat([text])[0].tolist())

    @property
    def dtype(self) -> type[np.uint16 | np.uint32]:
        """The smaller of the two types that can hold every id."""
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32

    @property
    def sha256(self) -> str:
        """The hex digest of the definition; key order and spacing do not change it."""
        return _digest(self.definition)

    @cached_property
    def specials(self) -> dict[str, int]:
        """The special tokens that text never encodes to, by name."""
        added = json.loads(self.definition).get("added_tokens", [])
        return {
            token["content"]: token["id"] for token in added if token["id"] in self.reserved_ids
        }

    def __str__(self) -> str:
        return f"{self.name} ({self.vocab_size:,} ids, {self.sha256[:12]})"


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8 as ids 0-255, and four special ids.

    It can encode any text and needs no library.
    """

    instant = True
    lossless = True
    SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|sep|>")

    def __init__(self) -> None:
        self.name = "byte"
        self.vocab_size = 260
        self.pad_id, _, self.eos_id, _ = range(256, 260)
        self.special_ids = self.reserved_ids = frozenset(range(256, 260))
        self.definition = self._definition()

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return one id for each byte."""
        try:
            parts = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise _not_unicode(texts) from error
        return np.frombuffer(b"".join(parts), np.uint8).astype(self.dtype), lengths_of(parts)

    def encode_stream(
        self, texts: Sequence[str], utf8: Sequence[bytes]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return one id for each byte, with an EOS before each text."""
        lengths = lengths_of(utf8)
        # Joining leaves room for EOS, and saves the slow copy of `with_eos`.
        stream = np.frombuffer(b"\0".join([b"", *utf8]), np.uint8).astype(self.dtype)
        stream[starts_of(lengths)] = self.eos_id
        return stream, lengths

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the bytes; other ids have none."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def _definition(self) -> str:
        """Return the same tokenizer as a tokenizer.json: byte-level BPE without merges."""
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        settings: dict[str, Any] = {
            "version": "1.0",
            **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
            "added_tokens": [
                {"id": 256 + i, "content": text, **flags, "special": True}
                for i, text in enumerate(self.SPECIALS)
            ],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                **dict.fromkeys(
                    ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
                ),
                **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
                "vocab": {symbol: byte for byte, symbol in enumerate(byte_symbols())},
                "merges": [],
            },
        }
        return json.dumps(settings, ensure_ascii=False)


class FastTokenizer(Tokenizer):
    """A Hugging Face tokenizer, run by the Rust library `tokenizers`, or faster by tiktoken."""

    # Characters. `tokenizers` takes about as long for these as tiktoken takes to start.
    TIKTOKEN_PAYS = 2**20

    def __init__(self, definition: str, name: str, eos_id: int, pad_id: int):
        from lm.tokenizer.files import open_definition, unknown_id

        self.name, self.definition, self.eos_id, self.pad_id = name, definition, eos_id, pad_id
        self._backend = backend = open_definition(definition)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        added = backend.get_added_tokens_decoder().items()
        self.special_ids = frozenset({eos_id, pad_id} | {i for i, token in added if token.special})
        # The token for unknown words is usually marked special, but text may encode to it.
        self.unknown_id = unknown_id(backend, json.loads(definition)["model"])
        self.reserved_ids = self.special_ids - {self.unknown_id}
        self._characters = 0

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling `tokenizers` loses encode_special_tokens, and text could then forge an EOS.
        return FastTokenizer, (self.definition, self.name, self.eos_id, self.pad_id)

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Encode with `tokenizers` on all cores; after TIKTOKEN_PAYS characters, with tiktoken.

        tiktoken encodes one text after another, and leaves some texts to `tokenizers`.
        """
        self._characters += sum(map(len, texts))
        fast = self._fast if self._characters >= self.TIKTOKEN_PAYS else None
        fast_ids = [fast.encode(text) if fast else None for text in texts]
        try:
            others = iter(
                self._by_tokenizers(
                    [text for text, ids in zip(texts, fast_ids, strict=True) if ids is None]
                )
            )
        except TypeError as error:
            raise _not_unicode(texts) from error
        except BaseException as error:
            if is_of_another_program(error):
                raise
            raise DataError(
                f"tokenizer {self.name} cannot encode the text ({first_line(error)}); write another"
                " tokenizer.name"
            ) from error
        parts = [next(others) if ids is None else ids for ids in fast_ids]
        return np.concatenate(
            [np.empty(0, self.dtype), *parts], dtype=self.dtype, casting="same_kind"
        ), lengths_of(parts)

    @cached_property
    def _fast(self) -> FastBpe | None:
        try:
            return FastBpe(self.rewritten(), self.reserved_ids)
        except NotTheSame:
            return None

    def _by_tokenizers(self, texts: list[str]) -> list[NDArray[Any]]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ids = (encoding.ids for encoding in encodings)
        return [
            np.array(i if self.reserved_ids.isdisjoint(i) else self._plain(text), self.dtype)
            for text, i in zip(texts, ids, strict=True)
        ]

    def _plain(self, text: str) -> list[int]:
        """Encode a text in which the model itself finds special tokens as words.

        The text is cut inside each of them.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        cuts = [
            start + 1 for i, (start, end) in spans if i in self.reserved_ids and end - start > 1
        ]
        if not cuts:
            return list(encoding.ids)
        return [
            i for a, b in itertools.pairwise([0, *cuts, len(text)]) for i in self._plain(text[a:b])
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` without `special_ids`, which need no mark in the definition."""
        return str(
            self._backend.decode(
                [i for i in ids if i not in self.special_ids], skip_special_tokens=False
            )
        )

    def rewritten(self) -> str:
        """Return the definition as the installed version of `tokenizers` writes it."""
        return str(self._backend.to_str())


def load_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer that a configuration or a flag names.

    `name` is `byte`, a tokenizer.json, a folder, or a hub id.

    Raises:
        ConfigError: there is no such tokenizer, or it cannot be read.
    """
    if name == "byte":
        return ByteTokenizer()
    from lm.tokenizer.files import find_tokenizer

    source = find_tokenizer(name)
    return from_definition(source.definition, name, source.eos_id, source.pad_id)


def from_definition(definition: str, name: str, eos_id: int, pad_id: int) -> Tokenizer:
    """Return the tokenizer with this tokenizer.json, such as the one in a checkpoint.

    Raises:
        ValueError: `definition` is not a tokenizer.json.
    """
    if _digest(definition) == ByteTokenizer().sha256:
        return ByteTokenizer()
    return FastTokenizer(definition, name, eos_id, pad_id)


def resolve(option: str, stored: Tokenizer) -> Tokenizer:
    """Return the tokenizer of a checkpoint for a command's `--tokenizer`.

    `auto` accepts the stored tokenizer; any other value must name the same one.

    Raises:
        ConfigError: it names another tokenizer.
    """
    if option != "auto":
        require_same(load_tokenizer(option), stored)
    return stored


def require_same(given: Tokenizer, stored: Tokenizer) -> None:
    """Raise ConfigError unless both have the same definition."""
    same = given.sha256 == stored.sha256
    if not same and isinstance(given, FastTokenizer) and isinstance(stored, FastTokenizer):
        # An older version of the library may have written the stored definition differently.
        same = _digest(given.rewritten()) == _digest(stored.rewritten())
    if not same:
        raise ConfigError(
            f"the tokenizer given, {given}, is not the model's own, {stored}; give that one"
            " (--tokenizer auto does)"
        )


@lru_cache(maxsize=4)  # a large vocabulary takes half a second
def _digest(definition: str) -> str:
    canonical = json.dumps(
        json.loads(definition), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def starts_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each document's EOS stands in a stream of documents with so many ids."""
    return np.cumsum(lengths + 1) - (lengths + 1)


def with_eos(values: NDArray[Any], lengths: NDArray[np.int64], eos: int) -> NDArray[Any]:
    """Return the stream of documents with an EOS before each.

    Args:
        values: one for each id of all documents, such as the ids themselves.
        lengths: how many ids each document has.
        eos: the value of an EOS.
    """
    starts = starts_of(lengths)
    stream = np.empty(len(values) + len(lengths), values.dtype)
    is_text = np.ones(len(stream), bool)
    is_text[starts] = False
    stream[starts] = eos
    stream[is_text] = values
    return stream


def lengths_of(parts: Sequence[Sized]) -> NDArray[np.int64]:
    """Return the length of each part."""
    return np.fromiter(map(len, parts), np.int64, len(parts))


def _not_unicode(texts: Sequence[str]) -> DataError:
    surrogate = next(match for text in texts if (match := re.search("[\ud800-\udfff]", text)))
    return DataError(
        f"U+{ord(surrogate[0]):04X} at character {surrogate.start():,} is half of a surrogate pair,"
        " which Unicode text cannot have"
    )
