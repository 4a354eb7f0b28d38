"""The keys that all sources of text share: files and filter."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool

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
FILES = "A path, a glob, or a list of them; gzip, bzip2, xz and zstd are decompressed."


def _encoding(name: str | None) -> str | None:
    """Return the name of an encoding of text; None for UTF-8, which needs no name."""
    if name is None:
        return None
    try:
        codec = codecs.lookup(name)
    except (LookupError, ValueError):
        codec = None
    # Only encodings of the world's texts: no compression, no escapes of a programming language.
    if codec is None or not codec._is_text_encoding or codec.name in _NO_TEXT:
        raise ValueError(
            "there is no such encoding; write one that Python knows, such as cp1252, latin-1,"
            " utf-16, cp1251, gb18030, shift_jis or euc_kr"
        )
    return None if codec.name in ("utf-8", "utf-8-sig", "ascii") else codec.name


_NO_TEXT = ("idna", "mbcs", "oem", "punycode", "raw-unicode-escape", "undefined", "unicode-escape")
Encoding = Annotated[str | None, AfterValidator(_encoding)]


def check_escape(delimiter: str, escape: str | None) -> None:
    """Raise ValueError if one character should both part columns and make the next one ordinary."""
    if escape is not None and escape == delimiter:
        raise ValueError(f"delimiter and escape are both {escape!r}; write two characters")


def _separator(text: Any) -> Any:
    """Return the tab that people write as two characters."""
    return "\t" if text == "\\t" else text


def _what_can_part(character: str | None) -> str | None:
    if character is not None and character in '"\r\n':
        raise ValueError(
            "a quote or a line end has another meaning in CSV; write another character"
        )
    return character


Escape = Annotated[str, Field(min_length=1, max_length=1), AfterValidator(_what_can_part)]
Separator = Annotated[Escape, BeforeValidator(_separator)]
Quoting = Literal["minimal", "none"]


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


def dataset_config_field() -> Any:
    """Return the key `config` of a source that may be a dataset of the hub."""
    return Field(None, description="The dataset's configuration, if it has several.")


def dataset_split_field() -> Any:
    """Return the key `dataset_split` of a source that may be a dataset of the hub."""
    return Field("train", min_length=1, description="The split of the dataset to read.")


def revision_field() -> Any:
    """Return the key `revision` of a source that may be a dataset of the hub."""
    return Field(
        None,
        description="The dataset's commit or branch. null: the newest when the tokens are made.",
    )


def text_key_field() -> Any:
    """Return the key `text_key` of a source whose documents are records."""
    return Field("text", min_length=1, description="The key or column that holds the text.")


def encoding_field() -> Any:
    """Return the key `encoding` of a source of text."""
    return Field(
        None,
        description="The text's encoding, by Python's name: cp1252, utf-16, gb18030. null: UTF-8.",
    )


def delimiter_field() -> Any:
    """Return the key `delimiter` of a source of CSV."""
    return Field(
        ",",
        description=(
            'The character between columns; a tab is "\\t". A comma means a tab in a file .tsv.'
        ),
    )


def quoting_field() -> Any:
    """Return the key `quoting` of a source of CSV."""
    return Field(
        None,
        description=(
            "minimal: a field in quotes may hold separators and line ends. none: quotes are"
            " ordinary characters. null: minimal, but a quote that takes in whole rows is refused."
        ),
    )


def escape_field() -> Any:
    """Return the key `escape` of a source of CSV."""
    return Field(
        None,
        description="The character that makes the next one ordinary, such as a backslash.",
    )


def names_field() -> Any:
    """Return the key `names` of a source of CSV."""
    return Field(None, description="The columns' names. null: the file's first line has them.")
