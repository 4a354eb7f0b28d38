"""Which token comes next: the filters, the draw, and the decode loop.

The filters are pure functions of scores and options; the loop asks for one token at a time and
keeps nothing between calls. Nothing here prints, touches the global random state or leaves the
decoder in another mode, so training can sample at a validation and go on unchanged.

torch is imported where the loop starts and nowhere else: the commands check their options before
they wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm.system.errors import ConfigError, NonFiniteError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Dividing by less than this overflows long before it changes anything: the best token has all the
# probability.
SMALLEST_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The fields are the flags of `infer.py`, and the filters are
    applied in their order here, last to first.

    Raises:
        ConfigError: a value is out of range; names the flag.
    """

    temperature: float = field(
        default=0.8,
        metadata={"help": "0 is greedy: always the most likely token. Higher is more surprising"},
    )
    top_k: int = field(
        default=0, metadata={"help": "draw from the K most likely tokens (0: from all)"}
    )
    top_p: float = field(
        default=1.0,
        metadata={
            "help": "draw from the fewest tokens that hold this share of the probability (1: all)"
        },
    )
    min_p: float = field(
        default=0.0,
        metadata={
            "help": "leave out tokens less likely than this share of the most likely one (0: none)"
        },
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata={"help": "make tokens that have occurred less likely: 1.1 a little (1: off)"},
    )

    def __post_init__(self) -> None:
        checks = (
            ("temperature", 0 <= self.temperature <= 10, "from 0 (greedy) to 10"),
            ("top_k", self.top_k >= 0, "0 (off) or a number of tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (off) to 1"),
            (
                "repetition_penalty",
                0.1 <= self.repetition_penalty <= 10,
                "from 0.1 to 10 (1 is off)",
            ),
        )
        for name, fine, range_in_words in checks:
            if not fine:
                raise ConfigError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is out of range; write"
                    f" {range_in_words}"
                )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken without a draw."""
        return self.temperature < SMALLEST_TEMPERATURE


def sample_next(
    logits: Tensor, options: Sampling, seen: Tensor, generator: torch.Generator
) -> Tensor:
    """Choose a token for each row, (B,) int64, from (B, V) logits. Arguments as for
    `filter_logits`; the draw uses `generator` alone.
    """
    logits = logits.float()
    if options.greedy:
        return penalise(logits, options.repetition_penalty, seen).argmax(dim=-1)
    return (
        filter_logits(logits, options, seen)
        .softmax(dim=-1)
        .multinomial(1, generator=generator)[:, 0]
    )


def filter_logits(logits: Tensor, options: Sampling, seen: Tensor) -> Tensor:
    """Apply the options that are on, in the order repetition penalty, temperature, top-k, top-p,
    min-p (that of `transformers`).

    The order matters: top-p and min-p look at probabilities after the temperature, and each filter
    at what the earlier ones left over.

    Args:
        logits: (B, V) float32.
        options: anything but greedy.
        seen: (B, V) bool, the tokens that have occurred in each row's text.

    Returns:
        (B, V), -inf where a token is out; at least one is left in each row.
    """
    logits = penalise(logits, options.repetition_penalty, seen) / options.temperature
    if options.top_k:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p < 1:
        logits = keep_top_p(logits, options.top_p)
    if options.min_p:
        logits = keep_min_p(logits, options.min_p)
    return logits


def penalise(logits: Tensor, penalty: float, seen: Tensor) -> Tensor:
    """Make the tokens that were seen less likely, once each, however often they occurred (Keskar et
    al. 2019, CTRL, section 4.1).

    A positive logit is divided and a negative one multiplied: dividing a negative one would make it
    more likely.
    """
    return logits.where(~seen, (logits * penalty).where(logits < 0, logits / penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Leave the k largest of each row, and what equals the smallest of them."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Leave the fewest tokens whose probabilities reach p, the one that crosses it included
    (nucleus sampling, Holtzman et al. 2020).

    A token is out when it and all less likely ones together hold at most 1 - p. The most likely one
    always stays.
    """
    ascending, order = logits.sort(dim=-1)
    out = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    out[:, -1] = False
    return logits.masked_fill(out.scatter(1, order, out), -math.inf)


