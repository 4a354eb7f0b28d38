"""The keys that all sources of text share: files and filter."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictBool

from lm.config.schema.section import PathText, Section

Text = Annotated[str, Field(min_length=1)]
SomeTexts = Annotated[list[Text], Field(min_length=1)]
# One text is a list of one.
OneOrMore = Annotated[
    SomeTexts,
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=Text | SomeTexts,
    ),
]
# with or without wildcards
Files = Annotated[
    list[PathText],
    Field(min_length=1),
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=PathText | SomeTexts,
    ),
]
FORMAT = "The format of the text."
FILES = "A path, a glob, or a list of them; gzip is decompressed."


class Filter(Section):
    """Which documents of a source are dropped. The log counts them."""

    max_documents: int | None = Field(
        None, ge=1, description="Take only the first so many documents. null: all."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Take documents until they have this many tokens. null: all."
    )
    min_length: int = Field(0, ge=0, description="Drop documents with fewer characters.")
    ascii_only: StrictBool = Field(False, description="Remove every character beyond ASCII.")
    deduplicate: StrictBool = Field(
        False, description="Drop documents whose exact text occurred before."
    )


def filter_field() -> Any:
    """Return the key `filter` of a source."""
    return Field(
        default_factory=Filter, description="Which documents are dropped. The log counts them."
    )


def text_key_field() -> Any:
    """Return the key `text_key` of a source whose documents are records."""
    return Field("text", min_length=1, description="The key or column that holds the text.")
