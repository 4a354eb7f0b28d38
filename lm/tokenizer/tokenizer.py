"""Text to token ids and back: the byte tokenizer, and any Hugging Face tokenizer that has a fast
form.

Whatever its source, a tokenizer here is the content of one Hugging Face `tokenizer.json`
(`definition`) and two ids (end of text and padding). That is what a checkpoint carries, so a model
is always read with the tokenizer that it was trained with, network or not, and any other program of
that family reads the file too. The heavy libraries are imported by what needs them: nothing for
bytes, the small `tokenizers` package for a file or a folder, `tiktoken` where there is much text,
`huggingface_hub` for a hub id, `transformers` only to convert what is in no fast form yet.

Text never turns into a special id: `<|endoftext|>` in a document or a prompt is thirteen characters like any others. Only the program
itself places EOS and padding.
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

from lm.system.errors import ConfigError, DataError
from lm.tokenizer.fast_bpe import FastBpe, NotTheSame, byte_symbols


class Tokenizer(ABC):
    """What the rest of the project knows of a tokenizer. `vocab_size` is the largest id + 1: added
    tokens and holes are counted.
    """

    name: str
    vocab_size: int
    eos_id: int
    pad_id: int
    special_ids: frozenset[int]  # They decode to nothing.
    # Text never encodes to these: the special ones, but for that of unknown words.
    reserved_ids: frozenset[int]
    definition: str  # The whole content of a tokenizer.json.
    instant = False  # Encoding takes less time than handing the ids from one process to another.

    @abstractmethod
    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The ids of all texts in a row, of `dtype`, and how many each text has; nothing is added
        before, between or after.

        In one thread where that is fast: whoever has much text should run several processes.

        Raises:
            DataError: a text is not Unicode.
        """

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens; bytes that are no UTF-8 become U+FFFD."""

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """The ids of each text: parts of the one array that `encode_flat` gives."""
        ids, lengths = self.encode_flat(texts)
        borders = [0, *np.cumsum(lengths).tolist()]
        return [ids[a:b] for a, b in itertools.pairwise(borders)]

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""
        return list(self.encode_flat([text])[0].tolist())

    @property
    def dtype(self) -> type[np.uint16 | np.uint32]:
        """The smallest of the two types that holds every id."""
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32

    @property
    def sha256(self) -> str:
        """Hex digest of the definition, the same for any order and spacing of its JSON."""
        return _digest(self.definition)

    @cached_property
    def specials(self) -> dict[str, int]:
        """The special tokens by name; text never encodes to them."""
        added = json.loads(self.definition).get("added_tokens", [])
        return {
            token["content"]: token["id"] for token in added if token["id"] in self.reserved_ids
        }

    def __str__(self) -> str:
        return f"{self.name} ({self.vocab_size:,} ids, {self.sha256[:12]})"


class ByteTokenizer(Tokenizer):
    """Ids 0-255 are the bytes of the text's UTF-8; four special ids follow. Any text is
    representable, and nothing has to be installed.
    """

    instant = True
    SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|sep|>")

    def __init__(self) -> None:
        self.name = "byte"
        self.vocab_size = 260
        self.pad_id, _, self.eos_id, _ = range(256, 260)
        self.special_ids = self.reserved_ids = frozenset(range(256, 260))
        self.definition = self._definition()

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """One id a byte."""
        try:
            parts = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise _not_unicode(texts) from error
        return np.frombuffer(b"".join(parts), np.uint8).astype(self.dtype), _lengths(parts)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids of no byte decode to nothing."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def _definition(self) -> str:
        """Byte-level BPE that has all bytes and no merges: the same ids, in the words of Hugging
        Face's `tokenizers`.
        """
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
    """A Hugging Face tokenizer, as the Rust library `tokenizers` runs it; tiktoken does the same
    faster where there is much text.
    """

    MUCH = 2**20  # Characters that take `tokenizers` about as long as tiktoken takes to get ready.

    def __init__(self, definition: str, name: str, eos_id: int, pad_id: int):
        from lm.tokenizer.files import open_definition

        self.name, self.definition, self.eos_id, self.pad_id = name, definition, eos_id, pad_id
        self._backend = backend = open_definition(definition)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        added = backend.get_added_tokens_decoder().items()
        self.special_ids = frozenset({eos_id, pad_id} | {i for i, token in added if token.special})
        # The token for unknown words is mostly marked special, and yet is a proper outcome for
        # text.
        model = json.loads(definition)["model"]
        self.reserved_ids = self.special_ids - {
            model.get("unk_id"),
            backend.token_to_id(model.get("unk_token") or ""),
        }
        self._characters = 0

    def __reduce__(self) -> tuple[Any, ...]:
        # `tokenizers` forgets encode_special_tokens when it is pickled, and then text could forge
        # an EOS.
        return FastTokenizer, (self.definition, self.name, self.eos_id, self.pad_id)

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """By `tokenizers` on all cores, until there was MUCH text; from then on by tiktoken, one
        text after another, if it can.
        """
        self._characters += sum(map(len, texts))
        fast = self._fast if self._characters >= self.MUCH else None
        found = [fast.encode(text) if fast else None for text in texts]
        try:
            others = iter(
                self._by_tokenizers(
                    [text for text, ids in zip(texts, found, strict=True) if ids is None]
                )
            )
        except TypeError as error:
            raise _not_unicode(texts) from error
        parts = [next(others) if ids is None else ids for ids in found]
        return np.concatenate(
            [np.empty(0, self.dtype), *parts], dtype=self.dtype, casting="same_kind"
        ), _lengths(parts)

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
        """The ids of a text in which the model itself knows special tokens as words: the text is
        cut inside each of them.
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
        """Special tokens decode to nothing, marked so in the definition or not."""
        return str(
            self._backend.decode(
                [i for i in ids if i not in self.special_ids], skip_special_tokens=False
            )
        )

    def rewritten(self) -> str:
        """The definition in the words of the installed version of `tokenizers`."""
        return str(self._backend.to_str())


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that a configuration or a flag names: `byte`, a tokenizer.json, a folder, or a
    hub id. Raises ConfigError.
    """
    if name == "byte":
        return ByteTokenizer()
    from lm.tokenizer.files import find

    found = find(name)
    return from_definition(found.definition, name, found.eos_id, found.pad_id)


def from_definition(definition: str, name: str, eos_id: int, pad_id: int) -> Tokenizer:
    """The tokenizer that a checkpoint holds. Raises ValueError where `definition` is no
    tokenizer.json.
    """
    if _digest(definition) == ByteTokenizer().sha256:
        return ByteTokenizer()
    return FastTokenizer(definition, name, eos_id, pad_id)


def resolve(option: str, stored: Tokenizer) -> Tokenizer:
    """What a command's `--tokenizer` means for a checkpoint: `auto` is the stored one; any other
    has to be the same. Raises ConfigError.
    """
    if option != "auto":
        require_same(load_tokenizer(option), stored)
    return stored


def require_same(given: Tokenizer, stored: Tokenizer) -> None:
    """Raise ConfigError unless both have the same definition."""
    same = given.sha256 == stored.sha256
    if not same and isinstance(given, FastTokenizer) and isinstance(stored, FastTokenizer):
        # An older version of the library may have written the stored one in other words: compare
        # both in today's.
        same = _digest(given.rewritten()) == _digest(stored.rewritten())
    if not same:
        raise ConfigError(
            f"the tokenizer given, {given}, is not the model's own, {stored}; give that one"
            " (--tokenizer auto does)"
        )


@lru_cache(maxsize=4)  # A large vocabulary takes half a second.
def _digest(definition: str) -> str:
    canonical = json.dumps(
        json.loads(definition), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def _lengths(parts: Sequence[Sized]) -> NDArray[np.int64]:
    return np.fromiter(map(len, parts), np.int64, len(parts))


def _not_unicode(texts: Sequence[str]) -> DataError:
    found = next(match for text in texts if (match := re.search("[\ud800-\udfff]", text)))
    return DataError(
        f"U+{ord(found[0]):04X} at character {found.start():,} is half of a surrogate pair, which"
        " is no Unicode text"
    )
