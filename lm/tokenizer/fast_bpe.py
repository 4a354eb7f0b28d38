"""Byte-level BPE by the library tiktoken, several times as fast as `tokenizers` and only where the
ids are certain to be the same.

Both libraries cut a text into pieces by a regular expression and merge the bytes of each piece,
pair by pair. They differ in what says which pair may merge, and when: `tokenizers` has a list of
pairs, tiktoken merges any two neighbours whose bytes together are a token, the lowest id first, and
looks a whole piece up before that. `FastBpe` refuses every definition for which that is not one and
the same.

Why it is the same where it is not refused. Say that a token is regular if the list of pairs makes
it out of its own bytes. Neighbours that together are the bytes of a token t were made by merges
within these bytes alone: no merge crossed their borders, which are still there. So the same
neighbours appear when t's bytes are merged alone, where the steps from bytes to two neighbours are
the only ones there are. If t is regular, these two are its pair in the list, and both libraries may
merge them. If t is not regular and yet a token of tiktoken's (for whole pieces: `ignore_merges`),
its bytes alone end as three tokens or more, and no such neighbours exist. Hence both always choose
from the same pairs; they choose alike as ids ascend in the order of the list; and a whole piece
that is a regular token merges to that token.

That leaves the regular expression, of which only those below are known to cut alike, and what
Unicode calls a letter.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What stands before `SPACES` in the patterns of GPT-2, Llama 3, Qwen 2 and GPT-4o, and of the many
# that took theirs over.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT4O = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
    ]
)
SPACES = r"|\s+(?!\S)|\s+"
ANYTHING = r"(?s:.+)"
NFC = {"type": "NFC"}  # Qwen's normalizer. It leaves ASCII alone.
# A letter that came with each version of Unicode from 12 to 17: libraries that agree on these have
# the tables of one version.
LETTERS = "\ua7ba\ua7c7\ua7d0\U0001e4d0\U0002ebf0\ua7cb\U000323b0"


class NotTheSame(ValueError):
    """Why tiktoken would not, or not certainly, give the ids that `tokenizers` gives."""


class FastBpe:
    """The ids of `tokenizers` for a definition, by tiktoken. For one thread of one process: it pays
    to have as many processes as cores.
    """

    def __init__(self, definition: str, reserved: frozenset[int]):
        """Takes about half a second for 50,000 tokens.

        Args:
            definition: a tokenizer.json in the words of the installed `tokenizers`.
            reserved: ids that no text may have; `tokenizers` is taken to treat special tokens in
                text as plain text.

        Raises:
            NotTheSame: the ids might differ.
        """
        from tiktoken import Encoding

        settings = json.loads(definition)
        pattern = _pattern(settings)
        ranks = _ranks(settings["model"], reserved)
        _check_unicode()
        # Without any special token, tiktoken's search for special tokens stops at every character
        # and takes as long as all the rest.
        nowhere = {"\0<|in no text|>\0": max(ranks.values()) + 1}
        self._encoding = Encoding(
            "", pat_str=pattern, mergeable_ranks=ranks, special_tokens=nowhere
        )
        self._ascii_only = settings["normalizer"] == NFC
        self._other_tokens = [
            token["content"] for token in settings["added_tokens"] if not token["special"]
        ]

    def encode(self, text: str) -> NDArray[np.uint32] | None:
        """The ids of a text; None for one that `tokenizers` has to do, or to refuse because it is
        not Unicode.
        """
        if (self._ascii_only and not text.isascii()) or any(
            token in text for token in self._other_tokens
        ):
            return None
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except (
            ValueError
            # No Unicode; or its regular expressions gave up, as they do on about a million spaces in a
            # row.
        ):
            return None


def byte_symbols() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2): itself if
    printable, else the next from U+0100.
    """
    printable, spare = {*range(33, 127), *range(161, 173), *range(174, 256)}, itertools.count(256)
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def _pattern(settings: dict[str, Any]) -> str:
    """The regular expression for tiktoken that cuts as the definition's pre-tokenizer does."""
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
            # As one group, without the look-ahead, it runs in a finite automaton: twice as fast,
            # with the same matches.
            return f"(?:{head}){SPACES}"
    raise NotTheSame("its pre_tokenizer cuts in a way that is not known to be the same in tiktoken")


def _isolated(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _ranks(model: dict[str, Any], reserved: frozenset[int]) -> dict[bytes, int]:
    """The bytes and the id of every token that text can have; see the head of the file for why the
    ids come out the same.
    """
    if model["type"] != "BPE":
        raise NotTheSame(f"its model is {model['type']}")
    # unk_token, fuse_unk and byte_fallback are for characters that are not in the vocabulary; all
    # bytes are, as is checked below.
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
    """Into how many tokens the merges turn the bytes of each token."""
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
