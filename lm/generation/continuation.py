"""Tokens become text that can be shown while it grows: whole characters, stop strings, and why a
text ended.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Literal

from lm.generation.sampling import Sampling, generate
from lm.system.errors import ConfigError
from lm.tokenizer.stream import TextStream
from lm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from model import Decoder

# Control characters of ECMA-48 command a terminal, 8-bit ones too. Tabs and line feeds stay,
# carriage returns are dropped.
COMMANDS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(32), *range(127, 160))
    if code not in b"\t\n\r"
} | {ord("\r"): None}


def shown(text: str) -> str:
    """Return a model's text for stdout. A terminal gets U+FFFD instead of control characters; files
    and pipes get the text unchanged.
    """
    return text.translate(COMMANDS) if sys.stdout.isatty() else text


def write(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    options: Sampling,
    max_new_tokens: int,
    generator: torch.Generator,
    num_samples: int = 1,
    stops: Sequence[str] = (),
    stop_ids: Collection[int] | None = None,
) -> Generator[list[Sample]]:
    """Continue one prompt `num_samples` times, as `write_each` does."""
    prompts = [prompt_ids] * num_samples
    return write_each(
        decoder, tokenizer, prompts, options, max_new_tokens, generator, stops, stop_ids
    )


def write_each(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    options: Sampling,
    max_new_tokens: int,
    generator: torch.Generator,
    stops: Sequence[str],
    stop_ids: Collection[int] | None,
) -> Generator[list[Sample]]:
    """Continue prompts as text (`generate` yields the tokens).

    Yields a sample for each prompt before the first token and after every token: always the same
    objects, which grow. All samples are finished at the end. `stop_ids` end a text (None: EOS).
    """
    samples = [Sample(tokenizer, prompt, stops, stop_ids) for prompt in prompts]
    yield samples
    ends, vocab_size = samples[0].stop_ids, tokenizer.vocab_size
    with closing(
        generate(decoder, prompts, options, max_new_tokens, ends, generator, vocab_size)
    ) as steps:
        for tokens in steps:
            for sample, token in zip(samples, tokens, strict=True):
                if sample.finish is None and token is not None:
                    sample.add(token)
            if all(sample.finish for sample in samples):
                break
            yield samples
    for sample in samples:
        if sample.finish is None:
            sample.close("length")
    yield samples


class StopStrings:
    """A filter that passes text up to the first stop string, in whatever pieces it arrives.

    Text that may begin a stop string is held back until that is decided. If several match, the one
    that is complete first counts, so the result does not depend on how the text was cut.
    """

    def __init__(self, stops: Sequence[str]):
        if "" in stops:
            raise ConfigError("--stop is empty; write the text to stop at")
        self.found = False
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> str:
        """Take more text. Return the part that is certainly before any stop string; after a match
        return nothing.
        """
        self._held += "" if self.found else text
        starts = {stop: self._held.find(stop) for stop in self._stops}
        matches = [(start + len(stop), start) for stop, start in starts.items() if start >= 0]
        self.found = self.found or bool(matches)
        keep = min(matches)[1] if matches else len(self._held) - self._undecided()
        decided, self._held = self._held[:keep], "" if matches else self._held[keep:]
        return decided

    def flush(self) -> str:
        """Return the text that was held back, when no more text comes."""
        rest, self._held = self._held, ""
        return rest

    def _undecided(self) -> int:
        """Return the length of the longest end of the held text that begins a stop string."""
        return max(
            (
                n
                for stop in self._stops
                for n in range(1, len(stop))
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )


class Sample:
    """One continuation while it grows.

    Attributes:
        text: the text that may be shown so far: whole characters, and nothing that may belong to a
            stop string.
        tokens: the number of tokens drawn, including a closing EOS.
        finish: None while it grows; then why it ended: a stop string, the maximum length, or EOS.
        stop_ids: ids that count as EOS; by default only the tokenizer's.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        stops: Sequence[str] = (),
        stop_ids: Collection[int] | None = None,
    ):
        self.text = ""
        self.tokens = 0
        self.finish: Literal["stop", "length", "eos"] | None = None
        self.stop_ids = {tokenizer.eos_id} if stop_ids is None else stop_ids
        self._stream = TextStream(tokenizer, prompt_ids)
        self._stops = StopStrings(stops)

    def add(self, token: int) -> None:
        """Take the next token."""
        self.tokens += 1
        if token in self.stop_ids:
            self.close("eos")
        else:
            self.text += self._stops.push(self._stream.push(token))
            self.finish = "stop" if self._stops.found else None

    def close(self, finish: Literal["length", "eos"]) -> None:
        """End the sample; no more tokens come."""
        self.text += self._stops.push(self._stream.flush())
        self.text += self._stops.flush()
        self.finish = "stop" if self._stops.found else finish
