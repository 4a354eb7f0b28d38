"""Files of cases: prompts, and what a checkpoint should say next. `lm.ranking.cases` reads them,
and says what is wrong beyond types.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool

from lm.config.schema.files_and_filter import OneOrMore, Text
from lm.config.schema.section import Section

MOST_CASES = 10_000


class Case(Section):
    """One prompt and what counts as right after it: at least one of `target`, `contains` and
    `regex`.
    """

    prompt: str = Field(
        "",
        description=(
            'What comes first; in a chat the user\'s message. "": the target begins a text.'
        ),
    )
    target: OneOrMore | None = Field(
        None,
        description=(
            "What should follow the prompt, with the space before it; in a chat the whole answer."
            " Of several, each is right."
        ),
    )
    choices: list[Text] = Field(
        default_factory=list,
        min_length=2,
        description="What to choose among, one target and at least one wrong continuation.",
    )
    contains: OneOrMore | None = Field(
        None,
        description="The continuation should have this in it, letter for letter; of several, one.",
    )
    regex: Text | None = Field(
        None, description="A Python regular expression that should be found in the continuation."
    )
    weight: float = Field(
        1.0, gt=0, description="How much the case counts in the averages of its file."
    )
    tags: list[Text] = Field(
        default_factory=list,
        min_length=1,
        description="What the case is about; results are shown for each tag too.",
    )

    @property
    def targets(self) -> tuple[str, ...]:
        """The accepted continuations; none where the case asks by `contains` or `regex` alone."""
        return tuple(self.target or ())


class CaseFile(Section):
    """A file of cases."""

    about: Text = Field(description="What the cases measure, in a sentence or two.")
    chat: StrictBool = Field(
        False,
        description=(
            "Prompts are a user's messages, and the checkpoint answers in its own template."
        ),
    )
    max_new_tokens: int = Field(
        32, ge=1, le=4096, description="At most this many tokens are written after each prompt."
    )
    cases: Annotated[list[Case], Field(min_length=1, max_length=MOST_CASES)] = Field(
        description="The cases, in any order."
    )