def keep_min_p(logits: Tensor, share: float) -> Tensor:
    """Leave the tokens that are at least `share` times as likely as the most likely one (Nguyen et
    al. 2024).
    """
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(
        probabilities < share * probabilities.amax(dim=-1, keepdim=True), -math.inf
    )


def generate(
    decoder: Any,
    prompts: Sequence[Sequence[int]],
    options: Sampling,
    max_new_tokens: int,
    stop_ids: Collection[int],
    generator: torch.Generator,
    vocab_size: int | None = None,
) -> Generator[list[int | None]]:
    """Continue prompts, one token at a time, each as if it were alone.

    They are read once into a cache of keys and values, then each new token costs one position. When
    a row's context is full the model forgets its oldest half: the newest `context_length // 2`
    tokens are read again, into the emptied cache, and the text goes on; so it is with a prompt
    longer than the context. No EOS is put before what is left: rows of training, too, begin in the
    middle of documents.

    Args:
        decoder, prompts: a `model.Decoder`; a row for each list of at least one id
            (`lm.generation.prompt.open_prompt`), also for equal ones.
        options: how each token is chosen. The repetition penalty counts the prompt and what was
            forgotten, but never a stop id.
        max_new_tokens, stop_ids: a row ends after so many tokens, or with the first of these ids
            that it draws.
        generator: on the decoder's device. The same state, decoder, prompts and options give the
            same ids.
        vocab_size: ids from this on are never drawn.

    Yields:
        One id for each row, the stop id included; None for rows that have ended. Ends when all rows
        have.

    Raises:
        NonFiniteError: the decoder's answer to a prompt is NaN or infinite.
    """
    import torch

    # compiled, each length of the cache would be a new graph
    decoder = getattr(decoder, "_orig_mod", decoder)
    context = decoder.config.context_length
    texts = [list(prompt) for prompt in prompts]
    seen = torch.zeros(
        len(texts),
        vocab_size or decoder.config.vocab_size,
        dtype=torch.bool,
        device=generator.device,
    )
    for row, prompt in zip(seen, prompts, strict=True):
        row[[token for token in prompt if token not in stop_ids]] = True
    cache = decoder.new_cache(len(texts), min(context, max(map(len, texts)) + max_new_tokens))
    ended, training = [False] * len(texts), decoder.training
    decoder.eval()
    try:
        for drawn in range(max_new_tokens):
            if drawn == 0 or cache.length == context:
                texts = [
                    text if len(text) <= context else text[-(context // 2) :] for text in texts
                ]
                unread, cache.padding = left_padded(texts, generator.device)
                cache.length = 0
            # not around the loop: it would hold for the caller too, between two tokens
            with torch.no_grad():
                # .forward is never compiled code
                logits = decoder.forward(unread, cache=cache)[:, -1, :vocab_size].float()
            if drawn == 0 and not logits.isfinite().all():
                raise NonFiniteError(
                    "the model's scores are not finite: its weights are damaged or diverged; try an"
                    " earlier checkpoint"
                )
            unread = sample_next(logits, options, seen, generator)[:, None]
            seen.scatter_(1, unread, True)
            tokens = unread[:, 0].tolist()  # the one wait for the device
            for text, token in zip(texts, tokens, strict=True):
                text.append(token)
            yield [None if end else token for token, end in zip(tokens, ended, strict=True)]
            ended = [end or token in stop_ids for token, end in zip(tokens, ended, strict=True)]
            if all(ended):
                return
    finally:
        decoder.train(training)


def left_padded(
    texts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Rows of ids that end together, (B, longest), and the number of places before each that hold
    no text, (B,): what a `model.KVCache` is to be told. None where all are equally long, which
    spares the model the masks.
    """
    import torch

    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(text)) + list(text) for text in texts], device=device)
    padding = torch.tensor([longest - len(text) for text in texts], device=device)
    return ids, padding if min(map(len, texts)) < longest else None
