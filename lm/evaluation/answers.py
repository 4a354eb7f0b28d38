"""Answers to held-out conversations: the text that a decoder writes, the likelihood of the
references, and its choice among given answers.

Prompts of similar lengths share a batch. That changes the time and none of the numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from lm.config.schema.finetune import FinetuneConfig
from lm.documents.conversations import Conversation
from lm.documents.templates import LEARNED, ChatFormat, Encoded
from lm.evaluation.examples import evenly
from lm.evaluation.scoring import ROWS, Row, batches, score
from lm.generation.sampling import Sampling, generate, left_padded
from lm.optim.modes import evaluating
from lm.tokenizer.stream import continuation_text

if TYPE_CHECKING:
    from torch import Tensor

    from lm.tokenizer.tokenizer import Tokenizer
    from model import Decoder, KVCache

Item = TypeVar("Item")


class Answer(NamedTuple):
    """The text that a decoder wrote.

    Attributes:
        text: without white space around it.
        tokens: how many it has, without the end of turn.
        ended: whether the decoder ended it itself.
    """

    text: str
    tokens: int
    ended: bool


class Written(NamedTuple):
    """The ids after a prompt, without the stop id, and whether there was one."""

    ids: tuple[int, ...]
    ended: bool


class Loss(NamedTuple):
    """The loss of one sequence: the sum over its labels in nats, and their number."""

    nats: float
    tokens: int


@dataclass(frozen=True)
class Measured:
    """A decoder's results on held-out conversations. Each list has one element for each
    conversation, None where nothing was measured.

    Attributes:
        context: the decoder's context length.
        no_room: the number of prompts that fill the context and leave no room for an answer.
        answers: its answers, to `finetune.report_prompts` of the conversations.
        losses: the loss of the labels. None: the conversation is longer than the context.
        rejected: the loss with the rejected answer, for preferences.
        choices: the most likely of `finetune.choices`, if one of them is the reference and there is
            room.
    """

    context: int
    no_room: int
    answers: list[Answer | None]
    losses: list[Loss | None]
    rejected: list[Loss | None]
    choices: list[str | None]


def measure_answers(
    decoder: Decoder,
    chat: ChatFormat,
    conversations: Sequence[Conversation],
    finetune: FinetuneConfig,
    rows: int = ROWS,
) -> Measured:
    """Measure everything that `Measured` holds; the decoder's mode is restored. In a conversation
    of several turns the last answer is asked for.

    Raises:
        NonFiniteError: the decoder's logits are NaN or infinite.
    """
    import torch

    context = decoder.config.context_length
    prompts = [chat.prompt(conversation.prompt) for conversation in conversations]
    room = [i for i, prompt in enumerate(prompts) if len(prompt) < context]
    answered = evenly(room, finetune.report_prompts)
    choices = [chat.answer(choice) for choice in finetune.choices]
    last_token = max(map(len, choices), default=0) - 1
    choosing = [
        i
        for i in room
        if conversations[i].answer.strip() in finetune.choices
        and len(prompts[i]) + last_token <= context
    ]
    pairs = [i for i, conversation in enumerate(conversations) if conversation.rejected is not None]
    preferred = [chat.encode(Conversation(conversation.turns)) for conversation in conversations]
    rejected = [chat.encode(with_rejected(conversations[i])) for i in pairs]
    with evaluating(decoder), torch.no_grad():
        answers = answer(
            decoder, chat, [prompts[i] for i in answered], finetune.report_tokens, rows
        )
        losses = losses_of(decoder, chat, preferred, rows)
        rejected_losses = losses_of(decoder, chat, rejected, rows)
        chosen = choose(decoder, [prompts[i] for i in choosing], choices, rows)
    count = len(prompts)
    return Measured(
        context=context,
        no_room=count - len(room),
        answers=_placed(answered, answers, count),
        losses=losses,
        rejected=_placed(pairs, rejected_losses, count),
        choices=_placed(choosing, [finetune.choices[best] for best in chosen], count),
    )


def answer(
    decoder: Decoder,
    chat: ChatFormat,
    prompts: Sequence[Sequence[int]],
    most_tokens: int,
    rows: int = ROWS,
) -> list[Answer]:
    """Answer each prompt greedily, up to the end of the turn or `most_tokens` tokens."""
    written = write_greedily(decoder, chat.tokenizer, prompts, most_tokens, chat.stop_ids, rows)
    return [
        Answer(
            chat.answer_text(continuation_text(chat.tokenizer, prompt, ids)).strip(),
            len(ids),
            ended,
        )
        for prompt, (ids, ended) in zip(prompts, written, strict=True)
    ]


def write_greedily(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    most_tokens: int,
    stop_ids: Collection[int],
    rows: int = ROWS,
) -> list[Written]:
    """Continue each prompt, given as ids, greedily, up to one of `stop_ids` or `most_tokens`
    tokens.
    """
    import torch

    generator = torch.Generator(next(decoder.parameters()).device)
    greedy, vocab_size = Sampling(temperature=0), tokenizer.vocab_size
    drawn: list[list[int]] = [[] for _ in prompts]
    for batch in batches(prompts, rows):
        texts = [prompts[i] for i in batch]
        for tokens in generate(
            decoder, texts, greedy, most_tokens, stop_ids, generator, vocab_size
        ):
            for i, token in zip(batch, tokens, strict=True):
                drawn[i] += [token] if token is not None else []
    return [
        Written(tuple(ids[:-1]), True) if ids[-1] in stop_ids else Written(tuple(ids), False)
        for ids in drawn
    ]


def losses_of(
    decoder: Decoder, chat: ChatFormat, sequences: Sequence[Encoded], rows: int = ROWS
) -> list[Loss | None]:
    """Return the loss of each sequence's labels, every token read in its true place; None if the
    sequence is longer than the context.
    """
    from lm.optim.loss import IGNORE_INDEX

    context, eos_id = decoder.config.context_length, chat.tokenizer.eos_id
    fitting = [i for i, sequence in enumerate(sequences) if len(sequence.ids) <= context]
    scored = []
    for i in fitting:
        # int64 before IGNORE_INDEX comes in: in the ids' own type it would be some id
        ids, flags = sequences[i].ids.astype(np.int64), sequences[i].flags
        assert flags is not None
        labels = np.where(flags & LEARNED, ids, IGNORE_INDEX)
        scored.append(Row(np.concatenate([[eos_id], ids[:-1]]), labels))
    losses = [
        Loss(float(scores.nats.sum()), len(scores.nats)) for scores in score(decoder, scored, rows)
    ]
    return _placed(fitting, losses, len(sequences))


def choose(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    rows: int = ROWS,
) -> list[int]:
    """Return the index of the answer that is most likely after each prompt. Answers are ids with
    their end of turn.

    The prompt is read once; each answer is then read after it and removed from the cache again.
    Likelihoods are not divided by an answer's length: with its end an answer is a complete event,
    and the probabilities of all answers add up to one.
    """
    import torch

    chosen = [0] * len(prompts)
    for batch in batches(prompts, rows):
        ids, padding = left_padded([prompts[i] for i in batch], next(decoder.parameters()).device)
        cache = decoder.new_cache(len(batch), ids.shape[1] + max(map(len, answers)) - 1)
        cache.padding = padding
        after_prompt = _log_probabilities(decoder, ids, cache)
        likelihoods = []
        for tokens in answers:
            cache.length = ids.shape[1]
            following, likelihood = after_prompt, after_prompt[:, tokens[0]]
            for read, token in itertools.pairwise(tokens):
                following = _log_probabilities(decoder, torch.full_like(ids[:, :1], read), cache)
                likelihood = likelihood + following[:, token]
            likelihoods.append(likelihood)
        best = torch.stack(likelihoods, dim=1).argmax(dim=1).tolist()
        for i, number in zip(batch, best, strict=True):
            chosen[i] = number
    return chosen


def with_rejected(conversation: Conversation) -> Conversation:
    """Return a preference's conversation with the rejected answer."""
    assert conversation.rejected is not None
    return Conversation(
        (*conversation.prompt, conversation.turns[-1]._replace(content=conversation.rejected))
    )


def _log_probabilities(decoder: Decoder, ids: Tensor, cache: KVCache) -> Tensor:
    """Return the log-probabilities of the token after the last, (B, V)."""
    return decoder.forward(ids, cache=cache)[:, -1].float().log_softmax(dim=-1)


def _placed(indices: Sequence[int], values: Sequence[Item | None], count: int) -> list[Item | None]:
    by_index = dict(zip(indices, values, strict=True))
    return [by_index.get(i) for i in range(count)]
