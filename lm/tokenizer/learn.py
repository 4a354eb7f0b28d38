"""A byte-level BPE vocabulary that is learnt from text, and what it makes of a text.

The ids are those of the byte tokenizer, with merges in between, so that no tokenizer of this
project is a special case:

    0 - 255      the bytes, each its own id: any text can be written, whatever the vocabulary was learnt from
    256 - ...    the merges, the earliest first: id - 256 is a merge's rank, which is what other encoders (tiktoken) want to know
    then         further special tokens, where they are asked for, such as a chat template's
    the last 4   ByteTokenizer.SPECIALS, in their order: a larger vocabulary moves them, but none of the ids before

The text is cut into words first, by `PATTERN`, and no token reaches across a cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lm.system.errors import ConfigError
from lm.tokenizer.tokenizer import ByteTokenizer, Tokenizer

# GPT-4's, but a digit is always a word of its own, as in Qwen's: numbers take nothing of a small
# vocabulary, and every number is spelt in the same way. Against GPT-2's it joins what follows a
# line to its end, which makes verse and lists shorter, and long numbers longer.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LEAST_VOCABULARY = 256 + len(ByteTokenizer.SPECIALS) + 1
# `tokenizers` counts pairs in 32 bits, and a count that runs over is silent.
MOST_BYTES = 2**31 - 1
# characters; a text is fed in pieces, as `tokenizers` takes more than 16 times the memory of what
# it cuts into words
PIECE = 2**16
BATCH = 2**20  # characters that are encoded together
SETTINGS = {  # What transformers wants beside a tokenizer.json.
    "tokenizer_class": "PreTrainedTokenizerFast",
    **{f"{text[2:-2]}_token": text for text in ByteTokenizer.SPECIALS},
    "clean_up_tokenization_spaces": False,
}


def check_specials(names: Sequence[str]) -> None:
    """Raise ConfigError unless these can be special tokens beside ByteTokenizer.SPECIALS, by names
    that a chat template can write.
    """
    for i, name in enumerate(names):
        if not re.fullmatch(r"<\|\w+\|>", name):
            raise ConfigError(
                f"--special {name}: a special token is written '<|name|>', with letters, digits or"
                " _ for name (mind the quotes)"
            )
        if name in ByteTokenizer.SPECIALS:
            raise ConfigError(f"--special {name}: every vocabulary has it; leave it out")
        if name in names[:i]:
            raise ConfigError(f"--special {name} is given twice; leave one out")


def learn(texts: Iterable[str], vocab_size: int, specials: Sequence[str] = ()) -> tuple[str, int]:
    """The content of a tokenizer.json with at most `vocab_size` ids, and the bytes of text that it
    was learnt from.

    There are fewer ids where no pair of tokens is left that occurs twice. The same texts give the
    same content, in any order. Memory holds each different word, up to a kilobyte for each. Not to
    be interrupted: the library does not listen to signals. `specials`: special tokens beside
    ByteTokenizer.SPECIALS, which pass `check_specials`.
    """
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), byte_level]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials) - len(ByteTokenizer.SPECIALS),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,  # it prints empty lines
    )
    text_bytes = 0
    with tqdm(desc="counting words", unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def watched() -> Iterator[str]:
            nonlocal text_bytes
            for text in texts:
                yield text
                size = len(text.encode())
                text_bytes += size
                bar.update(size)
            bar.set_description_str("merging pairs")

        backend.train_from_iterator(watched(), trainer)
    # The library sorts the bytes by the characters that stand for them, and so each vocabulary of
    # its own has other ids.
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    symbols = json.loads(ByteTokenizer().definition)["model"]["vocab"]
    tokens = dict.fromkeys([*symbols, *("".join(pair) for pair in merges)])
    backend.model = models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    backend.add_special_tokens(
        [
            AddedToken(text, normalized=False, special=True)
            for text in (*specials, *ByteTokenizer.SPECIALS)
        ]
    )
    return str(backend.to_str(pretty=True)) + "\n", text_bytes


def excerpt(texts: Iterable[str], budget: int) -> Iterator[str]:
    """The first `budget` bytes of UTF-8, or all there are, in pieces of at most PIECE characters.
    No text is asked for beyond them.
    """
    if budget <= 0:
        return
    for text in texts:
        for piece in pieces(text):
            content = piece.encode()
            if len(content) >= budget:
                # a character that does not fit whole is left out
                yield content[:budget].decode(errors="ignore")
                return
            budget -= len(content)
            yield piece


def pieces(text: str) -> Iterator[str]:
    """A text in pieces that are its words as a whole: cut before a space, where PATTERN cuts too,
    unless there is none for long.
    """
    start = 0
    while len(text) - start > PIECE:
        space = text.rfind(" ", start + 1, start + PIECE)
        end = space if space > 0 else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


@dataclass
class Usage:
    """What a tokenizer made of some texts.

    Attributes:
        changed: how many of them did not come back from their ids as they were.
        counts: how often each id was used, (vocab_size,).
    """

    counts: NDArray[np.int64]
    texts: int = 0
    text_bytes: int = 0
    changed: int = 0

    @property
    def tokens(self) -> int:
        """Ids altogether."""
        return int(self.counts.sum())

    @property
    def bytes_per_token(self) -> float:
        """How many bytes of UTF-8 a token stands for; 1 with the byte tokenizer."""
        return self.text_bytes / self.tokens


def measure(tokenizer: Tokenizer, texts: Iterable[str]) -> Usage:
    """Encode texts and decode them again."""
    usage = Usage(np.zeros(tokenizer.vocab_size, np.int64))
    with tqdm(desc="measuring", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for batch in _batches(texts):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                usage.texts += 1
                usage.text_bytes += len(text.encode())
                usage.changed += tokenizer.decode(ids.tolist()) != text
                usage.counts += np.bincount(ids, minlength=tokenizer.vocab_size)
            bar.update(sum(len(text.encode()) for text in batch))
    return usage


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def describe(tokenizer: Tokenizer, usages: dict[str, Usage]) -> list[str]:
    """What there is to know about a vocabulary, as lines: how short it makes texts, and what of it
    is idle or odd.
    """
    width = max(map(len, usages))
    lines = [
        f"{'':{width}}  {'bytes':>13}  {'tokens':>13}  bytes per token (the byte tokenizer: 1)"
    ]
    for name, usage in usages.items():
        ratio = f"{usage.bytes_per_token:.4f}" if usage.tokens else "there is no text"
        lines.append(f"{name:{width}}  {usage.text_bytes:13,}  {usage.tokens:13,}  {ratio}")
    counts = np.sum([usage.counts for usage in usages.values()], axis=0)
    ordinary = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids]
    idle = [i for i in ordinary if counts[i] == 0]
    merged = [i for i in idle if i >= 256]
    lines.append(
        f"never used here: {len(idle):,} of {len(ordinary):,}: {len(idle) - len(merged):,} single"
        f" bytes, {len(merged):,} merged"
    )
    if merged:
        lines[-1] += f", such as {_shown(tokenizer, merged[:: -(-len(merged) // 5)])}"
    longest = sorted(
        (i for i in ordinary if i >= 256), key=lambda i: (-len(tokenizer.decode([i]).encode()), i)
    )
    lines.append(f"longest: {_shown(tokenizer, longest[:5])}")
    changed = sum(usage.changed for usage in usages.values())
    lines.append(
        f"round trip: {changed:,} of {sum(usage.texts for usage in usages.values()):,} texts came"
        " back changed"
    )
    return lines


def _shown(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Tokens for a person: half a character shows as U+FFFD."""
    return " ".join(repr(tokenizer.decode([i])) for i in ids)
