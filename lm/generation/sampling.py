"""The next token: the filters, the draw, and the decode loop.

The filters are pure functions of logits and options. The loop yields one token at a time and keeps
nothing between calls. Nothing here prints, changes the global random state or leaves the decoder in
another mode, so training can sample at a validation and continue unchanged.

torch is imported late, in the loop, so that commands check their options first.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lm.optim.modes import evaluating
from lm.system.errors import ConfigError, NonFiniteError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from model import Decoder, KVCache

# Below this the best token has all the probability, and dividing by it would overflow.
SMALLEST_TEMPERATURE = 1e-6
NOT_FINITE = (
    "the model's scores are not finite: its weights are damaged or diverged; try an earlier"
    " checkpoint"
)


@dataclass(frozen=True)
class Sampling:
    """Options of the draw. The fields are the flags of `infer.py`.

    Raises:
        ConfigError: a value is out of range. The message names the flag.
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
        """Return whether the most likely token is taken without a draw."""
        return self.temperature < SMALLEST_TEMPERATURE


def sample_next(
    logits: Tensor, options: Sampling, seen: Tensor, generator: torch.Generator
) -> Tensor:
    """Choose a token for each row, (B,) int64, from (B, V) logits. The arguments are those of
    `filter_logits`; the draw uses only `generator`.
    """
    logits = logits.float()
    if options.greedy:
        return penalise(logits, options.repetition_penalty, seen).argmax(dim=-1)
    probabilities = filter_logits(logits, options, seen).softmax(dim=-1)
    return probabilities.multinomial(1, generator=generator)[:, 0]


def filter_logits(logits: Tensor, options: Sampling, seen: Tensor) -> Tensor:
    """Apply the options that are on, in the order of `transformers`: repetition penalty,
    temperature, top-k, top-p, min-p.

    The order matters: top-p and min-p use probabilities after the temperature, and each filter sees
    only the tokens that earlier filters kept.

    Args:
        logits: (B, V) float32.
        options: any but greedy ones.
        seen: (B, V) bool, the tokens that have occurred in each row's text.

    Returns:
        (B, V), -inf where a token is excluded. At least one is kept in each row.
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
    """Make tokens that occurred less likely, once each however often they occurred (Keskar et al.
    2019, CTRL, section 4.1).

    A positive logit is divided, a negative one multiplied, because dividing a negative logit would
    make the token more likely.
    """
    return logits.where(~seen, (logits * penalty).where(logits < 0, logits / penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits of each row, and all that equal the smallest of them."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens whose probabilities reach p, including the one that crosses it
    (nucleus sampling, Holtzman et al. 2020).

    A token is excluded if it and all less likely tokens together hold at most 1 - p. The most
    likely token always stays.
    """
    ascending, order = logits.sort(dim=-1)
    excluded = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    excluded[:, -1] = False
    return logits.masked_fill(excluded.scatter(1, order, excluded), -math.inf)


def keep_min_p(logits: Tensor, share: float) -> Tensor:
    """Keep the tokens that are at least `share` times as likely as the most likely one (Nguyen et
    al. 2024).
    """
    probabilities = logits.softmax(dim=-1)
    least = share * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < least, -math.inf)


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    options: Sampling,
    max_new_tokens: int,
    stop_ids: Collection[int],
    generator: torch.Generator,
    vocab_size: int,
) -> Generator[list[int | None]]:
    """Continue prompts, one token at a time, each as if it were alone.

    The prompts are read once into a cache of keys and values; each new token then costs one
    position. When the cache is full, the model reads the newest half again, into an emptied cache,
    and goes on.

    Args:
        decoder: evaluated in evaluation mode; its mode is restored at the end.
        prompts: a row for each list of at least one id (`lm.generation.prompt.open_prompt`).
        options: how each token is chosen. The repetition penalty counts the prompt and forgotten
            tokens, but never a stop id.
        max_new_tokens: a row ends after this many tokens.
        stop_ids: a row ends when it draws one of these.
        generator: on the decoder's device. The same state, decoder, prompts and options give the
            same ids.
        vocab_size: ids from this one on are never drawn.

    Yields:
        One id for each row, including the stop id; None for rows that have ended. It ends when all
        rows have.

    Raises:
        NonFiniteError: the decoder's logits for a prompt are NaN or infinite.
    """
    import torch

    context = decoder.config.context_length
    texts = [list(prompt) for prompt in prompts]
    seen = torch.zeros(len(texts), vocab_size, dtype=torch.bool, device=generator.device)
    for row, prompt in zip(seen, prompts, strict=True):
        row[[token for token in prompt if token not in stop_ids]] = True
    cache = decoder.new_cache(len(texts), min(context, max(map(len, texts)) + max_new_tokens))
    ended = [False] * len(texts)
    with evaluating(decoder):
        for drawn in range(max_new_tokens):
            if drawn == 0 or cache.length == context:
                texts = [newest_half(text, context) for text in texts]
                unread, cache.padding = left_padded(texts, generator.device)
                cache.length = 0
            logits = next_logits(decoder, unread, cache)[:, :vocab_size]
            if drawn == 0 and not logits.isfinite().all():
                raise NonFiniteError(NOT_FINITE)
            unread = sample_next(logits, options, seen, generator)[:, None]
            seen.scatter_(1, unread, True)
            tokens = unread[:, 0].tolist()  # the only wait for the device
            for text, token in zip(texts, tokens, strict=True):
                text.append(token)
            yield [None if end else token for token, end in zip(tokens, ended, strict=True)]
            ended = [end or token in stop_ids for token, end in zip(tokens, ended, strict=True)]
            if all(ended):
                return


def next_logits(decoder: Decoder, unread: Tensor, cache: KVCache) -> Tensor:
    """Return the logits of the next token after each row, (B, vocabulary), in fp32."""
    import torch

    # Not around a generator's loop: between two tokens the caller's code would run under it too.
    with torch.no_grad():
        # .forward is never compiled: each length of the cache would be a new graph
        return decoder.forward(unread, cache=cache)[:, -1].float()


def newest_half(text: list[int], context: int) -> list[int]:
    """Return a text that fits into the context, and the newest `context // 2` ids of a longer one.

    No EOS is put before the rest: training rows, too, begin in the middle of documents.
    """
    return text if len(text) <= context else text[-(context // 2) :]


def left_padded(
    texts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return rows of ids that end together, (B, longest), and the padding of `model.KVCache`: the
    number of positions without text at the start of each, (B,). It is None if all rows are equally
    long, because the model then needs no masks.
    """
    import torch

    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(text)) + list(text) for text in texts], device=device)
    padding = torch.tensor([longest - len(text) for text in texts], device=device)
    return ids, padding if min(map(len, texts)) < longest else None
