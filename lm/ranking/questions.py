"""A case as a decoder reads it: the ids of its prompt, and of each continuation whose probability
is asked for.

They are put together as in training. A text opens with one EOS, and a continuation has the ids that
it has in the whole text. A message is put into the template, and its answer is tokenised apart,
with the end of the turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lm.config.schema.cases import Case
from lm.documents.conversations import Turn
from lm.evaluation.scoring import split
from lm.generation.prompt import open_prompt
from lm.tokenizer.stream import text_behind

if TYPE_CHECKING:
    from lm.documents.templates import ChatFormat
    from lm.tokenizer.tokenizer import Tokenizer

Ids = tuple[int, ...]


class Question(NamedTuple):
    """How likely a continuation is.

    Attributes:
        context: what comes before it, without the EOS that opens it.
        continuation: one token at least.
    """

    context: Ids
    continuation: Ids


class Asked(NamedTuple):
    """A case in ids.

    Attributes:
        prompt: what is to be continued, EOS first.
        targets, choices: a question for each.
    """

    prompt: Ids
    targets: list[Question]
    choices: list[Question]


class Asking:
    """How cases are put to a decoder.

    A text that is longer than the context loses its oldest tokens: where a continuation is scored
    as few as can be, and where one is written all but the newest half of a context, as
    `lm.generation.sampling.generate` has it. A message is never cut, for a template without its
    beginning is none.

    Args:
        chat: the template, of messages; None for text.
        context: tokens that the decoder reads at once.

    Attributes:
        stop_ids: what ends a continuation.
    """

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat | None, context: int):
        self.tokenizer, self.chat, self.context = tokenizer, chat, context
        self.stop_ids = chat.stop_ids if chat is not None else frozenset({tokenizer.eos_id})

    def of(self, case: Case) -> Asked:
        """A case's ids.

        The choices continue one and the same context, or their probabilities could not be compared.
        Where a token of one of them reaches back into the prompt, that context is shorter than the
        prompt, for all.
        """
        if self.chat is not None:
            prompt = self.chat.prompt([Turn("user", case.prompt)])
            of_targets, of_choices = (
                [Question(tuple(prompt[1:]), tuple(self.chat.answer(text))) for text in texts]
                for texts in (case.targets, case.choices)
            )
            return Asked(tuple(prompt), of_targets, of_choices)
        targets, choices = (
            [split(self.tokenizer, case.prompt, text) for text in texts]
            for texts in (case.targets, case.choices)
        )
        border = min((len(context) for context, _ in choices), default=0)
        return Asked(
            tuple(open_prompt(self.tokenizer, case.prompt)),
            [Question(tuple(context), tuple(continuation)) for context, continuation in targets],
            [
                Question(tuple(context[:border]), (*context[border:], *continuation))
                for context, continuation in choices
            ],
        )

    def can_score(self, question: Question) -> bool:
        """Whether all labels fit the context, and behind a message the message too."""
        return (
            len(question.continuation) + (len(question.context) if self.chat is not None else 0)
            <= self.context
        )

    def can_continue(self, prompt: Ids) -> bool:
        """Whether there is room for a token behind a prompt."""
        return self.chat is None or len(prompt) < self.context

    def cuts(self, asked: Asked) -> bool:
        """Whether a prompt loses tokens where it is continued or scored."""
        rows = [
            asked.prompt,
            *(
                (0, *context, *continuation[:-1])
                for context, continuation in (*asked.targets, *asked.choices)
            ),
        ]
        return self.chat is None and max(map(len, rows)) > self.context

    def text(self, prompt: Ids, ids: Ids) -> str:
        """What was written behind a prompt; of an answer what is said, without white space around
        it.
        """
        text = text_behind(self.tokenizer, prompt, ids)
        return text if self.chat is None else self.chat.said(text).strip()
