"""Cases as token ids: the prompt, and each continuation whose probability is measured.

The ids are those of training. A text opens with one EOS, and a continuation has the ids that it has
in the complete text. A message is inserted into the template. Its answer is tokenised separately,
with the end of the turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lm.config.schema.cases import Case
from lm.documents.conversations import Turn
from lm.evaluation.scoring import split
from lm.generation.prompt import open_prompt
from lm.tokenizer.stream import continuation_text

if TYPE_CHECKING:
    from lm.documents.templates import ChatFormat
    from lm.tokenizer.tokenizer import Tokenizer

Ids = tuple[int, ...]


class Question(NamedTuple):
    """A continuation whose probability is measured.

    Attributes:
        context: the ids before it, without the opening EOS.
        continuation: its ids, at least one.
    """

    context: Ids
    continuation: Ids


class EncodedCase(NamedTuple):
    """A case in ids.

    Attributes:
        prompt: the ids of the prompt, which begin with EOS.
        targets, choices: a question for each target and each choice.
    """

    prompt: Ids
    targets: list[Question]
    choices: list[Question]


class CaseEncoder:
    """Encoder of cases for one decoder, and the rules for cases that exceed its context.

    A text that is longer than the context loses its oldest tokens. Scoring removes as few as
    possible. Generation keeps the newest half of a context, as `lm.generation.sampling.generate`
    does. A message is never cut, because a template needs its beginning.

    Args:
        chat: the template of messages; None for text.
        context: the number of tokens that the decoder reads at once.

    Attributes:
        stop_ids: the ids that end a continuation.
    """

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat | None, context: int):
        self.tokenizer, self.chat, self.context = tokenizer, chat, context
        self.stop_ids = chat.stop_ids if chat is not None else frozenset({tokenizer.eos_id})

    def encode(self, case: Case) -> EncodedCase:
        """Return a case's ids.

        All choices continue the same context, so that their probabilities are comparable. If the
        first token of one choice reaches back into the prompt, the context of all is shorter than
        the prompt.
        """
        if self.chat is not None:
            prompt = self.chat.prompt([Turn("user", case.prompt)])
            targets, choices = (
                [Question(tuple(prompt[1:]), tuple(self.chat.answer(text))) for text in texts]
                for texts in (case.targets, case.choices)
            )
            return EncodedCase(tuple(prompt), targets, choices)
        target_splits, choice_splits = (
            [split(self.tokenizer, case.prompt, text) for text in texts]
            for texts in (case.targets, case.choices)
        )
        border = min((len(context) for context, _ in choice_splits), default=0)
        return EncodedCase(
            tuple(open_prompt(self.tokenizer, case.prompt)),
            [Question(tuple(context), tuple(target)) for context, target in target_splits],
            [
                Question(tuple(context[:border]), (*context[border:], *continuation))
                for context, continuation in choice_splits
            ],
        )

    def can_score(self, question: Question) -> bool:
        """Return whether a continuation, with the message before it, fits the context."""
        return (
            len(question.continuation) + (len(question.context) if self.chat is not None else 0)
            <= self.context
        )

    def can_continue(self, prompt: Ids) -> bool:
        """Return whether the context has room for a token after a prompt."""
        return self.chat is None or len(prompt) < self.context

    def cuts(self, case: EncodedCase) -> bool:
        """Return whether a prompt loses tokens when it is continued or scored."""
        rows = [
            case.prompt,
            *(
                (0, *context, *continuation[:-1])
                for context, continuation in (*case.targets, *case.choices)
            ),
        ]
        return self.chat is None and max(map(len, rows)) > self.context

    def text(self, prompt: Ids, ids: Ids) -> str:
        """Return the text of a continuation's ids. An answer has no white space around it."""
        text = continuation_text(self.tokenizer, prompt, ids)
        return text if self.chat is None else self.chat.answer_text(text).strip()
