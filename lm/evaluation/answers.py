"""How a decoder answers held-out conversations: what it writes, how likely it finds the references,
which of some answers it chooses.

Prompts of like lengths are read together, which changes the time and none of the numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from lm.config.schema.finetune import FinetuneConfig
from lm.documents.conversations import Conversation
from lm.documents.templates import LEARNED, ChatFormat, Encoded
from lm.evaluation import scoring
from lm.evaluation.scoring import ROWS, Row, batches
from lm.generation.sampling import Sampling, generate, left_padded
from lm.tokenizer.stream import text_behind

if TYPE_CHECKING:
    from torch import Tensor

    from lm.tokenizer.tokenizer import Tokenizer

Item = TypeVar("Item")


class Answer(NamedTuple):
    """What was written.

    Attributes:
        text: without white space around it.
        tokens: how many it has, the end not counted.
        ended: it ended by itself.
    """

    text: str
    tokens: int
    ended: bool


class Written(NamedTuple):
    """The ids that stand behind a prompt, without what ended them, and whether something did."""

    ids: tuple[int, ...]
    ended: bool


class Loss(NamedTuple):
    """Of one sequence: the sum over its labels, in nats, and how many they are."""

    nats: float
    tokens: int


@dataclass(frozen=True)
class Measured:
    """What one decoder does with held-out conversations: a place for each of them in every list,
    None where it was not asked.

    Attributes:
        context: of the decoder.
        no_room: prompts that fill it, so that there is no place for an answer.
        answers: what it writes, of as many conversations as were to be answered.
        losses: of what there is to learn in the conversation. None: it is longer than the context.
        rejected: the same with the rejected answer, of preferences.
        choices: which of `finetune.choices` it finds the most likely, where one of them is the
            reference and there is room.
    """

    context: int
    no_room: int
    answers: list[Answer | None]
    losses: list[Loss | None]
    rejected: list[Loss | None]
    choices: list[str | None]


def measure(
    decoder: Any,
    chat: ChatFormat,
    conversations: Sequence[Conversation],
    finetune: FinetuneConfig,
    rows: int = ROWS,
) -> Measured:
    """Ask a decoder everything that `Measured` holds; it is left in the mode it came in. Of several
    turns the last answer is asked for.

    Raises:
        NonFiniteError: its answers are NaN or infinite.
    """
    import torch

    decoder = getattr(decoder, "_orig_mod", decoder)  # compiled, each length would be a new graph
    context, training = decoder.config.context_length, decoder.training
    prompts = [chat.prompt(conversation.prompt) for conversation in conversations]
    room = [i for i, prompt in enumerate(prompts) if len(prompt) < context]
    asked = evenly(room, finetune.report_prompts)
    wanted = [chat.answer(choice) for choice in finetune.choices]
    last_token = max(map(len, wanted), default=0) - 1
    choosing = [
        i
        for i in room
        if conversations[i].answer.strip() in finetune.choices
        and len(prompts[i]) + last_token <= context
    ]
    pairs = [i for i, conversation in enumerate(conversations) if conversation.rejected is not None]
    decoder.eval()
    try:
        with torch.no_grad():
            answers = answer(
                decoder, chat, [prompts[i] for i in asked], finetune.report_tokens, rows
            )
            losses = score(
                decoder,
                chat,
                [chat.encode(Conversation(each.turns)) for each in conversations],
                rows,
            )
            rejected = score(
                decoder, chat, [chat.encode(with_rejected(conversations[i])) for i in pairs], rows
            )
            chosen = [
                finetune.choices[best]
                for best in choose(decoder, [prompts[i] for i in choosing], wanted, rows)
            ]
    finally:
        decoder.train(training)
    places = len(prompts)
    return Measured(
        context=context,
        no_room=places - len(room),
        answers=_placed(asked, answers, places),
        losses=losses,
        rejected=_placed(pairs, rejected, places),
        choices=_placed(choosing, chosen, places),
    )


def answer(
    decoder: Any,
    chat: ChatFormat,
    prompts: Sequence[Sequence[int]],
    most_tokens: int,
    rows: int = ROWS,
) -> list[Answer]:
    """Continue each prompt with the most likely tokens, to the end of the turn or so many tokens."""
    written = write_greedily(decoder, chat.tokenizer, prompts, most_tokens, chat.stop_ids, rows)
    return [
        Answer(chat.answer_text(text_behind(chat.tokenizer, prompt, ids)).strip(), len(ids), ended)
        for prompt, (ids, ended) in zip(prompts, written, strict=True)
    ]


def write_greedily(
    decoder: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    most_tokens: int,
    stop_ids: Collection[int],
    rows: int = ROWS,
) -> list[Written]:
    """The most likely tokens behind each prompt, given as ids, up to one of `stop_ids` or so many
    tokens.
    """
    import torch

    generator = torch.Generator(next(decoder.parameters()).device)
    drawn: list[list[int]] = [[] for _ in prompts]
    for batch in batches(prompts, rows):
        texts = [prompts[i] for i in batch]
        for tokens in generate(
            decoder,
            texts,
            Sampling(temperature=0),
            most_tokens,
            stop_ids,
            generator,
            tokenizer.vocab_size,
        ):
            for i, token in zip(batch, tokens, strict=True):
                drawn[i] += [token] if token is not None else []
    return [
        Written(tuple(ids[:-1]), True) if ids[-1] in stop_ids else Written(tuple(ids), False)
        for ids in drawn
    ]


def score(
    decoder: Any, chat: ChatFormat, sequences: Sequence[Encoded], rows: int = ROWS
) -> list[Loss | None]:
    """The loss of each sequence's labels, every token read in its true place; None where the
    sequence is longer than the context.
    """
    from lm.optim.loss import IGNORE_INDEX

    fitting = [
        i
        for i, sequence in enumerate(sequences)
        if len(sequence.ids) <= decoder.config.context_length
    ]
    asked = []
    for i in fitting:
        # in their own type IGNORE_INDEX would be some id
        ids, flags = sequences[i].ids.astype(np.int64), sequences[i].flags
        assert flags is not None
        # Behind the EOS that opens it.
        asked.append(
            Row(
                np.concatenate([[chat.tokenizer.eos_id], ids[:-1]]),
                np.where(flags & LEARNED, ids, IGNORE_INDEX),
            )
        )
    losses = [
        Loss(float(scores.nats.sum()), len(scores.nats))
        for scores in scoring.score(decoder, asked, rows)
    ]
    return _placed(fitting, losses, len(sequences))


def choose(
    decoder: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    rows: int = ROWS,
) -> list[int]:
    """Which of the answers, given as ids with their ends, each prompt makes the most likely.

    The prompt is read once; each answer is then read behind it and taken out of the cache again.
    Nothing is divided by an answer's length: with its end it is a whole event, and the
    probabilities of all answers add up to one.
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
        for i, best in zip(
            batch, torch.stack(likelihoods, dim=1).argmax(dim=1).tolist(), strict=True
        ):
            chosen[i] = best
    return chosen


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, in their order and from all parts of them."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def with_rejected(conversation: Conversation) -> Conversation:
    """A preference's conversation as it goes with the answer that people liked less."""
    assert conversation.rejected is not None
    return Conversation(
        (*conversation.prompt, conversation.turns[-1]._replace(content=conversation.rejected))
    )


def _log_probabilities(decoder: Any, ids: Tensor, cache: Any) -> Tensor:
    """Of the token after the last, (B, V)."""
    return decoder.forward(ids, cache=cache)[:, -1].float().log_softmax(dim=-1)


def _placed(
    numbers: Sequence[int], values: Sequence[Item | None], places: int
) -> list[Item | None]:
    found = dict(zip(numbers, values, strict=True))
    return [found.get(i) for i in range(places)]
