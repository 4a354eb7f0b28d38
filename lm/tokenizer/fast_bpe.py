"""Byte-level BPE by the library tiktoken, several times as fast as `tokenizers`, if the ids are
certain to be the same.

Both libraries split a text into pieces by a regular expression and merge the bytes of each piece,
pair by pair. They differ in how they choose a pair:

- `tokenizers` has a list of pairs.
- tiktoken merges any two neighbours whose bytes together are a token, the lowest id first. Before
  that it looks up the whole piece.

`FastBpe` refuses every definition for which the two choices could differ.

Proof that they agree otherwise. Call a token regular if the list of pairs makes it from its own
bytes. Take two neighbours whose bytes together are a token t.

1. Merges within these bytes made the neighbours: no merge crossed their borders, which still exist.
   The same neighbours therefore appear when the bytes of t are merged alone.
2. If t is regular, these two are its pair in the list, and both libraries may merge them.
3. If t is not regular but a token of tiktoken's (for whole pieces: `ignore_merges`), its bytes
   alone end as three tokens or more. No such neighbours exist.

Both libraries therefore always choose from the same pairs. They choose alike because the ids ascend
in the order of the list. A whole piece that is a regular token merges to that token.

Two things remain: the regular expression and the Unicode tables. Only the expressions below are
known to split alike, and `_check_unicode` compares the tables.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The patterns of GPT-2, Llama 3, Qwen 2 and GPT-4o without `SPACES`, which ends each of them. Many
# other models use one of these.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT4O = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
    ]
)
SPACES = r"|\s+(?!\S)|\s+"
ANYTHING = r"(?s:.+)"
NFC = {"type": "NFC"}  # Qwen's normalizer; it does not change ASCII
# One letter that each version of Unicode from 12 to 17 added. Libraries that agree on all of them
# have tables of the same version.
LETTERS = "\ua7ba\ua7c7\ua7d0\U0001e4d0\U0002ebf0\ua7cb\U000323b0"


class NotTheSame(ValueError):
    """The reason why tiktoken might give other ids than `tokenizers`."""


class FastBpe:
    """An encoder by tiktoken that gives the ids of `tokenizers`.

    It uses one thread. To use all cores, run one process for each.
    """

    def __init__(self, definition: str, reserved: frozenset[int]):
        """Build the encoder; 50,000 tokens take about half a second.

        Args:
            definition: a tokenizer.json as the installed version of `tokenizers` writes it.
            reserved: ids that no text may have. `tokenizers` must be set to treat special tokens
                in text as plain text.

        Raises:
            NotTheSame: the ids might differ.
        """
        from tiktoken import Encoding

        settings = json.loads(definition)
        pattern = _pattern(settings)
        ranks = _ranks(settings["model"], reserved)
        _check_unicode()
        # Without any special token, tiktoken's search for special tokens stops at every character
        # and doubles the time.
        in_no_text = {"\0<|in no text|>\0": max(ranks.values()) + 1}
        self._encoding = Encoding(
            "", pat_str=pattern, mergeable_ranks=ranks, special_tokens=in_no_text
        )
        self._ascii_only = settings["normalizer"] == NFC
        self._other_tokens = [
            token["content"] for token in settings["added_tokens"] if not token["special"]
        ]

    def encode(self, text: str) -> NDArray[np.uint32] | None:
        """Return the ids of a text; None if `tokenizers` must encode it, or must refuse it because
        it is not Unicode.
        """
        if (self._ascii_only and not text.isascii()) or any(
            token in text for token in self._other_tokens
        ):
            return None
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError:
            # The text is not Unicode, or the regular expression gave up, as it does on about a
            # million spaces in a row.
            return None


def byte_symbols() -> list[str]:
    """Return the character that stands for each byte in byte-level vocabularies (GPT-2).

    A printable byte stands for itself; the others take the characters from U+0100 on.
    """
    printable, spare = {*range(33, 127), *range(161, 173), *range(174, 256)}, itertools.count(256)
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def _pattern(settings: dict[str, Any]) -> str:
    """Return the regular expression with which tiktoken splits as the pre-tokenizer does."""
    if settings["normalizer"] not in (None, NFC):
        raise NotTheSame(f"its normalizer is {settings['normalizer']['type']}")
    steps = settings["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    last = (
        {key: value for key, value in steps[-1].items() if key != "trim_offsets"} if steps else {}
    )
    if last not in (
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}
        for regex in (False, True)
    ):
        raise NotTheSame("its pre_tokenizer does not end in a plain ByteLevel")
    cuts = [*steps[:-1], *([_isolated(GPT2 + SPACES)] if last["use_regex"] else [])]
    if not cuts:
        return ANYTHING
    for head in (GPT2, LLAMA3, QWEN2, GPT4O):
        if cuts == [_isolated(head + SPACES)]:
            # A group without the look-ahead runs in a finite automaton: twice as fast, with the
            # same matches.
            return f"(?:{head}){SPACES}"
    raise NotTheSame("its pre_tokenizer cuts in a way that is not known to be the same in tiktoken")


def _isolated(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _ranks(model: dict[str, Any], reserved: frozenset[int]) -> dict[bytes, int]:
    """Return the bytes and the id of every token that text can have.

    Raises NotTheSame unless the proof at the top of this file applies.
    """
    if model["type"] != "BPE":
        raise NotTheSame(f"its model is {model['type']}")
    # unk_token, fuse_unk and byte_fallback treat characters outside the vocabulary. There are none:
    # the vocabulary must have all bytes, as checked below.
    if changed := [
        key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model[key]
    ]:
        raise NotTheSame(f"its model has a {changed[0]}")
    vocab: dict[str, int] = model["vocab"]
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    if not byte_of.keys() <= vocab.keys():
        raise NotTheSame("its vocabulary does not have all 256 bytes")
    if len(set(vocab.values())) < len(vocab):
        raise NotTheSame("two tokens of its vocabulary have the same id")
    tokens = [token for token in vocab if token and byte_of.keys() >= set(token)]
    lengths = dict(zip(tokens, _lengths_alone(model, tokens), strict=True))
    regular = {token for token, length in lengths.items() if length == 1}
    ids = [vocab[a + b] for a, b in model["merges"] if a + b in regular]
    if ids != sorted(ids):
        raise NotTheSame("its ids are not in the order of its merges")
    if model["ignore_merges"] and 2 in lengths.values():
        raise NotTheSame("ignore_merges: its vocabulary has a token that its merges leave in two")
    known = tokens if model["ignore_merges"] else regular
    if not reserved.isdisjoint(vocab[token] for token in known):
        raise NotTheSame("text can have the id of a special token")
    return {bytes(byte_of[symbol] for symbol in token): vocab[token] for token in known}


def _lengths_alone(model: dict[str, Any], tokens: list[str]) -> list[int]:
    """Return into how many tokens the merges turn the bytes of each token."""
    from tokenizers import Tokenizer, models

    merging = Tokenizer(models.BPE(model["vocab"], [(a, b) for a, b in model["merges"]]))
    return [len(encoding.ids) for encoding in merging.encode_batch_fast(tokens)]


def _check_unicode() -> None:
    from tiktoken import Encoding
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    theirs = "".join(
        piece
        for piece, _ in Split(Regex(r"\p{L}"), "removed", invert=True).pre_tokenize_str(LETTERS)
    )
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    encoding = Encoding("", pat_str=r"\p{L}", mergeable_ranks=single_bytes, special_tokens={})
    if bytes(encoding.encode_ordinary(LETTERS)).decode() != theirs:
        raise NotTheSame("the installed tiktoken and tokenizers have different versions of Unicode")
