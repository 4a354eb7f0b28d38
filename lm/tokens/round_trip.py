"""How much of a text its tokens lose: text to tokens and back, compared with the text.

A tokenizer may turn words into an unknown token, drop characters that it does not know, change
letters to lower case, or forget line ends. Its tokens then say less than the text, and bits per
byte of the text would be too good. So while tokens are made, a sample of each piece is decoded
again. What does not come back is counted in bytes: those of the longer of the two texts that are
not in their longest common subsequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.store import Counts

SAMPLES = 32  # of each piece, which has some megabytes
SAMPLE_CHARACTERS = 1024
MOST_LOST = 0.001  # the share of the text beyond which bits per byte are withheld


def compare(
    tokenizer: Tokenizer, texts: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each document how many bytes were compared, and how many do not come back."""
    compared, lost = np.zeros((2, len(texts)), np.int64)
    if tokenizer.lossless:
        return compared, lost
    numbers, samples = _sample(texts)
    for number, sample, ids in zip(numbers, samples, tokenizer.encode_batch(samples), strict=True):
        before = sample.encode()
        after = tokenizer.decode(ids.tolist()).encode(errors="replace")
        compared[number] += len(before)
        if after != before:
            # A decoder that adds a lot loses no more than everything.
            lost[number] += min(difference(before, after), len(before))
    return compared, lost


def lost_share(splits: Iterable[Counts]) -> float:
    """Return the share of the text that its tokens lose: of all tokens the unknown ones, or of the
    sample what does not come back, whichever is more.
    """
    splits = list(splits)
    tokens = sum(split.text_tokens for split in splits)
    compared = sum(split.compared_bytes for split in splits)
    unknown = sum(split.unknown_tokens for split in splits) / tokens if tokens else 0.0
    return min(1.0, max(unknown, sum(s.lost_bytes for s in splits) / compared if compared else 0.0))


def losses(splits: Sequence[Counts]) -> list[str]:
    """Return what the log says about text that tokens lose; nothing if they lose none."""
    facts = []
    if share := lost_share(splits):
        withheld = ", so bits per byte are not shown" if share > MOST_LOST else ""
        facts.append(f"{share:.2%} of the text is lost by the tokenizer{withheld}")
    if unknown := sum(split.unknown_tokens for split in splits):
        facts.append(f"{unknown:,} x unknown token")
    if empty := sum(split.empty_documents for split in splits):
        facts.append(f"{empty:,} x document that became no token")
    return facts


def is_lost(tokenizer: Tokenizer, text: str) -> bool:
    """Return whether the tokens of a short text say less than the text.

    White space at its ends does not count: a decoder may add or remove it.
    """
    return tokenizer.decode(tokenizer.encode(text)).strip() != text.strip()


def difference(one: bytes, other: bytes) -> int:
    """Return how many bytes of the longer text are not in the longest common subsequence.

    The subsequence is computed for all of `one` at once, a bit for each byte (Hyyrö 2004).
    """
    pairs = enumerate(zip(one, other, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    one, other = one[start:], other[start:]
    places: dict[int, int] = {}
    for place, byte in enumerate(one):
        places[byte] = places.get(byte, 0) | 1 << place
    everywhere = (1 << len(one)) - 1
    row = everywhere
    for byte in other:
        matching = row & places.get(byte, 0)
        row = (row + matching | row - matching) & everywhere
    common = len(one) - row.bit_count()
    return max(len(one), len(other)) - common


def _sample(texts: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return parts of documents, evenly spread over their characters, and the documents' numbers.

    Little text is returned as a whole.
    """
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    size = int(ends[-1]) if len(ends) else 0
    if size <= SAMPLES * SAMPLE_CHARACTERS:
        parts = [
            (number, text[start : start + SAMPLE_CHARACTERS])
            for number, text in enumerate(texts)
            for start in range(0, len(text), SAMPLE_CHARACTERS)
        ]
        return [number for number, _ in parts], [part for _, part in parts]
    # Some tokenizers drop white space at the ends of a text. Within a text it would stay.
    places = np.arange(SAMPLES) * size // SAMPLES
    numbers = np.searchsorted(ends, places, side="right").tolist()
    samples = []
    for number, place in zip(numbers, places.tolist(), strict=True):
        text = texts[number]
        start = place - int(ends[number]) + len(text)
        start = max(0, min(start, len(text) - SAMPLE_CHARACTERS))
        samples.append(text[start : start + SAMPLE_CHARACTERS].strip())
    return numbers, samples
