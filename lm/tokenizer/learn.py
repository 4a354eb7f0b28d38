"""Train a byte-level BPE vocabulary, and measure how it encodes a text.

The ids extend those of the byte tokenizer:

    0 - 255      the bytes, each its own id: any text can be encoded
    256 - ...    the merges, the earliest first: id - 256 is the rank that tiktoken needs
    then         further special tokens, if requested, such as those of a chat template
    the last 4   ByteTokenizer.SPECIALS: a larger vocabulary moves only these

`PATTERN` splits the text into words first, and no token crosses a word boundary.
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

# GPT-4's pattern, but each digit is a word, as in Qwen's. Numbers then use up none of a small
# vocabulary, and all are spelt alike. Unlike GPT-2's, it joins line ends to the text before them:
# verse and lists become shorter, long numbers longer.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LEAST_VOCABULARY = 256 + len(ByteTokenizer.SPECIALS) + 1
# `tokenizers` counts pairs in 32 bits and does not report an overflow.
MOST_BYTES = 2**31 - 1
# Characters. Texts are fed in pieces, because `tokenizers` needs more than 16 times the memory of
# the text that it splits into words.
PIECE = 2**16
BATCH = 2**20  # characters that are encoded together
SETTINGS = {  # tokenizer_config.json, which transformers needs next to a tokenizer.json
    "tokenizer_class": "PreTrainedTokenizerFast",
    **{f"{text[2:-2]}_token": text for text in ByteTokenizer.SPECIALS},
    "clean_up_tokenization_spaces": False,
}


def check_specials(names: Sequence[str]) -> None:
    """Raise ConfigError unless these can be special tokens in addition to ByteTokenizer.SPECIALS.

    A chat template must be able to write their names.
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
    """Train a vocabulary; return its tokenizer.json and the bytes of text that it was trained on.

    The same texts give the same vocabulary, in any order. Memory holds each different word, with up
    to a kilobyte for each. Signals have no effect until the library is done.

    Args:
        texts: the training text.
        vocab_size: the largest number of ids. There are fewer if no pair of tokens occurs twice.
        specials: special tokens in addition to ByteTokenizer.SPECIALS; see `check_specials`.
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
        show_progress=False,  # the bar prints empty lines
    )
    text_bytes = 0
    with tqdm(desc="counting words", unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def counted() -> Iterator[str]:
            nonlocal text_bytes
            for text in texts:
                yield text
                size = len(text.encode())
                text_bytes += size
                bar.update(size)
            bar.set_description_str("merging pairs")

        backend.train_from_iterator(counted(), trainer)
    # The library sorts the bytes by the characters that stand for them. We give each byte its own
    # value as id.
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
    """Yield the first `budget` bytes of UTF-8 in pieces of at most PIECE characters.

    No further text is requested after the budget is used up.
    """
    if budget <= 0:
        return
    for text in texts:
        for piece in pieces(text):
            content = piece.encode()
            if len(content) >= budget:
                # a character that does not fit is dropped
                yield content[:budget].decode(errors="ignore")
                return
            budget -= len(content)
            yield piece


def pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces that split no word, unless a word is longer than PIECE.

    Each cut is before a space, where PATTERN splits too.
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
    """The ids of some texts, counted.

    Attributes:
        counts: how often each id was used, (vocab_size,).
        texts: number of texts.
        text_bytes: their size in UTF-8.
        changed: number of texts that decoding did not give back.
    """

    counts: NDArray[np.int64]
    texts: int = 0
    text_bytes: int = 0
    changed: int = 0

    @property
    def tokens(self) -> int:
        """The number of all ids."""
        return int(self.counts.sum())

    @property
    def bytes_per_token(self) -> float:
        """The mean bytes of UTF-8 in a token; 1 with the byte tokenizer."""
        return self.text_bytes / self.tokens


def measure(tokenizer: Tokenizer, texts: Iterable[str]) -> Usage:
    """Encode texts, decode them again, and count."""
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


def usage_report(tokenizer: Tokenizer, usages: dict[str, Usage]) -> list[str]:
    """Return a report on a vocabulary as lines.

    It has the bytes per token of each text, unused and longest tokens, and the round trips that
    failed.
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
    """Return tokens as readable text; half a character becomes U+FFFD."""
    return " ".join(repr(tokenizer.decode([i])) for i in ids)
