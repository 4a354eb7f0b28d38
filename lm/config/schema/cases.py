"""Files of cases: prompts and the continuations that count as right.

`lm.ranking.cases` reads them and checks the rules between keys.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool

from lm.config.schema.files_and_filter import OneOrMore, Text
from lm.config.schema.section import Section

MOST_CASES = 10_000


class Case(Section):
    """One prompt and its right answers: at least one of `target`, `contains` and `regex`."""

    prompt: str = Field(
        "",
        description=(
            'The text to continue; in a chat the user\'s message. "": the target begins a text.'
        ),
    )
    target: OneOrMore | None = Field(
        None,
        description=(
            "The right continuation, with the space before it; in a chat the full answer. With"
            " several, any of them is right."
        ),
    )
    choices: list[Text] = Field(
        default_factory=list,
        min_length=2,
        description="Continuations to choose from: one target and at least one wrong one.",
    )
    contains: OneOrMore | None = Field(
        None,
        description="Text that the continuation must contain exactly; with several, any of them.",
    )
    regex: Text | None = Field(
        None, description="A Python regular expression that the continuation must match somewhere."
    )
    weight: float = Field(1.0, gt=0, description="The case's weight in the averages of its file.")
    tags: list[Text] = Field(
        default_factory=list,
        min_length=1,
        description="Topics of the case; results are shown for each tag too.",
    )

    @property
    def targets(self) -> tuple[str, ...]:
        """The accepted continuations; none if the case has only `contains` or `regex`."""
        return tuple(self.target or ())


class CaseFile(Section):
    """A file of cases."""

    about: Text = Field(description="What the cases measure, in one or two sentences.")
    chat: StrictBool = Field(
        False,
        description=("Prompts are messages of a user; the checkpoint answers in its own template."),
    )
    max_new_tokens: int = Field(
        32, ge=1, le=4096, description="The largest number of tokens generated after each prompt."
    )
    cases: Annotated[list[Case], Field(min_length=1, max_length=MOST_CASES)] = Field(
        description="The cases, in any order."
    )
