"""What all sources of text have in common: files, and what may be left out."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictBool

from lm.config.schema.section import Section

Text = Annotated[str, Field(min_length=1)]
SomeTexts = Annotated[list[Text], Field(min_length=1)]
# A lone text is a list of one.
OneOrMore = Annotated[
    SomeTexts,
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=Text | SomeTexts,
    ),
]
Files = OneOrMore  # with or without wildcards
FORMAT = "What the text is stored as."
FILES = "A path, a glob, or a list of them; what gzip has packed is unpacked."


class Filter(Section):
    """What a source leaves out. It is counted and said."""

    max_documents: int | None = Field(
        None, ge=1, description="Take this many documents, the first ones. null: all."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Take documents until they hold this many tokens. null: all."
    )
    min_length: int = Field(0, ge=0, description="Leave out documents of fewer characters.")
    ascii_only: StrictBool = Field(False, description="Remove every character beyond ASCII.")
    deduplicate: StrictBool = Field(
        False, description="Leave out documents whose text was there before, to the letter."
    )


def filter_field() -> Any:
    """The key `filter`, which every source has."""
    return Field(default_factory=Filter, description="What is left out. It is counted and said.")
